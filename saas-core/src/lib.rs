//! The kernel of the saas crates: vocabulary, ports, and the tables that everything else stands on.
//!
//! An application that uses `saas-tenancy`, `saas-entitlements` or `saas-billing` meets three things here:
//!
//! - **[`TenantTx`]**, the only way to a tenant's rows. It binds the transaction to one tenant in the round trip that
//!   opens it; PostgreSQL's row-level security does the rest. [`SystemTx`] is the loud other way.
//! - **[`migrate`](db::migrate())** and **[`doctor`]**: the first creates roles and tables, the second looks through
//!   the whole database, the application's own tables included, for every known way around the fence.
//! - **What must commit together**: [`audit`], [`outbox`] and [`idempotency`] rows join the caller's transaction.
//!
//! # Quick start
//! ```no_run
//! use saas_core::{Actor, RequestContext, SystemClock, TenantId, TenantPool, TenantTx, db};
//! use sqlx::postgres::PgConnectOptions;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // Once per deployment, as the database's administrator.
//! let admin: PgConnectOptions = "postgres://postgres@localhost/app".parse()?;
//! db::migrate(&admin, &[&saas_core::SCHEMA]).await?;
//!
//! // Once per process: a login that row-level security does not bind is refused here.
//! let pool = db::pool_options().connect("postgres://saas_app@localhost/app").await?;
//! let tenants = TenantPool::open(pool, &[&saas_core::SCHEMA]).await?;
//!
//! // Once per request: the tenant comes from the verified principal.
//! # let (tenant, user) = (TenantId::mint(&SystemClock), saas_core::UserId::mint(&SystemClock));
//! let ctx = RequestContext::new(tenant, Actor::user(user), &SystemClock);
//! let mut tx = TenantTx::begin(&tenants, &ctx).await?;
//! sqlx::query("insert into project (tenant_id, id, name) values ($1, gen_random_uuid(), 'Apollo')")
//!     .bind(tenant.as_uuid())
//!     .execute(&mut *tx)
//!     .await?;
//! tx.commit().await?;
//! # Ok(()) }
//! ```
//!
//! The table `project` is the application's own; its migration ends with `select saas.fence('project')`.
//!
//! # Concepts
//! - A *tenant* is a row of `saas.tenant`; its [`Revision`] rises whenever what it may do changes.
//! - A *context* ([`TenantContext`]) says who asks; an *actor* ([`Actor`]) stands in every row of the audit log.
//! - A *plan* is data ([`PlanCatalog`]); which one a tenant is on is answered by a
//!   [`PlanSource`](subscription::PlanSource), which billing or the application implements.
//! - Errors sort into [`ErrorKind`]s, which map onto HTTP.
//!
//! # What does not compile
//! A transaction without a tenant:
//! ```compile_fail
//! # async fn example(tenants: &saas_core::TenantPool) {
//! let tx = saas_core::TenantTx::begin(tenants).await;
//! # }
//! ```
//! A job without one:
//! ```compile_fail
//! # async fn example(tx: &mut saas_core::TenantTx, job: saas_core::outbox::NewJob, now: chrono::DateTime<chrono::Utc>) {
//! saas_core::outbox::enqueue_in(tx, job, now).await;
//! # }
//! ```
//! A key that is not one:
//! ```compile_fail
//! const CSV: saas_core::FeatureKey = saas_core::FeatureKey::from_static("CSV export");
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod actor;
#[cfg(feature = "postgres")]
pub mod audit;
mod clock;
mod context;
#[cfg(feature = "postgres")]
pub mod db;
#[cfg(feature = "postgres")]
pub mod dependents;
#[cfg(feature = "postgres")]
pub mod doctor;
mod error;
#[cfg(feature = "postgres")]
pub mod group;
mod id;
#[cfg(feature = "postgres")]
pub mod idempotency;
pub mod mail;
mod name;
#[cfg(feature = "postgres")]
pub mod outbox;
#[cfg(feature = "postgres")]
pub mod overview;
mod page;
pub mod plan;
pub mod revision;
pub mod subscription;
#[cfg(feature = "postgres")]
pub mod tenant;
mod tenant_key;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "postgres")]
pub mod timeline;
#[cfg(feature = "postgres")]
pub mod trace;

pub use actor::Actor;
#[cfg(feature = "testing")]
pub use clock::TestClock;
pub use clock::{Clock, SharedClock, SystemClock};
pub use context::{RequestContext, TenantContext};
#[cfg(feature = "postgres")]
pub use db::{Schema, SessionBinding, SystemPool, SystemTx, TenantPool, TenantTx, migrate};
pub use error::{Cause, CoreError, ErrorKind, InvalidInput, Refusal};
pub use id::{
    ApiKeyId, AuditId, DomainToken, ExportId, JobId, LeaseToken, OverrideId, RequestId, TenantId, UsageEventId,
    UsageGrantId, UsageReservationId, UserId,
};
pub use name::{
    AddOnKey, EmailAddress, FeatureKey, IdempotencyKey, MessageKey, MeterKey, PlanKey, RoleName, Slug, Topic,
};
pub use page::{Page, PageSize};
pub use plan::{CatalogError, Limit, PlanCatalog, PlanVersionRef};
pub use revision::Revision;
pub use tenant_key::{MAX_TENANT_KEY, TenantKey};

/// The tables of this crate.
#[cfg(feature = "postgres")]
pub static SCHEMA: Schema = schema!("core":
    1 "0001_fence",
    2 "0002_tenant",
    3 "0003_audit",
    4 "0004_outbox",
    5 "0005_idempotency",
    6 "0006_overview",
    7 "0007_placement",
    8 "0008_fence_rows",
    9 "0009_tenant_status",
    10 "0010_search",
    12 "0012_fences_under_attack",
    13 "0013_revision_changes",
    14 "0014_plan_record",
);
