//! Reports what is used of pools, and gives back what nobody holds.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use saas_core::{CoreError, LeaseToken};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    super::totals::add,
    Inner,
    place::{Owed, Place},
    scripts::{Order, bytes},
};
use crate::{EntitlementsError, Report, Reported};

/// Places that are reported at the same time.
const AT_ONCE: usize = 8;
/// How often it is said at most that something could not be reported.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Ticks until the store is gone.
pub(super) async fn keep_pools(inner: Weak<Inner>) {
    let Some(period) = inner.upgrade().map(|inner| inner.options.tick) else { return };
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = inner.tick(false).await
            && warned.is_none_or(|at| at.elapsed() >= WARN_EVERY)
        {
            warned = Some(Instant::now());
            tracing::warn!(target: "saas.entitlements.lease.redis", error = &error as &dyn std::error::Error, "what was used of a pool could not be reported; trying again");
        }
    }
}

impl Inner {
    /// Some places at a time, those of which something was reported just now only if `now`; answers with the first failure.
    pub(super) async fn tick(&self, now: bool) -> Result<(), EntitlementsError> {
        let places: Vec<_> = self.places().by_key.values().cloned().collect();
        let mut first = Ok(());
        for places in places.chunks(AT_ONCE) {
            let ticking = places.iter().map(|place| self.tick_one(place, now));
            for ticked in futures_util::future::join_all(ticking).await {
                first = first.and(ticked);
            }
        }
        let old: Vec<_> = places.iter().flat_map(|place| place.forget_old()).collect();
        drop(places);
        let mut places = self.places();
        for lease in old {
            places.of_leases.remove(&lease);
        }
        // Nobody but the map has it, and nobody else can get it meanwhile.
        places.by_key.retain(|_, place| Arc::strong_count(place) > 1 || !place.is_idle());
        first
    }

    async fn tick_one(&self, place: &Arc<Place>, now: bool) -> Result<(), EntitlementsError> {
        while let Some(owed) = place.next_owed() {
            let told = match owed {
                Owed::Undo { lease, number, spent, question, .. } => {
                    self.shelf.undo(place, lease, (number, spent), question).await
                }
                Owed::End(report) => self.shelf.report(place, &report).await,
            };
            // Redis is asked again at the next tick.
            let Ok(answer) = told else { return Ok(()) };
            place.told();
            self.carry_out(place, &answer.orders).await;
        }
        let Ok(answer) = self.shelf.tick(place, now).await else { return Ok(()) };
        self.try_to_carry_out(place, &answer.orders).await.map(drop)
    }

    /// Has PostgreSQL know what Redis knows, as far as Redis answers; answers how many units of overdue leases count as used by
    /// that.
    pub(super) async fn report_pools(&self, place: &Arc<Place>) -> Result<u64, EntitlementsError> {
        let Ok(answer) = self.shelf.tick(place, true).await else { return Ok(0) };
        self.try_to_carry_out(place, &answer.orders).await?;
        Ok(answer.number(0))
    }

    /// Gives back what nobody holds; whether that was anything. For one who wants so many units more, those who hold hear of it
    /// where theirs could be enough.
    pub(super) async fn trim(
        &self,
        place: &Arc<Place>,
        wants: Option<(LeaseToken, u64)>,
    ) -> Result<bool, EntitlementsError> {
        let wants = wants.map(|(lease, lacks)| (bytes(lease), lacks));
        let wants = wants.as_ref().map(|(lease, lacks)| (lease.as_slice(), *lacks));
        let Ok(answer) = self.shelf.trim(place, wants).await else { return Ok(false) };
        self.try_to_carry_out(place, &answer.orders).await?;
        Ok(!answer.orders.is_empty())
    }

    /// As [`try_to_carry_out`](Self::try_to_carry_out), where a failure is for the next tick to make up for.
    pub(super) async fn carry_out(&self, place: &Arc<Place>, orders: &[Order]) -> Option<u64> {
        match self.try_to_carry_out(place, orders).await {
            Ok(used) => used,
            Err(error) => {
                tracing::debug!(target: "saas.entitlements.lease.redis", error = &error as &dyn std::error::Error, "a pool could not be reported; trying again with the next tick");
                None
            }
        }
    }

    /// Makes reports of pools, and tells Redis what became of them; answers what was used after the last of them, where
    /// PostgreSQL said so.
    async fn try_to_carry_out(&self, place: &Arc<Place>, orders: &[Order]) -> Result<Option<u64>, EntitlementsError> {
        let (used, is_wanted) = self.make_reports(place, orders).await?;
        if is_wanted && let Ok(answer) = self.shelf.trim(place, Some((b"somebody", 0))).await {
            self.make_reports(place, &answer.orders).await?;
        }
        Ok(used)
    }

    async fn make_reports(
        &self,
        place: &Arc<Place>,
        orders: &[Order],
    ) -> Result<(Option<u64>, bool), EntitlementsError> {
        let (mut last, mut is_wanted) = (None, false);
        for order in orders {
            let Order { pool, number, spent, keep, ending } = *order;
            let report = Report { lease: pool, number, spent, ending, life: self.options.life };
            let reported = self.leases.report_keeping(&place.ctx, &report, keep, self.clock.now()).await;
            let (is_over, used) = match reported {
                Ok(Reported::Kept { wanted, used }) => {
                    is_wanted |= wanted && keep.is_none();
                    (false, Some(used))
                }
                Ok(Reported::Settled { used }) => (true, Some(used)),
                // What was not reported counts as used.
                Ok(Reported::Fenced) => {
                    add(&self.shelf.totals.lost, 1);
                    (true, None)
                }
                // Not what this version wrote. Nobody believes it any more.
                Err(EntitlementsError::Core(CoreError::Corrupt { .. })) => {
                    add(&self.shelf.totals.unreadable, 1);
                    (true, None)
                }
                Err(error) => return Err(error),
            };
            last = used.or(last);
            // Unheard, it is reported again.
            drop(self.shelf.told(place, order, is_over, used).await);
        }
        Ok((last, is_wanted))
    }
}
