//! What a tenant has beyond its plan by a limit that lets it only read until that is mended. Pure.
//!
//! The gate reads how much is used when it loads a tenant that came from another plan to one with such a limit: what is used,
//! and from when to when it counts, is part of the snapshot. It loads it again where time alone brings another window, plan or
//! limit to look at.

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::{
    Limit, MeterKey,
    plan::{MeterOver, OverLimit, OverLimitState},
};
use serde::Serialize;

use crate::{Snapshot, Watched};

/// A meter of which a tenant has more than its plan allows, so that it may only read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Excess {
    /// Which.
    pub meter: MeterKey,
    /// Used in the window of the limit.
    pub used: u64,
    /// The limit.
    pub limit: Limit,
    /// How much of `used` is beyond what the plan lets through.
    pub over: u64,
    /// From when the tenant may only read: its coming to the plan, or the end of the grace that it had then.
    pub since: DateTime<Utc>,
    /// When the window ends and the meter starts again from 0; `None` for never.
    pub until: Option<DateTime<Utc>>,
}

impl Excess {
    pub(crate) fn holds(&self, now: DateTime<Utc>) -> bool {
        self.since <= now && self.until.is_none_or(|until| now < until)
    }

    /// The instants at which it begins and ceases to hold.
    pub(crate) fn bounds(&self) -> impl Iterator<Item = DateTime<Utc>> {
        [Some(self.since), self.until].into_iter().flatten()
    }
}

/// Such as `` `files` is 9 of 5, 4 too many, until 2026-02-01 00:00:00 UTC ``.
impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { meter, used, limit, over, until, .. } = self;
        write!(f, "`{meter}` is {used} of {limit}, {over} too many")?;
        until.iter().try_for_each(|until| write!(f, ", until {until}"))
    }
}

impl Snapshot {
    /// Why the tenant may only read, where that is because it has more of a meter than its plan allows.
    #[must_use]
    pub fn excess(&self) -> Option<&Excess> {
        self.facts.excess.iter().find(|excess| excess.holds(self.at))
    }

    /// The windows whose usage decides whether the tenant may only read: none unless it came from another plan to one with
    /// such a limit.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let meters = self.catalog.meters().iter().filter(|meter| meter.credit().is_none());
        let Some(since) = self.changed_at() else { return Vec::new() };
        let watched = meters.filter_map(|meter| {
            let terms = self.plain_terms_of(meter.id(), self.at)?;
            self.read_only_from(terms.rule.over_limit)?;
            // More than can be counted is never exceeded.
            let most = Some(MeterOver::most(Some(&terms.rule))).filter(|most| i64::try_from(*most).is_ok())?;
            Some(Watched { meter: meter.key().clone(), window: terms.rule.window, period: terms.period, most, since })
        });
        watched.collect()
    }

    /// From when a tenant that came to its plan with more may only read.
    fn read_only_from(&self, policy: OverLimit) -> Option<DateTime<Utc>> {
        OverLimitState::read_only_from(policy, self.changed_at()?)
    }

    /// The same state with so much used of each of the windows that are [watched](Self::watched), in their order.
    pub(crate) fn with_usage(mut self, used: &[u64]) -> Self {
        self.facts.watched = self.watched().into();
        let watched = self.facts.watched.iter().zip(used);
        let excess = watched.filter_map(|(watched, used)| {
            let rule = self.plain_terms_of(self.catalog.meter(&watched.meter)?.id(), self.at)?.rule;
            let since = self.read_only_from(rule.over_limit)?;
            let over = used.saturating_sub(watched.most);
            let (meter, until) = (watched.meter.clone(), watched.period.end);
            (over > 0).then_some(Excess { meter, used: *used, limit: rule.limit, over, since, until })
        });
        self.facts.excess = excess.collect();
        if self.facts.watched.is_empty() { self } else { self.at(self.at) }
    }

    /// Until when it may be shown as it is: the next instant at which an answer changes, or a window ends that is watched.
    pub(crate) fn holds_until(&self) -> Option<DateTime<Utc>> {
        let windows = self.facts.watched.iter().filter_map(|watched| watched.period.end);
        windows.filter(|end| *end > self.at).chain(self.next_boundary).min()
    }

    /// Whether time alone has brought other windows to watch, or another most of one, than those whose usage was read: then it
    /// has to be read anew.
    pub(crate) fn watches_others(&self) -> bool {
        *self.facts.watched != *self.watched()
    }
}
