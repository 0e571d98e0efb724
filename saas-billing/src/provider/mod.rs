//! The port to Stripe: what is asked of it, what it answers, how it fails.
//!
//! A [`Command`] is a write and carries everything it needs, so that it can be stored before it is tried; a [`Query`] reads
//! a page of a list; [`ObjectSource`] reads one object. Answers are Stripe's JSON as it came: they go through the same
//! tolerant reading and the same merge as what webhooks bring. Two implementations: `StripeApi` (feature `stripe`) and the
//! simulator (feature `testing`); one conformance suite for both.

mod command;
#[cfg(feature = "testing")]
pub mod conformance;
mod error;
mod query;

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
pub use command::{
    Aggregation, Cancellation, Command, CustomerUpdate, ItemChange, MeterReading, NewCheckout, NewCustomer,
    NewDiscount, NewFeature, NewMeter, NewPortal, NewPrice, NewProduct, NewSubscription, OnFailedPayment, Phase,
    PostalAddress, PricedBy, Proration, SubscriptionChange, Tier, TrialPayment, WebAddress,
};
pub use error::ProviderError;
pub use query::{Listed, PageLimit, Query};
use saas_core::IdempotencyKey;
use serde_json::value::RawValue;

use crate::{
    mode::Mode,
    object::{ObjectId, ObjectKind},
};

/// Writes to Stripe and reads from it.
///
/// # Contract
/// - *One write, one key*: two calls of [`execute`](Self::execute) with the same key and command have one effect and one
///   answer, however far apart and however many at once, for as long as Stripe remembers keys (at least 24 hours). The same
///   key with another command is [`KeyReused`](ProviderError::KeyReused) and has no effect.
/// - *Honest*: an error other than [`OutcomeUnknown`](ProviderError::OutcomeUnknown) says that the write had no effect.
/// - *Bounded*: gives up by itself, also when Stripe does not answer.
/// - *Quiet*: no error, log or `Debug` output carries a key of the API, an e-mail address or a body.
#[async_trait]
pub trait PaymentProvider: ObjectSource {
    /// The mode in which it works.
    fn mode(&self) -> Mode;

    /// Does one write.
    async fn execute(&self, command: &Command, key: &IdempotencyKey) -> Result<Reply, ProviderError>;

    /// Says what a change would cost: the invoice that would follow, with its proration lines. Changes nothing.
    async fn preview(&self, change: &SubscriptionChange) -> Result<Reply, ProviderError>;

    /// Reads one page of a list, from behind `after`.
    async fn list(&self, query: &Query, after: Option<&ObjectId>, limit: PageLimit) -> Result<Listed, ProviderError>;

    /// Hands over up to [`MAX_STREAMED`] readings in one call, for rates that [`Command::ReportUsage`] is too slow for. Stripe
    /// takes them all or none; each counts once per identifier, so the same call may be repeated. What is wrong with one of them
    /// is told later, by an event.
    async fn stream(&self, readings: &[MeterReading]) -> Result<(), ProviderError>;

    /// Reads an event of the second generation whole: its delivery holds only its name.
    async fn event(&self, id: &ObjectId) -> Result<Fetched, ProviderError>;
}

/// The most readings of one [`PaymentProvider::stream`].
pub const MAX_STREAMED: usize = 100;

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
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError>;
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

/// What a write was answered with.
#[derive(Clone)]
pub struct Reply {
    /// The object that was made or changed, as it was then.
    pub object: Box<RawValue>,
    /// As for [`Fetched::Found`].
    pub as_of: Option<DateTime<Utc>>,
    /// The answer was saved from an earlier call with the same key: the object may have changed since.
    pub replayed: bool,
}

impl Reply {
    /// The id of the object.
    ///
    /// # Errors
    /// [`Unreadable`](ProviderError::Unreadable) when it has none.
    pub fn id(&self) -> Result<ObjectId, ProviderError> {
        #[derive(serde::Deserialize)]
        struct Identified {
            id: String,
        }
        let unreadable = || ProviderError::Unreadable { what: "an answer without an id" };
        let found: Identified = serde_json::from_str(self.object.get()).map_err(|_| unreadable())?;
        ObjectId::try_from(found.id).map_err(|_| unreadable())
    }

    /// The address that a person is to be sent to, of a checkout or portal session.
    ///
    /// # Errors
    /// [`Unreadable`](ProviderError::Unreadable) when there is none.
    pub fn address(&self) -> Result<WebAddress, ProviderError> {
        #[derive(serde::Deserialize)]
        struct Addressed {
            url: Option<String>,
        }
        let unreadable = || ProviderError::Unreadable { what: "a session without an address" };
        let found: Addressed = serde_json::from_str(self.object.get()).map_err(|_| unreadable())?;
        found.url.and_then(|url| WebAddress::try_from(url).ok()).ok_or_else(unreadable)
    }
}

/// Lengths, never the object.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("object_bytes", &self.object.get().len())
            .field("as_of", &self.as_of)
            .field("replayed", &self.replayed)
            .finish()
    }
}
