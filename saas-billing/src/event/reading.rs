//! From `data.object` and `data.previous_attributes` to a typed snapshot.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::de::value::MapDeserializer;
use serde_json::{Value, value::RawValue};

use super::{Content, Envelope};
use crate::{
    merge::{Origin, Snapshot},
    object::{CheckoutSession, Customer, Invoice, ObjectId, ObjectKind, Subscription, Text, Unreadable},
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
        }
    }

    /// The customer that the object belongs to.
    #[must_use]
    pub const fn customer(&self) -> Option<&ObjectId> {
        match self {
            Self::Customer(snapshot) => Some(&snapshot.value.id),
            Self::CheckoutSession(snapshot) => snapshot.value.customer.as_ref(),
            Self::Subscription(snapshot) => Some(&snapshot.value.customer),
            Self::Invoice(snapshot) => snapshot.value.customer.as_ref(),
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
    let Some(kind) = ObjectKind::from_event_type(event_type) else { return Ok(None) };
    if event_type == "invoice.upcoming" {
        return Ok(None); // It has no id yet.
    }
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
        let before = $source
            .previous
            .and_then(|previous| undo($source.object, previous, |json| $object::read(json, false).ok()?.ok()));
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

/// The fields of an object as they stand in the payload, by name.
type Fields<'a> = BTreeMap<&'a str, &'a RawValue>;
/// A deserializer over such fields.
type FromFields<'a> = MapDeserializer<'a, std::vec::IntoIter<(&'a str, &'a RawValue)>, serde_json::Error>;

/// Reads the object as it was before the change: `previous_attributes` laid over it. Hashes are merged key by key, since
/// Stripe names only the keys that changed; lists are whole.
fn undo<T>(object: &RawValue, previous: &RawValue, read: impl FnOnce(FromFields<'_>) -> Option<T>) -> Option<T> {
    let mut fields: Fields<'_> = serde_json::from_str(object.get()).ok()?;
    let previous: Fields<'_> = serde_json::from_str(previous.get()).ok()?;
    let mut merged: Vec<(&str, Box<RawValue>)> = Vec::new();
    for (key, old) in previous {
        match fields.get(key) {
            Some(new) if new.get().starts_with('{') && old.get().starts_with('{') => {
                let mut target: Value = serde_json::from_str(new.get()).ok()?;
                lay_over(&mut target, serde_json::from_str(old.get()).ok()?);
                merged.push((key, serde_json::value::to_raw_value(&target).ok()?));
            }
            Some(_) | None => drop(fields.insert(key, old)),
        }
    }
    for (key, value) in &merged {
        fields.insert(key, value);
    }
    read(MapDeserializer::new(fields.into_iter().collect::<Vec<_>>().into_iter()))
}

fn lay_over(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                lay_over(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}
