//! A catalogue, and a source that a test can hold up, break and count.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    Clock, CoreError, FeatureKey, PlanCatalog, PlanKey, Revision, TenantId, TenantPool, TestClock,
    subscription::PlanAssignment, testing::Proxy,
};
use saas_entitlements::{
    Entitlements, EntitlementsError, GateOptions, SnapshotSource, TenantState, memory::MemorySource,
};
use tokio::sync::Semaphore;

pub(crate) const EXPORT: FeatureKey = FeatureKey::from_static("export");
pub(crate) const READ: FeatureKey = FeatureKey::from_static("read");

pub(crate) fn catalog() -> PlanCatalog {
    PlanCatalog::from_toml(
        r#"
        default_plan = "free"
        [features.export]
        kind = "boolean"
        fail = "closed"
        [features.read]
        kind = "boolean"
        fail = "open"
        min_access = "restricted"
        [features.seats]
        kind = "integer"
        fail = "closed"
        [features.api]
        kind = "metered"
        meter = "calls"
        fail = "open"
        [meters.calls]
        aggregation = "sum"
        [meters.exports]
        aggregation = "count"
        [meters.peak]
        aggregation = "max"
        [plans.free]
        rank = 0
        [[plans.free.versions]]
        version = 1
        grants = { read = true, seats = 1 }
        limits.calls = { max = 1_000, window = "day", overage = "block", warn = [80, 100] }
        [plans.pro]
        rank = 1
        [[plans.pro.versions]]
        version = 1
        grants = { read = true, export = true, seats = 5 }
        limits.calls = { max = 5_000, window = "month", anchor = "billing", overage = "block", warn = [80] }
        limits.exports = { max = 2, window = "month", overage = "bill" }
        "#,
    )
    .unwrap()
}

pub(crate) fn plan(key: &str) -> PlanAssignment {
    PlanAssignment::active(key.parse::<PlanKey>().unwrap())
}

/// A source of tenants in memory whose reads can be held up after they read, made to fail, and counted.
#[derive(Debug, Clone)]
pub(crate) struct Scripted {
    pub(crate) tenants: MemorySource,
    pub(crate) reads: Arc<AtomicU64>,
    pub(crate) down: Arc<AtomicBool>,
    /// A read that has what it came for waits here before it returns.
    door: Arc<Semaphore>,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        let door = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { tenants: MemorySource::new(), reads: Arc::default(), down: Arc::default(), door }
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Holds every read up from here on.
    pub(crate) fn hold(&self) {
        self.door.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn release(&self) {
        self.door.add_permits(Semaphore::MAX_PERMITS - self.door.available_permits());
    }

    /// Waits until that many reads have what they came for.
    pub(crate) async fn wait_for_reads(&self, reads: u64) {
        while self.reads() < reads {
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl SnapshotSource for Scripted {
    async fn load(&self, tenant: TenantId, now: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        let state = self.tenants.load(tenant, now).await;
        self.reads.fetch_add(1, Ordering::SeqCst);
        let open = self.door.acquire().await;
        drop(open);
        if self.down.load(Ordering::SeqCst) {
            return Err(CoreError::Unavailable { cause: "the test cut the source off".into() }.into());
        }
        state
    }
}

/// A gate on a scripted source, with a clock that stands still.
pub(crate) struct Stage {
    pub(crate) gate: Entitlements,
    pub(crate) source: Scripted,
    pub(crate) clock: TestClock,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(GateOptions::default())
    }

    pub(crate) fn with(options: GateOptions) -> Self {
        let (source, clock) = (Scripted::new(), TestClock::starting("2026-01-15T12:00:00Z"));
        Self::of(catalog(), source, clock, options)
    }

    fn of(catalog: PlanCatalog, source: Scripted, clock: TestClock, options: GateOptions) -> Self {
        let shared = Arc::new(clock.clone());
        let gate = Entitlements::with_options(catalog, Arc::new(source.clone()), shared, options).unwrap();
        gate.tick();
        Self { gate, source, clock }
    }

    /// Another process on the same source, with a clock that is ahead by that much.
    pub(crate) fn beside(&self, catalog: PlanCatalog, ahead: chrono::TimeDelta) -> Self {
        let clock = TestClock::at(self.now() + ahead);
        Self::of(catalog, self.source.clone(), clock, GateOptions::default())
    }

    pub(crate) fn tenant(&self, on: &str) -> TenantId {
        let tenant = TenantId::mint(&self.clock);
        self.source.tenants.put_plan(tenant, plan(on));
        tenant
    }

    /// Moves the clock, and the gate's with it.
    pub(crate) fn advance(&self, seconds: i64) {
        self.clock.advance(chrono::TimeDelta::seconds(seconds));
        self.gate.tick();
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub(crate) async fn export(&self, tenant: TenantId) -> bool {
        self.gate.is_feature_enabled(tenant, &EXPORT).await
    }

    /// Puts a tenant on a plan; the announcement is the caller's.
    pub(crate) fn change(&self, tenant: TenantId, to: &str) -> Revision {
        self.source.tenants.put_plan(tenant, plan(to))
    }
}

/// Round trips so far, once every connection is back in its pool: a release that is under way makes one more.
pub(crate) async fn flights_at_rest(tenants: &TenantPool, network: &Proxy) -> u64 {
    let pool = tenants.pool();
    while pool.num_idle() < usize::try_from(pool.size()).unwrap() {
        tokio::task::yield_now().await;
    }
    network.flights()
}

/// Polls a future at most `polls` times, then drops it.
pub(crate) async fn cancel_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|context| {
        polled += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
