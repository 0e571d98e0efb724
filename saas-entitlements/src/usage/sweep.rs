//! What happens by itself where time passes: reservations that are overdue, and windows that are over.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, MeterKey, SystemTx, TenantId, plan::Window};
use serde::Serialize;

use super::{ACTOR, UsagePipeline, rebuild::window_of};
use crate::{Entitlements, EntitlementsError, Origin, postgres::edges};

/// What one run of [`UsagePipeline::sweep`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Swept {
    /// Reservations that were overdue and gave their units back.
    pub expired: u64,
    /// Windows whose end was dealt with.
    pub closed: u64,
    /// Warnings of theirs that were taken back.
    pub resolved: u64,
    /// Units that they left over and that are carried over.
    pub carried: u64,
    /// Reservations that were ended longer ago than keys are kept, and are forgotten.
    pub forgotten: u64,
    /// Whether there was as much of one of these as one run does: run it again.
    pub more: bool,
}

type Ended = (uuid::Uuid, String, String, DateTime<Utc>, DateTime<Utc>);

impl UsagePipeline {
    /// Gives back what overdue reservations of all tenants hold, and deals with the ends of windows: takes back their
    /// warnings, and carries over what they left. Up to `most` of each per run. Run it every minute.
    ///
    /// Nothing waits for it: the next use that needs the units of an overdue reservation takes them, and the first use of a
    /// window does what belongs to the end of the one before. It is for tenants that do nothing for a while. Every step
    /// commits by itself; a run that was stopped is resumed by the next one, and several at once do each step once.
    ///
    /// # Errors
    /// [`Unavailable`](saas_core::ErrorKind::Unavailable) when the database or the source of plans does not answer: what is
    /// done is done, run it again.
    #[tracing::instrument(name = "saas.entitlements.usage.sweep", skip_all)]
    pub async fn sweep(&self, entitlements: &Entitlements, most: u16) -> Result<Swept, EntitlementsError> {
        let now = self.now().await?;
        let mut swept = Swept { expired: self.expire(most).await?, ..Swept::default() };
        let ended = self.ended(now, most).await?;
        let full = u64::from(most);
        swept.more = swept.expired == full || u64::try_from(ended.len()) == Ok(full);
        for window in ended {
            self.close(entitlements, window, now, &mut swept).await?;
        }
        swept.forgotten = self.forget(now, most).await?;
        swept.more |= swept.forgotten == full;
        Ok(swept)
    }

    async fn expire(&self, most: u16) -> Result<u64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "give back what overdue reservations hold").await?;
        let expired: i32 = sqlx::query_scalar("select saas.usage_reservation_sweep($1)")
            .bind(i32::from(most))
            .fetch_one(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(u64::try_from(expired).unwrap_or(0))
    }

    async fn ended(&self, now: DateTime<Utc>, most: u16) -> Result<Vec<Ended>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "list windows that are over").await?;
        let ended = sqlx::query_as(
            "select tenant_id, meter, window_kind, window_start, window_end
             from saas.usage_counter -- of every tenant, the longest over first
             where closed_at is null and window_end <= $1
             order by window_end
             limit $2",
        )
        .bind(now)
        .bind(i64::from(most))
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.rollback().await?;
        Ok(ended)
    }

    async fn close(
        &self,
        entitlements: &Entitlements,
        (tenant, meter, window, start, end): Ended,
        now: DateTime<Utc>,
        swept: &mut Swept,
    ) -> Result<(), EntitlementsError> {
        let tenant = TenantId::from_uuid(tenant);
        let meter = MeterKey::from_str(&meter)
            .map_err(|_| CoreError::Corrupt { table: "saas.usage_counter", column: "meter" })?;
        let window = window_of(&window)?;
        // Before the transaction: loading it takes a connection.
        let snapshot = entitlements.snapshot(tenant).await;
        if snapshot.origin() == Origin::FailPolicy {
            return Err(EntitlementsError::Unavailable { cause: None });
        }
        // By itself, and first: what it locks may come before this window, and a repeat carries nothing.
        if let Some((start, carry)) = carried_into(&snapshot, &meter, window, now) {
            let mut tx = SystemTx::begin(&self.system, ACTOR, "carry over what windows have left").await?;
            swept.carried += edges::carry_in(&mut tx, tenant, &ACTOR, (&meter, window, start), &carry, now).await?;
            tx.commit().await?;
        }
        let mut tx = SystemTx::begin(&self.system, ACTOR, "deal with the end of a window").await?;
        let closed = sqlx::query(
            "update saas.usage_counter
             set closed_at = $5
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4 and closed_at is null",
        )
        .bind(tenant.as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(start)
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        if closed.rows_affected() == 0 {
            return Ok(());
        }
        let resolved = edges::resolve_before(&mut tx, tenant, &ACTOR, (&meter, window, end), now).await?;
        swept.resolved += u64::try_from(resolved).unwrap_or(u64::MAX);
        tx.commit().await?;
        swept.closed += 1;
        Ok(())
    }

    async fn forget(&self, now: DateTime<Utc>, most: u16) -> Result<u64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "forget reservations that ended long ago").await?;
        let forgotten = sqlx::query(
            "delete from saas.usage_reservation
             where (tenant_id, id) in (
                 select tenant_id, id
                 from saas.usage_reservation
                 where outcome is not null and settled_at < $1
                 order by settled_at
                 limit $2
                 for update skip locked
             )",
        )
        .bind(now - self.retention.keys)
        .bind(i64::from(most))
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?
        .rows_affected();
        tx.commit().await?;
        Ok(forgotten)
    }
}

/// The present window of a counter of that kind, and what is carried over into it.
fn carried_into(
    snapshot: &crate::Snapshot,
    meter: &MeterKey,
    window: Window,
    now: DateTime<Utc>,
) -> Option<(DateTime<Utc>, crate::Carry)> {
    let terms = snapshot.terms(meter, now).filter(|terms| terms.rule.window == window)?;
    let id = snapshot.catalog.meter(meter)?.id();
    Some((terms.period.start, snapshot.carry(id, &terms.rule, terms.period)?))
}
