//! Feature gate and usage limits for multi-tenant applications.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod entitlements;
mod error;
mod explain;
mod gate;
#[cfg(feature = "testing")]
pub mod memory;
mod overrides;
mod resolve;
mod snapshot;
mod source;
mod window;

pub use entitlements::{Entitlements, GateClock};
pub use error::EntitlementsError;
pub use explain::{Explanation, Reason};
pub use gate::{Answer, FeatureGate, GateOptions, GateStats};
pub use overrides::{NewOverride, Override, OverrideGrant, OverrideSubject};
pub use resolve::resolve;
pub use snapshot::{FeatureHandle, Origin, Snapshot};
pub use source::{SnapshotSource, TenantState};
pub use window::{Period, period_at};
