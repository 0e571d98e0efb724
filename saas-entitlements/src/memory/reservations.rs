//! Reservations in memory, and what a use is taken from.

use std::time::Instant;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, IdempotencyKey, InvalidInput, Limit, MeterKey, TenantContext, TenantId, UsageGrantId, UsageReservationId,
};

use super::{
    MemoryCounters,
    counters::{Books, Counter, Held, WindowName},
};
use crate::{Draw, EntitlementsError, Grant, Hold, Holding, ReservationStore, Settled};

const MOST: u64 = i64::MAX.unsigned_abs();

/// A reservation.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    meter: MeterKey,
    key: IdempotencyKey,
    amount: u64,
    member: Option<Box<str>>,
    window: WindowName,
    /// Held of the counter.
    own: u64,
    /// Held of grants, in the order in which they burn.
    of_grants: Vec<(UsageGrantId, u64)>,
    expires: Instant,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Committed {
        amount: u64,
    },
    /// By its holder, or because it was overdue.
    GivenBack,
}

/// What a use would be taken from.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) before: u64,
    /// By reservations, and carried over into another window.
    pub(super) held: u64,
    pub(super) burns: Vec<(UsageGrantId, u64)>,
    pub(super) fits: bool,
}

impl Books {
    /// The window of a draw, with what earlier ones left over.
    pub(super) fn open(&mut self, tenant: TenantId, draw: &Draw, now: DateTime<Utc>) -> WindowName {
        let name = |start| (tenant, draw.counter.clone(), draw.window, start);
        let window = name(draw.period.start);
        let Some(carry) = &draw.carry else { return window };
        if std::mem::replace(&mut self.windows.entry(window.clone()).or_default().carried_into, true) {
            return window;
        }
        for ended in carry.ended.iter().filter(|ended| ended.expires_at > now) {
            let left = self
                .windows
                .get(&name(ended.start))
                .map_or(ended.limit, |counter| ended.limit.saturating_sub(counter.used).saturating_sub(counter.held));
            let grants = self.grants.entry(tenant).or_default();
            if grants.iter().any(|held| held.of.as_ref() == Some(&name(ended.start))) {
                continue;
            }
            let alive = |held: &&Held| {
                held.of.is_some()
                    && held.grant.meter == draw.counter
                    && !held.revoked
                    && held.grant.expires_at.is_some_and(|end| end > ended.end)
            };
            let there: u64 = grants.iter().filter(alive).map(|held| held.grant.units - held.grant.burnt).sum();
            let units = left.min(carry.max.saturating_sub(there));
            if units == 0 {
                continue;
            }
            let grant = Grant {
                id: UsageGrantId::mint_at(now),
                meter: draw.counter.clone(),
                units,
                burnt: 0,
                priority: 0,
                reason: format!("left over from the {} that began {}", draw.window, ended.start),
                created_at: ended.end.min(now),
                expires_at: Some(ended.expires_at),
            };
            grants.push(Held { grant, revoked: false, held: 0, of: Some(name(ended.start)) });
            self.windows.entry(name(ended.start)).or_default().carried_over = units;
        }
        window
    }

    /// What the units that a draw adds would be taken from, once nothing overdue is in its way.
    pub(super) fn part(&mut self, tenant: TenantId, draw: &Draw, added: u64, now: DateTime<Utc>) -> Parts {
        let parts = self.part_of(tenant, draw, added, now);
        if parts.fits || self.expire(tenant, &draw.counter) == 0 {
            parts
        } else {
            self.part_of(tenant, draw, added, now)
        }
    }

    fn part_of(&mut self, tenant: TenantId, draw: &Draw, added: u64, now: DateTime<Utc>) -> Parts {
        let window = (tenant, draw.counter.clone(), draw.window, draw.period.start);
        let counted = |counter: &Counter| (counter.used, counter.held.saturating_add(counter.carried_over));
        let (before, held) = self.windows.get(&window).map_or((0, 0), counted);
        let room = draw.cap.saturating_sub(before).saturating_sub(held);
        let within = match draw.limit {
            Limit::Unlimited => room,
            Limit::Max(max) => max.min(draw.cap).saturating_sub(before).saturating_sub(held),
        };
        let from_plan = added.min(within);
        let wanted = if draw.aggregation.is_additive() { added - from_plan } else { 0 };
        let burns = self.burns(tenant, &draw.counter, wanted, now);
        let burnt: u64 = burns.iter().map(|(_, piece)| piece).sum();
        let over = added - from_plan - burnt;
        Parts { before, held, burns, fits: over == 0 || over <= room - from_plan }
    }

    /// The grants that give up to `wanted` units, and how much each.
    fn burns(
        &mut self,
        tenant: TenantId,
        counter: &MeterKey,
        wanted: u64,
        now: DateTime<Utc>,
    ) -> Vec<(UsageGrantId, u64)> {
        let mut missing = wanted;
        let grants = self.burnable(tenant, counter, now);
        let pieces = grants.into_iter().map(|held| {
            let piece = held.left(now).min(missing);
            missing -= piece;
            (held.grant.id, piece)
        });
        pieces.filter(|(_, piece)| *piece > 0).collect()
    }

    /// The grant of a reservation; one that is gone takes the change with it.
    pub(super) fn change_grant(&mut self, tenant: TenantId, id: UsageGrantId, change: impl FnOnce(&mut Held)) {
        let grants = self.grants.entry(tenant).or_default();
        if let Some(found) = grants.iter_mut().find(|held| held.grant.id == id) {
            change(found);
        }
    }

    /// Ends overdue reservations of a counter; how many.
    fn expire(&mut self, tenant: TenantId, counter: &MeterKey) -> usize {
        let now = Instant::now();
        let overdue = |(name, kept): (&(TenantId, UsageReservationId), &Kept)| {
            let concerns = name.0 == tenant && kept.window.1 == *counter;
            (concerns && kept.end.is_none() && kept.expires <= now).then_some(name.1)
        };
        let ids: Vec<_> = self.reservations.iter().filter_map(overdue).collect();
        for id in &ids {
            self.free(tenant, *id, End::GivenBack);
        }
        ids.len()
    }

    /// Takes from a reservation what it holds; what that was of the counter, and of grants.
    fn free(&mut self, tenant: TenantId, id: UsageReservationId, end: End) -> (u64, Vec<(UsageGrantId, u64)>) {
        let Some(kept) = self.reservations.get_mut(&(tenant, id)) else { return (0, Vec::new()) };
        let was = kept.end.replace(end);
        if was.is_some() {
            return (0, Vec::new());
        }
        let (own, of_grants, window) = (kept.own, kept.of_grants.clone(), kept.window.clone());
        self.windows.entry(window).or_default().held -= own;
        for (grant, piece) in &of_grants {
            self.change_grant(tenant, *grant, |held| held.held -= piece);
        }
        (own, of_grants)
    }
}

#[async_trait]
impl ReservationStore for MemoryCounters {
    async fn hold(
        &self,
        ctx: &dyn TenantContext,
        hold: &Hold,
        now: DateTime<Utc>,
    ) -> Result<Holding, EntitlementsError> {
        let mut books = self.books();
        let (tenant, draw) = (ctx.tenant(), &hold.draw);
        if let Some((amount, _)) = books.counted.get(&(tenant, draw.meter.clone(), draw.key.clone())) {
            return Ok(Holding::AlreadyCounted { amount: u64::try_from(*amount).unwrap_or(0) });
        }
        let window = books.open(tenant, draw, now);
        let expires = Instant::now() + hold.life;
        let same = |(name, kept): &(&(TenantId, UsageReservationId), &mut Kept)| {
            name.0 == tenant && kept.end.is_none() && (&kept.meter, &kept.key) == (&draw.meter, &draw.key)
        };
        if let Some((name, kept)) = books.reservations.iter_mut().find(same) {
            if kept.amount != draw.amount {
                return Err(CoreError::KeyReused { key: draw.key.to_string() }.into());
            }
            kept.expires = kept.expires.max(expires);
            let (reservation, of_grants) = (name.1, kept.of_grants.iter().map(|(_, piece)| piece).sum());
            let counter = books.windows.entry(window).or_default();
            return Ok(Holding::Held { reservation, used: counter.used, held: counter.held, of_grants });
        }
        let Parts { before, held, burns, fits } = books.part(tenant, draw, draw.units, now);
        let of_grants: u64 = burns.iter().map(|(_, piece)| piece).sum();
        if !fits {
            let room = of_grants.saturating_add(draw.cap.saturating_sub(before).saturating_sub(held));
            return Ok(Holding::Refused { used: before, held, room });
        }
        let own = draw.units - of_grants;
        for (grant, piece) in &burns {
            books.change_grant(tenant, *grant, |held| held.held += piece);
        }
        let counter = books.windows.entry(window.clone()).or_default();
        counter.held += own;
        let held = counter.held;
        let (meter, key, amount) = (draw.meter.clone(), draw.key.clone(), draw.amount);
        let member = draw.member.clone();
        let kept = Kept { meter, key, amount, member, window, own, of_grants: burns, expires, end: None };
        books.reservations.insert((tenant, hold.reservation), kept);
        Ok(Holding::Held { reservation: hold.reservation, used: before, held, of_grants })
    }

    async fn commit(
        &self,
        ctx: &dyn TenantContext,
        reservation: UsageReservationId,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Settled, EntitlementsError> {
        let mut books = self.books();
        let tenant = ctx.tenant();
        let Some(kept) = books.reservations.get(&(tenant, reservation)).cloned() else { return Ok(Settled::Unknown) };
        if let Some(End::Committed { amount }) = kept.end {
            return Ok(Settled::AlreadyCounted { amount });
        }
        let name = (tenant, kept.meter.clone(), kept.key.clone());
        if let Some(amount) = books.counted.get(&name).map(|(amount, _)| *amount) {
            books.free(tenant, reservation, End::GivenBack);
            return Ok(Settled::AlreadyCounted { amount: u64::try_from(amount).unwrap_or(0) });
        }
        let late = kept.end.is_some();
        let counted = |counter: &Counter| (counter.used, counter.held, counter.carried_over);
        let (before, held, carried_over) = books.windows.get(&kept.window).map_or((0, 0, 0), counted);
        let others = if late { held } else { held - kept.own };
        let of_own = if late { 0 } else { draw.units.min(kept.own) };
        let mut rest = draw.units - of_own;
        let mut burns = Vec::new();
        for (grant, piece) in kept.of_grants.iter().filter(|_| !late) {
            burns.push((*grant, rest.min(*piece)));
            rest -= rest.min(*piece);
        }
        let beyond = rest;
        let limit = match draw.limit {
            Limit::Unlimited => MOST,
            Limit::Max(max) => max.min(MOST),
        };
        let from_plan = rest.min(limit.saturating_sub(before + of_own + others).saturating_sub(carried_over));
        burns.extend(books.burns(tenant, &kept.window.1, rest - from_plan, now));
        let burnt: u64 = burns.iter().map(|(_, piece)| piece).sum();
        let after = u64::saturating_add(before, draw.units - burnt);
        if after.saturating_add(others) > MOST {
            let why = "would count more than 2^63-1 units";
            return Err(InvalidInput::new("actual", why, "correct the counter first").into());
        }
        if late {
            if let Some(kept) = books.reservations.get_mut(&(tenant, reservation)) {
                kept.end = Some(End::Committed { amount: draw.amount });
            }
        } else {
            books.free(tenant, reservation, End::Committed { amount: draw.amount });
        }
        for (grant, piece) in burns {
            books.change_grant(tenant, grant, |held| held.grant.burnt += piece);
        }
        let counter = books.set_used(&kept.window, after);
        if let Some(member) = kept.member {
            *counter.members.entry(member).or_default() += draw.units;
        }
        let crossed = counter.announce(draw, after);
        books.counted.insert(name, (i128::from(draw.amount), None));
        Ok(Settled::Counted { before, after, burnt, beyond, late, crossed })
    }

    async fn release(
        &self,
        ctx: &dyn TenantContext,
        reservation: UsageReservationId,
        _: DateTime<Utc>,
    ) -> Result<Settled, EntitlementsError> {
        let mut books = self.books();
        let name = (ctx.tenant(), reservation);
        match books.reservations.get(&name).map(|kept| kept.end) {
            None => Ok(Settled::Unknown),
            Some(Some(End::Committed { amount })) => Ok(Settled::AlreadyCounted { amount }),
            Some(Some(End::GivenBack)) => Ok(Settled::Released),
            Some(None) => {
                books.free(name.0, reservation, End::GivenBack);
                Ok(Settled::Released)
            }
        }
    }
}
