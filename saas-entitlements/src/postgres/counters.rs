//! Counting on PostgreSQL: the idempotency key, the limit, the counter and the revision in one statement.
//!
//! The counter's row is locked first, so all uses of one window queue up there and each sees the sum of those before it.
//! The event is inserted only if the use fits and its key is new; the counter moves only if the event was inserted. The
//! statement therefore leaves nothing behind when it refuses, and can run in the caller's own transaction.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, Limit, MeterKey, Revision, SessionBinding, TenantContext, TenantTx, Topic, UsageEventId, audit, outbox,
    plan::Window,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::{CounterStore, Draw, Drawn, EntitlementsError, Period};

/// The outbox topic of crossed thresholds; the payload is a [`ThresholdCrossed`].
pub const THRESHOLD_TOPIC: Topic = Topic::from_static("usage.threshold-crossed");

/// A threshold was crossed for the first time in its window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThresholdCrossed {
    /// Of what.
    pub meter: MeterKey,
    /// In percent of the limit.
    pub percent: u16,
    /// Used in the window by then.
    pub used: u64,
    /// The first instant of the window.
    pub window_start: DateTime<Utc>,
    /// When usage starts again from 0; `None` for never.
    pub window_end: Option<DateTime<Utc>>,
}

/// Counts in the tables `saas.usage_*`.
#[derive(Debug, Clone)]
pub struct PostgresCounters {
    binding: Arc<dyn SessionBinding>,
}

impl PostgresCounters {
    /// A store on the tenants' sessions.
    #[must_use]
    pub fn new(binding: Arc<dyn SessionBinding>) -> Self {
        Self { binding }
    }
}

#[async_trait]
impl CounterStore for PostgresCounters {
    async fn consume(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Drawn, EntitlementsError> {
        let mut tx = TenantTx::begin(&*self.binding, ctx).await?;
        let drawn = consume_in(&mut tx, draw, now).await?;
        match drawn {
            Drawn::Counted { .. } => tx.commit().await?,
            // Nothing was counted; at most an empty counter row goes with the transaction.
            Drawn::Refused { .. } | Drawn::AlreadyCounted | Drawn::Outdated { .. } => {}
        }
        Ok(drawn)
    }

    async fn used(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<u64, EntitlementsError> {
        let mut tx = TenantTx::begin(&*self.binding, ctx).await?;
        let used: Option<i64> = sqlx::query_scalar(
            "select used
             from saas.usage_counter
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(window.as_str())
        .bind(period.start)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(units(used.unwrap_or(0))?)
    }
}

/// Counts one draw in the caller's transaction.
pub(crate) async fn consume_in(tx: &mut TenantTx, draw: &Draw, now: DateTime<Utc>) -> Result<Drawn, EntitlementsError> {
    /// A missing counter row is made once; a second miss would be somebody deleting them as we go.
    const ATTEMPTS: usize = 2;
    for _ in 0..ATTEMPTS {
        let Some(row) = try_consume(tx, draw, now).await? else {
            return Err(CoreError::NotFound { what: "tenant" }.into());
        };
        if let Some(prior) = row.prior {
            return repeated(draw, prior);
        }
        let revision = Revision::new(units(row.revision)?);
        if revision != draw.revision {
            return Ok(Drawn::Outdated { revision });
        }
        match (row.before, row.after) {
            (Some(before), Some(after)) => {
                let (before, after) = (units(before)?, units(after)?);
                let crossed = announce(tx, draw, &row.due, after, now).await?;
                if row.relimited || !crossed.is_empty() {
                    flag_near_limit(tx, now).await?;
                }
                return Ok(Drawn::Counted { before, after, crossed });
            }
            (Some(before), None) => {
                // It did not fit, or the same key was counted while this statement waited for the row.
                if let Some(prior) = prior_amount(tx, draw).await? {
                    return repeated(draw, prior);
                }
                return Ok(Drawn::Refused { used: units(before)? });
            }
            (None, _) => open_window(tx, draw, now).await?,
        }
    }
    Err(CoreError::Corrupt { table: "saas.usage_counter", column: "used" }.into())
}

fn repeated(draw: &Draw, prior: i64) -> Result<Drawn, EntitlementsError> {
    if units(prior)? == draw.amount {
        return Ok(Drawn::AlreadyCounted);
    }
    Err(CoreError::KeyReused { key: draw.key.to_string() }.into())
}

/// What one statement saw and did.
struct Row {
    /// The tenant's revision.
    revision: i64,
    /// Used before; `None` while the window has no counter.
    before: Option<i64>,
    /// Used after; `None` when nothing was counted.
    after: Option<i64>,
    /// The amount that the key was counted with before.
    prior: Option<i64>,
    /// Whether the last use of the window was under another limit.
    relimited: bool,
    /// Thresholds that are reached and were not announced for this limit, in percent.
    due: Vec<i32>,
}

type RowTuple = (i64, Option<i64>, Option<i64>, Option<i64>, bool, Vec<i32>);

impl From<RowTuple> for Row {
    fn from((revision, before, after, prior, relimited, due): RowTuple) -> Self {
        Self { revision, before, after, prior, relimited, due }
    }
}

async fn try_consume(tx: &mut TenantTx, draw: &Draw, now: DateTime<Utc>) -> Result<Option<Row>, CoreError> {
    let (tenant, actor) = (tx.tenant(), tx.actor().to_string());
    let (percents, units): (Vec<i32>, Vec<i64>) =
        draw.thresholds.iter().map(|threshold| (i32::from(threshold.percent), stored(threshold.units))).unzip();
    let row = sqlx::query_as::<_, RowTuple>(
        "with tenant as (
             select revision from saas.tenant where id = $1
         ), counter as materialized (
             select used, limit_units
             from saas.usage_counter
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4
             for no key update
         ), event as (
             insert into saas.usage_event (tenant_id, meter, key, id, amount, window_kind, window_start, actor, at)
             select $1, $2, $5, $6, $7, $3, $4, $8, $9
             from counter, tenant
             where counter.used <= $10::bigint - $7::bigint   -- $10 >= 0 and $7 > 0: cannot overflow
               and tenant.revision = $11
             on conflict (tenant_id, meter, key) do nothing
             returning amount
         ), moved as (
             update saas.usage_counter c
             set used = c.used + event.amount, limit_units = $12
             from event
             where c.tenant_id = $1 and c.meter = $2 and c.window_kind = $3 and c.window_start = $4
             returning c.used
         )
         select tenant.revision, counter.used as before, moved.used as after, prior.amount as prior,
                counter.limit_units is distinct from $12 as relimited,
                array(
                    select due.threshold
                    from unnest($13::integer[], $14::bigint[]) as due (threshold, units)
                    where due.units <= moved.used
                      and not exists (
                          select from saas.usage_crossing x
                          where x.tenant_id = $1 and x.meter = $2 and x.window_kind = $3 and x.window_start = $4
                            and x.limit_units = $12 and x.threshold = due.threshold
                      )
                ) as due
         from tenant
         left join counter on true
         left join moved on true
         left join saas.usage_event prior on prior.tenant_id = $1 and prior.meter = $2 and prior.key = $5",
    )
    .bind(tenant.as_uuid())
    .bind(draw.meter.as_str())
    .bind(draw.window.as_str())
    .bind(draw.period.start)
    .bind(draw.key.as_str())
    .bind(UsageEventId::mint_at(now).as_uuid())
    .bind(stored(draw.amount))
    .bind(actor)
    .bind(now)
    .bind(stored(draw.cap))
    .bind(stored(draw.revision.get()))
    .bind(limit_units(draw))
    .bind(percents)
    .bind(units)
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(row.map(Row::from))
}

/// The amount that a key was counted with, as of now: a statement of its own sees what committed since.
async fn prior_amount(tx: &mut TenantTx, draw: &Draw) -> Result<Option<i64>, CoreError> {
    sqlx::query_scalar("select amount from saas.usage_event where tenant_id = $1 and meter = $2 and key = $3")
        .bind(tx.tenant().as_uuid())
        .bind(draw.meter.as_str())
        .bind(draw.key.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}

/// Gives the window its counter. Once per window, so also the moment to clear a warning flag that has passed.
async fn open_window(tx: &mut TenantTx, draw: &Draw, now: DateTime<Utc>) -> Result<(), CoreError> {
    let tenant = tx.tenant();
    sqlx::query(
        "insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
         values ($1, $2, $3, $4, $5)
         on conflict (tenant_id, meter, window_kind, window_start) do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(draw.meter.as_str())
    .bind(draw.window.as_str())
    .bind(draw.period.start)
    .bind(draw.period.end)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    flag_near_limit(tx, now).await
}

/// Records crossings that are the first of their window and returns those, with a job and an audit row for each.
async fn announce(
    tx: &mut TenantTx,
    draw: &Draw,
    due: &[i32],
    after: u64,
    now: DateTime<Utc>,
) -> Result<Vec<u16>, EntitlementsError> {
    let Some(limit) = limit_units(draw).filter(|_| !due.is_empty()) else { return Ok(Vec::new()) };
    let tenant = tx.tenant();
    let first: Vec<i32> = sqlx::query_scalar(
        "insert into saas.usage_crossing
             (tenant_id, meter, window_kind, window_start, limit_units, threshold, window_end, units, at)
         select $1, $2, $3, $4, $9, threshold, $6, $7, $8
         from unnest($5::integer[]) as threshold
         on conflict (tenant_id, meter, window_kind, window_start, limit_units, threshold) do nothing
         returning threshold",
    )
    .bind(tenant.as_uuid())
    .bind(draw.meter.as_str())
    .bind(draw.window.as_str())
    .bind(draw.period.start)
    .bind(due)
    .bind(draw.period.end)
    .bind(stored(after))
    .bind(now)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.usage_crossing", column: "threshold" };
    let mut announced = first.into_iter().map(u16::try_from).collect::<Result<Vec<_>, _>>().map_err(corrupt)?;
    announced.sort_unstable();
    for percent in &announced {
        let event = ThresholdCrossed {
            meter: draw.meter.clone(),
            percent: *percent,
            used: after,
            window_start: draw.period.start,
            window_end: draw.period.end,
        };
        let detail = serde_json::json!({
            "percent": event.percent, "used": event.used,
            "window_start": event.window_start, "window_end": event.window_end,
        });
        let job = outbox::NewJob::of(THRESHOLD_TOPIC, &event)?;
        outbox::enqueue_in(tx, tenant, job, now).await?;
        audit::record(tx, audit::Entry::new("usage.threshold_crossed", &draw.meter).with_detail(detail), now).await?;
    }
    Ok(announced)
}

/// Keeps the operators' flag: until when a warning of an open window holds for the limit that was last counted against.
async fn flag_near_limit(connection: &mut TenantTx, now: DateTime<Utc>) -> Result<(), CoreError> {
    let tenant = connection.tenant();
    let connection: &mut PgConnection = connection;
    sqlx::query(
        "update saas.tenant_overview o
         set near_limit_until = near.until
         from (
             select max(coalesce(x.window_end, 'infinity')) as until
             from saas.usage_crossing x
             join saas.usage_counter c using (tenant_id, meter, window_kind, window_start, limit_units)
             where x.tenant_id = $1 and (x.window_end is null or x.window_end > $2)
         ) near
         where o.tenant_id = $1 and o.near_limit_until is distinct from near.until",
    )
    .bind(tenant.as_uuid())
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(())
}

/// A count as the database stores it. Draws are at most `i64::MAX`; a store that is handed more counts nothing beyond.
fn stored(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

/// The limit that warnings belong to; `None` where there is none.
fn limit_units(draw: &Draw) -> Option<i64> {
    match draw.limit {
        Limit::Unlimited => None,
        Limit::Max(max) => Some(stored(max)),
    }
}

fn units(stored: i64) -> Result<u64, CoreError> {
    u64::try_from(stored).map_err(|_| CoreError::Corrupt { table: "saas.usage_counter", column: "used" })
}
