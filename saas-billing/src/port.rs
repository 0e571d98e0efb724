//! What a web framework calls.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use crate::error::BillingError;

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

    /// The largest body in bytes: an endpoint stops reading there. 4 MiB unless said otherwise.
    fn body_limit(&self) -> usize {
        4 * 1024 * 1024
    }

    /// How long the whole body may take: an endpoint gives up there, whoever sends a byte now and then. Ten seconds unless
    /// said otherwise.
    fn body_deadline(&self) -> Duration {
        Duration::from_secs(10)
    }
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
