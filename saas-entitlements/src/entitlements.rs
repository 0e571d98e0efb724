//! The service that applications ask.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, mpsc},
    time::Duration,
};

use saas_core::{FeatureKey, PlanCatalog, Revision, SharedClock, TenantId};

use crate::{
    Answer, EntitlementsError, Explanation, FeatureGate, FeatureHandle, GateOptions, GateStats, Snapshot,
    SnapshotSource, Staleness, UpgradeLink, gate::Core,
};

/// What tenants may do, answered from memory.
///
/// A clone is another handle to the same gate. Make one per process, start its clock, connect a listener, and ask:
///
/// ```
/// # #[cfg(feature = "testing")] {
/// # use std::sync::Arc;
/// # use saas_core::{FeatureKey, PlanCatalog, SystemClock, TenantId};
/// # use saas_entitlements::{Entitlements, memory::MemorySource};
/// # let catalog = PlanCatalog::from_toml("default_plan = 'free'\n[features.csv]\nkind = 'boolean'\nfail = 'closed'\n\
/// #     [plans.free]\nrank = 0\n[[plans.free.versions]]\nversion = 1\ngrants.csv = true")?;
/// # let (source, tenant) = (MemorySource::new(), TenantId::mint(&SystemClock));
/// # source.put_plan(tenant, saas_core::subscription::PlanAssignment::active(saas_core::PlanKey::from_static("free")));
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// const CSV: FeatureKey = FeatureKey::from_static("csv");
///
/// let entitlements = Entitlements::new(catalog, Arc::new(source), Arc::new(SystemClock));
/// let clock = entitlements.start_clock();
///
/// if entitlements.is_feature_enabled(tenant, &CSV).await { /* … */ }     // loads once, then memory
///
/// let snapshot = entitlements.snapshot(tenant).await;                    // once per request
/// println!("{}", snapshot.explain(&CSV)?);                               // “`csv` is on: plan `free` version 1 grants it.”
/// # assert_eq!(snapshot.explain(&CSV)?.to_string(), "`csv` is on: plan `free` version 1 grants it.");
/// # Ok::<_, saas_entitlements::EntitlementsError>(())
/// # })?;
/// # }
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Entitlements {
    pub(crate) core: Arc<Core>,
    /// What refusals carry.
    pub(crate) link: Option<UpgradeLink>,
}

impl Entitlements {
    /// A gate with the default [`GateOptions`].
    #[must_use]
    pub fn new(catalog: PlanCatalog, source: Arc<dyn SnapshotSource>, clock: SharedClock) -> Self {
        Self { core: Arc::new(Core::new(catalog, source, clock, GateOptions::default())), link: None }
    }

    /// A gate with other bounds.
    ///
    /// # Errors
    /// When an option is out of range.
    pub fn with_options(
        catalog: PlanCatalog,
        source: Arc<dyn SnapshotSource>,
        clock: SharedClock,
        options: GateOptions,
    ) -> Result<Self, EntitlementsError> {
        options.check()?;
        Ok(Self { core: Arc::new(Core::new(catalog, source, clock, options)), link: None })
    }

    /// Starts the coarse clock that hits are judged by, in a thread of its own, until the guard is dropped: a runtime that
    /// is busy would let it stand still.
    ///
    /// Without it the gate is right but slower: every question takes a lock and asks the real clock. The same holds where
    /// no thread can be had, which is logged.
    #[must_use = "the clock stops when the guard is dropped"]
    pub fn start_clock(&self) -> GateClock {
        let stopper = ClockStopper(Arc::downgrade(&self.core));
        let period = self.core.options.tick;
        let (guard, dropped) = mpsc::channel::<Infallible>();
        let ticking = move || {
            while let Some(core) = stopper.0.upgrade() {
                core.tick();
                drop(core);
                if dropped.recv_timeout(period) == Err(mpsc::RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        let thread = match std::thread::Builder::new().name("saas-gate-clock".to_owned()).spawn(ticking) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::error!(target: "saas.entitlements.gate", error = &error as &dyn std::error::Error, "the gate has no clock; every question takes the slow path");
                None
            }
        };
        GateClock { guard: Some(guard), thread }
    }

    /// Looks a feature up once, for questions that cost no name.
    ///
    /// # Errors
    /// [`UnknownFeature`](EntitlementsError::UnknownFeature) when the catalogue has no such feature.
    pub fn feature(&self, key: &FeatureKey) -> Result<FeatureHandle, EntitlementsError> {
        let found = self.core.names.get(key).copied();
        found.ok_or_else(|| EntitlementsError::UnknownFeature { key: key.clone() })
    }

    /// Whether the tenant has the feature now. On a hit, a few nanoseconds: no lock, no allocation, no I/O.
    #[inline(always)]
    pub fn is_enabled(&self, tenant: TenantId, feature: FeatureHandle) -> Answer {
        if feature.catalog == self.core.fingerprint
            && let Some(enabled) = self.core.table.read(tenant, feature.id.index())
        {
            return Answer::ready(enabled);
        }
        self.look_up(tenant, feature)
    }

    /// As [`is_enabled`](Self::is_enabled), by name.
    #[inline]
    pub fn is_feature_enabled(&self, tenant: TenantId, feature: &FeatureKey) -> Answer {
        match self.core.names.get(feature) {
            Some(handle) => self.is_enabled(tenant, *handle),
            None => self.refuse_unknown(feature),
        }
    }

    /// Everything the tenant may do, for the length of a request.
    ///
    /// Always answers; see [`Snapshot::origin`] for what the answers rest on.
    pub async fn snapshot(&self, tenant: TenantId) -> Arc<Snapshot> {
        match self.core.table.read_held(tenant) {
            Some(snapshot) => snapshot,
            None => {
                crate::gate::count(&self.core.counters.misses);
                Arc::clone(&self.core).snapshot(tenant).await
            }
        }
    }

    /// Why a tenant has a feature or not.
    ///
    /// # Errors
    /// [`UnknownFeature`](EntitlementsError::UnknownFeature) when the catalogue has no such feature.
    pub async fn explain(&self, tenant: TenantId, feature: &FeatureKey) -> Result<Explanation, EntitlementsError> {
        self.snapshot(tenant).await.explain(feature)
    }

    /// Takes note that `revision` of the tenant was committed: nothing older is answered from here on.
    ///
    /// For whoever changed something in this process and wants to see it before the notification arrives, and for
    /// channels other than PostgreSQL's.
    pub fn hear(&self, tenant: TenantId, revision: Revision) {
        self.core.hear(tenant, revision);
    }

    /// Distrusts everything in memory: each tenant is read again before it is answered. What is held still serves as
    /// last known state if that fails.
    pub fn flush(&self) {
        self.core.flush();
    }

    /// Totals for metrics and alarms.
    #[must_use]
    pub fn stats(&self) -> GateStats {
        self.core.counters.read()
    }

    /// How old answers are and how well changes are heard of, for metrics and alarms.
    #[must_use]
    pub fn staleness(&self) -> Staleness {
        self.core.staleness()
    }

    /// Shows a channel of changes in [`staleness`](Self::staleness) until the watch is dropped. For channels of your own:
    /// [`RevisionListener`](crate::RevisionListener) and [`RevisionPoller`](crate::RevisionPoller) have theirs.
    #[must_use = "the channel is shown until the watch is dropped"]
    pub fn watch_channel(&self, name: &'static str) -> ChannelWatch {
        ChannelWatch { id: self.core.watch.open(name, self.core.clock.now()), core: Arc::clone(&self.core) }
    }

    /// What is sold.
    #[must_use]
    pub fn catalog(&self) -> &PlanCatalog {
        &self.core.catalog
    }

    /// Moves the coarse clock to the present, in place of [`start_clock`](Self::start_clock).
    #[cfg(feature = "testing")]
    pub fn tick(&self) {
        self.core.tick();
    }

    #[cold]
    #[inline(never)]
    fn look_up(&self, tenant: TenantId, feature: FeatureHandle) -> Answer {
        if feature.catalog != self.core.fingerprint {
            tracing::error!(target: "saas.entitlements.gate", "a feature handle of another catalogue was used; answering off");
            crate::gate::count(&self.core.counters.unknown_features);
            return Answer::ready(false);
        }
        if let Some(snapshot) = self.core.in_memory(tenant) {
            return Answer::ready(snapshot.is_enabled(feature));
        }
        let core = Arc::clone(&self.core);
        Answer::later(async move { core.snapshot(tenant).await.is_enabled(feature) })
    }

    #[cold]
    #[inline(never)]
    fn refuse_unknown(&self, feature: &FeatureKey) -> Answer {
        tracing::error!(target: "saas.entitlements.gate", %feature, "the plan catalogue has no such feature; answering off");
        crate::gate::count(&self.core.counters.unknown_features);
        Answer::ready(false)
    }
}

impl FeatureGate for Entitlements {
    fn is_feature_enabled(&self, tenant: TenantId, feature: &FeatureKey) -> Answer {
        Self::is_feature_enabled(self, tenant, feature)
    }
}

impl fmt::Debug for Entitlements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entitlements").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What a channel of changes says about itself.
#[derive(Debug)]
pub struct ChannelWatch {
    core: Arc<Core>,
    id: u64,
}

impl ChannelWatch {
    /// The channel gave a sign of life.
    pub fn heard(&self) {
        self.core.watch.heard(self.id, None, self.core.clock.now());
    }

    /// The channel gave a sign of life that took `lag` from its sending to here.
    pub fn heard_after(&self, lag: Duration) {
        self.core.watch.heard(self.id, Some(lag), self.core.clock.now());
    }
}

impl Drop for ChannelWatch {
    fn drop(&mut self) {
        self.core.watch.close(self.id);
    }
}

/// Keeps the coarse clock going.
#[derive(Debug)]
pub struct GateClock {
    /// Never sent on: its end is the message.
    guard: Option<mpsc::Sender<Infallible>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for GateClock {
    fn drop(&mut self) {
        drop(self.guard.take());
        // At most one tick away. A panic in there has been reported, and has stopped the clock too.
        if let Some(Err(_)) = self.thread.take().map(std::thread::JoinHandle::join) {
            tracing::error!(target: "saas.entitlements.gate", "the gate's clock panicked");
        }
    }
}

/// Stops the coarse clock when its thread ends in any way, so that nothing is judged by a clock that stands still.
struct ClockStopper(std::sync::Weak<Core>);

impl Drop for ClockStopper {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.stop_clock();
        }
    }
}
