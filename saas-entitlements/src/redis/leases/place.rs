//! What one process knows of one meter's window of one tenant.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use saas_core::{Actor, LeaseToken, MeterKey, RequestContext, TenantContext, plan::Window};
use tokio::sync::Mutex as AsyncMutex;

use super::RedisLeaseOptions;
use crate::{Ask, Period, Report};

/// Whatever becomes of a lease is remembered so long beyond its life.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The most that is owed to Redis of one place. What is beyond ends with its life.
const MOST_OWED: usize = 256;

#[derive(Debug)]
pub(super) struct Place {
    pub(super) key: String,
    /// The store's own: what it reports for many.
    pub(super) ctx: RequestContext,
    counter: MeterKey,
    window: Window,
    start: DateTime<Utc>,
    /// Held while PostgreSQL is asked to fill the pool.
    pub(super) filling: AsyncMutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    leases: HashMap<LeaseToken, Seen>,
    owed: Vec<(Owed, Instant)>,
    near_until: Option<Instant>,
}

/// The last word on a lease.
#[derive(Debug)]
struct Seen {
    /// The number of the last borrow that was answered.
    number: u64,
    /// As it was reported last.
    spent: u64,
    at: Instant,
    life: Duration,
}

/// What Redis has not been told yet.
#[derive(Debug, Clone)]
pub(super) enum Owed {
    /// A borrow whose answer was lost, by this question.
    Undo { lease: LeaseToken, number: u64, spent: u64, question: LeaseToken, life: Duration },
    /// A last report.
    End(Report),
}

impl Owed {
    const fn life(&self) -> Duration {
        match self {
            Self::Undo { life, .. } | Self::End(Report { life, .. }) => *life,
        }
    }
}

/// The key of a place. All that belongs to a tenant is in one slot of a cluster.
pub(super) fn key(options: &RedisLeaseOptions, ctx: &dyn TenantContext, ask: &Ask) -> String {
    let draw = &ask.draw;
    format!(
        "{}:{{{}}}:lease:{}:{}:{}:{}:{}",
        options.prefix,
        ctx.tenant(),
        draw.meter,
        draw.counter,
        draw.window,
        draw.period.start.timestamp_micros(),
        ask.cost
    )
}

impl Place {
    pub(super) fn new(key: String, ctx: &dyn TenantContext, ask: &Ask) -> Self {
        let ctx = RequestContext::new_at(ctx.tenant(), Actor::system("saas.redis-leases"), ask.draw.at);
        let (counter, window, start) = (ask.draw.counter.clone(), ask.draw.window, ask.draw.period.start);
        Self { key, ctx, counter, window, start, filling: AsyncMutex::default(), known: Mutex::default() }
    }

    pub(super) fn is_of(&self, counter: &MeterKey, window: Window, period: Period) -> bool {
        self.counter == *counter && self.window == window && self.start == period.start
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a borrow was answered.
    pub(super) fn answered(&self, ask: &Ask) {
        let seen = Seen { number: ask.number, spent: ask.spent, at: Instant::now(), life: ask.life };
        self.known().leases.insert(ask.lease, seen);
    }

    /// Notes that a report was answered.
    pub(super) fn saw(&self, report: &Report) {
        if let Some(seen) = self.known().leases.get_mut(&report.lease) {
            (seen.spent, seen.at, seen.life) = (report.spent, Instant::now(), report.life);
        }
    }

    /// What an ask says was used since the last report.
    pub(super) fn unreported(&self, ask: &Ask) -> u64 {
        self.known().leases.get(&ask.lease).map_or(0, |seen| ask.spent.saturating_sub(seen.spent))
    }

    /// The leases, and the number of the last borrow of each that was answered.
    pub(super) fn answers(&self) -> Vec<(LeaseToken, u64)> {
        self.known().leases.iter().map(|(lease, seen)| (*lease, seen.number)).collect()
    }

    /// Forgets leases that nobody can speak of any more; answers which.
    pub(super) fn forget_old(&self) -> Vec<LeaseToken> {
        let mut known = self.known();
        let is_old = |seen: &Seen| seen.at.elapsed() > seen.life.saturating_add(REMEMBERED);
        let old: Vec<_> = known.leases.iter().filter(|(_, seen)| is_old(seen)).map(|(lease, _)| *lease).collect();
        for lease in &old {
            known.leases.remove(lease);
        }
        old
    }

    pub(super) fn owe(&self, owed: Owed) {
        let mut known = self.known();
        if known.owed.len() < MOST_OWED {
            known.owed.push((owed, Instant::now()));
        }
    }

    /// The next of what is owed, unless its lease is past its life: then Redis has ended it.
    pub(super) fn next_owed(&self) -> Option<Owed> {
        let mut known = self.known();
        known.owed.retain(|(owed, since)| since.elapsed() <= owed.life());
        known.owed.first().map(|(owed, _)| owed.clone())
    }

    /// Notes that the first of what is owed was told.
    pub(super) fn told(&self) {
        let mut known = self.known();
        if !known.owed.is_empty() {
            known.owed.remove(0);
        }
    }

    pub(super) fn is_near(&self) -> bool {
        self.known().near_until.is_some_and(|until| Instant::now() < until)
    }

    /// Nothing is to be had for a while.
    pub(super) fn pause(&self, pause: Duration) {
        self.known().near_until = Some(Instant::now() + pause);
    }

    /// Whether this process has nothing to do with it any more.
    pub(super) fn is_idle(&self) -> bool {
        let known = self.known();
        known.leases.is_empty() && known.owed.is_empty() && known.near_until.is_none_or(|until| until <= Instant::now())
    }
}
