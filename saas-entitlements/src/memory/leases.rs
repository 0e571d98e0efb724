//! Leases in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{CoreError, LeaseToken, Limit, MeterKey, TenantContext, TenantId, plan::Window};

use crate::{Ask, Balance, Borrowed, Draw, EntitlementsError, LeaseStore, Period, Report, Reported};

/// Leases in memory, for one process. It knows no revisions, so nothing is outdated.
#[derive(Debug, Default)]
pub struct MemoryLeases(Mutex<Books>);

type Name = (TenantId, MeterKey, Window, DateTime<Utc>);

#[derive(Debug, Default)]
struct Books {
    windows: HashMap<Name, Counter>,
    leases: HashMap<(TenantId, LeaseToken), Lent>,
}

#[derive(Debug, Default)]
struct Counter {
    balance: Balance,
    wanted: Option<Instant>,
    /// The limit at the last announcement.
    limit: Option<Limit>,
    /// Thresholds that were announced, each under its limit.
    crossed: HashSet<(u64, u16)>,
}

#[derive(Debug)]
struct Lent {
    of: Name,
    lent: u64,
    spent: u64,
    number: u64,
    expires: Instant,
    ended: bool,
}

impl MemoryLeases {
    /// Nothing lent yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counter {
    fn is_wanted(&self) -> bool {
        self.wanted.is_some_and(|at| at.elapsed() < Duration::from_secs(1))
    }
}

impl Books {
    /// Ends overdue leases of the windows that `concerns` names, but for the one of whoever asks.
    fn strand(&mut self, concerns: impl Fn(&Name) -> bool, beside: Option<LeaseToken>) -> u64 {
        let (now, mut total) = (Instant::now(), 0);
        let others = self.leases.iter_mut().filter(|((_, token), _)| Some(*token) != beside).map(|(_, lease)| lease);
        for lease in others.filter(|lease| !lease.ended && lease.expires <= now && concerns(&lease.of)) {
            lease.ended = true;
            let lost = lease.lent - lease.spent;
            let balance = &mut self.windows.entry(lease.of.clone()).or_default().balance;
            balance.used += lost;
            balance.held -= lost;
            total += lost;
        }
        total
    }

    fn report(&mut self, tenant: TenantId, report: &Report) -> Result<Reported, EntitlementsError> {
        let Some(lease) = self.leases.get_mut(&(tenant, report.lease)) else { return Ok(Reported::Fenced) };
        let counter = self.windows.entry(lease.of.clone()).or_default();
        let used = counter.balance.used;
        if lease.ended {
            return Ok(if report.ending && lease.number == report.number {
                Reported::Settled { used }
            } else {
                Reported::Fenced
            });
        }
        let wanted = counter.is_wanted();
        if lease.number >= report.number {
            return Ok(Reported::Kept { wanted, used });
        }
        let reported = lease.unreported(report.spent)?;
        counter.balance.used += reported;
        counter.balance.held -= reported;
        let used = counter.balance.used;
        (lease.spent, lease.number, lease.ended) = (report.spent, report.number, report.ending);
        lease.expires = Instant::now() + report.life;
        if report.ending {
            counter.balance.held -= lease.lent - lease.spent;
            return Ok(Reported::Settled { used });
        }
        Ok(Reported::Kept { wanted, used })
    }

    fn borrow(&mut self, tenant: TenantId, ask: &Ask) -> Result<Borrowed, EntitlementsError> {
        let draw = &ask.draw;
        let name = (tenant, draw.counter.clone(), draw.window, draw.period.start);
        let mut reported = 0;
        match self.leases.get(&(tenant, ask.lease)) {
            Some(lease) if ask.number == 0 || lease.ended || lease.number >= ask.number || lease.of != name => {
                return Ok(Borrowed::Fenced);
            }
            Some(lease) => reported = lease.unreported(ask.spent)?,
            None if ask.number > 0 => return Ok(Borrowed::Fenced),
            None => {}
        }
        self.strand(|of| *of == name, Some(ask.lease));
        let own = self.leases.get(&(tenant, ask.lease)).map_or(0, |lease| lease.lent - ask.spent);
        let open = self.leases.values().filter(|lease| !lease.ended && lease.of == name);
        let outstanding = open.map(|lease| lease.lent - lease.spent).sum::<u64>() - reported;
        let counter = self.windows.entry(name.clone()).or_default();
        let (used, held) = (counter.balance.used + reported, counter.balance.held - reported);
        let free = draw.cap.saturating_sub(used).saturating_sub(held);
        let Some(rest) = free.checked_sub(draw.units) else {
            if held > own && draw.units <= draw.cap.saturating_sub(used) {
                counter.wanted = Some(Instant::now());
            }
            return Ok(Borrowed::Refused { used, held });
        };
        let mut units = 0;
        if !counter.is_wanted() {
            units = ask.want.min(ask.exposed.saturating_sub(outstanding) / 2).min(rest / 2);
            units -= units % ask.cost;
        }
        let used = used + draw.units;
        counter.balance = Balance { used, held: held + units };
        let relimited = counter.limit != Some(draw.limit);
        let expires = Instant::now() + ask.life;
        if let Some(lease) = self.leases.get_mut(&(tenant, ask.lease)) {
            lease.lent += units;
            (lease.spent, lease.number, lease.expires) = (ask.spent, ask.number, expires);
        } else if units > 0 {
            let lent = Lent { of: name, lent: units, spent: 0, number: 0, expires, ended: false };
            self.leases.insert((tenant, ask.lease), lent);
        }
        Ok(Borrowed::Lent { units, used, relimited })
    }
}

impl Lent {
    /// Used since the last report.
    fn unreported(&self, spent: u64) -> Result<u64, CoreError> {
        let used = spent.checked_sub(self.spent).filter(|_| spent <= self.lent);
        used.ok_or(CoreError::Corrupt { table: "saas.usage_lease", column: "spent" })
    }
}

#[async_trait]
impl LeaseStore for MemoryLeases {
    async fn borrow(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        _: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        self.books().borrow(ctx.tenant(), ask)
    }

    async fn report(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        _: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError> {
        self.books().report(ctx.tenant(), report)
    }

    async fn announce(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        _: DateTime<Utc>,
    ) -> Result<Vec<u16>, EntitlementsError> {
        let mut books = self.books();
        let name = (ctx.tenant(), draw.counter.clone(), draw.window, draw.period.start);
        let Some(counter) = books.windows.get_mut(&name) else { return Ok(Vec::new()) };
        counter.limit = Some(draw.limit);
        let Limit::Max(limit) = draw.limit else { return Ok(Vec::new()) };
        let reached = draw.reached(counter.balance.used);
        Ok(reached.into_iter().filter(|percent| counter.crossed.insert((limit, *percent))).collect())
    }

    async fn reclaim(&self, ctx: &dyn TenantContext, _: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        Ok(self.books().strand(|of| of.0 == ctx.tenant(), None))
    }

    async fn balance(
        &self,
        ctx: &dyn TenantContext,
        counter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<Balance, EntitlementsError> {
        let name = (ctx.tenant(), counter.clone(), window, period.start);
        Ok(self.books().windows.get(&name).map_or(Balance::default(), |counter| counter.balance))
    }
}
