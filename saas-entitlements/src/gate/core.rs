//! The gate at work: the slow path, loads, announcements, time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{FeatureKey, Revision, SharedClock, TenantId, plan::PlanCatalog};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

use super::{
    GateOptions,
    shelf::{Coarse, Flight, Landed, LoadFailed, Shelf},
    stats::{Counters, count},
    table::Table,
};
use crate::{
    EntitlementsError, SnapshotSource,
    resolve::resolve,
    snapshot::{FeatureHandle, Origin, ShelfLife, Snapshot},
};

/// Pauses between loads that were overtaken, in milliseconds: from the first to the last, doubling.
const FIRST_PAUSE_MS: u64 = 1;
const LAST_PAUSE_MS: u64 = 64;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) table: Table,
    pub(crate) fingerprint: u64,
    pub(crate) names: hashbrown::HashMap<FeatureKey, FeatureHandle, foldhash::fast::RandomState>,
    pub(crate) catalog: PlanCatalog,
    pub(crate) clock: SharedClock,
    pub(crate) counters: Counters,
    pub(crate) options: GateOptions,
    source: Arc<dyn SnapshotSource>,
    permits: Semaphore,
    shelf: Mutex<Shelf>,
}

/// A load that has been announced to the shelf and has yet to be spawned, which must happen outside the lock: a runtime
/// that is shutting down drops a task here and now, and the end of a flight takes the lock.
struct Launch {
    flight: Landing,
    sender: watch::Sender<Landed>,
    landed: watch::Receiver<Landed>,
    runtime: Handle,
}

impl Launch {
    fn spawn(self) -> watch::Receiver<Landed> {
        self.runtime.spawn(fly(self.flight, self.sender));
        self.landed
    }
}

impl Core {
    pub(crate) fn new(
        catalog: PlanCatalog,
        source: Arc<dyn SnapshotSource>,
        clock: SharedClock,
        options: GateOptions,
    ) -> Self {
        let (table, pen) = Table::new(options.capacity, catalog.features().len());
        let fingerprint = catalog.fingerprint();
        let handle = |feature: &saas_core::plan::Feature| {
            (feature.key().clone(), FeatureHandle { id: feature.id(), catalog: fingerprint })
        };
        let longest = options.ttl.max(options.unknown_ttl);
        let load_timeout = TimeDelta::from_std(options.load_timeout).unwrap_or(TimeDelta::MAX);
        let floor_life = longest + load_timeout + load_timeout;
        let time = Coarse::new(clock.now(), longest);
        let max_floors = options.capacity.saturating_mul(2).max(1_024);
        Self {
            table,
            fingerprint,
            names: catalog.features().iter().map(handle).collect(),
            catalog,
            clock,
            counters: Counters::default(),
            permits: Semaphore::new(options.concurrent_loads),
            options,
            source,
            shelf: Mutex::new(Shelf::new(pen, time, max_floors, floor_life)),
        }
    }

    /// The tenant's snapshot, if it is in memory and may be shown. Takes the lock; never waits for anything else.
    pub(crate) fn in_memory(self: &Arc<Self>, tenant: TenantId) -> Option<Arc<Snapshot>> {
        count(&self.counters.misses);
        let mut shelf = self.lock();
        let (snapshot, refresh) = self.look(&mut shelf, tenant, self.clock.now());
        drop(shelf);
        refresh.map(Launch::spawn);
        snapshot
    }

    /// The tenant's snapshot, loaded if need be. Always answers.
    pub(crate) async fn snapshot(self: Arc<Self>, tenant: TenantId) -> Arc<Snapshot> {
        let landed = match self.look_or_join(tenant) {
            Ok(snapshot) => return snapshot,
            Err(landed) => landed,
        };
        let Some(landed) = landed else {
            tracing::error!(target: "saas.entitlements.gate.load", "a load needs a tokio runtime; answering without one");
            return self.degraded(tenant);
        };
        match wait(landed).await {
            Ok(snapshot) => snapshot,
            Err(LoadFailed) => self.degraded(tenant),
        }
    }

    /// Takes note of a committed revision.
    pub(crate) fn hear(&self, tenant: TenantId, revision: Revision) {
        count(&self.counters.announcements);
        self.lock().hear(&self.table, tenant, revision, self.clock.now());
    }

    /// Distrusts everything that is held or being loaded. It stays as last known state.
    pub(crate) fn flush(&self) {
        count(&self.counters.flushes);
        self.lock().distrust_all(&self.table);
    }

    /// Moves the coarse clock to the present.
    pub(crate) fn tick(&self) {
        let now = self.clock.now();
        let mut shelf = self.lock();
        if !shelf.time.show(&self.table, now) {
            count(&self.counters.flushes);
            shelf.distrust_all(&self.table);
            shelf.time.restart(&self.table, now);
        }
        shelf.forget_floors(now);
    }

    /// Stops the coarse clock: every question takes the slow path, which asks the real one.
    pub(crate) fn stop_clock(&self) {
        self.lock().time.stop(&self.table);
    }

    /// What is in memory, or the load to wait for; `Err(None)` without a runtime.
    fn look_or_join(self: &Arc<Self>, tenant: TenantId) -> Result<Arc<Snapshot>, Option<watch::Receiver<Landed>>> {
        // One lock for looking and joining: between the two, a load could land unseen and be run twice.
        let mut shelf = self.lock();
        let (snapshot, mut launch) = self.look(&mut shelf, tenant, self.clock.now());
        let mut joined = None;
        if snapshot.is_none() {
            joined = shelf.flights.get(&tenant).map(|flight| flight.landed.clone());
            if joined.is_none() {
                launch = self.prepare(&mut shelf, tenant);
            }
        }
        drop(shelf);
        let launched = launch.map(Launch::spawn);
        snapshot.ok_or(joined.or(launched))
    }

    /// Announces a load to the shelf.
    fn prepare(self: &Arc<Self>, shelf: &mut Shelf, tenant: TenantId) -> Option<Launch> {
        let runtime = Handle::try_current().ok()?;
        let (sender, landed) = watch::channel(None);
        let id = shelf.next_flight;
        shelf.next_flight += 1;
        shelf.flights.insert(tenant, Flight { id, landed: landed.clone() });
        Some(Launch { flight: Landing { core: Arc::clone(self), tenant, id }, sender, landed, runtime })
    }

    /// What is held for the tenant, if it may be shown at `now`, and a refresh to spawn once the lock is released.
    fn look(
        self: &Arc<Self>,
        shelf: &mut Shelf,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> (Option<Arc<Snapshot>>, Option<Launch>) {
        let Some(held) = self.table.find(tenant).and_then(|slot| self.table.held(slot)) else { return (None, None) };
        if shelf.is_current(&held, now) {
            if held.origin == Origin::UnknownTenant {
                count(&self.counters.unknown_tenants);
            }
            if held.next_boundary.is_some_and(|boundary| boundary <= now) || now < held.at {
                // Time alone changed an answer: no need to read anything.
                let moved = Arc::new(held.at(now));
                shelf.publish(&self.table, Arc::clone(&moved));
                return (Some(moved), None);
            }
            let due = held.life.refresh_from <= now;
            let refresh = due.then(|| self.refresh(shelf, &held, now)).flatten();
            return (Some(held), refresh);
        }
        // A load has failed since it was read. Nobody waits for the next try: a source that hangs would hold up everyone.
        let failing = held.life.read_at < held.life.retry_at && held.life.read_at <= now;
        if failing && self.serves_as_last_known(&held, now) {
            count(&self.counters.last_known_answers);
            let retry = self.refresh(shelf, &held, now);
            return (Some(Arc::new(held.as_last_known(now))), retry);
        }
        (None, None)
    }

    /// A load that nobody waits for: ahead of the end of a snapshot's life, or the next try after a failure.
    fn refresh(self: &Arc<Self>, shelf: &mut Shelf, held: &Snapshot, now: DateTime<Utc>) -> Option<Launch> {
        let due = held.life.retry_at <= now && held.origin == Origin::Loaded;
        if !due || shelf.flights.contains_key(&held.tenant) {
            return None;
        }
        self.prepare(shelf, held.tenant)
    }

    /// Reads until what was read is not older than what was heard.
    async fn load(&self, tenant: TenantId, id: u64) -> Result<Arc<Snapshot>, EntitlementsError> {
        let closed = |_| EntitlementsError::Unavailable { cause: None };
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let mut pause = FIRST_PAUSE_MS;
        loop {
            let began = self.begin(tenant);
            count(&self.counters.loads);
            let state = self.source.load(tenant, began.read_at).await?;
            let mut snapshot = match state {
                Some(state) => resolve(&self.catalog, tenant, state, began.read_at)?,
                None => Snapshot::unknown(&self.catalog, tenant, began.read_at),
            };
            snapshot.life = match snapshot.origin {
                Origin::UnknownTenant => {
                    let end = began.read_at + self.options.unknown_ttl;
                    ShelfLife { fresh_until: end, refresh_from: end, ..began }
                }
                Origin::Loaded | Origin::LastKnown { .. } | Origin::FailPolicy => began,
            };
            if let Some(accepted) = self.land(Arc::new(snapshot), id) {
                return Ok(accepted);
            }
            count(&self.counters.outdated_loads);
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            pause = (pause * 2).min(LAST_PAUSE_MS);
        }
    }

    /// What is known as a load begins, and how long its result may live: counted from here, since the state is as of now.
    fn begin(&self, tenant: TenantId) -> ShelfLife {
        let shelf = self.lock();
        let now = self.clock.now();
        let ttl = self.options.ttl;
        // Spread over the last tenth, by tenant, so that what was loaded together does not expire together.
        let spread = (tenant.as_uuid().as_u128() % 1_000) as i32;
        let fresh_until = now + ttl - ttl / 10_000 * spread;
        let refresh_from = fresh_until - ttl / 5;
        ShelfLife { epoch: shelf.epoch, news: shelf.news, read_at: now, refresh_from, fresh_until, retry_at: now }
    }

    /// Publishes a load and ends its flight, unless something newer was heard meanwhile.
    fn land(&self, snapshot: Arc<Snapshot>, id: u64) -> Option<Arc<Snapshot>> {
        let mut shelf = self.lock();
        let held = self.table.find(snapshot.tenant).and_then(|slot| self.table.held(slot));
        if !shelf.accepts(&snapshot, held.as_deref()) {
            return None;
        }
        if shelf.publish(&self.table, Arc::clone(&snapshot)) {
            count(&self.counters.evictions);
        }
        // In the same lock as the publication: whoever looks next finds the one or the other.
        end_flight(&mut shelf, snapshot.tenant, id);
        Some(snapshot)
    }

    /// After a failure: lets the last known state serve for a while before the source is tried again.
    fn hold_off(&self, tenant: TenantId) {
        let mut shelf = self.lock();
        let Some(slot) = self.table.find(tenant) else { return };
        let Some(held) = self.table.held(slot) else { return };
        let retry_at = self.clock.now() + self.options.retry_after;
        let life = ShelfLife { retry_at, ..held.life };
        self.table.amend(&mut shelf.pen, slot, Arc::new(Snapshot { life, ..(*held).clone() }));
    }

    /// The answer when the source cannot be read: the last known state, or the fail policies. Never kept.
    fn degraded(&self, tenant: TenantId) -> Arc<Snapshot> {
        let now = self.clock.now();
        let held = self.table.find(tenant).and_then(|slot| self.table.held(slot));
        match held.filter(|held| self.serves_as_last_known(held, now)) {
            Some(held) => {
                count(&self.counters.last_known_answers);
                Arc::new(held.as_last_known(now))
            }
            None => {
                count(&self.counters.fail_policy_answers);
                Arc::new(Snapshot::by_fail_policy(&self.catalog, tenant, now))
            }
        }
    }

    fn serves_as_last_known(&self, held: &Snapshot, now: DateTime<Utc>) -> bool {
        held.origin == Origin::Loaded && now < held.life.read_at + self.options.stale_if_error
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Nothing under the lock can leave it half-changed in a way that matters: every entry is checked when used.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One load, with its deadline. Runs to its end whoever waits for it.
#[tracing::instrument(name = "saas.entitlements.gate.load", level = "debug", skip_all, fields(tenant = %flight.tenant))]
async fn fly(flight: Landing, sender: watch::Sender<Landed>) {
    let core = Arc::clone(&flight.core);
    let loaded = tokio::time::timeout(core.options.load_timeout, core.load(flight.tenant, flight.id)).await;
    let result = match loaded {
        Ok(Ok(snapshot)) => Ok(snapshot),
        Ok(Err(error)) => {
            tracing::warn!(code = error.code(), error = &error as &dyn std::error::Error, "load failed");
            Err(LoadFailed)
        }
        Err(_) => {
            tracing::warn!(timeout = ?core.options.load_timeout, "load timed out");
            Err(LoadFailed)
        }
    };
    if result.is_err() {
        count(&core.counters.load_failures);
        core.hold_off(flight.tenant);
    }
    drop(flight);
    // Nobody may be waiting any more.
    let _ = sender.send(Some(result));
}

/// The place of a load among the flights; given up when the load ends in any way, a dropped task and a panic included.
struct Landing {
    core: Arc<Core>,
    tenant: TenantId,
    id: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        end_flight(&mut self.core.lock(), self.tenant, self.id);
    }
}

fn end_flight(shelf: &mut Shelf, tenant: TenantId, id: u64) {
    if shelf.flights.get(&tenant).is_some_and(|flight| flight.id == id) {
        shelf.flights.remove(&tenant);
    }
}

async fn wait(mut landed: watch::Receiver<Landed>) -> Result<Arc<Snapshot>, LoadFailed> {
    match landed.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(LoadFailed)),
        // The load's task is gone: its runtime shut down, or the source panicked.
        Err(_) => Err(LoadFailed),
    }
}
