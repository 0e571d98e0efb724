//! The plan catalogue: what is sold, as validated and immutable data.
//!
//! Owns the vocabulary of features, meters, plans and limits, and reads it from TOML. It promises that a
//! [`PlanCatalog`] contains no contradiction: every mistake of the file is reported at once, with its line, before
//! anything is served. What a tenant may do with a plan is decided in `saas-entitlements`; which plan a tenant is on,
//! in billing.
//!
//! # The file
//! Tables are `features`, `meters` and `plans`. `fail` has no default: what happens to a feature when nothing can be
//! looked up is a decision that somebody has to take (open for reading and sign-in, closed for spending and export).
//! Editing what a plan grants is a new `versions` entry; tenants keep their version until they are moved.
//!
//! ```
//! use saas_core::{FeatureKey, plan::{Limit, PlanCatalog}};
//!
//! let catalog = PlanCatalog::from_toml(r#"
//! default_plan = "free"
//!
//! [features."reports.csv-export"]
//! kind = "boolean"              # boolean, integer, text or metered
//! fail = "closed"               # required: open or closed
//! min_access = "restricted"     # works while a payment is overdue; "full" is the default for this kind
//!
//! [features.retention-days]
//! kind = "integer"              # a static value; stays in force when access is restricted
//! fail = "open"
//!
//! [features.api]
//! kind = "metered"              # on where the plan has a limit above zero for the meter
//! meter = "api-calls"
//! fail = "open"
//!
//! [meters.api-calls]
//! aggregation = "sum"           # sum or count
//!
//! [plans.free]
//! rank = 0                      # upgrade order: unique, higher is more
//!
//! [[plans.free.versions]]
//! version = 1
//! grants = { retention-days = 7 }
//! limits.api-calls = { max = 1_000, window = "day", overage = "block", warn = [80, 100] }
//!
//! [plans.pro]
//! rank = 10
//!
//! [[plans.pro.versions]]
//! version = 1
//! trial_days = 14
//! prices = ["price_pro_monthly", "price_pro_yearly"]
//! grants = { "reports.csv-export" = true, retention-days = 365 }
//! limits.api-calls = { max = 100_000, window = "month", anchor = "billing", overage = "bill" }
//! "#)?;
//!
//! let bought = catalog.plan_for_price("price_pro_yearly").unwrap();
//! assert_eq!(bought.to_string(), "pro@1");
//! let pro = catalog.version(&bought.plan, Some(bought.version)).unwrap();
//! let csv = catalog.feature(&FeatureKey::from_static("reports.csv-export")).unwrap();
//! assert!(pro.grants(csv.id()));
//! assert_eq!(catalog.default_version().limits().next().unwrap().1.limit, Limit::Max(1_000));
//! assert_eq!(catalog.cheapest_with(csv.id(), 0).unwrap().reference().plan, bought.plan);
//!
//! // Every mistake at once, each with its place and its remedy:
//! let error = PlanCatalog::from_toml("default_plan = \"gold\"\n[features.x]\nkind = \"bool\"\n").unwrap_err();
//! let lines: Vec<_> = error.faults().iter().map(|fault| fault.line).collect();
//! assert_eq!(lines, [1, 1, 2, 3]);
//! # Ok::<_, saas_core::plan::CatalogError>(())
//! ```

mod addon;
mod addons;
mod catalog;
mod compile;
mod diff;
mod document;
mod fault;
mod feature;
mod features;
mod fnv;
mod grants;
mod limit;
mod limits;
mod meters;
mod over;
mod plans;
mod version;

#[cfg(test)]
mod diff_tests;
#[cfg(test)]
mod tests;

pub use addon::{AddOn, AddOnMode};
pub use catalog::PlanCatalog;
pub use diff::{Change, RefusedChanges, Severity, Subject, refuse_above};
pub use fault::{CatalogError, CatalogFault};
pub use feature::{
    Aggregation, Credit, FailPolicy, Feature, FeatureId, FeatureKind, Meter, MeterId, Rollout, StaticValue,
};
pub use limit::{Limit, MeterLimit, OverLimit, Overage, PlanChange, Rollover, Window, WindowAnchor};
pub use over::{MeterOver, OverLimitReport, OverLimitState, OverLimits, over_limit};
pub use version::{Plan, PlanVersion, PlanVersionRef, VersionId, VersionState};
