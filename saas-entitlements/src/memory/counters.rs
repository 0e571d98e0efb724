//! Counters in memory.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, Limit, MeterKey, TenantContext, TenantId, UsageGrantId,
    UsageReservationId, plan::Window,
};

use super::reservations::{Kept, Parts};
use crate::{
    Adjustment, Corrected, CounterStore, Draw, Drawn, EntitlementsError, GRANTS_LISTED, Grant, Ledger, NewGrant, Period,
};

/// Counters in memory. It knows no revisions, so a draw is never outdated, and keeps no audit log.
#[derive(Debug, Default)]
pub struct MemoryCounters(Mutex<Books>);

pub(super) type WindowName = (TenantId, MeterKey, Window, DateTime<Utc>);

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) counted: HashMap<(TenantId, MeterKey, IdempotencyKey), i128>,
    pub(super) windows: HashMap<WindowName, Counter>,
    pub(super) grants: HashMap<TenantId, Vec<Held>>,
    pub(super) reservations: HashMap<(TenantId, UsageReservationId), Kept>,
}

#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) used: u64,
    /// By reservations.
    pub(super) held: u64,
    pub(super) announced: BTreeSet<(u64, u16)>,
    /// Whether what earlier windows left was carried over into it.
    pub(super) carried: bool,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) grant: Grant,
    pub(super) revoked: bool,
    /// By reservations.
    pub(super) held: u64,
    /// The window that left it over.
    pub(super) of: Option<WindowName>,
}

impl Held {
    pub(super) fn left(&self, now: DateTime<Utc>) -> u64 {
        let over = self.revoked || self.grant.expires_at.is_some_and(|end| end <= now);
        if over { 0 } else { self.grant.units - self.grant.burnt - self.held }
    }
}

impl Books {
    /// Whether the key was counted with that amount.
    fn is_known(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        key: &IdempotencyKey,
        amount: i128,
    ) -> Result<bool, CoreError> {
        match self.counted.get(&(ctx.tenant(), meter.clone(), key.clone())) {
            Some(prior) if *prior == amount => Ok(true),
            Some(_) => Err(CoreError::KeyReused { key: key.to_string() }),
            None => Ok(false),
        }
    }

    /// The grants that have units left, as they are burnt.
    pub(super) fn burnable(&mut self, tenant: TenantId, meter: &MeterKey, now: DateTime<Utc>) -> Vec<&mut Held> {
        let grants = self.grants.entry(tenant).or_default().iter_mut();
        let mut burnable: Vec<_> = grants.filter(|held| held.grant.meter == *meter && held.left(now) > 0).collect();
        burnable.sort_by_key(|held| {
            let end = held.grant.expires_at;
            (held.grant.priority, end.is_none(), end, held.grant.created_at, held.grant.id)
        });
        burnable
    }
}

impl MemoryCounters {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CounterStore for MemoryCounters {
    async fn consume(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Drawn, EntitlementsError> {
        let mut books = self.books();
        if books.is_known(ctx, &draw.meter, &draw.key, i128::from(draw.amount))? {
            return Ok(Drawn::AlreadyCounted);
        }
        let window = books.open(ctx.tenant(), draw, now);
        let limit = match draw.limit {
            Limit::Unlimited => u64::MAX,
            Limit::Max(max) => max,
        };
        let Parts { before, held, from_plan, burns, over, fits } = books.part(ctx.tenant(), draw, now);
        let burnt = burns.iter().map(|(_, piece)| piece).sum();
        if !fits {
            let room = u64::saturating_add(burnt, draw.cap.saturating_sub(before + held));
            return Ok(Drawn::Refused { used: before, room });
        }
        for (grant, piece) in burns {
            books.change_grant(ctx.tenant(), grant, |held| held.grant.burnt += piece);
        }
        let after = before + from_plan + over;
        let counter = books.windows.entry(window).or_default();
        counter.used = after;
        let first = |percent: &u16| counter.announced.insert((limit, *percent));
        let crossed = draw.reached(after).into_iter().filter(first).collect();
        books.counted.insert((ctx.tenant(), draw.meter.clone(), draw.key.clone()), i128::from(draw.amount));
        Ok(Drawn::Counted { before, after, burnt, crossed })
    }

    async fn used(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let books = self.books();
        Ok(books.windows.get(&(ctx.tenant(), meter.clone(), window, period.start)).map_or(0, |counter| counter.used))
    }
}

#[async_trait]
impl Ledger for MemoryCounters {
    async fn give(
        &self,
        ctx: &dyn TenantContext,
        new: &NewGrant,
        now: DateTime<Utc>,
    ) -> Result<Grant, EntitlementsError> {
        let mut books = self.books();
        let grants = books.grants.entry(ctx.tenant()).or_default();
        if let Some(held) = grants.iter().find(|held| held.grant.id == new.id) {
            if (&held.grant.meter, held.grant.units) != (&new.meter, new.units) {
                return Err(CoreError::KeyReused { key: new.id.to_string() }.into());
            }
            return Ok(held.grant.clone());
        }
        let grant = Grant {
            id: new.id,
            meter: new.meter.clone(),
            units: new.units,
            burnt: 0,
            priority: new.priority,
            reason: new.reason.clone(),
            created_at: now,
            expires_at: new.expires_at,
        };
        grants.push(Held { grant: grant.clone(), revoked: false, held: 0, of: None });
        Ok(grant)
    }

    async fn revoke(
        &self,
        ctx: &dyn TenantContext,
        grant: UsageGrantId,
        _: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>, EntitlementsError> {
        let mut books = self.books();
        let grants = books.grants.entry(ctx.tenant()).or_default();
        let in_force = |held: &&mut Held| {
            held.grant.id == grant && !held.revoked && held.grant.expires_at.is_none_or(|end| end > now)
        };
        Ok(grants.iter_mut().find(in_force).map(|held| {
            held.revoked = true;
            held.grant.units - held.grant.burnt - held.held
        }))
    }

    async fn list_grants(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        now: DateTime<Utc>,
    ) -> Result<Vec<Grant>, EntitlementsError> {
        let mut books = self.books();
        let burnable = books.burnable(ctx.tenant(), meter, now);
        Ok(burnable.into_iter().take(GRANTS_LISTED).map(|held| held.grant.clone()).collect())
    }

    async fn correct(
        &self,
        ctx: &dyn TenantContext,
        adjustment: &Adjustment,
        _: DateTime<Utc>,
    ) -> Result<Corrected, EntitlementsError> {
        let mut books = self.books();
        let amount = i128::from(adjustment.amount);
        if books.is_known(ctx, &adjustment.meter, &adjustment.key, amount)? {
            return Ok(Corrected::AlreadyCounted);
        }
        let window = (ctx.tenant(), adjustment.counter.clone(), adjustment.window, adjustment.period.start);
        let before = books.windows.get(&window).map_or(0, |counter| counter.used);
        let sum = i128::from(before) + i128::from(adjustment.units);
        let after = i64::try_from(sum.max(0))
            .ok()
            .and_then(|sum| u64::try_from(sum).ok())
            .ok_or_else(|| InvalidInput::new("correction", "would count more than 2^63-1 units", "correct by less"))?;
        let counter = books.windows.entry(window).or_default();
        counter.used = after;
        if let Limit::Max(max) = adjustment.limit {
            counter.announced.extend(adjustment.as_draw().reached(after).into_iter().map(|percent| (max, percent)));
        }
        books.counted.insert((ctx.tenant(), adjustment.meter.clone(), adjustment.key.clone()), amount);
        Ok(Corrected::Counted { before, after })
    }
}
