//! The service: spends from memory, borrows when that is used up, reports, and gives back.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use hashbrown::HashMap;
use saas_core::{Actor, LeaseToken, MeterKey, RequestContext, TenantContext, TenantId, plan::Aggregation};
use tokio::task::JoinSet;

use super::{
    Ask, Borrowed, LeaseOptions, LeaseStore, Report, Reported,
    cell::{Cell, Cells, Held, State},
    rule::{Rule, check, rule_at},
};
use crate::{Denial, Entitlements, EntitlementsError};

/// How often a use is decided again because the tenant's revision moved in between.
const ATTEMPTS: usize = 4;
/// Each new tenant copies one of so many maps.
const SHARDS: usize = 64;
/// Ticks without a use after which a lease is given back.
const IDLE_TICKS: u32 = 2;
/// Ticks without a lease after which a cell is forgotten.
const FORGET_TICKS: u32 = 240;
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
/// A clone is another handle to the same leases. Make one per process, and call [`shutdown`](Self::shutdown) at its end.
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
    fn of(inner: Arc<Inner>, tenant: TenantId, meter: MeterKey, amount: u64) -> Self {
        Self::Asking(Box::pin(async move {
            let unavailable = || EntitlementsError::Unavailable { cause: None };
            let runtime = tokio::runtime::Handle::try_current().map_err(|_| unavailable())?;
            if !inner.ticking.swap(true, Ordering::Relaxed) {
                drop(runtime.spawn(keep_reporting(Arc::downgrade(&inner))));
            }
            let deciding = runtime.spawn(async move { inner.consume(tenant, &meter, amount).await });
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

/// By [`number`].
type Map = HashMap<u128, Cells, foldhash::fast::RandomState>;

struct Inner {
    entitlements: Entitlements,
    store: Arc<dyn LeaseStore>,
    options: LeaseOptions,
    shards: Box<[ArcSwap<Map>]>,
    /// Whoever changes a map.
    writer: Mutex<()>,
    ticking: AtomicBool,
    closed: AtomicBool,
}

/// A tenant's id as the number that it is: hashed in one step.
fn number(tenant: TenantId) -> u128 {
    tenant.as_uuid().as_u128()
}

impl Leases {
    /// Leases of what `entitlements` allows, borrowed from `store`.
    #[must_use]
    pub fn new(entitlements: Entitlements, store: Arc<dyn LeaseStore>, options: LeaseOptions) -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::from_pointee(Map::default())).collect();
        let (ticking, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self {
            inner: Arc::new(Inner { entitlements, store, options, shards, writer: Mutex::new(()), ticking, closed }),
        }
    }

    /// Uses `amount` units, all or nothing.
    ///
    /// From memory where enough is lent; otherwise it borrows. It has no key, so a repeat is another use: for uses that must
    /// be counted once however often they are repeated, take [`Meter::consume`](crate::Meter::consume). What is in
    /// memory is spent by the call: dropped before it was awaited, it may have been counted.
    ///
    /// # Errors
    /// - [`Invalid`](saas_core::ErrorKind::Invalid): the amount is 0, too large, or not 1 for a meter that counts uses; the
    ///   meter is unknown, not a sum, or limited per member.
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
            Consuming::of(Arc::clone(&self.inner), ctx.tenant(), meter.clone(), amount)
        }
    }

    /// Uses `amount` units if so many are in memory: no lock, no allocation, no I/O. `false` says nothing about the limit.
    // A call of its own, which leaves what is around it small enough to vanish into the caller.
    #[inline(never)]
    #[must_use = "a use that was not granted must not happen"]
    pub fn try_consume(&self, tenant: TenantId, meter: &MeterKey, amount: u64) -> bool {
        let map = self.inner.shard(tenant).load();
        map.get(&number(tenant)).and_then(|cells| cells.find(meter)).is_some_and(|cell| cell.take(amount))
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

/// Ticks until the leases are gone.
async fn keep_reporting(leases: Weak<Inner>) {
    let Some(period) = leases.upgrade().map(|inner| inner.options.tick) else { return };
    let mut ticks = tokio::time::interval(period);
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
    fn shard(&self, tenant: TenantId) -> &ArcSwap<Map> {
        // The last byte of an id is random.
        let [.., last] = *tenant.as_uuid().as_bytes();
        &self.shards[usize::from(last) % SHARDS]
    }

    async fn consume(&self, tenant: TenantId, meter: &MeterKey, amount: u64) -> Result<LeasedUse, EntitlementsError> {
        let now = self.entitlements.core.clock.now();
        for _ in 0..ATTEMPTS {
            let snapshot = self.entitlements.snapshot(tenant).await;
            check(&snapshot, meter, amount)?;
            let rule = match rule_at(&snapshot, meter, now)? {
                Ok(rule) => rule,
                Err(why) => return Ok(LeasedUse::Denied(why)),
            };
            let cell = self.cell(tenant, meter, rule.cost, now);
            let mut state = cell.state.lock().await;
            if state.retired {
                continue;
            }
            // Whoever held the lock before may have borrowed for this one, too.
            if cell.take(amount) {
                return Ok(LeasedUse::Granted);
            }
            match self.borrow(&cell, &mut state, &rule, amount, now).await? {
                Borrowed::Lent { .. } => return Ok(LeasedUse::Granted),
                Borrowed::Refused { used, held } => {
                    let (limit, resets_at) = (rule.cap, rule.period.end);
                    return Ok(LeasedUse::Exhausted { limit, used, held, resets_at });
                }
                Borrowed::Outdated { revision } => self.entitlements.hear(tenant, revision),
            }
        }
        Err(EntitlementsError::Unavailable { cause: None })
    }

    async fn borrow(
        &self,
        cell: &Cell,
        state: &mut State,
        rule: &Rule,
        amount: u64,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        let asked = Instant::now();
        if let Some(held) = &state.held {
            let quick = asked.duration_since(held.lent_at) < self.options.tick / 2;
            let size = if quick { state.size.saturating_mul(4) } else { state.size / 2 };
            state.size = size.clamp(self.options.smallest, self.options.largest);
        }
        state.idle = 0;
        let former = cell.drain(state, self.options.life);
        let lends = !self.closed.load(Ordering::Relaxed);
        let ask = Ask {
            lease: LeaseToken::mint_at(now),
            holder: self.options.holder.clone(),
            meter: cell.meter().clone(),
            counter: rule.counter.clone(),
            cost: rule.cost,
            window: rule.window,
            period: rule.period,
            cap: rule.cap,
            exposed: rule.cap / self.options.exposed_share,
            // Checked: it is at most `i64::MAX`.
            need: amount.saturating_mul(rule.cost),
            want: if lends { state.size.saturating_mul(rule.cost) } else { 0 },
            life: self.options.life,
            revision: rule.revision,
            settle: former,
        };
        let borrowed = match self.store.borrow(&cell.ctx, &ask, now).await {
            Ok(borrowed) => borrowed,
            Err(error) => {
                // Both may have happened. What is not known to be lent is not used.
                let unknown = Report { lease: ask.lease, number: 1, spent: 0, ending: true, life: self.options.life };
                state.endings.extend(ask.settle.into_iter().chain([unknown]));
                return Err(error);
            }
        };
        if let Borrowed::Lent { units: lent @ 1.. } = borrowed {
            let held = Held {
                lease: ask.lease,
                lent,
                rule: rule.clone(),
                reports: 0,
                reported: 0,
                since: asked,
                lent_at: asked,
            };
            state.held = Some(held);
            cell.fill(lent);
        }
        Ok(borrowed)
    }

    /// Reports every lease; answers with the first failure.
    async fn report_all(self: &Arc<Self>) -> Result<(), EntitlementsError> {
        let mut running = JoinSet::new();
        let mut first = Ok(());
        for shard in &self.shards {
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

    async fn report(&self, cell: &Arc<Cell>) -> Result<(), EntitlementsError> {
        let mut guard = cell.state.lock().await;
        let state = &mut *guard;
        let now = self.entitlements.core.clock.now();
        if state.held.is_some() && self.must_end(cell, state, now).await {
            let last = cell.drain(state, self.options.life);
            state.endings.extend(last);
        }
        self.send_endings(cell, state, now).await?;
        let Some(held) = &mut state.held else {
            state.idle = state.idle.saturating_add(1);
            if state.idle >= FORGET_TICKS {
                state.retired = true;
                self.forget(cell);
            }
            return Ok(());
        };
        let spent = cell.spent(held);
        state.idle = if spent == held.reported { state.idle + 1 } else { 0 };
        if spent == held.reported && held.since.elapsed() < self.options.life / 4 {
            return Ok(());
        }
        let asked = Instant::now();
        held.reports += 1;
        let report = Report { lease: held.lease, number: held.reports, spent, ending: false, life: self.options.life };
        match self.store.report(&cell.ctx, &report, now).await? {
            Reported::Kept { wanted } => {
                (held.since, held.reported) = (asked, spent);
                if wanted {
                    let last = cell.drain(state, self.options.life);
                    state.endings.extend(last);
                    self.send_endings(cell, state, now).await?;
                }
            }
            // What it still had counts as used, and is not used.
            Reported::Fenced | Reported::Settled => drop(cell.drain(state, self.options.life)),
        }
        Ok(())
    }

    /// Whether what is held is to be given back: idle, too old to be safe, or under another rule.
    async fn must_end(&self, cell: &Cell, state: &State, now: DateTime<Utc>) -> bool {
        let Some(held) = &state.held else { return false };
        if self.closed.load(Ordering::Relaxed)
            || held.since.elapsed() >= self.options.life / 4 * 3
            || (state.idle >= IDLE_TICKS && cell.spent(held) == held.reported)
        {
            return true;
        }
        let snapshot = self.entitlements.snapshot(cell.ctx.tenant()).await;
        match rule_at(&snapshot, cell.meter(), now) {
            Ok(Ok(rule)) => rule != held.rule,
            Ok(Err(_)) => true,
            // Nothing is known at present: what was lent may be used for its life.
            Err(error) => !error.is_retryable(),
        }
    }

    async fn send_endings(&self, cell: &Cell, state: &mut State, now: DateTime<Utc>) -> Result<(), EntitlementsError> {
        while let Some(report) = state.endings.last() {
            // Whatever it answers, the lease is over.
            let (Reported::Settled | Reported::Fenced | Reported::Kept { .. }) =
                self.store.report(&cell.ctx, report, now).await?;
            state.endings.pop();
        }
        Ok(())
    }

    fn cell(&self, tenant: TenantId, meter: &MeterKey, cost: u64, now: DateTime<Utc>) -> Arc<Cell> {
        let shard = self.shard(tenant);
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

    fn forget(&self, cell: &Cell) {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let shard = self.shard(cell.ctx.tenant());
        let mut shrunk = Map::clone(&shard.load());
        let tenant_number = number(cell.ctx.tenant());
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
        for cell in self
            .shards
            .iter()
            .flat_map(|shard| shard.load().values().flat_map(Cells::iter).cloned().collect::<Vec<_>>())
        {
            let Ok(mut state) = cell.state.try_lock() else { continue };
            let last = cell.drain(&mut state, self.options.life);
            let owed: Vec<Report> = state.endings.drain(..).chain(last).collect();
            drop(state);
            let store = Arc::clone(&self.store);
            drop(runtime.spawn(async move {
                for report in owed {
                    if let Err(error) = store.report(&cell.ctx, &report, now).await {
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
