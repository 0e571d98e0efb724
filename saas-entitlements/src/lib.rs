//! Feature gate and usage limits for multi-tenant applications.
//!
//! [`Entitlements`] answers which features a tenant has, from memory in nanoseconds; [`Meter`] counts what it uses, exactly
//! once and never beyond a hard limit. Both follow the plan that a tenant is on
//! ([`PlanSource`](saas_core::subscription::PlanSource): billing's, or a table of yours), its standing, and manual
//! [`Overrides`], and can say why ([`Explanation`]).
//!
//! # Quick start
//! ```no_run
//! use std::sync::Arc;
//!
//! use saas_core::{
//!     FeatureKey, MeterKey, PlanCatalog, PlanKey, RequestContext, SharedClock, SystemClock, TenantContext,
//!     TenantPool, subscription::FixedPlan,
//! };
//! use saas_entitlements::{Consumption, Entitlements, Meter, PostgresCounters, PostgresSource, RevisionListener};
//!
//! const CSV: FeatureKey = FeatureKey::from_static("reports.csv-export");
//! const CALLS: MeterKey = MeterKey::from_static("api-calls");
//!
//! # async fn example(pool: TenantPool, login: sqlx::postgres::PgConnectOptions, ctx: RequestContext) -> Result<(), Box<dyn std::error::Error>> {
//! // Once, at start: what is sold, where plans are kept, and the gate over them.
//! let catalog = PlanCatalog::from_bytes(&std::fs::read("plans.toml")?)?;
//! let clock: SharedClock = Arc::new(SystemClock);
//! let pool = Arc::new(pool);
//! let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
//! let entitlements = Entitlements::new(catalog, Arc::new(PostgresSource::new(pool.clone(), plans)), clock);
//! let meter = Meter::new(entitlements.clone(), Arc::new(PostgresCounters::new(pool)));
//! let _clock = entitlements.start_clock();
//! let _listener = RevisionListener::start(entitlements.clone(), login);
//!
//! // In a request: is it on, and may it be used?
//! if entitlements.is_feature_enabled(ctx.tenant(), &CSV).await {
//!     match meter.consume(&ctx, &CALLS, 1, &"import-7:row-3".parse()?).await? {
//!         Consumption::Granted { .. } => { /* do the work */ }
//!         Consumption::AlreadyCounted => { /* a repeat: do what is left of it */ }
//!         refused => println!("{refused}"), // “limit of 1000 reached, 0 left until …; `pro@1` has more”
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # How stale an answer can be
//! | state of the world | bound |
//! |---|---|
//! | a [`RevisionListener`] is connected | one notification |
//! | a [`RevisionPoller`] asks | its interval and one query |
//! | `RedisRevisions` is subscribed (feature `redis`) | one notification and one message |
//! | every notification is lost | [`ttl`](GateOptions::with_ttl) (60 s) plus one [`tick`](GateOptions::with_tick) |
//! | a grace period, trial or override ends | one tick, with or without a database |
//! | the source cannot be read | [`stale_if_error`](GateOptions::with_stale_if_error) (1 h), then each feature's `fail` policy |
//! | a limit that [`Meter::consume`] enforces | none: the statement checks the tenant's revision |
//!
//! # What it leaves to others
//! What a plan contains is [`saas_core::plan`]; which plan a tenant is on and whether it is paid for is billing's. Features
//! `postgres` (default), `redis` (revisions over Redis, and a faster tier of counting), `openfeature` (a provider for code
//! written against that interface), `analytics-http` (an HTTP client for product analytics) and `testing` (stores in
//! [`memory`], and the [`conformance`] suite for stores of your own).
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "postgres")]
pub mod analytics;
mod clock;
mod entitlements;
mod error;
mod excess;
mod explain;
mod gate;
mod layers;
mod lease;
#[cfg(feature = "testing")]
pub mod memory;
mod meter;
#[cfg(feature = "openfeature")]
mod openfeature;
mod overrides;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod require;
mod resolve;
mod snapshot;
mod source;
mod terms;
#[cfg(feature = "postgres")]
pub mod usage;
mod window;

#[cfg(feature = "redis")]
pub use self::redis::{
    Redis, RedisLeaseOptions, RedisLeaseStats, RedisLeases, RedisRevisions, RedisTier, RevisionRelay, TierOptions,
    TierStats,
};
pub use entitlements::{ChannelWatch, Entitlements, GateClock};
pub use error::EntitlementsError;
pub use excess::Excess;
pub use explain::{Explanation, Given, Layer, Reason};
pub use gate::{Answer, ChannelHealth, FeatureGate, GateOptions, GateStats, Staleness};
#[cfg(feature = "testing")]
pub use lease::conformance as lease_conformance;
pub use lease::{Ask, Balance, Borrowed, LeaseOptions, LeaseStore, LeasedUse, Leases, Report, Reported};
pub use meter::{
    Adjustment, Adjustments, Consumption, Corrected, Correction, CounterStore, Denial, Draw, DrawKind, Drawn,
    GRANTS_LISTED, Grant, GrantSource, Hold, Holding, Ledger, LimitOf, Meter, NewGrant, Reservation, ReservationStore,
    Reservations, Reserved, Settled, Settlement, Threshold, Usage, Use,
};
#[cfg(feature = "testing")]
pub use meter::{conformance, reserve_conformance as reservation_conformance};
#[cfg(feature = "openfeature")]
pub use openfeature::OpenFeatureProvider;
pub use overrides::{NewOverride, Override, OverrideGrant, OverrideSubject};
#[cfg(feature = "postgres")]
pub use postgres::{
    AssignedPlans, Assignments, Because, Cohorts, History, MovePreview, MovePreviews, MoveReport, OverrideFilter,
    OverridePlace, Overrides, PlanMove, PostgresCounters, PostgresLeases, PostgresSource, RevisionListener,
    RevisionPoller, THRESHOLD_RESOLVED_TOPIC, THRESHOLD_TOPIC, ThresholdCrossed, ThresholdResolved,
};
pub use require::{FeatureRequired, UpgradeLink};
pub use resolve::resolve;
pub use snapshot::{FeatureHandle, Origin, Snapshot};
pub use source::{Dated, SnapshotSource, TenantState, Watched};
pub use terms::{Carry, Ended, Terms};
pub use window::{Period, period_at};

/// The tables of this crate. They refer to those of [`saas_core::SCHEMA`].
#[cfg(feature = "postgres")]
pub static SCHEMA: saas_core::Schema = saas_core::schema!("entitlements":
    1 "0001_overrides",
    2 "0002_usage",
    3 "0003_cohorts",
    4 "0004_usage_consume",
    5 "0005_usage_lease",
    6 "0006_usage_pipeline",
    7 "0007_plans",
    8 "0008_usage_reservation",
    9 "0009_usage_edges",
    10 "0010_usage_tier",
    11 "0011_usage_record",
    12 "0012_usage_watch",
);
