//! The kernel of the saas crates.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod actor;
#[cfg(feature = "postgres")]
pub mod audit;
mod clock;
mod context;
#[cfg(feature = "postgres")]
pub mod db;
#[cfg(feature = "postgres")]
pub mod doctor;
mod error;
mod id;
#[cfg(feature = "postgres")]
pub mod idempotency;
pub mod mail;
mod name;
#[cfg(feature = "postgres")]
pub mod outbox;
mod page;
pub mod plan;
pub mod revision;
pub mod subscription;
#[cfg(feature = "postgres")]
pub mod tenant;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "postgres")]
pub mod timeline;

pub use actor::Actor;
#[cfg(feature = "testing")]
pub use clock::TestClock;
pub use clock::{Clock, SharedClock, SystemClock};
pub use context::{RequestContext, TenantContext};
#[cfg(feature = "postgres")]
pub use db::{Schema, SessionBinding, SystemPool, SystemTx, TenantPool, TenantTx, migrate};
pub use error::{Cause, CoreError, ErrorKind, InvalidInput};
pub use id::{ApiKeyId, AuditId, JobId, LeaseToken, OverrideId, RequestId, TenantId, UsageEventId, UserId};
pub use name::{EmailAddress, FeatureKey, IdempotencyKey, MeterKey, PlanKey, RoleName, Slug, Topic};
pub use page::{Page, PageSize};
pub use plan::{CatalogError, Limit, PlanCatalog, PlanVersionRef};
pub use revision::Revision;

/// The tables of this crate.
#[cfg(feature = "postgres")]
pub static SCHEMA: Schema = schema!("core":
    1 "0001_fence",
    2 "0002_tenant",
    3 "0003_audit",
    4 "0004_outbox",
    5 "0005_idempotency",
    6 "0006_overview",
);
