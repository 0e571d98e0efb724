//! The port to a product analytics service.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{Cause, MeterKey, TenantId, UsageEventId};

use super::RetryAfter;
use crate::usage::Delivery;

/// One use, as a product analytics service is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProductEvent {
    /// Made when the use was recorded: by it a service knows that it was told before.
    pub id: UsageEventId,
    /// Whose: the group.
    pub tenant: TenantId,
    /// By which member; `None` where none was named or the name is no id.
    pub member: Option<String>,
    /// What was used.
    pub meter: MeterKey,
    /// How much of it.
    pub amount: u64,
    /// When.
    pub at: DateTime<Utc>,
}

impl ProductEvent {
    /// A use without a member.
    #[must_use]
    pub const fn new(id: UsageEventId, tenant: TenantId, meter: MeterKey, amount: u64, at: DateTime<Utc>) -> Self {
        Self { id, tenant, member: None, meter, amount, at }
    }

    /// By this member. Must be an id that says nothing to others.
    #[must_use]
    pub fn with_member(self, member: impl Into<String>) -> Self {
        Self { member: Some(member.into()), ..self }
    }
}

/// Takes product events.
///
/// # Contract
/// - *Idempotent*: an event whose `id` was taken before is [`Delivery::Taken`] and counts once, whatever it comes with.
/// - *Complete*: one answer per event, in their order. An error answers for none of them, and all of them come again.
/// - *Just*: an event is [`Delivery::Refused`] for what it is, never for what another one is, nor for the state of the service.
/// - *Discreet*: it passes on nothing but what is in the event.
#[async_trait]
pub trait AnalyticsSink: fmt::Debug + Send + Sync + 'static {
    /// Takes some events. No events are no request.
    async fn take(&self, events: &[ProductEvent]) -> Result<Vec<Delivery>, SinkError>;
}

/// Why a sink answers for none of the events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// It does not answer, or asks for patience. Nothing is lost: the events come again.
    #[error("the analytics service does not take events at present: {why}")]
    Busy {
        /// What it said.
        why: String,
        /// Not before this.
        retry_after: Option<RetryAfter>,
        /// What lies behind it, where it is known.
        #[source]
        cause: Option<Cause>,
    },
    /// The address or the key is wrong. Nothing is lost: the events wait until somebody mends it.
    #[error("the analytics service refuses every request: {why}")]
    Misconfigured {
        /// What it said.
        why: String,
    },
}
