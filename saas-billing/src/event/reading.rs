//! From `data.object` and `data.previous_attributes` to a typed snapshot.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use super::{
    Content, Envelope,
    table::{Decision, decision},
};
use crate::{
    merge::{Origin, Snapshot},
    object::{
        Charge, CheckoutSession, CheckoutStatus, CreditNote, Customer, Dispute, Invoice, ObjectId, ObjectKind, Refund,
        Subscription, Text, Unreadable,
    },
};

/// A snapshot of one of the kinds that are merged.
#[derive(Debug, Clone, PartialEq)]
pub enum AnySnapshot {
    /// Of a payer.
    Customer(Snapshot<Customer>),
    /// Of a visit to the payment page.
    CheckoutSession(Snapshot<CheckoutSession>),
    /// Of a recurring purchase.
    Subscription(Snapshot<Subscription>),
    /// Of a bill.
    Invoice(Snapshot<Invoice>),
    /// Of a payment.
    Charge(Snapshot<Charge>),
    /// Of money given back.
    Refund(Snapshot<Refund>),
    /// Of a payment that is wanted back.
    Dispute(Snapshot<Dispute>),
    /// Of what an invoice was too much.
    CreditNote(Snapshot<CreditNote>),
}

impl AnySnapshot {
    /// What it is a snapshot of.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Customer(_) => ObjectKind::Customer,
            Self::CheckoutSession(_) => ObjectKind::CheckoutSession,
            Self::Subscription(_) => ObjectKind::Subscription,
            Self::Invoice(_) => ObjectKind::Invoice,
            Self::Charge(_) => ObjectKind::Charge,
            Self::Refund(_) => ObjectKind::Refund,
            Self::Dispute(_) => ObjectKind::Dispute,
            Self::CreditNote(_) => ObjectKind::CreditNote,
        }
    }

    /// The object's id.
    #[must_use]
    pub const fn id(&self) -> &ObjectId {
        match self {
            Self::Customer(snapshot) => &snapshot.value.id,
            Self::CheckoutSession(snapshot) => &snapshot.value.id,
            Self::Subscription(snapshot) => &snapshot.value.id,
            Self::Invoice(snapshot) => &snapshot.value.id,
            Self::Charge(snapshot) => &snapshot.value.id,
            Self::Refund(snapshot) => &snapshot.value.id,
            Self::Dispute(snapshot) => &snapshot.value.id,
            Self::CreditNote(snapshot) => &snapshot.value.id,
        }
    }

    /// Whether it says that what a tenant asked for is over: a page that can no longer be paid, a customer that is deleted.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Customer(snapshot) => snapshot.value.deleted,
            Self::CheckoutSession(snapshot) => {
                matches!(snapshot.value.status, CheckoutStatus::Complete | CheckoutStatus::Expired)
            }
            Self::Subscription(_)
            | Self::Invoice(_)
            | Self::Charge(_)
            | Self::Refund(_)
            | Self::Dispute(_)
            | Self::CreditNote(_) => false,
        }
    }

    /// The customer that the object says it belongs to.
    #[must_use]
    pub const fn customer(&self) -> Option<&ObjectId> {
        match self {
            Self::Customer(snapshot) => Some(&snapshot.value.id),
            Self::CheckoutSession(snapshot) => snapshot.value.customer.as_ref(),
            Self::Subscription(snapshot) => Some(&snapshot.value.customer),
            Self::Invoice(snapshot) => snapshot.value.customer.as_ref(),
            Self::Charge(snapshot) => snapshot.value.customer.as_ref(),
            Self::CreditNote(snapshot) => snapshot.value.customer.as_ref(),
            Self::Refund(_) | Self::Dispute(_) => None,
        }
    }

    /// The charge whose customer the object belongs to, where it says no more than that.
    #[must_use]
    pub const fn charge(&self) -> Option<&ObjectId> {
        match self {
            Self::Refund(snapshot) => snapshot.value.charge.as_ref(),
            Self::Dispute(snapshot) => snapshot.value.charge.as_ref(),
            Self::Customer(_)
            | Self::CheckoutSession(_)
            | Self::Subscription(_)
            | Self::Invoice(_)
            | Self::Charge(_)
            | Self::CreditNote(_) => None,
        }
    }
}

/// Reads what an event says about its object; `None` when it is about nothing that is merged.
///
/// # Errors
/// [`Unreadable`]: the object is one of ours and lacks what we cannot do without.
pub fn read_snapshot(envelope: &Envelope<'_>) -> Result<Option<AnySnapshot>, Unreadable> {
    let Content::Snapshot { object, previous } = envelope.content else { return Ok(None) };
    let event_type = envelope.event_type.as_str();
    let Decision::Merge(kind) = decision(event_type) else { return Ok(None) };
    let deleted = event_type.ends_with(".deleted");
    let origin = if event_type.ends_with(".created") { Origin::Creation } else { Origin::Change };
    let source = Source { object, previous, created: envelope.created, origin, event_type, deleted };
    match source.read(kind) {
        Ok(snapshot) => Ok(Some(snapshot)),
        // A known type with another object inside is not ours to interpret, however it is shaped.
        Err(why) if why.is_foreign() || object_of(object)? != Some(kind) => Ok(None),
        Err(why) => Err(why),
    }
}

/// Reads an object that was fetched from Stripe's API as a snapshot.
///
/// # Errors
/// [`Unreadable`], as for an event.
pub fn read_fetched(
    kind: ObjectKind,
    object: &RawValue,
    created: DateTime<Utc>,
    origin: Origin,
) -> Result<AnySnapshot, Unreadable> {
    Source { object, previous: None, created, origin, event_type: "", deleted: false }.read(kind)
}

struct Source<'a> {
    object: &'a RawValue,
    previous: Option<&'a RawValue>,
    created: DateTime<Utc>,
    origin: Origin,
    event_type: &'a str,
    deleted: bool,
}

macro_rules! snapshot {
    ($source:expr, $object:ident) => {{
        let mut json = serde_json::Deserializer::from_str($source.object.get());
        let value =
            $object::read(&mut json, $source.deleted).map_err(|why| Unreadable::json("event.data.object", &why))??;
        // What was before only helps to order equal seconds; unreadable, it is no evidence.
        let before = $source.previous.and_then(|previous| undo($source.object, previous)).and_then(|before| {
            let mut json = serde_json::Deserializer::from_str(&before);
            $object::read(&mut json, false).ok()?.ok()
        });
        Snapshot::new(value, before, $source.created, $source.origin, $source.event_type)
    }};
}

impl Source<'_> {
    fn read(self, kind: ObjectKind) -> Result<AnySnapshot, Unreadable> {
        Ok(match kind {
            ObjectKind::Customer => AnySnapshot::Customer(snapshot!(self, Customer)),
            ObjectKind::CheckoutSession => AnySnapshot::CheckoutSession(snapshot!(self, CheckoutSession)),
            ObjectKind::Subscription => AnySnapshot::Subscription(snapshot!(self, Subscription)),
            ObjectKind::Invoice => AnySnapshot::Invoice(snapshot!(self, Invoice)),
            ObjectKind::Charge => AnySnapshot::Charge(snapshot!(self, Charge)),
            ObjectKind::Refund => AnySnapshot::Refund(snapshot!(self, Refund)),
            ObjectKind::Dispute => AnySnapshot::Dispute(snapshot!(self, Dispute)),
            ObjectKind::CreditNote => AnySnapshot::CreditNote(snapshot!(self, CreditNote)),
        })
    }
}

/// The kind that the object says it is.
fn object_of(object: &RawValue) -> Result<Option<ObjectKind>, Unreadable> {
    #[derive(serde::Deserialize)]
    struct Wire<'a> {
        #[serde(borrow)]
        object: Option<Text<'a>>,
    }
    let wire: Wire<'_> =
        serde_json::from_str(object.get()).map_err(|why| Unreadable::json("event.data.object", &why))?;
    Ok(wire.object.and_then(|object| ObjectKind::from_object(object.as_str())))
}

/// The fields of an object as they stand in the payload, by name. A name with an escape is none of Stripe's.
type Fields<'a> = BTreeMap<&'a str, &'a RawValue>;

/// Hashes inside hashes that are followed; Stripe nests a handful.
const MAX_DEPTH: u8 = 16;

/// The object's text as it was before the change: `previous_attributes` laid over it. Hashes are merged key by key, since
/// Stripe names only the keys that changed; lists are whole.
fn undo(object: &RawValue, previous: &RawValue) -> Option<String> {
    let mut text = String::with_capacity(object.get().len() + previous.get().len());
    lay_over(object.get(), previous.get(), MAX_DEPTH, &mut text)?;
    Some(text)
}

fn lay_over(object: &str, previous: &str, depth: u8, text: &mut String) -> Option<()> {
    let mut fields: Fields<'_> = serde_json::from_str(object).ok()?;
    let mut hashes = Vec::new();
    for (key, old) in serde_json::from_str::<Fields<'_>>(previous).ok()? {
        match fields.get(key) {
            Some(new) if new.get().starts_with('{') && old.get().starts_with('{') => hashes.push((key, *new, old)),
            Some(_) | None => drop(fields.insert(key, old)),
        }
    }
    text.push('{');
    for (key, new, old) in hashes {
        fields.remove(key);
        open_field(key, text);
        lay_over(new.get(), old.get(), depth.checked_sub(1)?, text)?;
    }
    for (key, value) in fields {
        open_field(key, text);
        text.push_str(value.get());
    }
    text.push('}');
    Some(())
}

/// A name that was borrowed from JSON has no escape in it, and needs none.
fn open_field(key: &str, text: &mut String) {
    if !text.ends_with('{') {
        text.push(',');
    }
    text.push('"');
    text.push_str(key);
    text.push_str("\":");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn undone(object: &Value, previous: &Value) -> Value {
        let raw = |value| serde_json::value::to_raw_value(value).unwrap();
        serde_json::from_str(&undo(&raw(object), &raw(previous)).unwrap()).unwrap()
    }

    #[test]
    fn hashes_are_merged_key_by_key_and_lists_are_whole() {
        let object = json!({"a": 1, "h": {"x": 1, "y": {"z": 2}}, "l": [1, 2], "n": null, "kept": "\n\"ä\""});
        let previous = json!({"a": 0, "h": {"y": {"z": 1}}, "l": [9], "n": {"was": true}, "gone": 5});
        let expected =
            json!({"a": 0, "h": {"x": 1, "y": {"z": 1}}, "l": [9], "n": {"was": true}, "kept": "\n\"ä\"", "gone": 5});
        assert_eq!(undone(&object, &previous), expected);
        assert_eq!(undone(&object, &json!({})), object);
        assert_eq!(undone(&json!({"h": {}}), &json!({"h": {}})), json!({"h": {}}));
    }

    #[test]
    fn what_is_nested_too_deep_is_no_evidence_and_no_danger() {
        let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        let raw: &RawValue = serde_json::from_str(&deep).unwrap();
        assert_eq!(undo(raw, raw), None);
    }
}
