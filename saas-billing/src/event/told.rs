//! What an event asks for, by its type and by what is in it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use super::{
    AnySnapshot, Content, Envelope, NoticeKind, read_snapshot,
    table::{Decision, NoticeRule, Place, decision},
};
use crate::object::{ObjectId, ObjectKind, Reference, Text, Unreadable};

/// What an event asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    /// To be merged.
    Snapshot(Box<AnySnapshot>),
    /// To be read from Stripe, and why.
    Fetch { kind: ObjectKind, id: ObjectId, reason: &'static str },
    /// There is a report of usage to be read.
    UsageReport,
    /// To be shown to an operator.
    Notice(Notice),
    /// Nothing, and why.
    Nothing(&'static str),
}

/// What an operator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) kind: NoticeKind,
    /// What has changed.
    pub(crate) object: ObjectId,
    /// The customer or the charge that it concerns.
    pub(crate) about: Option<ObjectId>,
    pub(crate) created: DateTime<Utc>,
}

/// Our own commands about the catalogue have keys that begin so: their echo is no news.
const OWN_KEY: &str = "saas-";

const NO_CONTENT: &str = "an event without content";

/// Why nothing is to be done, where the type and the kind of object alone say so; `None` when the content has to be read.
pub(crate) fn nothing(envelope: &Envelope<'_>) -> Option<&'static str> {
    match (decision(type_of(envelope)), &envelope.content) {
        (_, Content::Thin { related: Some(related) }) if ObjectKind::from_object(&related.object).is_some() => None,
        (Decision::Notice(_), Content::Thin { .. } | Content::Snapshot { .. })
        | (Decision::UsageReport, Content::Thin { .. }) => None,
        (Decision::UsageReport, Content::Snapshot { .. }) => Some("a report of usage is announced without content"),
        (Decision::Ignore(why), Content::Thin { .. } | Content::Snapshot { .. }) => Some(why),
        (Decision::Merge(_) | Decision::Fetch(_), Content::Snapshot { .. }) => None,
        (Decision::Merge(_) | Decision::Fetch(_), Content::Thin { .. }) => {
            Some("a notification about nothing that is read from Stripe")
        }
    }
}

/// Reads what an event asks for.
///
/// # Errors
/// [`Unreadable`]: it is about one of our objects, and says neither what became of it nor which one it is.
pub(crate) fn read_told(envelope: &Envelope<'_>) -> Result<Told, Unreadable> {
    if let Some(why) = nothing(envelope) {
        return Ok(Told::Nothing(why));
    }
    match (decision(type_of(envelope)), &envelope.content) {
        (Decision::Notice(rule), Content::Thin { related }) => {
            let object = related.as_ref().map_or_else(|| envelope.id.clone(), |related| related.id.clone());
            Ok(notice(rule, envelope, object, None))
        }
        (Decision::UsageReport, Content::Thin { .. } | Content::Snapshot { .. }) => Ok(Told::UsageReport),
        (_, Content::Thin { related }) => Ok(related
            .as_ref()
            .and_then(|related| Some((ObjectKind::from_object(&related.object)?, related.id.clone())))
            .map_or(Told::Nothing(NO_CONTENT), |(kind, id)| Told::Fetch { kind, id, reason: NO_CONTENT })),
        (Decision::Merge(kind), Content::Snapshot { object, .. }) => match read_snapshot(envelope) {
            Ok(Some(snapshot)) => Ok(Told::Snapshot(Box::new(snapshot))),
            Ok(None) => Ok(Told::Nothing("its object is not of the kind that its type names")),
            // A version of the API that we cannot read: ours can be asked for.
            Err(why) => {
                let id = field(object, &["id"]).and_then(id_in).ok_or(why)?;
                Ok(Told::Fetch { kind, id, reason: "an event that this version cannot read" })
            }
        },
        (Decision::Fetch(places), Content::Snapshot { object, previous }) => {
            Ok(hangs_on(places, object, *previous).map_or(
                Told::Nothing("it names nothing that is read from Stripe"),
                |(kind, id)| Told::Fetch { kind, id, reason: "an event about what hangs on it" },
            ))
        }
        (Decision::Notice(rule), Content::Snapshot { object, .. }) => {
            if rule.only.is_some_and(|(name, text)| field(object, &[name]).and_then(text_in).as_deref() != Some(text)) {
                return Ok(Told::Nothing("no change that anybody has to look at"));
            }
            // An alert that has gone off has no id; what it is about comes with its event.
            let id = field(object, &["id"]).and_then(id_in).unwrap_or_else(|| envelope.id.clone());
            let about = rule.about.iter().find_map(|name| id_in(field(object, &[name])?));
            Ok(notice(rule, envelope, id, about))
        }
        (Decision::Ignore(why), Content::Snapshot { .. }) => Ok(Told::Nothing(why)),
    }
}

/// The type as the table names it: the thin events of a version 1 resource say so in front.
fn type_of<'a>(envelope: &'a Envelope<'_>) -> &'a str {
    let event_type = envelope.event_type.as_str();
    match &envelope.content {
        Content::Thin { .. } if matches!(decision(event_type), Decision::Ignore(_)) => {
            event_type.strip_prefix("v1.").unwrap_or(event_type)
        }
        Content::Thin { .. } | Content::Snapshot { .. } => event_type,
    }
}

fn notice(rule: NoticeRule, envelope: &Envelope<'_>, object: ObjectId, about: Option<ObjectId>) -> Told {
    let own = envelope.idempotency_key.as_ref().is_some_and(|key| key.starts_with(OWN_KEY));
    if own && rule.kind == NoticeKind::CatalogueChanged {
        return Told::Nothing("we have done this ourselves");
    }
    Told::Notice(Notice { kind: rule.kind, object, about, created: envelope.created })
}

fn hangs_on(places: &[Place], object: &RawValue, previous: Option<&RawValue>) -> Option<(ObjectKind, ObjectId)> {
    let named_in =
        |json: &RawValue| places.iter().find_map(|place| Some((place.kind, id_in(field(json, place.path)?)?)));
    named_in(object).or_else(|| previous.and_then(named_in))
}

/// A field of a JSON object, from the outside in.
fn field<'a>(object: &'a RawValue, path: &[&str]) -> Option<&'a RawValue> {
    path.iter().try_fold(object, |object, name| {
        serde_json::from_str::<BTreeMap<&str, &'a RawValue>>(object.get()).ok()?.remove(name)
    })
}

/// The id in a field that holds one, or the whole object that it names.
fn id_in(json: &RawValue) -> Option<ObjectId> {
    serde_json::from_str::<Reference<'_>>(json.get()).ok()?.0.id("a reference").ok()
}

fn text_in(json: &RawValue) -> Option<String> {
    serde_json::from_str::<Text<'_>>(json.get()).ok().map(|text| text.as_str().to_owned())
}
