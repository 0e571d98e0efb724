//! Sums per hour and per day, kept up to date from events, each counted once.

use std::time::Duration;

use saas_core::{CoreError, SystemTx};
use serde::Serialize;

use super::{ACTOR, UsagePipeline, position};
use crate::EntitlementsError;

/// Events that one transaction adds up.
const BATCH: i32 = 5_000;
/// How long to wait for a transaction that holds the reader back before looking again.
const PAUSE: Duration = Duration::from_millis(20);

/// What a run of the roll-up did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RolledUp {
    /// Events that were added.
    pub events: u64,
    /// Whether every event that was committed when the run began is in. `false` when a transaction that was open then still
    /// is: the next run takes what remains.
    pub complete: bool,
}

impl UsagePipeline {
    /// Adds the events that are new to the sums per hour and day, and returns when none is left, or after `patience` when an
    /// open transaction holds some back. Run it every minute.
    ///
    /// The mark of the reader moves in the transaction that adds, so a crash at any point neither loses nor doubles an event;
    /// of several runs at once, each event is added by one.
    ///
    /// # Errors
    /// [`Unavailable`](saas_core::ErrorKind::Unavailable) when the database does not answer; what is added is added.
    /// [`ForeignPositions`](EntitlementsError::ForeignPositions) after a restore into another server.
    #[tracing::instrument(name = "saas.entitlements.usage.roll_up", level = "debug", skip_all)]
    pub async fn roll_up(&self, patience: Duration) -> Result<RolledUp, EntitlementsError> {
        let started = tokio::time::Instant::now();
        let goal = self.newest_transaction().await?;
        let mut done = RolledUp::default();
        loop {
            let (events, up_to) = self.roll_up_batch(BATCH).await?;
            done.events += events;
            if events == u64::from(BATCH.unsigned_abs()) {
                continue;
            }
            done.complete = up_to >= goal;
            if done.complete || started.elapsed() >= patience {
                return Ok(done);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Adds at most `most` events in one transaction: how many, and the transaction below which nothing is missing.
    async fn roll_up_batch(&self, most: i32) -> Result<(u64, i64), EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "roll up usage events").await?;
        position::check(&mut tx).await?;
        let (events, up_to): (i64, i64) = sqlx::query_as("select events, up_to from saas.usage_roll_up($1)")
            .bind(most)
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok((u64::try_from(events).unwrap_or(0), up_to))
    }

    /// The first transaction that had not begun yet.
    async fn newest_transaction(&self) -> Result<i64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look how far usage events go").await?;
        let newest: i64 = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(newest)
    }
}
