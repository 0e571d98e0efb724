//! Which plan a tenant is on and whether it has paid: the vocabulary in which billing answers and entitlements ask.
//!
//! What a source of plans answered in the past is in `saas.plan_record`, the one record that all of them share.

#[cfg(feature = "postgres")]
mod record;

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
#[cfg(feature = "postgres")]
pub use record::{PlanRecord, record_in, record_next_in, recorded_in};
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

/// What a request wants to do, as far as money goes: the question of an HTTP layer, asked of the same level as the gate's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Sign in, look at bills and pay them, take one's data away.
    Settle,
    /// Read.
    Read,
    /// Change anything.
    Write,
}

impl Intent {
    /// By the method of HTTP: safe ones read (RFC 9110, 9.2.1), all others write. Say [`Settle`](Self::Settle) for the routes
    /// that a tenant needs to pay or to leave.
    #[must_use]
    pub fn of_method(method: &str) -> Self {
        if matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE") { Self::Read } else { Self::Write }
    }
}

impl AccessLevel {
    /// Whether a request may go on; answer 402 where it may not, with the link to pay.
    #[must_use]
    pub const fn allows(self, intent: Intent) -> bool {
        match (self, intent) {
            (Self::Full, Intent::Settle | Intent::Read | Intent::Write)
            | (Self::Restricted, Intent::Settle | Intent::Read)
            | (Self::Suspended, Intent::Settle) => true,
            (Self::Restricted, Intent::Write) | (Self::Suspended, Intent::Read | Intent::Write) => false,
        }
    }
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
    /// Since when it is this version of this plan; `None` where the source does not know. What a change in mid-period does
    /// to usage is decided by it: without it, all stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// The plans before it, the latest first, up to [`PLANS_REMEMBERED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<PastPlan>,
}

/// How many earlier plans an assignment knows of.
pub const PLANS_REMEMBERED: usize = 16;

/// A plan that a tenant was on, until that which came after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastPlan {
    /// The plan.
    pub plan: PlanKey,
    /// Its version; `None` was the newest.
    pub version: Option<u32>,
    /// Since when; `None` where nobody knows.
    pub since: Option<DateTime<Utc>>,
}

impl PlanAssignment {
    /// A plan that is paid for and does not end.
    #[must_use]
    pub const fn active(plan: PlanKey) -> Self {
        Self {
            plan,
            version: None,
            standing: Standing::Active,
            anchor: None,
            ends_at: None,
            addons: Vec::new(),
            since: None,
            before: Vec::new(),
        }
    }

    /// The same assignment as what comes after `former` at `now`: it knows since when it holds, and what was before. Another
    /// standing, end, anchor or add-on is no change of plan.
    ///
    /// A source of plans calls it when it writes one, with versions that are named in both.
    #[must_use]
    pub fn following(mut self, former: &Self, default_plan: &PlanKey, now: DateTime<Utc>) -> Self {
        let ended = former.ends_at.filter(|end| *end <= now);
        // What took the place of a plan that ended by itself was written by nobody.
        let default = ended.map(|end| PastPlan { plan: default_plan.clone(), version: None, since: Some(end) });
        let former_plan = PastPlan { plan: former.plan.clone(), version: former.version, since: former.since };
        let mut known = default.into_iter().chain([former_plan]).chain(former.before.iter().cloned()).peekable();
        let same = known.next_if(|last| {
            last.plan == self.plan && (last.version.is_none() && ended.is_some() || last.version == self.version)
        });
        self.since = same.map_or(Some(now), |last| last.since);
        self.before = known.take(PLANS_REMEMBERED).collect();
        self
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

    // f-E14
    #[test]
    fn a_request_is_let_in_by_its_method_and_the_level_of_access() {
        let methods = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "get", "INVENTED"];
        let allowed = |access: AccessLevel| methods.map(|method| access.allows(Intent::of_method(method)));
        assert_eq!(allowed(AccessLevel::Full), [true; 9]);
        assert_eq!(allowed(AccessLevel::Restricted), [true, true, true, false, false, false, false, false, false]);
        assert_eq!(allowed(AccessLevel::Suspended), [false; 9]);
        assert!([AccessLevel::Suspended, AccessLevel::Restricted].iter().all(|access| access.allows(Intent::Settle)));
    }

    // f-M14
    #[test]
    fn an_assignment_remembers_what_was_before_it_and_since_when_it_holds() {
        let at = |s| DateTime::from_timestamp(s, 0).unwrap();
        let (free, pro) = (PlanKey::from_static("free"), PlanKey::from_static("pro"));
        let on = |plan: &PlanKey, version| PlanAssignment { version, ..PlanAssignment::active(plan.clone()) };
        let was = |plan: &PlanKey, version, since| PastPlan { plan: plan.clone(), version, since };

        let first = on(&pro, Some(1)).following(&on(&free, Some(1)), &free, at(10));
        assert_eq!((first.since, &first.before), (Some(at(10)), &vec![was(&free, Some(1), None)]));
        let unpaid = PlanAssignment { standing: Standing::Suspended { since: at(15) }, ..on(&pro, Some(1)) };
        let unpaid = unpaid.following(&first, &free, at(15));
        assert_eq!((unpaid.since, &unpaid.before), (first.since, &first.before), "no change of plan");
        let newer = on(&pro, Some(2)).following(&unpaid, &free, at(20));
        assert_eq!(newer.since, Some(at(20)));
        assert_eq!(newer.before, [was(&pro, Some(1), Some(at(10))), was(&free, Some(1), None)]);

        let ended = PlanAssignment { ends_at: Some(at(30)), ..newer };
        let again = on(&pro, Some(2)).following(&ended, &free, at(40));
        assert_eq!(again.before[..2], [was(&free, None, Some(at(30))), was(&pro, Some(2), Some(at(20)))]);
        let default = on(&free, Some(1)).following(&ended, &free, at(40));
        assert_eq!(default.since, Some(at(30)), "it took over when the other ended");

        let mut last = again;
        for round in 0..100 {
            last = on(&pro, Some(3 + round)).following(&last, &free, at(50 + i64::from(round)));
        }
        assert_eq!(last.before.len(), PLANS_REMEMBERED);
    }
}
