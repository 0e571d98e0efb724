//! Counters in memory.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, Limit, MeterKey, TenantContext, TenantId, UsageGrantId,
    UsageReservationId,
    plan::{Aggregation, Window},
};

use super::{
    reservations::{Kept, Parts},
    source::Tenants,
};
use crate::{
    Adjustment, Corrected, CounterStore, Draw, Drawn, EntitlementsError, GRANTS_LISTED, Grant, Ledger, NewGrant,
    Period, Threshold, Watched,
};

/// Counters in memory. It knows no revisions, so a draw is never outdated, and keeps no audit log.
#[derive(Debug, Default)]
pub struct MemoryCounters(Mutex<Books>);

/// What a key was counted with: amount and item.
pub(super) type Prior = (i128, Option<Box<str>>);

pub(super) type WindowName = (TenantId, MeterKey, Window, DateTime<Utc>);

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) counted: HashMap<(TenantId, MeterKey, IdempotencyKey), Prior>,
    pub(super) windows: HashMap<WindowName, Counter>,
    pub(super) grants: HashMap<TenantId, Vec<Held>>,
    pub(super) reservations: HashMap<(TenantId, UsageReservationId), Kept>,
    /// Windows that decide whether their tenant may only read: the most of each, and who is told when it is passed either way.
    pub(super) watched: HashMap<WindowName, (u64, Weak<Tenants>)>,
}

#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) used: u64,
    /// By reservations.
    pub(super) held: u64,
    pub(super) announced: BTreeSet<(u64, u16)>,
    /// Whether what earlier windows left was carried over into it.
    pub(super) carried_into: bool,
    /// What it left and is a grant now.
    pub(super) carried_over: u64,
    items: HashSet<Box<str>>,
    pub(super) members: HashMap<Box<str>, u64>,
    /// Since when the level is the one of `used`.
    level_at: Option<DateTime<Utc>>,
}

impl Counter {
    fn of_member(&self, member: Option<&str>) -> u64 {
        member.and_then(|member| self.members.get(member)).copied().unwrap_or(0)
    }

    /// What a draw comes to, before any limit: what is used when it is counted, and how much of that it adds.
    fn with(&self, draw: &Draw) -> (u64, u64) {
        let is_known = |item: &str| self.items.contains(item);
        match draw.aggregation {
            Aggregation::Sum | Aggregation::Count => (self.used.saturating_add(draw.units), draw.units),
            Aggregation::Unique if draw.item.as_deref().is_some_and(is_known) => (self.used, 0),
            Aggregation::Unique => (self.used.saturating_add(1), 1),
            Aggregation::Latest if self.level_at.is_some_and(|at| at > draw.at) => (self.used, 0),
            Aggregation::Latest => (draw.units, draw.units.saturating_sub(self.used)),
            Aggregation::Max => (self.used.max(draw.units), draw.units.saturating_sub(self.used)),
        }
    }

    /// The warnings that a draw is the first to reach, with so much used; a level that fell has taken back some before.
    pub(super) fn announce(&mut self, draw: &Draw, used: u64) -> Vec<u16> {
        let limit = match draw.limit {
            Limit::Unlimited => u64::MAX,
            Limit::Max(max) => max,
        };
        if draw.aggregation == Aggregation::Latest {
            self.announced.retain(|(_, percent)| Threshold::of(limit, *percent).units <= used);
        }
        let first = |percent: &u16| self.announced.insert((limit, *percent));
        draw.reached(used).into_iter().filter(first).collect()
    }
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
    /// Sets what is used of a window, and tells whoever watches it when that turns the answer.
    pub(super) fn set_used(&mut self, window: &WindowName, used: u64) -> &mut Counter {
        let counter = self.windows.entry(window.clone()).or_default();
        let before = std::mem::replace(&mut counter.used, used);
        if let Some((most, tenants)) = self.watched.get(window)
            && (before > *most) != (used > *most)
            && let Some(tenants) = tenants.upgrade()
        {
            tenants.raise(window.0);
        }
        counter
    }

    /// Whether the key was counted with that amount and item.
    fn is_known(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        key: &IdempotencyKey,
        amount: i128,
        item: Option<&str>,
    ) -> Result<bool, CoreError> {
        match self.counted.get(&(ctx.tenant(), meter.clone(), key.clone())) {
            Some((prior, of)) if (*prior, of.as_deref()) == (amount, item) => Ok(true),
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

    /// What is used of these windows. From now on `tenants` is told when one is beyond its most, or no longer.
    pub(super) fn watch(&self, tenant: TenantId, windows: &[Watched], tenants: &Weak<Tenants>) -> Vec<u64> {
        let mut books = self.books();
        let read = |watched: &Watched| {
            let name = (tenant, watched.meter.clone(), watched.window, watched.period.start);
            let used = books.windows.get(&name).map_or(0, |counter| counter.used);
            books.watched.insert(name, (watched.most, Weak::clone(tenants)));
            used
        };
        windows.iter().map(read).collect()
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
        if books.is_known(ctx, &draw.meter, &draw.key, i128::from(draw.amount), draw.item.as_deref())? {
            return Ok(Drawn::AlreadyCounted);
        }
        let window = books.open(ctx.tenant(), draw, now);
        let none = Counter::default();
        let counter = books.windows.get(&window).unwrap_or(&none);
        let of_member = counter.of_member(draw.member.as_deref());
        let (with, added) = counter.with(draw);
        let Parts { before, held, burns, fits } = books.part(ctx.tenant(), draw, added, now);
        let burnt: u64 = burns.iter().map(|(_, piece)| piece).sum();
        let room = (!fits).then(|| burnt.saturating_add(draw.cap.saturating_sub(before).saturating_sub(held)));
        let member_room = draw.member_cap.map(|cap| cap.saturating_sub(of_member)).filter(|room| added > *room);
        match (room, member_room) {
            (None, Some(room)) => return Ok(Drawn::MemberRefused { used: of_member, room }),
            (Some(tenant), Some(room)) if room < tenant => return Ok(Drawn::MemberRefused { used: of_member, room }),
            (Some(room), _) => return Ok(Drawn::Refused { used: before, room }),
            (None, None) => {}
        }
        for (grant, piece) in burns {
            books.change_grant(ctx.tenant(), grant, |held| held.grant.burnt += piece);
        }
        let after = with - burnt;
        let counter = books.set_used(&window, after);
        if draw.aggregation == Aggregation::Latest {
            counter.level_at = counter.level_at.max(Some(draw.at));
        }
        if let Some(item) = &draw.item {
            counter.items.insert(item.clone());
        }
        if let Some(member) = &draw.member {
            *counter.members.entry(member.clone()).or_default() += added;
        }
        let crossed = counter.announce(draw, after);
        let name = (ctx.tenant(), draw.meter.clone(), draw.key.clone());
        books.counted.insert(name, (i128::from(draw.amount), draw.item.clone()));
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

    async fn used_by(
        &self,
        ctx: &dyn TenantContext,
        member: &str,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let books = self.books();
        let counter = books.windows.get(&(ctx.tenant(), meter.clone(), window, period.start));
        Ok(counter.map_or(0, |counter| counter.of_member(Some(member))))
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
        let (item, member) = (adjustment.item.as_deref(), adjustment.member.as_deref());
        if books.is_known(ctx, &adjustment.meter, &adjustment.key, amount, item)? {
            return Ok(Corrected::AlreadyCounted);
        }
        let window = (ctx.tenant(), adjustment.counter.clone(), adjustment.window, adjustment.period.start);
        let none = Counter::default();
        let counter = books.windows.get(&window).unwrap_or(&none);
        let before = counter.used;
        let mut change = i128::from(adjustment.units).max(-i128::from(before));
        if member.is_some() {
            change = change.max(-i128::from(counter.of_member(member)));
        }
        if item.is_some_and(|item| counter.items.contains(item) == (change > 0)) {
            change = 0;
        }
        let after = i64::try_from(i128::from(before) + change)
            .ok()
            .and_then(|sum| u64::try_from(sum).ok())
            .ok_or_else(|| InvalidInput::new("correction", "would count more than 2^63-1 units", "correct by less"))?;
        let counter = books.set_used(&window, after);
        if let Limit::Max(max) = adjustment.limit {
            counter.announced.extend(adjustment.as_draw().reached(after).into_iter().map(|percent| (max, percent)));
        }
        if let Some(member) = &adjustment.member {
            let used = counter.members.entry(member.clone()).or_default();
            *used = u64::try_from(i128::from(*used) + change).unwrap_or(0);
        }
        if let Some(item) = &adjustment.item {
            if adjustment.units < 0 {
                counter.items.remove(item)
            } else {
                counter.items.insert(item.clone())
            };
        }
        let name = (ctx.tenant(), adjustment.meter.clone(), adjustment.key.clone());
        books.counted.insert(name, (amount, adjustment.item.clone()));
        Ok(Corrected::Counted { before, after })
    }
}
