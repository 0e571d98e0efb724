//! The few fields around the object that decide what becomes of a delivery.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};
use serde_json::value::RawValue;

#[cfg(feature = "postgres")]
use crate::object::Reference;
use crate::object::{ObjectId, Text, Unreadable};

/// An event without its object read. Borrows the object's bytes from the body.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    /// `evt_…`
    pub id: ObjectId,
    /// Such as `customer.subscription.updated`.
    pub event_type: ObjectId,
    /// When it happened at Stripe: whole seconds for snapshot events.
    pub created: DateTime<Utc>,
    /// Whether real money is meant.
    pub livemode: bool,
    /// The connected account, for Connect events.
    pub account: Option<ObjectId>,
    /// The version of the endpoint's payloads.
    pub api_version: Option<String>,
    /// The key of the request that caused it, if that had one: how we recognise our own echo.
    pub idempotency_key: Option<String>,
    /// What it is about.
    pub content: Content<'a>,
}

/// What an event is about.
#[derive(Clone)]
pub enum Content<'a> {
    /// The object as it was after the change, and what changed.
    Snapshot {
        /// `data.object`
        object: &'a RawValue,
        /// `data.previous_attributes`
        previous: Option<&'a RawValue>,
    },
    /// A notification without content; the object must be fetched.
    Thin {
        /// `related_object`
        related: Option<RelatedObject>,
    },
}

/// Lengths, never the payload.
impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot { object, previous } => f
                .debug_struct("Snapshot")
                .field("object_bytes", &object.get().len())
                .field("previous_bytes", &previous.map(|previous| previous.get().len()))
                .finish(),
            Self::Thin { related } => f.debug_struct("Thin").field("related", related).finish(),
        }
    }
}

/// What a thin event points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelatedObject {
    /// Its id.
    pub id: ObjectId,
    /// Its type, such as `customer`.
    pub object: String,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow, rename = "type")]
    event_type: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    created: Created,
    livemode: bool,
    #[serde(borrow)]
    account: Option<Text<'a>>,
    /// Where thin events name the account.
    #[serde(borrow)]
    context: Option<Text<'a>>,
    #[serde(borrow)]
    api_version: Option<Text<'a>>,
    #[serde(borrow)]
    request: Option<WireRequest<'a>>,
    #[serde(borrow)]
    data: Option<WireData<'a>>,
    #[serde(borrow)]
    related_object: Option<WireRelated<'a>>,
}

#[derive(Deserialize)]
struct WireData<'a> {
    /// Thin events have data of other shapes.
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    previous_attributes: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireRelated<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow, rename = "type")]
    object: Text<'a>,
}

impl Envelope<'_> {
    /// Whether two bodies tell of one event in other words: Stripe's list of events prints what a delivery holds, with
    /// other spaces, other counts of deliveries that are outstanding, and in the API version of the account then.
    #[must_use]
    pub fn say_the_same(one: &[u8], other: &[u8]) -> bool {
        let (Ok(one), Ok(other)) = (Envelope::read(one), Envelope::read(other)) else { return false };
        let heads = [&one, &other].map(|event| (&event.id, &event.event_type, event.created, event.livemode));
        heads[0] == heads[1] && (one.api_version != other.api_version || one.content.says_the_same(&other.content))
    }
}

impl Content<'_> {
    /// The customer whose object it shows, where that is easily seen.
    #[cfg(feature = "postgres")]
    pub(crate) fn customer(&self) -> Option<ObjectId> {
        #[derive(Deserialize)]
        struct Owned<'a> {
            #[serde(borrow)]
            id: Option<Text<'a>>,
            #[serde(borrow)]
            object: Option<Text<'a>>,
            #[serde(borrow)]
            customer: Option<Reference<'a>>,
        }
        let Self::Snapshot { object, .. } = self else { return None };
        let owned: Owned<'_> = serde_json::from_str(object.get()).ok()?;
        let is_customer = owned.object.is_some_and(|object| object.as_str() == "customer");
        let customer = if is_customer { owned.id? } else { owned.customer?.0 };
        customer.id("customer").ok()
    }

    fn says_the_same(&self, other: &Content<'_>) -> bool {
        let value = |json: &RawValue| serde_json::from_str::<serde_json::Value>(json.get()).ok();
        match (self, other) {
            (
                Self::Snapshot { object, previous },
                Content::Snapshot { object: other_object, previous: other_previous },
            ) => {
                let object = value(object);
                object.is_some()
                    && object == value(other_object)
                    && previous.and_then(value) == other_previous.and_then(value)
                    && previous.is_some() == other_previous.is_some()
            }
            (Self::Thin { related }, Content::Thin { related: other }) => related == other,
            (Self::Snapshot { .. }, Content::Thin { .. }) | (Self::Thin { .. }, Content::Snapshot { .. }) => false,
        }
    }
}

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// [`Unreadable`], with the place and without the payload's text.
    pub fn read(body: &'a [u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(body)
            .map_err(|why| Unreadable::new(format!("not UTF-8 at byte {}", why.valid_up_to())))?;
        let wire: Wire<'a> = serde_json::from_str(text).map_err(|why| Unreadable::json("event", &why))?;
        let thin = match wire.object.as_ref().map(Text::as_str) {
            Some("v2.core.event") => true,
            Some("event") => false,
            _ => return Err(Unreadable::new("event.object is neither `event` nor `v2.core.event`")),
        };
        let content = if thin {
            let related = wire.related_object.map(|related| -> Result<_, Unreadable> {
                Ok(RelatedObject { id: related.id.id("related_object.id")?, object: related.object.0.into_owned() })
            });
            Content::Thin { related: related.transpose()? }
        } else {
            let data = wire.data.ok_or_else(|| Unreadable::new("event without data"))?;
            let object = data.object.ok_or_else(|| Unreadable::new("event without data.object"))?;
            Content::Snapshot { object, previous: data.previous_attributes }
        };
        Ok(Self {
            id: wire.id.id("event.id")?,
            event_type: wire.event_type.id("event.type")?,
            created: wire.created.0,
            livemode: wire.livemode,
            account: wire.account.or(wire.context).map(|text| text.id("event.account")).transpose()?,
            api_version: wire.api_version.map(|text| text.id("event.api_version").map(String::from)).transpose()?,
            idempotency_key: wire.request.and_then(|request| request.idempotency_key).map(|key| key.0.into_owned()),
            content,
        })
    }
}

/// `request`: an object since 2017, a bare id before.
struct WireRequest<'a> {
    idempotency_key: Option<Text<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for WireRequest<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            idempotency_key: Option<Text<'a>>,
        }
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = WireRequest<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a request")
            }
            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(WireRequest { idempotency_key: None })
            }
            fn visit_map<M: serde::de::MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                let fields = Fields::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(WireRequest { idempotency_key: fields.idempotency_key })
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

/// `created`: seconds in snapshot events, RFC 3339 in thin ones.
struct Created(DateTime<Utc>);

impl<'de> Deserialize<'de> for Created {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Created;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds since 1970 or an RFC 3339 instant")
            }
            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Created, E> {
                let seconds = i64::try_from(seconds).ok().filter(|seconds| (1..MAX_SECONDS).contains(seconds));
                let instant = seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
                instant.map(Created).ok_or_else(|| E::custom("no instant"))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Created, E> {
                DateTime::parse_from_rfc3339(text).map(|at| Created(at.to_utc())).map_err(E::custom)
            }
        }
        /// The year 9999: what every database and calendar library can hold.
        const MAX_SECONDS: i64 = 253_402_300_800;
        deserializer.deserialize_any(Visit).map_err(|_| D::Error::custom("no instant"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_in_other_words_is_no_contradiction() {
        let event = |amount: u32, version: &str, waiting: u32| {
            format!(
                r#"{{"id": "evt_1", "object": "event", "type": "invoice.paid", "created": 1, "livemode": false,
                    "api_version": "{version}", "pending_webhooks": {waiting}, "data": {{"object": {{"amount": {amount}}}}}}}"#
            )
        };
        let say_the_same = |one: &str, other: &str| Envelope::say_the_same(one.as_bytes(), other.as_bytes());
        let told = event(5, "2025-01-01", 1);
        assert!(say_the_same(&told, &event(5, "2025-01-01", 0).replace(": ", ":")));
        assert!(say_the_same(&told, &event(6, "2020-01-01", 1)), "another version has other fields");
        assert!(!say_the_same(&told, &event(6, "2025-01-01", 1)));
        assert!(!say_the_same(&told, &told.replace("invoice.paid", "invoice.voided")));
        assert!(!say_the_same(&told, "{}"));
    }

    // W38
    #[test]
    fn debug_shows_no_payload() {
        let body = r#"{"id": "evt_1", "object": "event", "type": "customer.updated", "created": 1, "livemode": false,
            "data": {"object": {"email": "ada@example.com"}, "previous_attributes": {"email": "bob@example.com"}}}"#;
        let shown = format!("{:?}", Envelope::read(body.as_bytes()).unwrap());
        assert!(shown.contains("evt_1") && shown.contains("object_bytes") && !shown.contains("example.com"), "{shown}");
    }
}
