//! The service: spends from memory, and keeps what each tenant holds.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use chrono::{DateTime, Utc};
use saas_core::{Actor, MeterKey, RequestContext, TenantContext, TenantId, plan::Aggregation};
use tokio::task::JoinSet;

use super::{
    LeaseOptions, LeaseStore, asking,
    cell::{Cell, Cells, Taken},
    shards::{Map, Shards, number},
};
use crate::{Denial, Entitlements, EntitlementsError, Meter};

/// Reports under way at the same time.
const REPORTS: usize = 8;

/// What became of a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a use that was not granted must not happen"]
pub enum LeasedUse {
    /// Go ahead.
    Granted,
    /// It does not fit at present, and nothing was counted.
    Exhausted {
        /// The most that can be used in the window.
        limit: u64,
        /// Used in the window, as far as it was reported.
        used: u64,
        /// Out with holders, who give back what they do not use.
        held: u64,
        /// When the window ends; `None` for never.
        resets_at: Option<DateTime<Utc>>,
    },
    /// The tenant may not use this meter at all.
    Denied(Denial),
}

impl LeasedUse {
    /// Whether the work may be done.
    #[must_use]
    pub const fn is_granted(self) -> bool {
        matches!(self, Self::Granted)
    }
}

/// Uses of tenants, spent from memory under a limit that all processes share.
///
/// A clone is another handle to the same leases. Make one per process, and call [`shutdown`](Self::shutdown) at its end. A thread
/// keeps what it saw of the leases that it uses; where it uses several by turns, only one of them is as fast as can be.
/// Reports are sent by a task on the runtime of whoever used them first. When that runtime ends, the next use on another one
/// starts the task there.
/// A changed limit is noticed within a tick of the gate's hearing of it; units that were lent before may still be used until
/// then.
#[derive(Clone)]
pub struct Leases {
    inner: Arc<Inner>,
}

/// [`Leases::consume`] under way. Small enough to be moved at no cost: a use from memory waits for nothing.
enum Consuming {
    Granted,
    Asking(Pin<Box<dyn Future<Output = Result<LeasedUse, EntitlementsError>> + Send>>),
}

impl Consuming {
    /// Asks the store, in a task of its own: a caller who goes away does not leave units behind that nobody knows of.
    #[cold]
    #[inline(never)]
    fn of(inner: Arc<Inner>, ctx: &dyn TenantContext, meter: MeterKey, amount: u64) -> Self {
        let now = inner.entitlements.core.clock.now();
        let caller = RequestContext::new_at(ctx.tenant(), ctx.actor().clone(), now).with_request(ctx.request());
        let caller = match ctx.role() {
            Some(role) => caller.with_role(role.clone()),
            None => caller,
        };
        Self::Asking(Box::pin(async move {
            let unavailable = || EntitlementsError::Unavailable { cause: None };
            let runtime = tokio::runtime::Handle::try_current().map_err(|_| unavailable())?;
            inner.keep_ticking(&runtime);
            let deciding = runtime.spawn(async move { inner.consume(&caller, &meter, amount).await });
            deciding.await.unwrap_or_else(|_| Err(unavailable()))
        }))
    }
}

impl Future for Consuming {
    type Output = Result<LeasedUse, EntitlementsError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Granted => Poll::Ready(Ok(LeasedUse::Granted)),
            Self::Asking(asking) => asking.as_mut().poll(context),
        }
    }
}

pub(super) struct Inner {
    pub(super) entitlements: Entitlements,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) options: LeaseOptions,
    /// Counts what cannot be lent.
    pub(super) direct: OnceLock<Meter>,
    shards: Shards,
    /// Whoever changes a map.
    writer: Mutex<()>,
    /// Whether a task ticks, on the runtime of whoever started it.
    ticking: AtomicBool,
    closed: AtomicBool,
}

impl Leases {
    /// Leases of what `entitlements` allows, borrowed from `store`.
    #[must_use]
    pub fn new(entitlements: Entitlements, store: Arc<dyn LeaseStore>, options: LeaseOptions) -> Self {
        let shards = Shards::new();
        let (ticking, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (direct, writer) = (OnceLock::new(), Mutex::new(()));
        Self { inner: Arc::new(Inner { entitlements, store, options, direct, shards, writer, ticking, closed }) }
    }

    /// Counts through `meter` what cannot be lent, so that callers need not know what can: peaks and levels, what the plan limits
    /// for each member, and units of grants once those of the plan are used up. Each such use is a call of
    /// [`Meter::consume`] with a key of its own.
    ///
    /// The first meter that is given stays.
    #[must_use]
    pub fn with_meter(self, meter: Meter) -> Self {
        let _ = self.inner.direct.set(meter);
        self
    }

    /// Uses `amount` units, all or nothing.
    ///
    /// From memory where enough is lent; otherwise it borrows. It has no key, so a repeat is another use: for uses that must
    /// be counted once however often they are repeated, take [`Meter::consume`](crate::Meter::consume). What is in
    /// memory is spent by the call: dropped before it was awaited, it may have been counted.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): the amount is 0, too large, or not 1 for a meter that counts uses; the
    ///   meter is unknown; or it is not a sum or limited per member, and there is no [`Meter`] for those
    ///   ([`with_meter`](Self::with_meter)), or that one refuses it.
    /// - [`NotFound`](saas_core::ErrorKind::NotFound): no such tenant.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable): nothing is left in memory and the store cannot be asked; or there
    ///   is no tokio runtime.
    /// - [`OutcomeUnknown`](saas_core::ErrorKind::OutcomeUnknown): it may have been counted.
    #[inline]
    #[must_use = "a use that was not granted must not happen"]
    pub fn consume(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        amount: u64,
    ) -> impl Future<Output = Result<LeasedUse, EntitlementsError>> + Send + use<> {
        if self.try_consume(ctx.tenant(), meter, amount) {
            Consuming::Granted
        } else {
            Consuming::of(Arc::clone(&self.inner), ctx, meter.clone(), amount)
        }
    }

    /// Uses `amount` units if so many are in memory: no lock, no allocation, no I/O. `false` says nothing about the limit.
    // A call of its own, which leaves what is around it small enough to vanish into the caller.
    #[inline(never)]
    #[must_use = "a use that was not granted must not happen"]
    pub fn try_consume(&self, tenant: TenantId, meter: &MeterKey, amount: u64) -> bool {
        let take = |cells: &Cells| match cells.find(meter).map(|cell| (cell, cell.take(amount))) {
            None | Some((_, Taken::Not)) => (false, None),
            Some((_, Taken::Yes)) => (true, None),
            Some((cell, Taken::Low)) => (true, Some(Arc::clone(cell))),
        };
        let (is_taken, low) = self.inner.shards.look(tenant, take).unwrap_or_default();
        if let Some(cell) = low {
            self.inner.borrow_ahead(cell);
        }
        is_taken
    }

    /// Gives everything back and borrows nothing more: later uses are counted one by one.
    ///
    /// # Errors
    /// Of the first report that the store did not take. What it did not take counts as used once the lease's life is over;
    /// call again to try again.
    pub async fn shutdown(&self) -> Result<(), EntitlementsError> {
        self.inner.closed.store(true, Ordering::Relaxed);
        self.inner.report_all().await
    }

    /// Reports, prolongs and gives back now, in place of the tick.
    ///
    /// # Errors
    /// Of the first report that the store did not take; it is repeated.
    #[cfg(feature = "testing")]
    pub async fn tick(&self) -> Result<(), EntitlementsError> {
        self.inner.report_all().await
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// Says that nothing ticks any more, however its task ended: with the runtime that it was on, or by a panic.
struct Ticking(Weak<Inner>);

impl Drop for Ticking {
    fn drop(&mut self) {
        let Some(inner) = self.0.upgrade() else { return };
        inner.ticking.store(false, Ordering::Release);
        // Whoever uses what is in memory would ask nobody for long: the next use of each looks.
        inner.cells().for_each(|cell| cell.watch(u64::MAX));
    }
}

/// Ticks until the leases are gone.
async fn keep_reporting(ticking: Ticking) {
    let Ticking(leases) = &ticking;
    let Some(period) = leases.upgrade().map(|inner| inner.options.tick) else { return };
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = leases.upgrade() else { return };
        if let Err(error) = inner.report_all().await {
            tracing::warn!(target: "saas.entitlements.lease.report", error = &error as &dyn std::error::Error, "a lease could not be reported; trying again");
        }
    }
}

impl Inner {
    fn cells(&self) -> impl Iterator<Item = Arc<Cell>> {
        self.shards.iter().flat_map(|shard| shard.load().values().flat_map(Cells::iter).cloned().collect::<Vec<_>>())
    }

    /// Ticks on this runtime, unless something ticks already.
    fn keep_ticking(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        if !self.ticking.swap(true, Ordering::AcqRel) {
            drop(runtime.spawn(keep_reporting(Ticking(Arc::downgrade(self)))));
        }
    }

    /// Borrows more while there is some left, once for all who find that it is little, or that nothing ticks any more.
    #[cold]
    #[inline(never)]
    fn borrow_ahead(self: &Arc<Self>, cell: Arc<Cell>) {
        if !cell.unwatch() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.keep_ticking(&runtime);
        if !self.options.borrows_ahead {
            return;
        }
        let inner = Arc::clone(self);
        drop(runtime.spawn(async move { inner.top_up(&cell).await }));
    }

    /// Reports every lease; answers with the first failure.
    async fn report_all(self: &Arc<Self>) -> Result<(), EntitlementsError> {
        let mut running = JoinSet::new();
        let mut first = Ok(());
        for shard in self.shards.iter() {
            for cell in shard.load_full().values().flat_map(Cells::iter) {
                if running.len() >= REPORTS {
                    first = first.and(joined(running.join_next().await));
                }
                let (inner, cell) = (Arc::clone(self), Arc::clone(cell));
                running.spawn(async move { inner.report(&cell).await });
            }
        }
        while !running.is_empty() {
            first = first.and(joined(running.join_next().await));
        }
        first
    }

    /// Whether nothing is borrowed any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn cell(&self, tenant: TenantId, meter: &MeterKey, cost: u64, now: DateTime<Utc>) -> Arc<Cell> {
        let shard = self.shards.of(tenant);
        let tenant_number = number(tenant);
        if let Some(cell) = shard.load().get(&tenant_number).and_then(|cells| cells.find(meter)) {
            return Arc::clone(cell);
        }
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let map = shard.load();
        let present = map.get(&tenant_number);
        if let Some(cell) = present.and_then(|cells| cells.find(meter)) {
            return Arc::clone(cell);
        }
        let declared = self.entitlements.catalog().meter(meter);
        let counts = declared.is_some_and(|declared| declared.aggregation() == Aggregation::Count);
        let most = if counts { 1 } else { i64::MAX.unsigned_abs() };
        let ctx = RequestContext::new_at(tenant, Actor::system("saas.leases"), now);
        let cell = Arc::new(Cell::new(ctx, meter.clone(), cost, most, self.options.smallest));
        let mut grown = Map::clone(&map);
        let added = Arc::clone(&cell);
        let cells = match present {
            Some(cells) => cells.with(added),
            None => Cells::new(added),
        };
        grown.insert(tenant_number, cells);
        shard.store(Arc::new(grown));
        cell
    }

    pub(super) fn forget(&self, cell: &Cell) {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let shard = self.shards.of(cell.ctx().tenant());
        let mut shrunk = Map::clone(&shard.load());
        let tenant_number = number(cell.ctx().tenant());
        match shrunk.get(&tenant_number).and_then(|cells| cells.without(cell.meter())) {
            Some(left) => drop(shrunk.insert(tenant_number, left)),
            None => drop(shrunk.remove(&tenant_number)),
        }
        shard.store(Arc::new(shrunk));
    }
}

impl Drop for Inner {
    /// Gives back what [`Leases::shutdown`] did not, as far as the runtime lives on to do it.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let now = self.entitlements.core.clock.now();
        for cell in self.cells() {
            let Ok(mut state) = cell.state().try_lock() else { continue };
            cell.end(&mut state, self.options.life);
            let owed = std::mem::take(&mut state.endings);
            drop(state);
            let store = Arc::clone(&self.store);
            drop(runtime.spawn(async move {
                for ending in owed {
                    if let Err(error) = asking::send(&*store, &cell, &ending, now).await {
                        tracing::warn!(target: "saas.entitlements.lease.report", error = &error as &dyn std::error::Error, "a lease could not be given back; it counts as used");
                    }
                }
            }));
        }
    }
}

fn joined(
    done: Option<Result<Result<(), EntitlementsError>, tokio::task::JoinError>>,
) -> Result<(), EntitlementsError> {
    done.map_or(Ok(()), |done| done.unwrap_or(Err(EntitlementsError::Unavailable { cause: None })))
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use saas_core::{PlanCatalog, PlanKey, SystemClock, subscription::PlanAssignment};

    use super::*;
    use crate::memory::{MemoryLeases, MemorySource};

    #[tokio::test]
    async fn what_nobody_uses_is_forgotten_also_by_a_thread_that_saw_it_and_made_anew() {
        const CALLS: MeterKey = MeterKey::from_static("calls");
        let catalog = PlanCatalog::from_toml(
            "default_plan = 'free'\n[meters.calls]\naggregation = 'sum'\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1\n\
             limits.calls = { max = 10_000, window = 'lifetime', overage = 'block' }",
        )
        .unwrap();
        let (source, tenant) = (MemorySource::new(), TenantId::mint(&SystemClock));
        source.put_plan(tenant, PlanAssignment::active(PlanKey::from_static("free")));
        let gate = Entitlements::new(catalog, Arc::new(source), Arc::new(SystemClock));
        let leases = Leases::new(gate, Arc::new(MemoryLeases::new()), LeaseOptions::default());
        let ctx = RequestContext::new(tenant, Actor::system("test"), &SystemClock);
        let knows = || leases.inner.shards.look(tenant, |_| ()).is_some();
        for _ in 0..2 {
            assert!(!knows() && !leases.try_consume(tenant, &CALLS, 1));
            assert!(leases.consume(&ctx, &CALLS, 1).await.unwrap().is_granted());
            assert!(knows() && leases.try_consume(tenant, &CALLS, 1));
            let mut ticks = 0;
            while knows() {
                leases.inner.report_all().await.unwrap();
                ticks += 1;
                assert!(ticks < 1_000, "it is never forgotten");
            }
        }
    }
}
