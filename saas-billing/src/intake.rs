//! What becomes of a delivery, decided from its envelope alone: pure.

use crate::{
    event::{Envelope, nothing},
    mode::Mode,
    object::ObjectId,
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
    nothing(envelope).map_or(Disposition::Apply, Disposition::Ignore)
}
