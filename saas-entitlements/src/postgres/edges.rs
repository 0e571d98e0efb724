//! What goes with the first use of a window, and with another limit: what was left over, and warnings that hold no more.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, MeterKey, TenantId, TenantTx, Topic, UsageGrantId, audit, outbox, plan::Window};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Uuid};

use super::counters::{announce, flag_near_limit, limit_units, stored, units};
use crate::{Carry, Draw, EntitlementsError};

/// The outbox topic of thresholds that hold no more; the payload is a [`ThresholdResolved`].
pub const THRESHOLD_RESOLVED_TOPIC: Topic = Topic::from_static("usage.threshold-resolved");

/// Usage is below a threshold again that was announced as crossed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThresholdResolved {
    /// Of what.
    pub meter: MeterKey,
    /// In percent of the limit.
    pub percent: u16,
    /// The limit that it was crossed under.
    pub limit: u64,
    /// The first instant of the window in which it was crossed.
    pub window_start: DateTime<Utc>,
    /// Used in the present window.
    pub used: u64,
    /// Why.
    pub because: Because,
}

/// Why a threshold holds no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Another window has begun.
    NewWindow,
    /// The limit is higher now.
    HigherLimit,
    /// What was counted was corrected.
    Correction,
    /// A lower level was reported, of a meter that keeps the latest.
    LowerLevel,
}

/// Makes what earlier windows have left over into grants, before the first use of a draw's window.
pub(super) async fn carry_over(tx: &mut TenantTx, draw: &Draw, now: DateTime<Utc>) -> Result<(), CoreError> {
    let Some(carry) = &draw.carry else { return Ok(()) };
    let (tenant, actor) = (tx.tenant(), tx.actor().clone());
    let into = (&draw.counter, draw.window, draw.period.start);
    carry_in(tx, tenant, &actor, into, carry, now).await?;
    Ok(())
}

/// The same for any tenant, into a window of a counter; the units that were carried over.
pub(crate) async fn carry_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    (counter, window, start): (&MeterKey, Window, DateTime<Utc>),
    carry: &Carry,
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let ended = &carry.ended;
    let ids: Vec<Uuid> = ended.iter().map(|_| UsageGrantId::mint_at(now).as_uuid()).collect();
    let carried: i64 = sqlx::query_scalar("select saas.usage_carry($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
        .bind(tenant.as_uuid())
        .bind(counter.as_str())
        .bind(window.as_str())
        .bind(start)
        .bind(ids)
        .bind(ended.iter().map(|ended| ended.start).collect::<Vec<_>>())
        .bind(ended.iter().map(|ended| ended.end).collect::<Vec<_>>())
        .bind(ended.iter().map(|ended| stored(ended.limit)).collect::<Vec<_>>())
        .bind(ended.iter().map(|ended| ended.expires_at).collect::<Vec<_>>())
        .bind(stored(carry.max))
        .bind(actor.to_string())
        .bind(now)
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)?;
    units(carried)
}

/// Takes back the warnings of the windows before a draw's.
pub(super) async fn resolve_earlier(
    tx: &mut TenantTx,
    draw: &Draw,
    now: DateTime<Utc>,
) -> Result<(), EntitlementsError> {
    let (tenant, actor) = (tx.tenant(), tx.actor().clone());
    resolve_before(tx, tenant, &actor, (&draw.counter, draw.window, draw.period.start), now).await?;
    Ok(())
}

/// Takes back the warnings of a counter's windows that began before an instant; how many.
pub(crate) async fn resolve_before(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    (counter, window, start): (&MeterKey, Window, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<usize, EntitlementsError> {
    let resolved: Vec<Crossing> = sqlx::query_as(
        "update saas.usage_crossing
         set resolved_at = $5
         where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start < $4 and resolved_at is null
         returning window_start, limit_units, threshold",
    )
    .bind(tenant.as_uuid())
    .bind(counter.as_str())
    .bind(window.as_str())
    .bind(start)
    .bind(now)
    .fetch_all(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    tell(connection, tenant, actor, (counter, 0, Because::NewWindow), resolved, now).await
}

/// Takes back the warnings of a draw's window that do not hold under its limit, with so much used.
pub(super) async fn resolve_within(
    tx: &mut TenantTx,
    draw: &Draw,
    used: u64,
    because: Because,
    now: DateTime<Utc>,
) -> Result<(), EntitlementsError> {
    let (tenant, actor) = (tx.tenant(), tx.actor().clone());
    let resolved: Vec<Crossing> = sqlx::query_as(
        "update saas.usage_crossing
         set resolved_at = $5
         where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4 and resolved_at is null
           and ($6::bigint is null or $7 < greatest(ceil($6::numeric * threshold / 100), 1))
         returning window_start, limit_units, threshold",
    )
    .bind(tenant.as_uuid())
    .bind(draw.counter.as_str())
    .bind(draw.window.as_str())
    .bind(draw.period.start)
    .bind(now)
    .bind(limit_units(draw))
    .bind(stored(used))
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    tell(tx, tenant, &actor, (&draw.counter, used, because), resolved, now).await?;
    Ok(())
}

/// Does what goes with a draw that was the first under its limit or has reached a threshold, for uses that are counted already:
/// what was left over, warnings that hold no more, and those that are given now. Answers the percentages of these.
pub(super) async fn catch_up(
    tx: &mut TenantTx,
    draw: &Draw,
    now: DateTime<Utc>,
) -> Result<Vec<u16>, EntitlementsError> {
    let tenant = tx.tenant();
    carry_over(tx, draw, now).await?;
    let found: Option<(i64, bool)> = sqlx::query_as(
        "select c.used, c.limit_units is distinct from $6
         from saas.usage_counter c
         join saas.tenant t on t.id = $1 and t.revision = $5
         where c.tenant_id = $1 and c.meter = $2 and c.window_kind = $3 and c.window_start = $4
         for no key update of c",
    )
    .bind(tenant.as_uuid())
    .bind(draw.counter.as_str())
    .bind(draw.window.as_str())
    .bind(draw.period.start)
    .bind(stored(draw.revision.get()))
    .bind(limit_units(draw))
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    // Under another rule by now: the next use decides under that one.
    let Some((used, relimited)) = found else { return Ok(Vec::new()) };
    let used = u64::try_from(used).unwrap_or(0);
    if relimited {
        sqlx::query(
            "update saas.usage_counter
             set limit_units = $5
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4",
        )
        .bind(tenant.as_uuid())
        .bind(draw.counter.as_str())
        .bind(draw.window.as_str())
        .bind(draw.period.start)
        .bind(limit_units(draw))
        .execute(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    }
    resolve_earlier(tx, draw, now).await?;
    let reached: Vec<i32> = draw.reached(used).into_iter().map(i32::from).collect();
    let crossed = announce(tx, draw, &reached, used, now).await?;
    if relimited {
        resolve_within(tx, draw, used, Because::HigherLimit, now).await?;
    }
    flag_near_limit(tx, now).await?;
    Ok(crossed)
}

/// The window in which it was announced, the limit, and the percentage.
type Crossing = (DateTime<Utc>, i64, i32);

/// A job and an audit row for each, in the order in which they were reached.
async fn tell(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    (meter, used, because): (&MeterKey, u64, Because),
    mut resolved: Vec<Crossing>,
    now: DateTime<Utc>,
) -> Result<usize, EntitlementsError> {
    resolved.sort_unstable();
    for (window_start, limit, percent) in &resolved {
        let corrupt = |_| CoreError::Corrupt { table: "saas.usage_crossing", column: "threshold" };
        let percent = u16::try_from(*percent).map_err(corrupt)?;
        let (limit, window_start, meter) = (units(*limit)?, *window_start, meter.clone());
        let entry = audit::Entry::new("usage.threshold_resolved", &meter);
        let event = ThresholdResolved { meter, percent, limit, window_start, used, because };
        let detail = serde_json::json!({
            "percent": percent, "limit": limit, "used": used, "window_start": window_start, "because": because,
        });
        let job = outbox::NewJob::of(THRESHOLD_RESOLVED_TOPIC, &event)?;
        outbox::enqueue_in(connection, tenant, job, now).await?;
        audit::record_in(connection, tenant, actor, entry.with_detail(detail), now).await?;
    }
    Ok(resolved.len())
}
