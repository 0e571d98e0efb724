//! Pools of the application role for many databases, under one budget of connections.
//!
//! Owns every connection to a tenant's own database that serves requests. Promises:
//! - *Budget*: never more connections than [`PoolLimits::with_connections`] says, those included that are being opened or
//!   closed. A pool takes its share before its first connection is opened, and gives it back when its last one is closed. The
//!   server may show a few more for a moment: a session that was told to end takes that long to be gone.
//! - *Single flight*: one opening per database at a time, whoever waits; the result is everyone's.
//! - *Verified*: a pool is used only after the checks of [`TenantPool::open`].
//! - *No starvation*: a database that hangs ties up its own share for one connect timeout, and its cluster no more than
//!   [`PoolLimits::with_openings_per_cluster`] shares; one that failed is left alone for a while; one that is never idle
//!   gives way.
//!
//! The shared pool of the control database is the application's own and not counted here.

mod opening;
mod shelf;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use saas_core::{Schema, TenantPool, db::Place};
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore};

use self::shelf::{Open, Shelf};
use super::{ClusterName, Clusters, Database, PlacementError, PoolLimits};

/// Pools for many databases under one budget of connections. Cheap to clone; clones share the budget.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    clusters: Clusters,
    schemas: &'static [&'static Schema],
    limits: PoolLimits,
    /// One permit per connection that may exist.
    budget: Arc<Semaphore>,
    /// Who may take from the budget next: first come, first served.
    turnstile: Mutex<()>,
    openings: BTreeMap<ClusterName, Arc<Semaphore>>,
    shelf: Shelf,
    /// A pool became idle or was closed.
    freed: Notify,
    opened: AtomicU64,
    reaped: AtomicU64,
    failed: AtomicU64,
}

/// What the pools are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PoolStats {
    /// Databases with an open pool.
    pub databases: usize,
    /// The share of the budget that is taken: by open pools, and by those being opened or closed.
    pub reserved: usize,
    /// Connections of open pools, idle ones included.
    pub connections: u32,
    /// Openings that succeeded so far.
    pub opened: u64,
    /// Pools that were closed to make room so far.
    pub reaped: u64,
    /// Openings that failed so far.
    pub failed: u64,
}

impl Pools {
    /// Pools for the databases of `clusters`. Each database must have the tables of `schemas`; nothing is opened yet.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn new(
        clusters: Clusters,
        schemas: &'static [&'static Schema],
        limits: PoolLimits,
    ) -> Result<Self, PlacementError> {
        let limits = limits.check()?;
        let openings = || Arc::new(Semaphore::new(limits.openings_per_cluster.min(Semaphore::MAX_PERMITS)));
        let openings = clusters.names().map(|name| (name.clone(), openings())).collect();
        Ok(Self {
            inner: Arc::new(Inner {
                clusters,
                schemas,
                limits,
                budget: Arc::new(Semaphore::new(limits.connections as usize)),
                turnstile: Mutex::new(()),
                openings,
                shelf: Shelf::default(),
                freed: Notify::new(),
                opened: AtomicU64::new(0),
                reaped: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            }),
        })
    }

    /// The pool of a database, opened if need be, and kept open for as long as the lease lives.
    ///
    /// # Errors
    /// - [`PoolsBusy`](PlacementError::PoolsBusy): the budget was in use for as long as a request may wait.
    /// - [`DatabaseDown`](PlacementError::DatabaseDown): it does not answer or was refused, now or a moment ago; the kind
    ///   and code are those of the cause, such as `privileged_role`, `unsafe_server_version` or `not_migrated`.
    /// - [`UnknownCluster`](PlacementError::UnknownCluster).
    pub async fn lease(&self, database: &Database) -> Result<Lease, PlacementError> {
        if let Some(lease) = self.inner.try_lease(database)? {
            return Ok(lease);
        }
        let waited = self.inner.limits.acquire_timeout;
        let opened = tokio::time::timeout(waited, Inner::open(&self.inner, database)).await;
        opened.unwrap_or_else(|_| Err(PlacementError::PoolsBusy { database: database.clone(), waited }))
    }

    /// Closes the pool of a database once nobody uses it, and waits for that. The next request opens a new one.
    ///
    /// For a database that is about to be dropped or renamed.
    pub async fn close(&self, database: &Database) {
        if let Some(open) = self.inner.shelf.take(database) {
            Inner::retire(&self.inner, open).await;
        }
    }

    /// What the pools are doing.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let inner = &self.inner;
        let (databases, connections) = inner.shelf.totals();
        PoolStats {
            databases,
            reserved: (inner.limits.connections as usize).saturating_sub(inner.budget.available_permits()),
            connections,
            opened: inner.opened.load(Ordering::Relaxed),
            reaped: inner.reaped.load(Ordering::Relaxed),
            failed: inner.failed.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools").field("limits", &self.inner.limits).field("stats", &self.stats()).finish()
    }
}

/// Keeps a database's pool open.
#[derive(Debug)]
pub struct Lease {
    open: Arc<Open>,
    inner: Arc<Inner>,
}

impl Lease {
    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &TenantPool {
        &self.open.pool
    }

    /// The place in that database. It keeps the lease until the transaction ends.
    #[must_use]
    pub fn into_place(self) -> Place {
        Place::pooled(&self.open.pool).holding(self)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.open.give_back() {
            self.inner.freed.notify_one();
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A share of the budget. Whoever waits for one is told when it comes back.
#[derive(Debug)]
struct Share {
    permit: Option<OwnedSemaphorePermit>,
    inner: Arc<Inner>,
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.inner.freed.notify_one();
    }
}
