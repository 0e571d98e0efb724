//! What becomes of a delivery, decided from its envelope alone: pure.

use crate::{
    event::{Content, Envelope, announces_usage_report},
    mode::Mode,
    object::{ObjectId, ObjectKind},
};

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// A worker applies it.
    Apply,
    /// Kept, and nothing to do.
    Ignore(&'static str),
    /// Kept, and not for this endpoint.
    Quarantine(&'static str),
}

/// Decides. The type says what is meant; an object that does not fit it is for the worker to see.
pub(crate) fn decide(envelope: &Envelope<'_>, mode: Mode, account: Option<&ObjectId>) -> Disposition {
    if envelope.livemode != (mode == Mode::Live) {
        return Disposition::Quarantine(match mode {
            Mode::Live => "a test event on the live endpoint",
            Mode::Test => "a live event on the test endpoint",
        });
    }
    if envelope.account.as_ref() != account {
        return Disposition::Quarantine("an event of another account");
    }
    if matches!(envelope.content, Content::Thin { .. }) && announces_usage_report(envelope.event_type.as_str()) {
        return Disposition::Apply;
    }
    let kind = match &envelope.content {
        Content::Thin { related } => related.as_ref().and_then(|related| ObjectKind::from_object(&related.object)),
        Content::Snapshot { .. } => ObjectKind::from_event_type(envelope.event_type.as_str()),
    };
    match kind {
        Some(_) if envelope.event_type.as_str() != "invoice.upcoming" => Disposition::Apply,
        Some(_) => Disposition::Ignore("an upcoming invoice is none yet"),
        None => Disposition::Ignore("nothing hangs on this type"),
    }
}
