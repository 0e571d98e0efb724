//! The gate at work: the slow path, announcements, time.

use std::sync::{Arc, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{FeatureKey, Revision, SharedClock, TenantId, plan::PlanCatalog};
use tokio::sync::Semaphore;

use super::{
    GateOptions,
    flight::{Launch, wait},
    shelf::{Coarse, Landed, LoadFailed, Shelf},
    staleness::{Staleness, Watch},
    stats::{Counters, count},
    sync::{Mutex, MutexGuard, watch},
    table::Table,
};
use crate::{
    SnapshotSource,
    clock::HeldClock,
    snapshot::{FeatureHandle, Origin, Snapshot},
};

/// A load to wait for, and whether something was heard since its last read began.
type Joined = (watch::Receiver<Landed>, bool);

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) table: Table,
    pub(crate) fingerprint: u64,
    pub(crate) names: hashbrown::HashMap<FeatureKey, FeatureHandle, foldhash::fast::RandomState>,
    pub(crate) catalog: PlanCatalog,
    pub(crate) clock: HeldClock,
    pub(crate) counters: Counters,
    pub(crate) watch: Watch,
    pub(crate) options: GateOptions,
    pub(super) source: Arc<dyn SnapshotSource>,
    /// One for each load that may run.
    pub(super) permits: Semaphore,
    shelf: Mutex<Shelf>,
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
        let clock = HeldClock::new(clock, options.max_skew);
        let time = Coarse::new(clock.now(), longest);
        let max_floors = options.capacity.saturating_mul(2).max(1_024);
        Self {
            table,
            fingerprint,
            names: catalog.features().iter().map(handle).collect(),
            catalog,
            clock,
            counters: Counters::default(),
            watch: Watch::default(),
            permits: Semaphore::new(options.concurrent_loads),
            options,
            source,
            shelf: Mutex::new(Shelf::new(pen, time, max_floors, floor_life)),
        }
    }

    /// The tenant's snapshot, if it is in memory and may be shown. Takes the lock; never waits for anything else.
    pub(crate) fn in_memory(self: &Arc<Self>, tenant: TenantId) -> Option<Arc<Snapshot>> {
        count(&self.counters.misses);
        let now = self.clock.now();
        let mut shelf = self.lock();
        let (snapshot, refresh) = self.look(&mut shelf, tenant, now);
        drop(shelf);
        refresh.map(Launch::spawn);
        snapshot.inspect(|snapshot| self.note(snapshot, now))
    }

    /// The tenant's snapshot, loaded if need be. Always answers, after two loads at most.
    pub(crate) async fn snapshot(self: Arc<Self>, tenant: TenantId) -> Arc<Snapshot> {
        let mut looks_again = true;
        loop {
            let (landed, is_late) = match self.look_or_join(tenant) {
                Ok(snapshot) => return snapshot,
                Err(Some(load)) => load,
                Err(None) => {
                    tracing::error!(target: "saas.entitlements.gate.load", "a load needs a tokio runtime; answering without one");
                    return self.degraded(tenant);
                }
            };
            match wait(landed).await {
                Ok(snapshot) => return snapshot,
                // Its failure says nothing of what was heard since it began. What is found now began after its end.
                Err(LoadFailed) if is_late && looks_again => looks_again = false,
                Err(LoadFailed) => return self.degraded(tenant),
            }
        }
    }

    /// Takes note of a committed revision.
    pub(crate) fn hear(&self, tenant: TenantId, revision: Revision) {
        count(&self.counters.announcements);
        self.lock().hear(&self.table, tenant, revision, self.clock.now());
    }

    /// Has the tenant read again before its next answer if what is held is not newer than `revision`. What is held stays
    /// as last known state.
    #[cfg(feature = "postgres")]
    pub(crate) fn reread(&self, tenant: TenantId, revision: Revision) {
        let mut shelf = self.lock();
        let Some(slot) = self.table.find(tenant) else { return };
        let Some(held) = self.table.held(slot).filter(|held| held.facts.revision <= revision) else { return };
        let life = crate::snapshot::ShelfLife { fresh_until: held.life.read_at, ..held.life };
        self.table.amend(&mut shelf.pen, slot, Arc::new(Snapshot { life, ..(*held).clone() }));
        self.table.expire(&mut shelf.pen, slot);
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
    }

    /// Stops the coarse clock: every question takes the slow path, which asks the real one.
    pub(crate) fn stop_clock(&self) {
        self.lock().time.stop(&self.table);
    }

    /// What is in memory, or the load to wait for; `Err(None)` without a runtime.
    fn look_or_join(self: &Arc<Self>, tenant: TenantId) -> Result<Arc<Snapshot>, Option<Joined>> {
        // One lock for looking and joining: between the two, a load could land unseen and be run twice.
        let now = self.clock.now();
        let mut shelf = self.lock();
        let (snapshot, mut launch) = self.look(&mut shelf, tenant, now);
        let mut joined = None;
        if snapshot.is_none() {
            joined = shelf.flights.get(&tenant).map(|it| (it.landed.clone(), shelf.has_news_since(tenant, it.began)));
            if joined.is_none() {
                launch = self.prepare(&mut shelf, tenant);
            }
        }
        drop(shelf);
        let launched = launch.map(|launch| (launch.spawn(), false));
        snapshot.inspect(|snapshot| self.note(snapshot, now)).ok_or(joined.or(launched))
    }

    /// What is held for the tenant, if it may be shown at `now`, and a refresh to spawn once the lock is released.
    fn look(
        self: &Arc<Self>,
        shelf: &mut Shelf,
        tenant: TenantId,
        now: DateTime<Utc>,
    ) -> (Option<Arc<Snapshot>>, Option<Launch>) {
        let Some(held) = self.table.find(tenant).and_then(|slot| self.table.held(slot)) else { return (None, None) };
        let passed = held.holds_until().is_some_and(|end| end <= now) || now < held.at;
        let moved = passed.then(|| held.at(now));
        let is_read = moved.as_ref().is_none_or(|moved| !moved.watches_others());
        if shelf.is_current(&held, now) && is_read {
            if held.origin == Origin::UnknownTenant {
                count(&self.counters.unknown_tenants);
            }
            if let Some(moved) = moved.map(Arc::new) {
                // Time alone changed an answer: no need to read anything.
                shelf.publish(&self.table, Arc::clone(&moved));
                return (Some(moved), None);
            }
            let due = held.life.refresh_from <= now;
            let refresh = due.then(|| self.refresh(shelf, &held, now)).flatten();
            return (Some(held), refresh);
        }
        // A load has failed since it was read. Nobody waits for the next try: a source that hangs would hold up everyone.
        // What was heard since deserves a try of its own: that failure says nothing about it.
        let failing = held.life.read_at < held.life.retry_at
            && held.life.read_at <= now
            && !shelf.has_news_since(tenant, held.life.failed);
        if failing && self.serves_as_last_known(&held, now) {
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

    /// The answer when the source cannot be read: the last known state, or the fail policies. Never kept.
    fn degraded(&self, tenant: TenantId) -> Arc<Snapshot> {
        let now = self.clock.now();
        let held = self.table.find(tenant).and_then(|slot| self.table.held(slot));
        // Without the lock, so another tenant may have taken the slot since.
        let own = held.filter(|held| held.tenant == tenant);
        let snapshot = match own.filter(|held| self.serves_as_last_known(held, now)) {
            Some(held) => held.as_last_known(now),
            None => Snapshot::by_fail_policy(&self.catalog, tenant, now),
        };
        self.note(&snapshot, now);
        Arc::new(snapshot)
    }

    /// Notes what an answer beside the table rests on; counts and traces a degraded one.
    fn note(&self, answer: &Snapshot, now: DateTime<Utc>) {
        let policy = match answer.origin {
            Origin::Loaded | Origin::UnknownTenant => return self.watch.answered(answer.life.read_at, now),
            Origin::LastKnown { read_at } => {
                count(&self.counters.last_known_answers);
                self.watch.answered(read_at, now);
                "last known state"
            }
            Origin::FailPolicy => {
                count(&self.counters.fail_policy_answers);
                "fail policy"
            }
        };
        tracing::debug!(target: "saas.entitlements.gate.degraded", tenant = %answer.tenant, policy, "degraded answer");
        if let Some(answers) = self.watch.degraded(now) {
            tracing::warn!(
                target: "saas.entitlements.gate.degraded", answers, policy,
                "the source cannot be read: answering from the last known state, or by fail policy"
            );
        }
    }

    /// How stale the gate is.
    pub(crate) fn staleness(&self) -> Staleness {
        let now = self.clock.now();
        let clock_behind = self.lock().time.behind(now);
        Staleness {
            clock_skew_ms: self.clock.skew().map(|skew| skew.num_milliseconds()),
            ..self.watch.read(clock_behind, now)
        }
    }

    fn serves_as_last_known(&self, held: &Snapshot, now: DateTime<Utc>) -> bool {
        held.origin == Origin::Loaded && now < held.life.read_at + self.options.stale_if_error
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Nothing under the lock can leave it half-changed in a way that matters: every entry is checked when used.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
