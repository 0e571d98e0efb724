//! Using from memory what a hard limit leaves, across processes and never beyond it.
//!
//! A process borrows units of a tenant's limit from a [`LeaseStore`] and spends them with one atomic operation each
//! ([`Leases`]). The store bounds what is out at once; what a lost process had not reported counts as used, so whatever is
//! killed, cut off or stopped, and whatever any clock shows, no limit is passed. Near the limit nothing is lent and each use
//! is counted by the store itself.
//!
//! A living lease is topped up: one call reports what was spent of it and lends more. Thresholds that are reached by it are
//! announced as those of direct uses are.
//!
//! It leaves to [`Meter`](crate::Meter): uses with a key that are counted once however often they are repeated, what cannot be
//! lent ([`Leases::with_meter`]), and grants beside the plan.

mod asking;
mod cell;
#[cfg(feature = "testing")]
pub mod conformance;
mod leases;
mod options;
mod rule;
mod shards;
mod store;

pub use leases::{LeasedUse, Leases};
pub use options::LeaseOptions;
pub use store::{Ask, Balance, Borrowed, LeaseStore, Report, Reported};
