//! The two ports of billing: what a web framework calls, and what reads Stripe.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use crate::{
    error::BillingError,
    object::{ObjectId, ObjectKind},
};

/// Accepts webhook deliveries.
///
/// # Contract
/// - *Durable*: `Ok` means the delivery will have its effect, whatever crashes afterwards.
/// - *Exactly once*: any number of deliveries of one event, in any order and at once, have one effect.
/// - *Lossless*: the raw bytes are stored before anything that could fail on them is tried.
/// - *Quiet*: a delivery that is rightly signed never gets an error for its content; Stripe would disable the endpoint.
#[async_trait]
pub trait WebhookProcessor: fmt::Debug + Send + Sync + 'static {
    /// Accepts one delivery: the body as it was received, and the `Stripe-Signature` header.
    ///
    /// Safe to call any number of times and concurrently with the same body. Answer 2xx for every `Ok`; 400 when
    /// [`kind`](BillingError::kind) is `Invalid`; 503 when it is `Unavailable`, so that Stripe delivers again.
    async fn process(&self, body: &[u8], signature: &str) -> Result<Accepted, BillingError>;
}

/// What became of a delivery. All of them are answered with 2xx.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accepted {
    /// Stored; it will be applied.
    Stored,
    /// Stored; nothing is to be done about this type.
    Ignored,
    /// Already there.
    Duplicate,
    /// The event's id is already there with another body. The first one counts, this one is kept for a person to see.
    Conflict,
    /// Not meant for this endpoint (other mode, other account). Kept, without effect.
    Quarantined,
    /// Rightly signed and not readable. Kept among the dead letters.
    Unreadable,
}

/// Reads objects from Stripe's API.
///
/// # Contract
/// - *Fresh*: the object is at least as new as the moment the call began.
/// - *Bounded*: gives up by itself, with a retryable error for timeouts, 429 and 5xx.
/// - *Expanded*: of a subscription, `discounts` and `items.data.discounts` are whole, down to the coupon. Events hold nothing
///   but ids there, and revenue counts at list price until the terms are known.
#[async_trait]
pub trait ObjectSource: fmt::Debug + Send + Sync + 'static {
    /// Reads one object.
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, BillingError>;
}

/// What a read of Stripe's API brought.
#[derive(Clone)]
pub enum Fetched {
    /// The object.
    Found {
        /// Its JSON.
        object: Box<RawValue>,
        /// An instant of Stripe's clock that is not later than the read; `None` where clocks cannot be compared, as for
        /// objects of a test clock.
        as_of: Option<DateTime<Utc>>,
    },
    /// Stripe does not know it.
    Missing,
}

/// Lengths, never the object.
impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { object, as_of } => {
                f.debug_struct("Found").field("object_bytes", &object.get().len()).field("as_of", as_of).finish()
            }
            Self::Missing => f.write_str("Missing"),
        }
    }
}
