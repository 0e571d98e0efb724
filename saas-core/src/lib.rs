//! The kernel of the saas crates.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod actor;
mod clock;
mod context;
mod error;
mod id;
mod name;
mod page;
pub mod plan;
pub mod subscription;

pub use actor::Actor;
#[cfg(feature = "testing")]
pub use clock::TestClock;
pub use clock::{Clock, SharedClock, SystemClock};
pub use context::{RequestContext, TenantContext};
pub use error::{Cause, CoreError, ErrorKind, InvalidInput};
pub use id::{ApiKeyId, AuditId, JobId, LeaseToken, OverrideId, RequestId, TenantId, UsageEventId, UserId};
pub use name::{EmailAddress, FeatureKey, IdempotencyKey, MeterKey, PlanKey, RoleName, Slug, Topic};
pub use page::{Page, PageSize};
pub use plan::{CatalogError, Limit, PlanCatalog, PlanVersionRef};
