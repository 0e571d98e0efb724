//! Leases in memory.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{CoreError, LeaseToken, MeterKey, TenantContext, TenantId, plan::Window};

use crate::{Ask, Balance, Borrowed, EntitlementsError, LeaseStore, Period, Report, Reported};

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
    /// Ends overdue leases of the windows that `concerns` names.
    fn strand(&mut self, concerns: impl Fn(&Name) -> bool) -> u64 {
        let (now, mut total) = (Instant::now(), 0);
        for lease in
            self.leases.values_mut().filter(|lease| !lease.ended && lease.expires <= now && concerns(&lease.of))
        {
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
        let wanted = counter.is_wanted();
        if lease.ended {
            return Ok(if report.ending && lease.number == report.number {
                Reported::Settled
            } else {
                Reported::Fenced
            });
        }
        if lease.number >= report.number {
            return Ok(Reported::Kept { wanted });
        }
        if report.spent < lease.spent || report.spent > lease.lent {
            return Err(CoreError::Corrupt { table: "saas.usage_lease", column: "spent" }.into());
        }
        let used = report.spent - lease.spent;
        counter.balance.used += used;
        counter.balance.held -= used;
        (lease.spent, lease.number, lease.ended) = (report.spent, report.number, report.ending);
        lease.expires = Instant::now() + report.life;
        if report.ending {
            counter.balance.held -= lease.lent - lease.spent;
            return Ok(Reported::Settled);
        }
        Ok(Reported::Kept { wanted })
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
        let mut books = self.books();
        if let Some(report) = &ask.settle {
            // Fenced or not: it is over.
            let (Reported::Settled | Reported::Fenced | Reported::Kept { .. }) = books.report(ctx.tenant(), report)?;
        }
        let name = (ctx.tenant(), ask.counter.clone(), ask.window, ask.period.start);
        books.strand(|of| *of == name);
        let open = books.leases.values().filter(|lease| !lease.ended && lease.of == name);
        let outstanding: u64 = open.map(|lease| lease.lent - lease.spent).sum();
        let counter = books.windows.entry(name.clone()).or_default();
        let free = ask.cap.saturating_sub(counter.balance.used).saturating_sub(counter.balance.held);
        let Some(rest) = free.checked_sub(ask.need) else {
            counter.wanted = (counter.balance.held > 0).then(Instant::now);
            return Ok(Borrowed::Refused { used: counter.balance.used, held: counter.balance.held });
        };
        let mut units = 0;
        if !counter.is_wanted() {
            units = ask.want.min(ask.exposed.saturating_sub(outstanding) / 2).min(rest / 2);
            units -= units % ask.cost;
        }
        counter.balance.used += ask.need;
        counter.balance.held += units;
        if units > 0 {
            let expires = Instant::now() + ask.life;
            let lent = Lent { of: name, lent: units, spent: 0, number: 0, expires, ended: false };
            books.leases.insert((ctx.tenant(), ask.lease), lent);
        }
        Ok(Borrowed::Lent { units })
    }

    async fn report(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        _: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError> {
        self.books().report(ctx.tenant(), report)
    }

    async fn reclaim(&self, ctx: &dyn TenantContext, _: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        Ok(self.books().strand(|of| of.0 == ctx.tenant()))
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
