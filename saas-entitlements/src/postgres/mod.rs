//! Entitlements on PostgreSQL: what the gate reads, how it hears of changes, where overrides and usage are kept.

mod counters;
mod listener;
mod overrides;
mod poller;
mod source;

pub(crate) use counters::consume_in;
pub use counters::{PostgresCounters, THRESHOLD_TOPIC, ThresholdCrossed};
pub use listener::RevisionListener;
pub use overrides::Overrides;
pub use poller::RevisionPoller;
pub use source::PostgresSource;
