//! Under which terms a meter is counted at an instant: the limit and the window in force, with what a change of plan in the
//! middle of a window does to them. Pure.
//!
//! - `keep`: the new limit holds for the whole window, and what was used in it counts.
//! - `prorate`: the limit is the sum of the limits of all plans of the window, each by the share of the window for which it
//!   was in force, rounded down once. A plan without the meter, or with another kind of window, counts as 0; one without
//!   end, or that the catalogue no longer has, as the present one. Overrides and add-ons count in full.
//! - `reset`: the window ends at the change, and another one begins.
//!
//! Since when a plan is in force comes from its source ([`PlanAssignment::since`]). Where that does not know, all is kept.
//!
//! [`PlanAssignment::since`]: saas_core::subscription::PlanAssignment::since

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Limit, MeterKey,
    plan::{MeterId, MeterLimit, OverLimit, Overage, PlanChange, PlanVersion, VersionId},
};

use crate::{Period, Snapshot, layers, period_at, snapshot::Target};

/// The limit and the window that a use is counted under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The limit: the share that a change of plan leaves of it, and what a grace after one lets through beyond it.
    pub rule: MeterLimit,
    /// The window.
    pub period: Period,
}

/// What is left of earlier windows and may be carried over into the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Carry {
    /// The most units that are carried over, in all.
    pub max: u64,
    /// The windows that count, the oldest first: none that ended before the tenant came to its plan.
    pub ended: Box<[Ended]>,
}

/// A window that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// When it began.
    pub start: DateTime<Utc>,
    /// When it ended; what it left over is there from then on.
    pub end: DateTime<Utc>,
    /// The limit that it had.
    pub limit: u64,
    /// When what is carried over from it is gone.
    pub expires_at: DateTime<Utc>,
}

impl Snapshot {
    /// The limit and the window of a meter at an instant; `None` where the tenant does not have the meter.
    ///
    /// The plan is that of the snapshot's instant; `at` may lie in an earlier window.
    #[must_use]
    pub fn terms(&self, meter: &MeterKey, at: DateTime<Utc>) -> Option<Terms> {
        self.terms_of(self.catalog.paying(self.catalog.meter(meter)?.id()), at)
    }

    pub(crate) fn terms_of(&self, meter: MeterId, at: DateTime<Utc>) -> Option<Terms> {
        let mut terms = self.plain_terms_of(meter, at)?;
        self.let_through(meter, &mut terms.rule, at);
        Some(terms)
    }

    /// When the tenant came to its plan from another one.
    pub(crate) fn changed_at(&self) -> Option<DateTime<Utc>> {
        let mut plans = self.plans();
        let (since, _) = plans.next()?;
        plans.next().and(since)
    }

    /// The terms of the plan before, for what the present one does not have.
    pub(crate) fn former_terms_of(&self, meter: MeterId, at: DateTime<Utc>) -> Option<Terms> {
        let version = self.plans().nth(1)?.1?;
        let rule = layers::limit(version, self.addons(), meter)?;
        let period = period_at(&rule, self.anchor(), at);
        Some(Terms { rule, period })
    }

    /// The terms without what a grace lets through.
    pub(crate) fn plain_terms_of(&self, meter: MeterId, at: DateTime<Utc>) -> Option<Terms> {
        let mut rule = self.limit_of(meter)?;
        let mut period = period_at(&rule, self.anchor(), at);
        for (since, version) in self.plans() {
            let resets = |rule: &MeterLimit| rule.on_plan_change == PlanChange::Reset;
            let Some(since) = since.filter(|since| *since > period.start) else { break };
            if version.and_then(|version| version.limit(meter)).is_none_or(|rule| !resets(rule)) {
                continue;
            }
            if since <= at {
                period.start = since;
            } else if period.end.is_none_or(|end| since < end) {
                period.end = Some(since);
            }
        }
        if rule.on_plan_change == PlanChange::Prorate && self.override_of(Target::Meter(meter)).is_none() {
            rule.limit = self.prorated(meter, &rule, period);
        }
        Some(Terms { rule, period })
    }

    /// The plans that the tenant was on, the present one first, and since when; what the catalogue lacks has no version.
    fn plans(&self) -> impl Iterator<Item = (Option<DateTime<Utc>>, Option<&PlanVersion>)> {
        let ended = self.facts.ends_at.filter(|end| *end <= self.at);
        let default = ended.map(|end| (Some(end), Some(self.version)));
        let bought = (self.facts.since, Some(self.facts.bought));
        let all = default.into_iter().chain([bought]).chain(self.facts.before.iter().copied());
        all.map(|(since, version)| (since, version.and_then(|id| self.catalog.version_by_id(id))))
    }

    fn prorated(&self, meter: MeterId, rule: &MeterLimit, period: Period) -> Limit {
        let (Limit::Max(present), Some(end)) = (rule.limit, period.end) else { return rule.limit };
        let micros = |from: DateTime<Utc>, to: DateTime<Utc>| {
            let micros = (to - from).num_microseconds().and_then(|micros| u128::try_from(micros).ok());
            micros.unwrap_or(0)
        };
        let whole = micros(period.start, end);
        let (mut until, mut sum) = (end, 0_u128);
        for (number, (since, version)) in self.plans().enumerate() {
            let from = since.map_or(period.start, |since| since.clamp(period.start, until));
            let units = match version {
                _ if number == 0 => present,
                None => present,
                Some(version) => match layers::limit(version, self.addons(), meter) {
                    Some(then) if !counts_alike(&then, rule) => 0,
                    Some(MeterLimit { limit: Limit::Max(then), .. }) => then,
                    Some(MeterLimit { limit: Limit::Unlimited, .. }) => present,
                    None => 0,
                },
            };
            sum += micros(from, until) * u128::from(units);
            until = from;
            if from == period.start {
                break;
            }
        }
        // What was before all that is known.
        sum += micros(period.start, until) * u128::from(present);
        let share = sum.checked_div(whole).and_then(|share| u64::try_from(share).ok());
        Limit::Max(share.unwrap_or(present))
    }

    /// After a change to a plan that has a grace, lets uses through up to the limit of the plan before.
    fn let_through(&self, meter: MeterId, rule: &mut MeterLimit, at: DateTime<Utc>) {
        let (OverLimit::Grace { .. }, Limit::Max(max)) = (rule.over_limit, rule.limit) else { return };
        if self.grace_until(rule).is_none_or(|until| until <= at) {
            return;
        }
        let before = self.plans().nth(1).and_then(|(_, version)| layers::limit(version?, self.addons(), meter));
        let Some(before) = before.filter(|before| counts_alike(before, rule)) else { return };
        let beyond = match before.limit {
            Limit::Unlimited => None,
            Limit::Max(before) => Some(before.saturating_sub(max)),
        };
        (rule.overage, rule.overage_max) = match (rule.overage, beyond) {
            (overage, Some(0)) => (overage, rule.overage_max),
            (Overage::Block, beyond) => (Overage::Allow, beyond),
            (overage, beyond) => (overage, rule.overage_max.zip(beyond).map(|(max, beyond)| max.max(beyond))),
        };
    }

    /// Until when a tenant that came to its plan with more may use what the plan before had.
    pub(crate) fn grace_until(&self, rule: &MeterLimit) -> Option<DateTime<Utc>> {
        match rule.over_limit {
            OverLimit::Grace { days } => self.changed_at()?.checked_add_signed(TimeDelta::days(i64::from(days))),
            OverLimit::Block | OverLimit::ReadOnly => None,
        }
    }

    /// What may be carried over into a window; `None` where nothing is.
    pub(crate) fn carry(&self, meter: MeterId, rule: &MeterLimit, period: Period) -> Option<Carry> {
        let rollover = rule.rollover?;
        let since = self.plans().next().and_then(|(since, _)| since);
        // The ends of the present window and of those to come: what a window left over is gone at one of them.
        let mut ends = vec![period.end?];
        for _ in 1..rollover.windows {
            let next = period_at(rule, self.anchor(), *ends.last()?);
            ends.push(next.end?);
        }
        let mut ended = Vec::with_capacity(ends.len());
        let mut end = period.start;
        for expires_at in ends.into_iter().rev().take(usize::from(rollover.windows)) {
            if since.is_some_and(|since| since >= end) {
                break;
            }
            let before = self.terms_of(meter, end - TimeDelta::microseconds(1))?;
            let Limit::Max(limit) = before.rule.limit else { break };
            ended.push(Ended { start: before.period.start, end, limit, expires_at });
            end = before.period.start;
        }
        ended.reverse();
        Some(Carry { max: rollover.max, ended: ended.into() })
    }
}

/// Whether two plans count a meter in the same windows, so that one number says something about the other.
fn counts_alike(one: &MeterLimit, other: &MeterLimit) -> bool {
    (one.window, one.anchor, one.time_zone) == (other.window, other.anchor, other.time_zone)
}

/// An earlier plan of a tenant, by its place in the catalogue.
pub(crate) type Former = (Option<DateTime<Utc>>, Option<VersionId>);
