//! The open pools, who uses them, and the databases that failed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use saas_core::{CoreError, TenantPool};
use tokio::{
    sync::{Mutex as Gate, Notify},
    time::Instant,
};

use super::Share;
use crate::placement::Database;

/// The open pool of one database, with its share of the budget.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) database: Database,
    pub(super) pool: TenantPool,
    pub(super) share: Mutex<Option<Share>>,
    since: Instant,
    leases: AtomicUsize,
    used: AtomicU64,
    emptied: Notify,
}

impl Open {
    pub(super) fn new(database: Database, pool: TenantPool, share: Share) -> Self {
        Self {
            database,
            pool,
            share: Mutex::new(Some(share)),
            since: Instant::now(),
            leases: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            emptied: Notify::new(),
        }
    }

    /// Gives one lease back, and says whether it was the last.
    pub(super) fn give_back(&self) -> bool {
        let last = self.leases.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.emptied.notify_one();
        }
        last
    }

    /// Waits until nobody has a lease. Only once the pool is off the shelf: no new ones come then.
    pub(super) async fn wait_until_unused(&self) {
        while self.leases.load(Ordering::Acquire) > 0 {
            self.emptied.notified().await;
        }
    }
}

/// A database that could not be opened.
#[derive(Debug, Clone)]
struct Failure {
    in_a_row: u32,
    until: Instant,
    cause: Arc<CoreError>,
}

/// Failures are kept for the pause they set, and then for as long again as the count matters; of more than this many the
/// ones that are over are forgotten.
const FAILURES_KEPT: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Shelf {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<Database, Arc<Open>>,
    failures: HashMap<Database, Failure>,
    /// Held by whoever opens a database; there only while someone does or waits.
    gates: HashMap<Database, Arc<Gate<()>>>,
    tick: u64,
}

/// What the shelf has for a request.
pub(super) enum Found {
    Open(Arc<Open>),
    Down { retry_in: Duration, cause: Arc<CoreError> },
    Nothing,
}

impl Shelf {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the open pool and counts a lease on it; or says that the database failed a moment ago.
    pub(super) fn find(&self, database: &Database) -> Found {
        let mut state = self.state();
        state.tick += 1;
        let tick = state.tick;
        if let Some(open) = state.open.get(database) {
            open.leases.fetch_add(1, Ordering::AcqRel);
            open.used.store(tick, Ordering::Relaxed);
            return Found::Open(Arc::clone(open));
        }
        let now = Instant::now();
        match state.failures.get(database) {
            Some(failure) if failure.until > now => {
                Found::Down { retry_in: failure.until - now, cause: Arc::clone(&failure.cause) }
            }
            Some(_) | None => Found::Nothing,
        }
    }

    /// Puts an open pool in its place, with one lease.
    pub(super) fn put(&self, open: Open) -> Arc<Open> {
        let mut state = self.state();
        state.tick += 1;
        open.used.store(state.tick, Ordering::Relaxed);
        open.leases.store(1, Ordering::Release);
        state.failures.remove(&open.database);
        let open = Arc::new(open);
        state.open.insert(open.database.clone(), Arc::clone(&open));
        open
    }

    /// Notes a failure, and answers how long the database is left alone.
    pub(super) fn fail(&self, database: &Database, cause: Arc<CoreError>, pause: impl Fn(u32) -> Duration) -> Duration {
        let mut state = self.state();
        let now = Instant::now();
        let in_a_row = state.failures.get(database).map_or(1, |failure| failure.in_a_row.saturating_add(1));
        let retry_in = pause(in_a_row);
        state.failures.insert(database.clone(), Failure { in_a_row, until: now + retry_in, cause });
        if state.failures.len() > FAILURES_KEPT {
            state.failures.retain(|_, failure| failure.until > now);
        }
        retry_in
    }

    /// Takes a database's pool off the shelf.
    pub(super) fn take(&self, database: &Database) -> Option<Arc<Open>> {
        self.state().open.remove(database)
    }

    /// Takes the pool that was used longest ago among those that nobody uses.
    pub(super) fn take_idle(&self) -> Option<Arc<Open>> {
        self.take_least(|open| (open.leases.load(Ordering::Acquire) == 0).then(|| open.used.load(Ordering::Relaxed)))
    }

    /// Takes the pool that has been open longest, if that is at least `turn`.
    pub(super) fn take_oldest(&self, turn: Duration) -> Option<Arc<Open>> {
        self.take_least(|open| (open.since.elapsed() >= turn).then_some(open.since))
    }

    fn take_least<K: Ord>(&self, key: impl Fn(&Open) -> Option<K>) -> Option<Arc<Open>> {
        let mut state = self.state();
        let (_, database) = state
            .open
            .values()
            .filter_map(|open| Some((key(open)?, &open.database)))
            .min_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(key, database)| (key, database.clone()))?;
        state.open.remove(&database)
    }

    /// The gate of a database: whoever holds it opens the database, alone.
    pub(super) fn gate(&self, database: &Database) -> Arc<Gate<()>> {
        Arc::clone(self.state().gates.entry(database.clone()).or_default())
    }

    /// Forgets the gate unless someone else has it.
    pub(super) fn leave_gate(&self, database: &Database, gate: Arc<Gate<()>>) {
        let mut state = self.state();
        drop(gate);
        if state.gates.get(database).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            state.gates.remove(database);
        }
    }

    /// How many databases are open, and how many connections they have.
    pub(super) fn totals(&self) -> (usize, u32) {
        let state = self.state();
        (state.open.len(), state.open.values().map(|open| open.pool.pool().size()).sum())
    }
}
