//! Writes what was admitted, and brings slices back.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use saas_core::{LeaseToken, UsageEventId};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::{
    super::totals::add,
    Inner, bank,
    cell::{Cell, Turn},
    scripts::{Collected, Ending},
    uses::Use,
};
use crate::EntitlementsError;

/// The most uses in one statement.
const BATCH: usize = 500;
/// Windows that are settled at the same time.
const AT_ONCE: usize = 8;
/// How often it is said at most that something could not be settled.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// Ticks without anything to do after which a window is forgotten.
const FORGET_TICKS: u32 = 100;

/// Settles each tick, and everything when the last handle is gone.
pub(super) async fn keep_settling(inner: Arc<Inner>, ended: Arc<Notify>) {
    let mut ticks = interval(inner.options.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_last = false;
    let mut warned: Option<Instant> = None;
    while !is_last {
        tokio::select! {
            _ = ticks.tick() => {}
            () = ended.notified() => is_last = true,
        }
        let settled = if is_last { inner.close().await } else { inner.tick().await };
        if let Err(error) = settled
            && warned.is_none_or(|at| is_last || at.elapsed() >= WARN_EVERY)
        {
            warned = Some(Instant::now());
            tracing::warn!(target: "saas.entitlements.tier.settle", error = &error as &dyn std::error::Error, "admitted uses could not be settled; they are kept");
        }
    }
}

impl Inner {
    pub(super) async fn tick(self: &Arc<Self>) -> Result<(), EntitlementsError> {
        let settled = self.for_all(async |inner, cell| inner.tick_one(cell).await).await;
        // Nobody but the map has it, and nobody else can get it meanwhile.
        self.cells().retain(|_, cell| Arc::strong_count(cell) > 1 || !cell.is_forgettable(FORGET_TICKS));
        settled
    }

    pub(super) async fn close(self: &Arc<Self>) -> Result<(), EntitlementsError> {
        self.closed.store(true, Ordering::Relaxed);
        self.for_all(async |inner, cell| {
            let mut turn = cell.turn.write().await;
            inner.settle_all(cell, &mut turn, Ending::Any).await.map(drop)
        })
        .await
    }

    /// Some windows at a time; answers with the first failure.
    async fn for_all<F>(self: &Arc<Self>, settle: F) -> Result<(), EntitlementsError>
    where
        F: AsyncFn(&Self, &Cell) -> Result<(), EntitlementsError>,
    {
        let cells: Vec<_> = self.cells().values().cloned().collect();
        let mut first = Ok(());
        for cells in cells.chunks(AT_ONCE) {
            let settling = cells.iter().map(|cell| settle(self, cell));
            for settled in futures_util::future::join_all(settling).await {
                first = first.and(settled);
            }
        }
        first
    }

    async fn tick_one(&self, cell: &Cell) -> Result<(), EntitlementsError> {
        let mut turn = cell.turn.write().await;
        let is_idle = cell.admitted().is_empty();
        if let Some((token, seen)) = turn.slice
            && is_idle
            && seen.elapsed() >= self.options.life / 4
        {
            // Before Redis forgets it, and with it how much is left.
            let answered = self.settle_all(cell, &mut turn, Ending::Of(token)).await?;
            if answered || seen.elapsed() >= self.options.life {
                turn.slice = None;
            }
            return Ok(());
        }
        if is_idle && turn.owed.is_empty() {
            turn.idle = turn.idle.saturating_add(1);
            return Ok(());
        }
        turn.idle = 0;
        self.settle(cell, &mut turn, Vec::new()).await
    }

    /// Settles what is known here and in Redis, and ends a slice; `false`: Redis did not answer.
    pub(super) async fn settle_all(
        &self,
        cell: &Cell,
        turn: &mut Turn,
        ending: Ending,
    ) -> Result<bool, EntitlementsError> {
        let collected = self.answered(self.shelf.collect(&cell.names, ending).await);
        let answered = collected.is_some();
        let Collected { ended, unopened, uses, foreign, rewound } = collected.unwrap_or_default();
        add(&self.totals.unreadable, foreign);
        add(&self.totals.rewound, u64::from(rewound));
        if let (Ending::Doubtful { token, .. }, true) = (ending, unopened) {
            turn.owed.push((token, i64::MAX.unsigned_abs()));
        }
        turn.owed.extend(ended);
        if answered && !matches!(ending, Ending::None) {
            turn.slice = None;
        }
        self.settle(cell, turn, uses).await?;
        Ok(answered)
    }

    /// Writes what was admitted here, and `found`, and gives back what is owed.
    async fn settle(
        &self,
        cell: &Cell,
        turn: &mut Turn,
        found: Vec<(LeaseToken, Use)>,
    ) -> Result<(), EntitlementsError> {
        let mut by_slice: BTreeMap<LeaseToken, Vec<Use>> = BTreeMap::new();
        let mut seen: HashSet<UsageEventId> = HashSet::new();
        let own: Vec<_> = cell.admitted().iter().cloned().collect();
        for (token, used) in own.into_iter().chain(found) {
            if seen.insert(used.id) {
                by_slice.entry(token).or_default().push(used);
            }
        }
        for (token, _) in &turn.owed {
            by_slice.entry(*token).or_default();
        }
        for (token, uses) in by_slice {
            let result = self.settle_slice(cell, turn, token, &uses).await;
            if result.is_err() {
                add(&self.totals.settle_failures, 1);
                return result;
            }
        }
        Ok(())
    }

    async fn settle_slice(
        &self,
        cell: &Cell,
        turn: &mut Turn,
        token: LeaseToken,
        uses: &[Use],
    ) -> Result<(), EntitlementsError> {
        let back = turn.owed.iter().find(|(owed, _)| *owed == token).map(|(_, units)| *units);
        // At least one, for what is owed.
        let batches: Vec<&[Use]> = if uses.is_empty() { vec![&[]] } else { uses.chunks(BATCH).collect() };
        for (number, batch) in batches.iter().enumerate() {
            // Last, so that what is given back is not what a later batch has used.
            let back = back.filter(|_| number + 1 == batches.len());
            let now = self.clock.now();
            let refs: Vec<&Use> = batch.iter().collect();
            let settled = bank::settle(&self.counters, &cell.ctx, &self.options, (token, back), &refs, now).await?;
            add(&self.totals.settled, settled.counted);
            add(&self.totals.repeats, settled.repeated);
            add(&self.totals.reused_keys, settled.reused);
            add(&self.totals.beyond, settled.beyond);
            if settled.unknown || settled.beyond > 0 || settled.reused > 0 {
                tracing::warn!(target: "saas.entitlements.tier.settle", tenant = %cell.place.tenant, lease = %token, ?settled, "uses of a slice that was not lent, beyond it, or with a key of another use");
            }
            let ids: Vec<UsageEventId> = batch.iter().map(|used| used.id).collect();
            if !ids.is_empty() {
                let gone: HashSet<_> = ids.iter().collect();
                cell.admitted().retain(|(_, used)| !gone.contains(&used.id));
                self.answered(self.shelf.done(&cell.names, token, &ids).await);
            }
        }
        if back.is_some() {
            turn.owed.retain(|(owed, _)| *owed != token);
        } else if turn.slice.is_none_or(|(known, _)| known == token) {
            turn.slice = Some((token, Instant::now()));
        }
        Ok(())
    }
}
