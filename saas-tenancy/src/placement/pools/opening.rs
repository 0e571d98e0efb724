//! How a database's pool is opened, and how room is made for it.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use saas_core::{CoreError, TenantPool, db::pool_options};
use sqlx::{ConnectOptions as _, Connection as _, postgres::PgConnectOptions};
use tokio::{
    net::TcpStream,
    sync::{Mutex as Gate, OwnedMutexGuard, OwnedSemaphorePermit},
    time::Instant,
};

use super::{
    Inner, Lease, Share,
    shelf::{Found, Open, Shelf},
};
use crate::placement::{Database, Login, PlacementError};

/// A place in the queue of those that want the same database opened.
struct AtGate<'a> {
    shelf: &'a Shelf,
    database: &'a Database,
    gate: Option<Arc<Gate<()>>>,
}

impl Drop for AtGate<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            self.shelf.leave_gate(self.database, gate);
        }
    }
}

/// What an opening holds until it is over.
struct Ticket {
    _gate: OwnedMutexGuard<()>,
    _opening: OwnedSemaphorePermit,
    share: Share,
}

impl Inner {
    /// The open pool; `None` when there is none and opening it is worth a try.
    pub(super) fn try_lease(self: &Arc<Self>, database: &Database) -> Result<Option<Lease>, PlacementError> {
        match self.shelf.find(database) {
            Found::Open(open) => Ok(Some(Lease { open, inner: Arc::clone(self) })),
            Found::Down { retry_in, cause } => {
                Err(PlacementError::DatabaseDown { database: database.clone(), retry_in, cause })
            }
            Found::Nothing => Ok(None),
        }
    }

    /// Opens the database, or waits for whoever does.
    pub(super) async fn open(inner: &Arc<Self>, database: &Database) -> Result<Lease, PlacementError> {
        let options = inner.clusters.options(database, Login::Application)?;
        let unknown = || PlacementError::UnknownCluster { cluster: database.cluster.clone() };
        let openings = Arc::clone(inner.openings.get(&database.cluster).ok_or_else(unknown)?);
        let gate = inner.shelf.gate(database);
        let at_gate = AtGate { shelf: &inner.shelf, database, gate: Some(Arc::clone(&gate)) };
        let passed = gate.lock_owned().await;
        if let Some(lease) = inner.try_lease(database)? {
            return Ok(lease);
        }
        // The semaphore is never closed.
        let opening = openings.acquire_owned().await.map_err(|_| unknown())?;
        let share = Self::room(inner).await;
        let ticket = Ticket { _gate: passed, _opening: opening, share };
        // In a task of its own: a caller that goes away neither wastes the attempt nor hides its failure.
        let task = tokio::spawn(Self::connect(Arc::clone(inner), database.clone(), options, ticket));
        let opened = task.await.unwrap_or_else(|lost| Err(CoreError::Unavailable { cause: Box::new(lost) }.into()));
        drop(at_gate);
        opened
    }

    /// Connects, verifies, and puts the pool on the shelf, within the connect timeout.
    async fn connect(
        inner: Arc<Self>,
        database: Database,
        options: PgConnectOptions,
        ticket: Ticket,
    ) -> Result<Lease, PlacementError> {
        let limits = &inner.limits;
        let Ticket { _gate, _opening, share } = ticket;
        let pool = pool_options()
            .max_connections(limits.per_database)
            .acquire_timeout(limits.acquire_timeout)
            .connect_lazy_with(options.clone());
        let verified = async {
            is_there(&options).await?;
            TenantPool::open(pool.clone(), inner.schemas).await
        };
        let verified = match tokio::time::timeout(limits.connect_timeout, verified).await {
            Ok(verified) => verified,
            Err(late) => Err(refusal(&options, limits.connect_timeout)
                .await
                .unwrap_or_else(|| CoreError::Unavailable { cause: Box::new(late) })),
        };
        match verified {
            Ok(verified) => {
                inner.opened.fetch_add(1, Ordering::Relaxed);
                let open = inner.shelf.put(Open::new(database, verified, share));
                Ok(Lease { open, inner: Arc::clone(&inner) })
            }
            Err(error) => {
                // Closed before the share goes back.
                pool.close().await;
                inner.failed.fetch_add(1, Ordering::Relaxed);
                let cause = Arc::new(error);
                let retry_in = inner.shelf.fail(&database, Arc::clone(&cause), |failures| limits.pause(failures));
                tracing::warn!(
                    target: "saas.tenancy.pools", %database, ?retry_in,
                    error = cause.as_ref() as &dyn std::error::Error, "a tenant's database cannot be used"
                );
                drop(share);
                Err(PlacementError::DatabaseDown { database, retry_in, cause })
            }
        }
    }

    /// A share of the budget: a free one, or that of the pool that was idle longest, or, after a while, that of the pool
    /// that was open longest.
    async fn room(inner: &Arc<Self>) -> Share {
        let _first_in_line = inner.turnstile.lock().await;
        let turn = inner.limits.turn;
        let mut enough = Instant::now() + turn;
        loop {
            if let Ok(permit) = Arc::clone(&inner.budget).try_acquire_many_owned(inner.limits.per_database) {
                return Share { permit: Some(permit), inner: Arc::clone(inner) };
            }
            if let Some(idle) = inner.shelf.take_idle() {
                Self::retire(inner, idle).await;
                continue;
            }
            // A pool that was idle for a moment may be in use again: only the clock says when it is enough.
            if tokio::time::timeout_at(enough, inner.freed.notified()).await.is_err() {
                enough = Instant::now() + turn;
                if let Some(oldest) = inner.shelf.take_oldest(turn) {
                    // Not waited for: another one may become idle sooner.
                    drop(Self::retire(inner, oldest));
                }
            }
        }
    }

    /// Closes a pool that is off the shelf once nobody uses it; its share goes back when its last connection is closed.
    pub(super) fn retire(inner: &Arc<Self>, open: Arc<Open>) -> impl Future<Output = ()> + use<> {
        inner.reaped.fetch_add(1, Ordering::Relaxed);
        let closing = tokio::spawn(async move {
            open.wait_until_unused().await;
            open.pool.pool().close().await;
            drop(open.share.lock().unwrap_or_else(PoisonError::into_inner).take());
        });
        async move { drop(closing.await) }
    }
}

/// Whether anything listens at an address: the pool would ask a machine that refuses again and again, as it does, rightly, with
/// a server that is full for a moment. Not with a connection
/// to the database: its session would still be there, for a moment, beside those of the pool.
async fn is_there(options: &PgConnectOptions) -> Result<(), CoreError> {
    let in_a_directory = options.get_socket().is_some() || options.get_host().starts_with('/');
    if !in_a_directory {
        let refused = |error| CoreError::from_database(sqlx::Error::Io(error));
        TcpStream::connect((options.get_host(), options.get_port())).await.map_err(refused)?;
    }
    Ok(())
}

/// Why a server lets nobody in: a pool that asked it again and again says only that it took too long.
async fn refusal(options: &PgConnectOptions, patience: Duration) -> Option<CoreError> {
    match tokio::time::timeout(patience, options.connect()).await.ok()? {
        Ok(connection) => {
            drop(connection.close().await);
            None
        }
        Err(error) => Some(CoreError::from_database(error)),
    }
}
