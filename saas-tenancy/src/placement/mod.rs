//! Where each tenant's own tables live: which database, which schema; how such a place is made and migrated.
//!
//! Owns the application's tables' *places*. The foundation's rows stay in the control database in every mode.
//! - [`Placements`] is the binding that serves each tenant where it lives; [`Pools`] are its connections, under one budget.
//!
//! - [`Provisioner`] makes and removes a tenant's own schema or database; [`Stock`] makes some ahead.
//! - [`Fleet`] runs the application's migrations in all places.
//!
//! Promises that no tenant is served at a wrong place, at a place that is not ready, or with tables that the binary does
//! not know. Leaves moving a tenant with its rows to others.
mod binding;
mod cache;
mod cluster;
mod error;
mod fairness;
pub mod fleet;
mod ground;
mod ledger;
mod limits;
mod listener;
mod pools;
mod provision;
pub mod record;
mod site;
mod stock;
mod versions;

pub use binding::{Placements, PlacementsBuilder};
pub use cluster::{Cluster, ClusterName, Clusters, Database, DatabaseName, Login};
pub use error::PlacementError;
pub use fairness::Fairness;
pub use fleet::{Canaries, Fleet, ProgressBar, Report};
pub use ground::{AppliedStep, Timeouts};
pub use limits::PoolLimits;
pub use listener::PlacementListener;
pub use pools::{Lease, PoolStats, Pools};
pub use provision::{Observer, Progress, Provisioner, Step, Target};
pub use record::{Mode, Placement, State};
pub use site::Site;
pub use stock::{Readiness, Ready, Refill, Stock};
pub use versions::{Blueprint, KnownVersions};
