//! A pooled connection that goes back to its pool only when it is known to be clean.
//!
//! `sqlx::Pool::begin` can put a connection with an open transaction back when its future is dropped half-way: the `BEGIN`
//! is on its way, nothing remembers it, and the next user's autocommit statements silently join a transaction that
//! nobody commits. Here the connection is *suspect* from before the first byte until the answer is complete, and a
//! suspect connection is closed, not returned.

use std::fmt;

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection, postgres::PgTransactionManager};
use sqlx_core::{sql_str::SqlSafeStr, transaction::TransactionManager};

use crate::CoreError;

/// One open transaction on one pooled connection.
pub(super) struct Guard {
    connection: PoolConnection<Postgres>,
    /// An answer is outstanding: whether the connection is in a transaction is not known.
    suspect: bool,
}

impl Guard {
    /// Takes a connection and opens a transaction with `begin`, which may hold several statements, in one round trip.
    #[expect(clippy::disallowed_methods, reason = "the one place that takes connections")]
    pub(super) async fn begin(pool: &PgPool, begin: impl SqlSafeStr) -> Result<Self, CoreError> {
        let connection = pool.acquire().await.map_err(CoreError::from_database)?;
        let mut guard = Self { connection, suspect: true };
        PgTransactionManager::begin(&mut guard.connection, Some(begin.into_sql_str()))
            .await
            .map_err(CoreError::from_database)?;
        guard.suspect = false;
        Ok(guard)
    }

    /// Commits, or says that an earlier statement had already failed.
    ///
    /// PostgreSQL answers a `COMMIT` of a failed transaction with success and the tag `ROLLBACK`, which the driver does
    /// not show: a caller that swallowed an error would believe that its writes are stored. The `select` in front fails
    /// in that state, and the `COMMIT` is then not run. `and chain` leaves an empty transaction for the rollback that
    /// the driver's bookkeeping sends when the connection is released, so that all of it costs one round trip.
    pub(super) async fn commit(mut self) -> Result<(), CoreError> {
        self.suspect = true;
        sqlx::raw_sql("select 1; commit and chain")
            .execute(&mut *self.connection)
            .await
            .map_err(CoreError::from_commit)?;
        self.suspect = false;
        Ok(())
    }

    /// Rolls back and waits for the answer.
    pub(super) async fn rollback(mut self) -> Result<(), CoreError> {
        self.suspect = true;
        PgTransactionManager::rollback(&mut self.connection).await.map_err(CoreError::from_database)?;
        self.suspect = false;
        Ok(())
    }

    pub(super) fn connection(&self) -> &PgConnection {
        &self.connection
    }

    pub(super) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Queues a rollback, which the pool sends before it hands the connection out again; or closes a suspect connection.
impl Drop for Guard {
    fn drop(&mut self) {
        if self.suspect {
            self.connection.close_on_drop();
        } else {
            PgTransactionManager::start_rollback(&mut self.connection);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("suspect", &self.suspect).finish_non_exhaustive()
    }
}
