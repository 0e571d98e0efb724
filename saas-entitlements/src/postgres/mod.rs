//! Entitlements on PostgreSQL: what the gate reads, how it hears of changes, where overrides and usage are kept.

mod assigned;
mod cohorts;
mod counters;
pub(crate) mod edges;
mod flights;
mod history;
mod lanes;
mod leases;
mod ledger;
mod listener;
mod moving;
mod overrides;
mod poller;
mod reservations;
mod source;

pub use assigned::{AssignedPlans, Assignments};
pub use cohorts::Cohorts;
pub(crate) use counters::consume_in;
pub use counters::{PostgresCounters, THRESHOLD_TOPIC, ThresholdCrossed};
pub use edges::{Because, THRESHOLD_RESOLVED_TOPIC, ThresholdResolved};
pub use history::History;
pub(crate) use history::turn_in;
pub use leases::PostgresLeases;
pub use listener::RevisionListener;
pub use moving::{MovePreview, MovePreviews, MoveReport, PlanMove};
pub use overrides::{OverrideFilter, OverridePlace, Overrides};
pub use poller::RevisionPoller;
#[cfg(feature = "redis")]
pub(crate) use poller::poll_revisions;
pub use source::PostgresSource;
