//! Whose transactions the positions of events and readers count.
//!
//! Readers follow the number of the transaction that recorded an event. A database that was copied into another server (from a
//! dump, by logical replication, by an upgrade) brings numbers that say nothing there. Every reader looks first, and refuses:
//! events that nobody read must neither be passed by nor dropped.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, SystemTx};

use super::{ACTOR, UsagePipeline};
use crate::EntitlementsError;

impl UsagePipeline {
    /// Makes what readers have read of usage events mean the same on this server, after the database came from another one:
    /// how many events were given another position.
    ///
    /// Events that a reader had read before are not read again; those that it had not, and all that came since, are read
    /// once. A batch that was under way comes again under its id, with the same events.
    ///
    /// `restored_at` is any instant between the last use on the old server and the first on this one. Uses can go on; readers
    /// wait. All events that were copied are written anew, in one transaction. Where nothing is to be done, nothing is: it is
    /// safe to repeat.
    ///
    /// # Errors
    /// [`Unavailable`](saas_core::ErrorKind::Unavailable) when a reader is at work for more than two seconds, or the database
    /// does not answer: nothing was changed, call it again.
    #[tracing::instrument(name = "saas.entitlements.usage.adopt_positions", skip_all)]
    pub async fn adopt_positions(&self, restored_at: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "adopt the positions of usage events").await?;
        // One after the other: what a second one finds is of this server.
        sqlx::query("select pg_advisory_xact_lock(hashtextextended('saas.usage positions', 0))")
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        if find_foreign(&mut tx).await?.is_none() {
            tx.rollback().await?;
            return Ok(0);
        }
        let changed: i64 = sqlx::query_scalar("select saas.usage_positions_adopt($1)")
            .bind(restored_at)
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        let changed = u64::try_from(changed).unwrap_or(0);
        tracing::info!(target: "saas.entitlements.usage.adopt_positions", changed, "positions are of this server");
        Ok(changed)
    }
}

/// Refuses where positions are of another server.
pub(super) async fn check(tx: &mut SystemTx) -> Result<(), EntitlementsError> {
    match find_foreign(tx).await? {
        None => Ok(()),
        Some(why) => Err(EntitlementsError::ForeignPositions { why }),
    }
}

async fn find_foreign(tx: &mut SystemTx) -> Result<Option<String>, CoreError> {
    sqlx::query_scalar("select saas.usage_positions_foreign()")
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}
