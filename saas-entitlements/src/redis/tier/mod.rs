//! Counts uses in Redis, with units that PostgreSQL lent, and writes them to PostgreSQL afterwards.
//!
//! A window that is far from its limit and its warnings has a *slice* in Redis: units that PostgreSQL has set aside (a lease
//! like any other). A use takes from the slice in one script, which keeps it for whoever settles it; the process that made it
//! keeps it as well. Each tick what was admitted is written to PostgreSQL with its key, in batches that may be written any
//! number of times. Everything else is decided by PostgreSQL: near limits and warnings, overage, grants, records, large uses,
//! and everything while Redis does not answer.
//!
//! Nothing that Redis loses is missed. A lost use is written by its process; a lost slice is counted as used when its lease
//! ends, in all at most the share of the limit that may be lent; a lost key is found out when its repeat is settled. Nothing
//! that Redis tells twice is believed: a slice belongs to one history of Redis' writes, which a restart and a promoted replica
//! end.

mod bank;
mod cell;
mod options;
mod scripts;
mod settle;
mod stats;
#[cfg(test)]
mod tests;
mod uses;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use hashbrown::HashMap;
pub use options::TierOptions;
use saas_core::{
    CoreError, LeaseToken, Limit, MeterKey, RequestContext, SharedClock, TenantContext, UsageGrantId, plan::Window,
};
pub use stats::TierStats;
use tokio::sync::Notify;

use self::{
    bank::Lent,
    cell::{Cell, Place, Turn},
    scripts::{Ending, MOST_PENDING, Names, Shelf, Taken, Unserved},
    settle::keep_settling,
    stats::Totals,
    uses::Use,
};
use super::{
    Redis,
    link::{Link, Missed},
    totals::add,
    words,
};
use crate::{
    Adjustment, Corrected, CounterStore, Draw, DrawKind, Drawn, EntitlementsError, Grant, Ledger, NewGrant, Period,
    PostgresCounters,
};

/// A [`CounterStore`] that is faster than PostgreSQL's and decides nothing without it.
///
/// A clone is another handle to the same tier. Make one per process, and call [`shutdown`](Self::shutdown) at its end.
///
/// What it answers differs from [`PostgresCounters`] in this, and in nothing else:
/// - What a use leaves in the window is told as of the lending of its slice.
/// - A slice that was lent before a limit or plan changed may still be used by a process that has not heard of the change.
/// - A threshold that uses of several processes reach together may be announced a slice late.
/// - While Redis does not answer, and for the life of a slice after, units of a slice cannot be used, and a use can be
///   refused although they are not; [`used`](CounterStore::used) does not show what other processes have not settled.
/// - A repeat whose key Redis has lost before its use was settled is answered as counted, and is not counted; with another
///   amount it is counted as another use.
#[derive(Clone)]
pub struct RedisTier {
    handle: Arc<Handle>,
}

/// The handles' own: the settling task ends with the last of them.
struct Handle {
    inner: Arc<Inner>,
    ended: Arc<Notify>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

struct Inner {
    counters: PostgresCounters,
    shelf: Shelf,
    options: TierOptions,
    clock: SharedClock,
    cells: Mutex<HashMap<Place, Arc<Cell>, foldhash::fast::RandomState>>,
    closed: AtomicBool,
    totals: Totals,
}

impl RedisTier {
    /// Starts a tier in front of `counters`, and the task that settles what it admits.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(counters: PostgresCounters, redis: Redis, clock: SharedClock, options: TierOptions) -> Self {
        let link = Link::new(redis, options.answer_within);
        let shelf = Shelf::new(link, options.clone());
        let (cells, closed, totals) = (Mutex::default(), AtomicBool::new(false), Totals::default());
        let inner = Arc::new(Inner { counters, shelf, options, clock, cells, closed, totals });
        let ended = Arc::new(Notify::new());
        drop(tokio::spawn(keep_settling(Arc::clone(&inner), Arc::clone(&ended))));
        Self { handle: Arc::new(Handle { inner, ended }) }
    }

    /// What was counted since it was started.
    #[must_use]
    pub fn stats(&self) -> TierStats {
        self.handle.inner.totals.read()
    }

    /// Settles everything and gives every slice back; later uses are decided by PostgreSQL.
    ///
    /// # Errors
    /// Of the first window that could not be settled. Call again to try again.
    pub async fn shutdown(&self) -> Result<(), EntitlementsError> {
        self.handle.inner.close().await
    }

    /// Settles now, in place of the tick.
    ///
    /// # Errors
    /// Of the first window that could not be settled; it is tried again.
    #[cfg(feature = "testing")]
    pub async fn tick(&self) -> Result<(), EntitlementsError> {
        self.handle.inner.tick().await
    }
}

impl fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTier").field("options", &self.handle.inner.options).finish_non_exhaustive()
    }
}

#[async_trait]
impl CounterStore for RedisTier {
    async fn consume(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Drawn, EntitlementsError> {
        let inner = &self.handle.inner;
        if !inner.concerns(draw) {
            add(&inner.totals.direct, 1);
            return inner.counters.consume(ctx, draw, now).await;
        }
        let cell = inner.cell(Place::of(ctx, draw), now);
        let mut step = Unadmitted::Unserved;
        let is_near = || cell.turn.try_read().is_ok_and(|turn| turn.is_near() && turn.is_empty());
        if inner.may_lend(draw) && !is_near() {
            match inner.take(&cell, ctx, draw, now).await? {
                Ok(drawn) => return Ok(drawn),
                Err(why) => step = why,
            }
        }
        // In a task of its own: a caller who goes away does not leave units behind that nobody knows of.
        let owned = owned(ctx, now);
        let (inner, draw) = (Arc::clone(inner), draw.clone());
        let deciding = tokio::spawn(async move { inner.decide(&cell, &owned, &draw, now, step).await });
        deciding.await.unwrap_or(Err(EntitlementsError::Unavailable { cause: None }))
    }

    async fn used(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let inner = &self.handle.inner;
        let place = Place { tenant: ctx.tenant(), counter: meter.clone(), window, start: period.start };
        let cell = inner.cell(place, inner.clock.now());
        inner.settle_all(&cell, &mut *cell.turn.write().await, Ending::None).await?;
        inner.counters.used(ctx, meter, window, period).await
    }

    async fn used_by(
        &self,
        ctx: &dyn TenantContext,
        member: &str,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let inner = &self.handle.inner;
        let place = Place { tenant: ctx.tenant(), counter: meter.clone(), window, start: period.start };
        let cell = inner.cell(place, inner.clock.now());
        inner.settle_all(&cell, &mut *cell.turn.write().await, Ending::None).await?;
        inner.counters.used_by(ctx, member, meter, window, period).await
    }
}

#[async_trait]
impl Ledger for RedisTier {
    async fn give(
        &self,
        ctx: &dyn TenantContext,
        new: &NewGrant,
        now: DateTime<Utc>,
    ) -> Result<Grant, EntitlementsError> {
        self.handle.inner.counters.give(ctx, new, now).await
    }

    async fn revoke(
        &self,
        ctx: &dyn TenantContext,
        grant: UsageGrantId,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>, EntitlementsError> {
        self.handle.inner.counters.revoke(ctx, grant, reason, now).await
    }

    async fn list_grants(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        now: DateTime<Utc>,
    ) -> Result<Vec<Grant>, EntitlementsError> {
        self.handle.inner.counters.list_grants(ctx, meter, now).await
    }

    async fn correct(
        &self,
        ctx: &dyn TenantContext,
        adjustment: &Adjustment,
        now: DateTime<Utc>,
    ) -> Result<Corrected, EntitlementsError> {
        let inner = &self.handle.inner;
        let Adjustment { counter, window, period, .. } = adjustment;
        let place = Place { tenant: ctx.tenant(), counter: counter.clone(), window: *window, start: period.start };
        let cell = inner.cell(place, now);
        let mut turn = cell.turn.write().await;
        inner.settle_all(&cell, &mut turn, Ending::Any).await?;
        let corrected = inner.counters.correct(ctx, adjustment, now).await?;
        let Adjustment { meter, key, amount, .. } = adjustment;
        inner.answered(inner.shelf.remember(ctx.tenant(), meter, key, &amount.to_string()).await);
        Ok(corrected)
    }
}

/// Why a use was not admitted from a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unadmitted {
    /// There is nothing to take it from.
    Unserved,
    /// Redis was not asked.
    Unasked,
    /// Redis did not answer: it may have taken the use.
    Doubtful,
}

impl Inner {
    /// Whether slices can have to do with a draw: such a limit is lent of, and what is lent may be in its way.
    fn concerns(&self, draw: &Draw) -> bool {
        let is_lent_of = |max: u64| max / self.options.exposed_share >= self.options.smallest;
        let Limit::Max(max) = draw.limit else { return false };
        draw.aggregation.is_additive() && is_lent_of(max) && (draw.kind == DrawKind::Record || max == draw.cap)
    }

    /// Whether a draw that slices have to do with may be admitted from one: it is refused at the limit and nowhere else, and
    /// is not larger than a slice can be.
    fn may_lend(&self, draw: &Draw) -> bool {
        draw.kind == DrawKind::Consume
            && draw.aggregation.is_additive()
            && draw.member_cap.is_none()
            && draw.units <= self.options.largest.min(draw.cap / self.options.exposed_share / 2)
            && !self.closed.load(Ordering::Relaxed)
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<Place, Arc<Cell>, foldhash::fast::RandomState>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, place: Place, now: DateTime<Utc>) -> Arc<Cell> {
        let mut cells = self.cells();
        if let Some(cell) = cells.get(&place) {
            return Arc::clone(cell);
        }
        let names = Names::new(&self.options, place.tenant, &place.counter, place.window, place.start);
        let cell = Arc::new(Cell::new(place.clone(), names, now));
        cells.insert(place, Arc::clone(&cell));
        cell
    }

    /// Counts what became of a question, and passes an answer on.
    fn answered<T>(&self, answer: Result<T, Missed>) -> Option<T> {
        let error = match answer {
            Ok(answer) => return Some(answer),
            Err(error) => error,
        };
        let total = if error.is_unknown() { &self.totals.unanswered } else { &self.totals.unasked };
        add(total, 1);
        tracing::debug!(target: "saas.entitlements.tier", ?error, "Redis did not answer");
        None
    }

    /// Tries to admit a use from the slice.
    async fn take(
        &self,
        cell: &Cell,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Result<Drawn, Unadmitted>, EntitlementsError> {
        if cell.admitted().len() >= MOST_PENDING {
            return Ok(Err(Unadmitted::Unserved));
        }
        let used = Use::new(ctx, draw, now);
        let taken = match self.shelf.take(ctx.tenant(), &cell.names, draw, &used).await {
            Ok(taken) => taken,
            Err(missed) => {
                let why = if missed.is_unknown() { Unadmitted::Doubtful } else { Unadmitted::Unasked };
                self.answered::<()>(Err(missed));
                return Ok(Err(why));
            }
        };
        let before = match taken {
            Taken::Admitted { token, before } => {
                cell.admitted().push_back((token, used));
                add(&self.totals.admitted, 1);
                before
            }
            // The question was asked twice on the way: this is its own first answer, which nobody heard.
            Taken::Known { id, .. } if id == used.id.to_string() => return Ok(Err(Unadmitted::Doubtful)),
            Taken::Known { amount, .. } if amount == draw.amount.to_string() => {
                return Ok(Ok(Drawn::AlreadyCounted));
            }
            Taken::Known { .. } => return Err(CoreError::KeyReused { key: draw.key.to_string() }.into()),
            Taken::Unserved(why) => {
                add(&self.totals.unreadable, u64::from(why == Unserved::Foreign));
                add(&self.totals.rewound, u64::from(why == Unserved::Rewound));
                return Ok(Err(Unadmitted::Unserved));
            }
        };
        let after = before.saturating_add(draw.units);
        // The slice ends below every warning that was not given.
        Ok(Ok(Drawn::Counted { before, after, burnt: 0, crossed: Vec::new() }))
    }

    /// Takes a use from a new slice, or has PostgreSQL decide it.
    async fn decide(
        &self,
        cell: &Cell,
        ctx: &RequestContext,
        draw: &Draw,
        now: DateTime<Utc>,
        step: Unadmitted,
    ) -> Result<Drawn, EntitlementsError> {
        let turn = cell.turn.read().await;
        let is_apart = turn.is_near() || step == Unadmitted::Unasked;
        if is_apart && turn.is_empty() && cell.admitted().is_empty() {
            // Nothing is out as far as this process knows, so nobody has to wait for anybody.
            let drawn = self.count(ctx, draw, now).await?;
            if !holds_back(draw, &drawn) {
                return Ok(drawn);
            }
        }
        drop(turn);
        let mut turn = cell.turn.write().await;
        let mut doubtful = step == Unadmitted::Doubtful;
        let mut settled = false;
        if self.may_lend(draw) && !turn.is_near() && step == Unadmitted::Unserved {
            // Whoever had the turn before may have filled it.
            for is_last in [false, true] {
                match self.take(cell, ctx, draw, now).await? {
                    Ok(drawn) => return Ok(drawn),
                    Err(Unadmitted::Unserved) => {}
                    Err(missed) => {
                        doubtful = missed == Unadmitted::Doubtful;
                        break;
                    }
                }
                if is_last || !self.fill(cell, &mut turn, draw, now).await? {
                    // Filling begins and ends with settling, unless it succeeds.
                    settled = !is_last;
                    break;
                }
            }
        }
        if !settled {
            // Whatever is out comes back first, so that PostgreSQL sees all of it.
            self.settle_all(cell, &mut turn, Ending::Any).await?;
        }
        let turn = turn.downgrade();
        let drawn = self.count(ctx, draw, now).await?;
        drop(turn);
        match drawn {
            // Should Redis have taken it after all, it will be counted.
            Drawn::Refused { .. } if doubtful => {
                let cause = format!("Redis did not say whether it took `{}`", draw.key);
                Err(CoreError::OutcomeUnknown { cause: cause.into() }.into())
            }
            drawn => Ok(drawn),
        }
    }

    /// Has PostgreSQL decide, and lets Redis know the key.
    async fn count(&self, ctx: &RequestContext, draw: &Draw, now: DateTime<Utc>) -> Result<Drawn, EntitlementsError> {
        add(&self.totals.direct, 1);
        let drawn = self.counters.consume(ctx, draw, now).await?;
        if matches!(drawn, Drawn::Counted { .. } | Drawn::AlreadyCounted) {
            let amount = draw.amount.to_string();
            self.answered(self.shelf.remember(ctx.tenant(), &draw.meter, &draw.key, &amount).await);
        }
        Ok(drawn)
    }

    /// Lends a slice of the draw's rule; `false`: there is none to be had.
    async fn fill(
        &self,
        cell: &Cell,
        turn: &mut Turn,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<bool, EntitlementsError> {
        if !self.settle_all(cell, turn, Ending::Any).await? {
            return Ok(false);
        }
        let (token, nonce) = (LeaseToken::mint_at(now), LeaseToken::mint_at(now));
        if self.answered(self.shelf.open(&cell.names, nonce).await) != Some(true) {
            return Ok(false);
        }
        let lent = bank::lend(&self.counters, &cell.ctx, &self.options, draw, token, now).await;
        let (lent, used) = match lent {
            Ok(Lent::Units { lent, used }) => (lent, used),
            Ok(none) => {
                if none == Lent::Near {
                    turn.near_until = Some(Instant::now() + self.options.pause);
                }
                self.settle_all(cell, turn, Ending::Doubtful { token, nonce }).await?;
                return Ok(false);
            }
            Err(error) => {
                // It may have been lent. Nobody can use it, so all of it goes back.
                turn.owed.push((token, i64::MAX.unsigned_abs()));
                return Err(error);
            }
        };
        add(&self.totals.slices, 1);
        let rule = words::rule(draw);
        let put = self.shelf.put(&cell.names, nonce, token, &rule, (lent, used)).await;
        match self.answered(put) {
            Some(true) => turn.slice = Some((token, Instant::now())),
            // Its place is gone. Whether it had come into it, when the question was asked twice on the way, nobody can say: it
            // is left to its life.
            Some(false) => return Ok(false),
            None => {
                self.settle_all(cell, turn, Ending::Doubtful { token, nonce }).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether a use was refused while units are set aside that may come back.
fn holds_back(draw: &Draw, drawn: &Drawn) -> bool {
    match drawn {
        Drawn::Refused { used, room } => used.saturating_add(*room) < draw.cap,
        Drawn::Counted { .. } | Drawn::MemberRefused { .. } | Drawn::AlreadyCounted | Drawn::Outdated { .. } => false,
    }
}

impl Place {
    fn of(ctx: &dyn TenantContext, draw: &Draw) -> Self {
        let Draw { counter, window, period, .. } = draw;
        Self { tenant: ctx.tenant(), counter: counter.clone(), window: *window, start: period.start }
    }
}

/// The caller's context, for a task that may outlive the call.
fn owned(ctx: &dyn TenantContext, now: DateTime<Utc>) -> RequestContext {
    let owned = RequestContext::new_at(ctx.tenant(), ctx.actor().clone(), now).with_request(ctx.request());
    match ctx.role() {
        Some(role) => owned.with_role(role.clone()),
        None => owned,
    }
}
