//! Entitlements on PostgreSQL: what the gate reads, how it hears of changes, where overrides and usage are kept.

mod counters;
mod leases;
mod listener;
mod overrides;
mod source;

pub(crate) use counters::consume_in;
pub use counters::{PostgresCounters, THRESHOLD_TOPIC, ThresholdCrossed};
pub use leases::PostgresLeases;
pub use listener::RevisionListener;
pub use overrides::Overrides;
pub use source::PostgresSource;
