//! Feature gate and usage limits for multi-tenant applications.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod entitlements;
mod error;
mod explain;
mod gate;
#[cfg(feature = "testing")]
pub mod memory;
mod meter;
mod overrides;
#[cfg(feature = "postgres")]
mod postgres;
mod resolve;
mod snapshot;
mod source;
mod window;

pub use entitlements::{Entitlements, GateClock};
pub use error::EntitlementsError;
pub use explain::{Explanation, Reason};
pub use gate::{Answer, FeatureGate, GateOptions, GateStats};
#[cfg(feature = "testing")]
pub use meter::conformance;
pub use meter::{Consumption, CounterStore, Denial, Draw, Drawn, Meter, Threshold, Usage};
pub use overrides::{NewOverride, Override, OverrideGrant, OverrideSubject};
#[cfg(feature = "postgres")]
pub use postgres::{Overrides, PostgresCounters, PostgresSource, RevisionListener, THRESHOLD_TOPIC, ThresholdCrossed};
pub use resolve::resolve;
pub use snapshot::{FeatureHandle, Origin, Snapshot};
pub use source::{SnapshotSource, TenantState};
pub use window::{Period, period_at};

/// The tables of this crate. They refer to those of [`saas_core::SCHEMA`].
#[cfg(feature = "postgres")]
pub static SCHEMA: saas_core::Schema = saas_core::schema!("entitlements":
    1 "0001_overrides",
    2 "0002_usage",
);
