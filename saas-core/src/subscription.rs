//! Which plan a tenant is on and whether it has paid: the vocabulary in which billing answers and entitlements ask.
//!
//! What a source of plans answered in the past is in `saas.plan_record`, the one record that all of them share.

#[cfg(feature = "postgres")]
mod record;

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
#[cfg(feature = "postgres")]
pub use record::{PlanRecord, record_in, recorded_in};
use serde::{Deserialize, Serialize};

use crate::{AddOnKey, CoreError, PlanKey, TenantContext};

/// Whether the tenant has access, as far as money goes. Computed from instants at read time; nothing has to fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    /// All is paid.
    Active,
    /// A payment failed; full access lasts until `until`.
    Grace {
        /// When access becomes restricted.
        until: DateTime<Utc>,
        /// When access ends, if nothing is paid.
        suspended_from: DateTime<Utc>,
    },
    /// Access has ended.
    Suspended {
        /// Since when.
        since: DateTime<Utc>,
    },
}

/// Such as `grace until 2026-12-27 15:50:39 UTC, suspended from 2027-01-03 15:50:39 UTC`.
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Grace { until, suspended_from } => write!(f, "grace until {until}, suspended from {suspended_from}"),
            Self::Suspended { since } => write!(f, "suspended since {since}"),
        }
    }
}

/// What the tenant may do at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLevel {
    /// Nothing: sign-in, billing pages and export only.
    Suspended,
    /// Reading, not creating: features that cost money are off.
    Restricted,
    /// Everything the plan grants.
    Full,
}

impl Standing {
    /// The access level at `now`.
    #[must_use]
    pub fn access(&self, now: DateTime<Utc>) -> AccessLevel {
        match *self {
            Self::Active => AccessLevel::Full,
            Self::Grace { until, .. } if now < until => AccessLevel::Full,
            Self::Grace { suspended_from, .. } if now < suspended_from => AccessLevel::Restricted,
            Self::Suspended { since } if now < since => AccessLevel::Full,
            Self::Grace { .. } | Self::Suspended { .. } => AccessLevel::Suspended,
        }
    }

    /// The same standing, as it is put at `now`: a grace period that is over is a suspension since its end.
    #[must_use]
    pub fn at(&self, now: DateTime<Utc>) -> Self {
        match *self {
            Self::Grace { suspended_from, .. } if suspended_from <= now => Self::Suspended { since: suspended_from },
            standing @ (Self::Active | Self::Grace { .. } | Self::Suspended { .. }) => standing,
        }
    }

    /// The next instant after `now` at which [`access`](Self::access) gives another answer.
    #[must_use]
    pub fn next_boundary(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match *self {
            Self::Active => None,
            Self::Grace { until, suspended_from } => [until, suspended_from].into_iter().find(|at| *at > now),
            Self::Suspended { since } => (since > now).then_some(since),
        }
    }
}

/// The plan that a tenant is on, as the source of plans knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanAssignment {
    /// The plan.
    pub plan: PlanKey,
    /// Its version; `None` follows the newest.
    pub version: Option<u32>,
    /// Whether it is paid.
    pub standing: Standing,
    /// What billing periods count from (Stripe's `billing_cycle_anchor`): the *n*th begins *n* intervals after it, so that the
    /// 31st stays the 31st after a February. `None` counts usage by the calendar.
    pub anchor: Option<DateTime<Utc>>,
    /// When the plan ends by itself (trial or cancellation), with nothing to take its place but the default plan.
    pub ends_at: Option<DateTime<Utc>>,
    /// What was bought beside the plan, and how many of each. It ends with the plan.
    #[serde(default)]
    pub addons: Vec<(AddOnKey, u32)>,
}

impl PlanAssignment {
    /// A plan that is paid for and does not end.
    #[must_use]
    pub const fn active(plan: PlanKey) -> Self {
        Self { plan, version: None, standing: Standing::Active, anchor: None, ends_at: None, addons: Vec::new() }
    }
}

/// Answers which plan a tenant is on.
///
/// Billing implements it; an adopter without Stripe uses [`FixedPlan`] or a table of their own.
///
/// # Contract
/// - *Pure of side effects*: asking changes nothing.
/// - *Coherent*: whoever changes the answer bumps the tenant's revision in the same transaction.
/// - *Total*: a tenant that bought nothing is on the adopter's default plan, not an error.
/// - *Recorded*, where [`recorded_as`](Self::recorded_as) gives a name: whoever changes the answer records the new one in the
///   same transaction. A tenant of which nothing was recorded was on the default plan.
#[async_trait]
pub trait PlanSource: fmt::Debug + Send + Sync + 'static {
    /// The tenant's plan at `now`.
    async fn plan_of(&self, ctx: &dyn TenantContext, now: DateTime<Utc>) -> Result<PlanAssignment, CoreError>;

    /// The name under which every change of the answer is in `saas.plan_record` (lower case, digits, `.`, `_`, `-`). `None`, as
    /// here, when the past cannot be asked: it is then an error, not a guess.
    fn recorded_as(&self) -> Option<&'static str> {
        None
    }
}

/// Every tenant is on one plan.
#[derive(Debug, Clone)]
pub struct FixedPlan(pub PlanKey);

#[async_trait]
impl PlanSource for FixedPlan {
    async fn plan_of(&self, _: &dyn TenantContext, _: DateTime<Utc>) -> Result<PlanAssignment, CoreError> {
        Ok(PlanAssignment::active(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // D6
    #[test]
    fn access_changes_exactly_at_the_instants_without_any_event() {
        let at = |s| DateTime::from_timestamp(s, 0).unwrap();
        let grace = Standing::Grace { until: at(100), suspended_from: at(200) };
        let levels = [99, 100, 101, 199, 200, 201].map(|s| grace.access(at(s)));
        use AccessLevel::{Full, Restricted, Suspended};
        assert_eq!(levels, [Full, Restricted, Restricted, Restricted, Suspended, Suspended]);
        assert_eq!([99, 100, 200].map(|s| grace.next_boundary(at(s))), [Some(at(100)), Some(at(200)), None]);
        let over = Standing::Suspended { since: at(200) };
        assert_eq!([99, 199, 200].map(|s| grace.at(at(s))), [grace, grace, over], "put otherwise, not another one");
        assert_eq!([200, 201].map(|s| over.access(at(s))), [200, 201].map(|s| grace.access(at(s))));
    }
}
