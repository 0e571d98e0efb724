//! Loads: one per tenant at a time, each in a task of its own with its own deadline.
//!
//! Whoever asked first starts it; the others wait for the same one. Nobody's giving up stops it, and its end, however it
//! comes about, frees the place for the next.

use std::sync::Arc;

use saas_core::TenantId;

use super::{
    core::Core,
    shelf::{Flight, Landed, LoadFailed, Shelf},
    stats::count,
    sync::{Handle, sleep, timeout, watch},
};
use crate::{
    Dated, EntitlementsError,
    resolve::resolve,
    snapshot::{Origin, ShelfLife, Snapshot},
};

/// Pauses between loads that were overtaken, in milliseconds: from the first to the last, doubling.
const FIRST_PAUSE_MS: u64 = 1;
const LAST_PAUSE_MS: u64 = 64;

/// A load that has been announced to the shelf and has yet to be spawned, which must happen outside the lock: a runtime
/// that is shutting down drops a task here and now, and the end of a flight takes the lock.
pub(super) struct Launch {
    flight: Landing,
    sender: watch::Sender<Landed>,
    landed: watch::Receiver<Landed>,
    runtime: Handle,
}

impl Launch {
    pub(super) fn spawn(self) -> watch::Receiver<Landed> {
        self.runtime.spawn(fly(self.flight, self.sender));
        self.landed
    }
}

impl Core {
    /// Announces a load to the shelf.
    pub(super) fn prepare(self: &Arc<Self>, shelf: &mut Shelf, tenant: TenantId) -> Option<Launch> {
        let runtime = Handle::try_current().ok()?;
        let (sender, landed) = watch::channel(None);
        let id = shelf.next_flight;
        shelf.next_flight += 1;
        let began = shelf.mark();
        shelf.flights.insert(tenant, Flight { id, began, landed: landed.clone() });
        Some(Launch { flight: Landing { core: Arc::clone(self), tenant, id }, sender, landed, runtime })
    }

    /// Reads until what was read is not older than what was heard, or the source has said often enough that there is
    /// nothing newer.
    async fn load(&self, tenant: TenantId, id: u64) -> Result<Arc<Snapshot>, EntitlementsError> {
        let closed = |_| EntitlementsError::Unavailable { cause: None };
        let mut pause = FIRST_PAUSE_MS;
        let mut overtaken = 0;
        loop {
            // For each read anew: whoever waits for a change to show must not keep other tenants from being read.
            let permit = self.permits.acquire().await.map_err(closed)?;
            let began = self.begin(tenant, id);
            count(&self.counters.loads);
            let asked = self.clock.own_time();
            let Dated { state, read_at } = self.source.load_dated(tenant, began.read_at).await?;
            if let (Some(asked), Some(told)) = (asked, read_at)
                && self.clock.compare(asked, told)
            {
                // What was read is what held at another time than was meant.
                continue;
            }
            let mut snapshot = match state {
                Some(state) => self.with_usage(resolve(&self.catalog, tenant, state, began.read_at)?).await?,
                None => Snapshot::unknown(&self.catalog, tenant, began.read_at),
            };
            snapshot.life = match snapshot.origin {
                Origin::UnknownTenant => {
                    let end = began.read_at + self.options.unknown_ttl;
                    ShelfLife { fresh_until: end, refresh_from: end, ..began }
                }
                Origin::Loaded | Origin::LastKnown { .. } | Origin::FailPolicy => began,
            };
            drop(permit);
            if let Some(accepted) = self.land(Arc::new(snapshot), id, overtaken) {
                return Ok(accepted);
            }
            count(&self.counters.outdated_loads);
            overtaken += 1;
            sleep(std::time::Duration::from_millis(pause)).await;
            pause = (pause * 2).min(LAST_PAUSE_MS);
        }
    }

    /// Of most tenants no usage is read.
    async fn with_usage(&self, snapshot: Snapshot) -> Result<Snapshot, EntitlementsError> {
        let watched = snapshot.watched();
        if watched.is_empty() {
            return Ok(snapshot);
        }
        let used = self.source.watch(snapshot.tenant, &watched, snapshot.at).await?;
        Ok(snapshot.with_usage(&used.unwrap_or_default()))
    }

    /// What is known as a load begins, and how long its result may live: counted from here, since the state is as of now.
    fn begin(&self, tenant: TenantId, id: u64) -> ShelfLife {
        let mut shelf = self.lock();
        let now = self.clock.now();
        let ttl = self.options.ttl;
        // Spread over the last tenth, by tenant, so that what was loaded together does not expire together.
        let spread = (tenant.as_uuid().as_u128() % 1_000) as i32;
        let fresh_until = now + ttl - ttl / 10_000 * spread;
        let refresh_from = fresh_until - ttl / 5;
        let (epoch, news) = shelf.mark();
        if let Some(flight) = shelf.flights.get_mut(&tenant).filter(|flight| flight.id == id) {
            flight.began = (epoch, news);
        }
        ShelfLife { epoch, news, read_at: now, refresh_from, fresh_until, retry_at: now, failed: (0, 0) }
    }

    /// Publishes a load and ends its flight, unless something newer was heard. `overtaken`: how many reads of this load
    /// were thrown away before.
    fn land(&self, snapshot: Arc<Snapshot>, id: u64, overtaken: u32) -> Option<Arc<Snapshot>> {
        let mut shelf = self.lock();
        let published = shelf.land(&self.table, &snapshot, overtaken)?;
        if published.unfounded {
            count(&self.counters.unfounded_announcements);
            tracing::warn!(
                target: "saas.entitlements.gate.load", tenant = %snapshot.tenant, revision = %snapshot.facts.revision,
                "a revision was announced that the source does not have"
            );
        }
        if published.evicts {
            count(&self.counters.evictions);
        }
        // In the same lock as the publication: whoever looks next finds the one or the other.
        end_flight(&mut shelf, snapshot.tenant, id);
        Some(snapshot)
    }

    /// After a failure: lets the last known state serve for a while before the source is tried again, unless something was
    /// heard since the read began.
    fn hold_off(&self, tenant: TenantId, id: u64) {
        let mut shelf = self.lock();
        let flight = shelf.flights.get(&tenant).filter(|flight| flight.id == id);
        let Some(failed) = flight.map(|flight| flight.began) else { return };
        let Some(slot) = self.table.find(tenant) else { return };
        let Some(held) = self.table.held(slot) else { return };
        let retry_at = self.clock.now() + self.options.retry_after;
        let life = ShelfLife { retry_at, failed, ..held.life };
        self.table.amend(&mut shelf.pen, slot, Arc::new(Snapshot { life, ..(*held).clone() }));
    }
}

/// One load, with its deadline. Runs to its end whoever waits for it.
#[tracing::instrument(name = "saas.entitlements.gate.load", level = "debug", skip_all, fields(tenant = %flight.tenant))]
async fn fly(flight: Landing, sender: watch::Sender<Landed>) {
    let core = Arc::clone(&flight.core);
    let loaded = timeout(core.options.load_timeout, core.load(flight.tenant, flight.id)).await;
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
        core.hold_off(flight.tenant, flight.id);
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

pub(super) async fn wait(mut landed: watch::Receiver<Landed>) -> Result<Arc<Snapshot>, LoadFailed> {
    match landed.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(LoadFailed)),
        // The load's task is gone: its runtime shut down, or the source panicked.
        Err(_) => Err(LoadFailed),
    }
}
