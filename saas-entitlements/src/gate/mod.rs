//! The feature gate: answers from memory, kept coherent by revisions.
//!
//! # Coherence
//! A snapshot is shown only if its revision is at least the highest one that this process has heard of for the tenant
//! (the *floor*, which outlives the snapshot). Announcements come from the revision channel, or directly from whoever
//! changed something in this process. A load that was overtaken by an announcement is thrown away and run again, so
//! neither a slow read nor a late joiner can bring an old answer back. When a listener is cut off everything is
//! distrusted; when every announcement is lost, [`GateOptions::with_ttl`] bounds the rest.
//!
//! # Cost
//! A hit searches a fixed table of atomics: no lock, no allocation, no reference count, no clock, no I/O. Loads run in a
//! task of their own, one per tenant at a time, so a caller that gives up cancels nothing.

mod core;
mod flight;
#[cfg(feature = "postgres")]
mod holder;
#[cfg(test)]
mod model;
mod options;
mod shelf;
mod staleness;
mod stats;
mod sync;
mod table;
#[cfg(test)]
mod table_tests;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

pub use options::GateOptions;
use saas_core::{FeatureKey, TenantId};
pub use staleness::{ChannelHealth, Staleness};
pub use stats::GateStats;

#[cfg(feature = "postgres")]
pub(crate) use self::holder::GateHolder;
pub(crate) use self::{core::Core, stats::count};

/// Answers whether a tenant has a feature.
///
/// # Contract
/// - *Total*: it always answers; in an outage by the last known state, then by the feature's fail policy.
/// - *Unknown is off*: a feature that the catalogue lacks and a tenant that does not exist are answered with `false`.
/// - *Cancel-safe*: the answer may be dropped at any point.
pub trait FeatureGate: fmt::Debug + Send + Sync + 'static {
    /// Whether the tenant has the feature now.
    fn is_feature_enabled(&self, tenant: TenantId, feature: &FeatureKey) -> Answer;
}

/// The gate's answer: there at once when it was in memory, otherwise a future that loads it.
///
/// ```
/// # use saas_entitlements::Answer;
/// # async fn example(answer: Answer, other: Answer) {
/// if answer.await { /* … */ }
/// assert_eq!(Answer::ready(true).if_ready(), Some(true)); // where nothing may wait
/// # }
/// ```
#[must_use = "an answer does nothing unless it is awaited"]
pub struct Answer(State);

enum State {
    Ready(bool),
    Waiting(Pin<Box<dyn Future<Output = bool> + Send>>),
}

impl Answer {
    /// An answer that is there.
    pub const fn ready(enabled: bool) -> Self {
        Self(State::Ready(enabled))
    }

    /// An answer that has to be waited for.
    pub fn later(answer: impl Future<Output = bool> + Send + 'static) -> Self {
        Self(State::Waiting(Box::pin(answer)))
    }

    /// The answer, if it is there; `None` when it has to be waited for.
    #[must_use]
    pub const fn if_ready(&self) -> Option<bool> {
        match self.0 {
            State::Ready(enabled) => Some(enabled),
            State::Waiting(_) => None,
        }
    }
}

impl Future for Answer {
    type Output = bool;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        match &mut self.get_mut().0 {
            State::Ready(enabled) => Poll::Ready(*enabled),
            State::Waiting(answer) => answer.as_mut().poll(context),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Answer").field(&self.if_ready()).finish()
    }
}
