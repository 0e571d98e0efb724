//! Leases out of Redis, of units that PostgreSQL has lent.
//!
//! PostgreSQL lends a *pool* to Redis: a lease like any other, held by all processes together. Redis lends of it, one script
//! for each borrow or report, and keeps who has how much. What was used of a pool is reported to PostgreSQL at each tick, by
//! whichever process comes first, under ascending numbers: so it counts once. When nobody holds anything of a pool any more it
//! is given back. Whatever does not fit is decided by PostgreSQL, after the pool has given back what nobody holds.
//!
//! No limit is passed whatever Redis loses, or tells twice, since no unit is out that PostgreSQL does not hold for the pool:
//! - Units come into a pool once: each refill has a number, which PostgreSQL accepts in ascending order, and Redis until
//!   something with a higher one took units back.
//! - A pool that Redis has lost is never given back: once its life is over all that was not reported of it counts as used,
//!   which is at most the share of the limit that may be out.
//! - A place belongs to one history of Redis' writes, which a restart and a promoted replica end.
//!
//! A borrow whose answer is lost is decided by PostgreSQL in its place, and undone in Redis as soon as that answers again;
//! so what it needed is not counted twice.

mod options;
mod place;
mod pools;
mod scripts;
mod stats;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
pub use options::RedisLeaseOptions;
use saas_core::{CoreError, LeaseToken, MeterKey, SharedClock, TenantContext, TenantId, plan::Window};
pub use stats::RedisLeaseStats;

use self::{
    place::{Owed, Place, key},
    pools::keep_pools,
    scripts::{Answer, Refill, Shelf},
};
use super::{
    Redis,
    link::{Link, Missed},
    totals::add,
    words::MOST,
};
use crate::{Ask, Balance, Borrowed, Draw, EntitlementsError, LeaseStore, Period, PostgresLeases, Report, Reported};

/// How often a borrow is tried again because others came in between.
const ATTEMPTS: usize = 8;

/// A [`LeaseStore`] that is faster than PostgreSQL's and decides nothing without it.
///
/// A clone is another handle to the same store. What differs from [`PostgresLeases`] is this:
/// - What was used is told as PostgreSQL said it at the last report, with what Redis knows beside it.
/// - Units that were lent to Redis before a limit or plan changed may be lent by it to a process that has not heard of the
///   change, until one that has borrows.
/// - While Redis does not answer, what its pools hold is in nobody's hand until their life is over, and a use can be refused
///   although it is not used: at most the share of the limit that may be out.
#[derive(Clone)]
pub struct RedisLeases {
    inner: Arc<Inner>,
}

struct Inner {
    leases: PostgresLeases,
    shelf: Shelf,
    options: RedisLeaseOptions,
    clock: SharedClock,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    by_key: HashMap<String, Arc<Place>>,
    /// Where the leases of this process are; those that PostgreSQL lent are not.
    of_leases: HashMap<LeaseToken, Arc<Place>>,
}

impl RedisLeases {
    /// Starts leases out of Redis before `leases`, and the task that reports what is used of them, which ends with the last
    /// handle.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(leases: PostgresLeases, redis: Redis, clock: SharedClock, options: RedisLeaseOptions) -> Self {
        let shelf = Shelf::new(Link::new(redis, options.answer_within), options.clone());
        let inner = Arc::new(Inner { leases, shelf, options, clock, places: Mutex::default() });
        drop(tokio::spawn(keep_pools(Arc::downgrade(&inner))));
        Self { inner }
    }

    /// What was counted since it was started.
    #[must_use]
    pub fn stats(&self) -> RedisLeaseStats {
        self.inner.shelf.totals.read()
    }

    /// Reports now, in place of the tick.
    ///
    /// # Errors
    /// Of the first report that PostgreSQL did not take; it is repeated.
    #[cfg(feature = "testing")]
    pub async fn tick(&self) -> Result<(), EntitlementsError> {
        self.inner.tick(true).await
    }
}

impl fmt::Debug for RedisLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLeases").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

#[async_trait]
impl LeaseStore for RedisLeases {
    async fn borrow(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let inner = &*self.inner;
        let place = inner.place(ctx, ask);
        let lends = ask.want > 0 && !place.is_near();
        match inner.place_of(ctx.tenant(), ask.lease) {
            // It is where it was, even where its window is named anew: there, nobody knows it.
            Some(known) if Arc::ptr_eq(&known, &place) => inner.borrow(&place, ctx, ask, now).await,
            None if lends && ask.number == 0 => inner.borrow(&place, ctx, ask, now).await,
            None if lends && inner.shelf.is_asked() => inner.move_to_redis(ctx, ask, now).await,
            Some(_) | None => inner.borrow_directly(&place, ctx, ask, now).await,
        }
    }

    async fn report(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        now: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError> {
        match self.inner.place_of(ctx.tenant(), report.lease) {
            Some(place) => self.inner.report(&place, report).await,
            None => self.inner.leases.report(ctx, report, now).await,
        }
    }

    async fn announce(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Vec<u16>, EntitlementsError> {
        // PostgreSQL announces what it has heard of.
        for place in self.inner.places_of(ctx.tenant()) {
            self.inner.report_pools(&place).await?;
        }
        self.inner.leases.announce(ctx, draw, now).await
    }

    async fn reclaim(&self, ctx: &dyn TenantContext, now: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        let mut stranded = 0;
        for place in self.inner.places_of(ctx.tenant()) {
            stranded += self.inner.report_pools(&place).await?;
        }
        Ok(self.inner.leases.reclaim(ctx, now).await?.saturating_add(stranded))
    }

    async fn balance(
        &self,
        ctx: &dyn TenantContext,
        counter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<Balance, EntitlementsError> {
        let of_window = |place: &&Arc<Place>| place.is_of(counter, window, period);
        let (mut more, mut free) = (0, 0_u64);
        for place in self.inner.places_of(ctx.tenant()).iter().filter(of_window) {
            if let Ok(answer) = self.inner.shelf.peek(place).await {
                more += answer.number(0);
                free += answer.number(1);
            }
        }
        let Balance { used, held } = self.inner.leases.balance(ctx, counter, window, period).await?;
        Ok(Balance { used: used.saturating_add(more), held: held.saturating_sub(free) })
    }
}

impl Inner {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, ctx: &dyn TenantContext, ask: &Ask) -> Arc<Place> {
        let key = key(&self.options, ctx, ask);
        let mut places = self.places();
        Arc::clone(places.by_key.entry(key).or_insert_with_key(|key| Arc::new(Place::new(key.clone(), ctx, ask))))
    }

    /// Where a lease of this process is, if that is Redis.
    fn place_of(&self, tenant: TenantId, lease: LeaseToken) -> Option<Arc<Place>> {
        self.places().of_leases.get(&lease).filter(|place| place.ctx.tenant() == tenant).cloned()
    }

    fn places_of(&self, tenant: TenantId) -> Vec<Arc<Place>> {
        self.places().by_key.values().filter(|place| place.ctx.tenant() == tenant).cloned().collect()
    }

    async fn borrow(
        &self,
        place: &Arc<Place>,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let question = LeaseToken::mint_at(now);
        let mut turn = None;
        let mut is_trimmed = false;
        for _ in 0..ATTEMPTS {
            let answer = match self.shelf.borrow(place, ask, question, turn.is_some()).await {
                Ok(answer) => answer,
                Err(missed) => return self.borrow_without(place, ctx, ask, (question, &missed), now).await,
            };
            // A pool that ended makes room for the next.
            self.carry_out(place, &answer.orders).await;
            match answer.outcome.as_str() {
                "lent" => {
                    add(&self.shelf.totals.from_redis, 1);
                    self.lent(place, ask);
                    let (units, used) = (answer.number(0), answer.number(1));
                    return Ok(Borrowed::Lent { units, used, relimited: false });
                }
                "fenced" => return Ok(Borrowed::Fenced),
                "impossible" => return Err(impossible()),
                // Whoever has the turn may fill it for this one, too.
                "short" => turn = Some(place.filling.lock().await),
                // Units of another rule, older or newer: PostgreSQL says whose is the present one.
                "other" => {
                    self.trim(place, None).await?;
                    turn = Some(place.filling.lock().await);
                }
                "refill" => {
                    let Some(pool) = answer.token(0) else { return Err(impossible()) };
                    let refill = Refill { pool, number: answer.number(1), spent: answer.number(2) };
                    match self.refill(place, ctx, ask, (question, refill), now).await? {
                        Some(Borrowed::Refused { used, held }) if !is_trimmed => {
                            is_trimmed = true;
                            self.trim(place, Some((ask.lease, lacking(ask, used, held)))).await?;
                        }
                        Some(Borrowed::Refused { used, held }) => {
                            let own = place.unreported(ask);
                            let (used, held) = (used.saturating_add(own), held.saturating_sub(own));
                            return Ok(Borrowed::Refused { used, held });
                        }
                        Some(borrowed) => return Ok(borrowed),
                        // Somebody else's came first, or PostgreSQL has ended the pool.
                        None => {
                            self.report_pools(place).await?;
                        }
                    }
                }
                // Nothing can be lent here at present: "full", or "unknown".
                _ => return self.borrow_elsewhere(place, ctx, ask, &answer, now).await,
            }
            if ask.number == 0 && place.is_near() {
                break;
            }
        }
        if ask.number == 0 {
            return self.borrow_directly(place, ctx, &only_needed(ask), now).await;
        }
        Err(EntitlementsError::Unavailable { cause: None })
    }

    /// Has PostgreSQL fill the pool, and lends of it; `None`: that was overtaken, or the pool is over.
    async fn refill(
        &self,
        place: &Arc<Place>,
        ctx: &dyn TenantContext,
        ask: &Ask,
        (question, refill): (LeaseToken, Refill),
        now: DateTime<Utc>,
    ) -> Result<Option<Borrowed>, EntitlementsError> {
        let want = ask.want.saturating_mul(self.options.leases).min(MOST / 4);
        let of_pool = Ask {
            lease: refill.pool,
            number: refill.number,
            spent: refill.spent,
            holder: "redis".into(),
            want: want - want % ask.cost.max(1),
            life: self.options.life,
            ..ask.clone()
        };
        let lent = match self.leases.borrow(ctx, &of_pool, now).await? {
            Borrowed::Lent { units, used, relimited } => (units, used, relimited),
            Borrowed::Refused { used, held } => {
                self.give_up(place, refill).await;
                return Ok(Some(Borrowed::Refused { used, held }));
            }
            Borrowed::Outdated { revision } => {
                self.give_up(place, refill).await;
                return Ok(Some(Borrowed::Outdated { revision }));
            }
            Borrowed::Fenced => {
                self.give_up(place, refill).await;
                return Ok(None);
            }
        };
        let (units, used, relimited) = lent;
        if units == 0 {
            place.pause(self.options.pause);
        } else {
            add(&self.shelf.totals.filled, 1);
        }
        // What was needed is counted: from here on this one is granted, whatever Redis says.
        let counted = |units, used| Ok(Some(Borrowed::Lent { units, used, relimited }));
        match self.shelf.put(place, ask, question, refill, (units, used)).await {
            Ok(answer) if answer.outcome == "lent" => {
                let (units, known) = (answer.number(0), answer.number(1));
                if units > 0 || ask.number > 0 {
                    self.lent(place, ask);
                }
                self.carry_out(place, &answer.orders).await;
                counted(units, known)
            }
            // The pool is gone, or what came late is not to be used: it goes back with the pool, or counts as used.
            Ok(_) => counted(0, used),
            Err(missed) => {
                if ask.number == 0 && missed.is_unknown() {
                    self.owe_undo(place, ask, question);
                }
                counted(0, used)
            }
        }
    }

    async fn give_up(&self, place: &Arc<Place>, refill: Refill) {
        if let Ok(answer) = self.shelf.cancel(place, refill).await {
            self.carry_out(place, &answer.orders).await;
        }
    }

    /// Has PostgreSQL decide alone. What nobody holds of the pools is given back before anything is refused.
    async fn borrow_directly(
        &self,
        place: &Arc<Place>,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        add(&self.shelf.totals.direct, 1);
        let borrowed = self.leases.borrow(ctx, ask, now).await?;
        if let Borrowed::Refused { used, held } = borrowed
            && self.trim(place, Some((ask.lease, lacking(ask, used, held)))).await?
        {
            return self.leases.borrow(ctx, ask, now).await;
        }
        Ok(borrowed)
    }

    /// Where Redis said that it cannot lend at present, or does not know the lease.
    async fn borrow_elsewhere(
        &self,
        place: &Arc<Place>,
        ctx: &dyn TenantContext,
        ask: &Ask,
        answer: &Answer,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        if ask.number == 0 {
            return self.borrow_directly(place, ctx, &only_needed(ask), now).await;
        }
        if answer.outcome == "full" {
            let Ask { lease, number, spent, life, .. } = *ask;
            let _ = self.report(place, &Report { lease, number, spent, ending: true, life }).await?;
        }
        Ok(Borrowed::Fenced)
    }

    /// Ends a lease that PostgreSQL lent while Redis did not answer: what is borrowed next is borrowed there.
    async fn move_to_redis(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let Ask { lease, number, spent, life, .. } = *ask;
        let _ = self.leases.report(ctx, &Report { lease, number, spent, ending: true, life }, now).await?;
        Ok(Borrowed::Fenced)
    }

    /// Where Redis did not answer: it may have lent.
    async fn borrow_without(
        &self,
        place: &Arc<Place>,
        ctx: &dyn TenantContext,
        ask: &Ask,
        (question, missed): (LeaseToken, &Missed),
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        if ask.number > 0 || missed.is_unknown() {
            self.owe_undo(place, ask, question);
        }
        if ask.number > 0 {
            return Ok(Borrowed::Fenced);
        }
        add(&self.shelf.totals.direct, 1);
        self.leases.borrow(ctx, ask, now).await
    }

    fn owe_undo(&self, place: &Place, ask: &Ask, question: LeaseToken) {
        add(&self.shelf.totals.undone, 1);
        let Ask { lease, number, spent, life, .. } = *ask;
        place.owe(Owed::Undo { lease, number, spent, question, life });
    }

    /// Notes that a lease is in Redis, and that its borrow was answered.
    fn lent(&self, place: &Arc<Place>, ask: &Ask) {
        place.answered(ask);
        if ask.number == 0 {
            self.places().of_leases.insert(ask.lease, Arc::clone(place));
        }
    }

    async fn report(&self, place: &Arc<Place>, report: &Report) -> Result<Reported, EntitlementsError> {
        let answer = match self.shelf.report(place, report).await {
            Ok(answer) => answer,
            Err(missed) if report.ending => {
                tracing::debug!(target: "saas.entitlements.lease.redis", ?missed, "a lease is given back later");
                // It is over for its holder. What Redis is not told within the life of the lease counts as used.
                place.owe(Owed::End(report.clone()));
                return Ok(Reported::Fenced);
            }
            Err(missed) => return Err(CoreError::from(missed).into()),
        };
        place.saw(report);
        let (wanted, used) = (answer.number(0) == 1, answer.number(1));
        let told = self.carry_out(place, &answer.orders).await;
        match answer.outcome.as_str() {
            "kept" => Ok(Reported::Kept { wanted, used }),
            "settled" => Ok(Reported::Settled { used: told.unwrap_or(used) }),
            "impossible" => Err(impossible()),
            _ => Ok(Reported::Fenced),
        }
    }
}

/// The least that has to be given back before what is needed can fit, of a limit of which so much is used and held.
fn lacking(ask: &Ask, used: u64, held: u64) -> u64 {
    used.saturating_add(held).saturating_add(ask.draw.units).saturating_sub(ask.draw.cap).min(MOST)
}

/// Nothing beside what is needed: Redis is to lend the rest next time.
fn only_needed(ask: &Ask) -> Ask {
    Ask { want: 0, ..ask.clone() }
}

/// More than was lent, or less than before; or an answer that the scripts of this version do not give.
fn impossible() -> EntitlementsError {
    CoreError::Corrupt { table: "saas.usage_lease", column: "spent" }.into()
}
