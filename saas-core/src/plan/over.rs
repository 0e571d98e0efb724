//! What a tenant has beyond the plan that it is on, or is to come to. Pure: who asks brings what is used.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::{Limit, MeterLimit, OverLimit, Overage, PlanCatalog, PlanVersion, PlanVersionRef};
use crate::{CoreError, FeatureKey, MeterKey, TenantContext};

/// What a tenant has beyond a plan. Nothing is taken away because of it: data stays, and only what the plan's limits say
/// ([`OverLimit`]) is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OverLimitReport {
    /// The plan that it is about.
    pub plan: PlanVersionRef,
    /// Each meter of which something is used or the plan has a limit, by name.
    pub meters: Vec<MeterOver>,
    /// Features that the tenant loses by coming to the plan, by name.
    pub lost: Vec<FeatureKey>,
}

/// A meter against a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MeterOver {
    /// Which.
    pub meter: MeterKey,
    /// Used in the window of the limit.
    pub used: u64,
    /// The limit; `None` where the plan does not include the meter.
    pub limit: Option<Limit>,
    /// How much of `used` is beyond what the plan lets through.
    pub over: u64,
    /// What holds because of it.
    pub policy: OverLimit,
}

/// Says what a tenant would have beyond a plan. Whoever counts uses implements it, and whoever sells plans asks.
#[async_trait]
pub trait OverLimits: fmt::Debug + Send + Sync + 'static {
    /// What the tenant would have beyond a version of a plan, came it to that now.
    async fn report(&self, ctx: &dyn TenantContext, to: &PlanVersionRef) -> Result<OverLimitReport, CoreError>;
}

/// What holds for a tenant that has more than its plan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OverLimitState {
    /// It has no more than its plan allows.
    Within,
    /// It may go on as under the plan before.
    Grace {
        /// Until when.
        until: DateTime<Utc>,
    },
    /// It uses no more of what it has too much of.
    Blocked,
    /// It reads and takes away, and changes nothing: features that need full access are off.
    ReadOnly,
}

impl OverLimitState {
    /// From when a tenant that came to the plan at `since` with more than it allows may only read; `None` for never.
    #[must_use]
    pub fn read_only_from(policy: OverLimit, since: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match policy {
            OverLimit::Block => None,
            OverLimit::ReadOnly => Some(since),
            OverLimit::Grace { days } => since.checked_add_signed(TimeDelta::days(i64::from(days))),
        }
    }
}

/// What a tenant on `from` would have beyond `to`, with so much used of each meter in the window that `to` counts it in.
///
/// Uses of a meter that is paid in another one belong to that. Add-ons and overrides are left out: ask
/// `saas_entitlements::Meter::preview_change` for an answer with them.
#[must_use]
pub fn over_limit(
    catalog: &PlanCatalog,
    from: &PlanVersion,
    to: &PlanVersion,
    used: &[(MeterKey, u64)],
) -> OverLimitReport {
    let used_of = |key: &MeterKey| used.iter().find(|(meter, _)| meter == key).map(|(_, used)| *used);
    let meters = catalog.meters().iter().filter(|meter| meter.credit().is_none());
    let meters = meters.filter_map(|meter| {
        let (used, rule) = (used_of(meter.key()), to.limit(meter.id()));
        if used.is_none() && rule.is_none() {
            return None;
        }
        Some(MeterOver::new(meter.key().clone(), used.unwrap_or(0), rule))
    });
    let lost = catalog.features().iter().filter(|feature| from.grants(feature.id()) && !to.grants(feature.id()));
    OverLimitReport::new(to.reference().clone(), meters.collect(), lost.map(|feature| feature.key().clone()).collect())
}

impl MeterOver {
    /// A meter against the limit of a plan; `None` for a plan without it.
    #[must_use]
    pub fn new(meter: MeterKey, used: u64, rule: Option<&MeterLimit>) -> Self {
        let policy = rule.map_or(OverLimit::Block, |rule| rule.over_limit);
        let over = used.saturating_sub(Self::most(rule));
        Self { meter, used, limit: rule.map(|rule| rule.limit), over, policy }
    }

    /// The most that a limit lets through; nothing of a meter that the plan does not include.
    #[must_use]
    pub fn most(rule: Option<&MeterLimit>) -> u64 {
        match rule.map(|rule| (rule.limit, rule.overage, rule.overage_max)) {
            None => 0,
            Some((Limit::Unlimited, ..)) => u64::MAX,
            Some((Limit::Max(max), Overage::Block, _)) => max,
            Some((Limit::Max(max), Overage::Allow | Overage::Bill, beyond)) => {
                beyond.map_or(u64::MAX, |beyond| max.saturating_add(beyond))
            }
        }
    }

    /// What holds at `now` for a tenant that came to the plan at `since`.
    #[must_use]
    pub fn state(&self, since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> OverLimitState {
        if self.over == 0 {
            return OverLimitState::Within;
        }
        // None: by what had happened, not by a change of plan; or all else stays as it is.
        match since.and_then(|since| OverLimitState::read_only_from(self.policy, since)) {
            Some(from) if from <= now => OverLimitState::ReadOnly,
            Some(until) => OverLimitState::Grace { until },
            None => OverLimitState::Blocked,
        }
    }
}

impl OverLimitReport {
    /// A report of these meters and features.
    #[must_use]
    pub fn new(plan: PlanVersionRef, mut meters: Vec<MeterOver>, mut lost: Vec<FeatureKey>) -> Self {
        meters.sort_by(|one, other| one.meter.cmp(&other.meter));
        lost.sort();
        Self { plan, meters, lost }
    }

    /// The meters of which there is too much.
    pub fn exceeding(&self) -> impl Iterator<Item = &MeterOver> {
        self.meters.iter().filter(|meter| meter.over > 0)
    }

    /// What holds at `now` for a tenant that came to the plan at `since`: the strictest of its meters.
    #[must_use]
    pub fn state(&self, since: Option<DateTime<Utc>>, now: DateTime<Utc>) -> OverLimitState {
        self.meters.iter().map(|meter| meter.state(since, now)).max().unwrap_or(OverLimitState::Within)
    }
}

/// Such as ``on `free@1`: `seats` is 7 of 3 (blocked); loses `export` ``.
impl fmt::Display for OverLimitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on `{}`: ", self.plan)?;
        let mut separator = "";
        for MeterOver { meter, used, limit, policy, .. } in self.exceeding() {
            match limit {
                Some(limit) => write!(f, "{separator}`{meter}` is {used} of {limit} ({policy})")?,
                None => write!(f, "{separator}`{meter}` is {used} and not included ({policy})")?,
            }
            separator = ", ";
        }
        if separator.is_empty() {
            f.write_str("nothing is beyond a limit")?;
        }
        for (number, feature) in self.lost.iter().enumerate() {
            write!(f, "{}`{feature}`", if number == 0 { "; loses " } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PlanKey;

    const PLANS: &str = r#"
        default_plan = "free"
        [features.export]
        kind = "boolean"
        fail = "closed"
        [features.api]
        kind = "metered"
        meter = "calls"
        fail = "closed"
        [meters.calls]
        aggregation = "sum"
        [meters.seats]
        aggregation = "sum"
        [meters.storage]
        aggregation = "sum"
        [meters.tasks]
        aggregation = "sum"
        [plans.free]
        rank = 0
        [[plans.free.versions]]
        version = 1
        [plans.free.versions.limits]
        seats = { max = 3, window = "lifetime", overage = "block" }
        storage = { max = 5, window = "lifetime", overage = "block", over_limit = { grace_days = 14 } }
        tasks = { max = 5, window = "month", overage = "bill" }
        [plans.pro]
        rank = 1
        [[plans.pro.versions]]
        version = 1
        grants = { export = true }
        limits.calls = { max = 10, window = "month", overage = "block" }
        limits.seats = { max = "unlimited", window = "lifetime" }
    "#;

    // f-E15, D9
    #[test]
    fn a_report_says_what_is_beyond_the_plan_and_what_holds_then() {
        let catalog = PlanCatalog::from_toml(PLANS).unwrap();
        let version = |key: &'static str| catalog.version(&PlanKey::from_static(key), None).unwrap();
        let key = MeterKey::from_static;
        let used = [(key("calls"), 4), (key("seats"), 3), (key("storage"), 6), (key("tasks"), 900)];
        let report = over_limit(&catalog, version("pro"), version("free"), &used);
        let over: Vec<_> = report.meters.iter().map(|meter| (meter.meter.as_str(), meter.used, meter.over)).collect();
        assert_eq!(over, [("calls", 4, 4), ("seats", 3, 0), ("storage", 6, 1), ("tasks", 900, 0)]);
        assert_eq!(
            report.to_string(),
            "on `free@1`: `calls` is 4 and not included (blocked), `storage` is 6 of 5 (grace for 14 days); \
             loses `api`, `export`"
        );
        let at = |day| DateTime::UNIX_EPOCH + TimeDelta::days(day);
        let storage = report.exceeding().nth(1).unwrap();
        let states = [0, 13, 14].map(|day| storage.state(Some(at(0)), at(day)));
        let grace = OverLimitState::Grace { until: at(14) };
        assert_eq!(states, [grace, grace, OverLimitState::ReadOnly]);
        assert_eq!(report.state(Some(at(0)), at(1)), OverLimitState::Blocked, "the strictest");
        let back = over_limit(&catalog, version("free"), version("pro"), &used[1..2]);
        assert_eq!(back.state(Some(at(0)), at(1)), OverLimitState::Within);
        assert_eq!(back.to_string(), "on `pro@1`: nothing is beyond a limit");
    }
}
