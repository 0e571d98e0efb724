//! Grants and corrections on PostgreSQL, each in one transaction with its audit row.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, InvalidInput, MeterKey, TenantContext, TenantTx, UsageEventId, UsageGrantId, audit, plan::Window, tenant,
};
use sqlx::types::Uuid;

use super::{
    PostgresCounters,
    counters::{announce, flag_near_limit, open_window, stored, units},
    edges, history,
};
use crate::{Adjustment, Corrected, EntitlementsError, GRANTS_LISTED, Grant, Ledger, NewGrant};

#[async_trait]
impl Ledger for PostgresCounters {
    async fn give(
        &self,
        ctx: &dyn TenantContext,
        new: &NewGrant,
        now: DateTime<Utc>,
    ) -> Result<Grant, EntitlementsError> {
        let mut tx = TenantTx::begin(self.binding(), ctx).await?;
        let done = give_in(&mut tx, new, now).await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn revoke(
        &self,
        ctx: &dyn TenantContext,
        grant: UsageGrantId,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>, EntitlementsError> {
        let mut tx = TenantTx::begin(self.binding(), ctx).await?;
        let done = revoke_in(&mut tx, grant, reason, now).await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn list_grants(
        &self,
        ctx: &dyn TenantContext,
        meter: &MeterKey,
        now: DateTime<Utc>,
    ) -> Result<Vec<Grant>, EntitlementsError> {
        let mut tx = TenantTx::begin_read_only(self.binding(), ctx).await?;
        let rows: Vec<Row> = sqlx::query_as(
            "select id, meter, units, burnt, priority, reason, created_at, expires_at
             from saas.usage_grant
             where tenant_id = $1 and meter = $2 and burnt < units and revoked_at is null
               and (expires_at is null or expires_at > $3)
             order by priority, expires_at, created_at, id
             limit $4",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(meter.as_str())
        .bind(now)
        .bind(i64::try_from(GRANTS_LISTED).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        Ok(rows.into_iter().map(grant).collect::<Result<_, _>>()?)
    }

    async fn correct(
        &self,
        ctx: &dyn TenantContext,
        adjustment: &Adjustment,
        now: DateTime<Utc>,
    ) -> Result<Corrected, EntitlementsError> {
        let mut tx = TenantTx::begin(self.binding(), ctx).await?;
        let done = correct_in(&mut tx, adjustment, now).await?;
        tx.commit().await?;
        Ok(done)
    }
}

type Row = (Uuid, String, i64, i64, i16, String, DateTime<Utc>, Option<DateTime<Utc>>);

fn grant(row: Row) -> Result<Grant, CoreError> {
    let (id, meter, given, burnt, priority, reason, created_at, expires_at) = row;
    let meter = meter.parse().map_err(|_| CoreError::Corrupt { table: "saas.usage_grant", column: "meter" })?;
    let (given, burnt) = (units(given)?, units(burnt)?);
    let id = UsageGrantId::from_uuid(id);
    Ok(Grant { id, meter, units: given, burnt, priority, reason, created_at, expires_at })
}

async fn give_in(tx: &mut TenantTx, new: &NewGrant, now: DateTime<Utc>) -> Result<Grant, EntitlementsError> {
    let (tenant, author) = (tx.tenant(), tx.actor().to_string());
    let inserted = sqlx::query(
        "insert into saas.usage_grant
             (tenant_id, id, meter, units, priority, source, reason, author, created_at, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         on conflict (tenant_id, id) do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(new.id.as_uuid())
    .bind(new.meter.as_str())
    .bind(stored(new.units))
    .bind(new.priority)
    .bind(new.source.as_str())
    .bind(&new.reason)
    .bind(author)
    .bind(now)
    .bind(new.expires_at)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let row: Row = sqlx::query_as(
        "select id, meter, units, burnt, priority, reason, created_at, expires_at
         from saas.usage_grant
         where tenant_id = $1 and id = $2",
    )
    .bind(tenant.as_uuid())
    .bind(new.id.as_uuid())
    .fetch_one(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let given = grant(row)?;
    if inserted.rows_affected() == 0 {
        if (&given.meter, given.units) != (&new.meter, new.units) {
            return Err(CoreError::KeyReused { key: new.id.to_string() }.into());
        }
        return Ok(given);
    }
    let detail = serde_json::json!({
        "meter": new.meter, "units": new.units, "source": new.source, "priority": new.priority,
        "expires_at": new.expires_at, "reason": new.reason,
    });
    audit::record(tx, audit::Entry::new("usage.granted", new.id).with_detail(detail), now).await?;
    Ok(given)
}

async fn revoke_in(
    tx: &mut TenantTx,
    id: UsageGrantId,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<Option<u64>, EntitlementsError> {
    let tenant = tx.tenant();
    let left: Option<i64> = sqlx::query_scalar(
        "update saas.usage_grant
         set revoked_at = $3
         where tenant_id = $1 and id = $2 and revoked_at is null and (expires_at is null or expires_at > $3)
         returning units - burnt - held",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .bind(now)
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let Some(left) = left.map(units).transpose()? else { return Ok(None) };
    let detail = serde_json::json!({ "units": left, "reason": reason });
    audit::record(tx, audit::Entry::new("usage.grant_revoked", id).with_detail(detail), now).await?;
    Ok(Some(left))
}

async fn correct_in(
    tx: &mut TenantTx,
    adjustment: &Adjustment,
    now: DateTime<Utc>,
) -> Result<Corrected, EntitlementsError> {
    let Adjustment { meter, counter, amount, units: change, key, item, member, window, period, at, reason, .. } =
        adjustment;
    let (item, member) = (item.as_deref(), member.as_deref());
    let (tenant, actor) = (tx.tenant(), tx.actor().to_string());
    tenant::hold_in(tx, tenant).await?;
    open_window(tx, counter, *window, *period).await?;
    // As for a use: first the counter, then the key.
    let (before, held, by_member, over_above): (i64, i64, bool, Option<i64>) = sqlx::query_as(
        "select greatest(used, 0), held, by_member, over_above
         from saas.usage_counter
         where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4
         for no key update",
    )
    .bind(tenant.as_uuid())
    .bind(counter.as_str())
    .bind(window.as_str())
    .bind(period.start)
    .fetch_one(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let id = UsageEventId::mint_at(now).as_uuid();
    let fresh = sqlx::query(
        "insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at, item)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (tenant_id, meter, key) do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(meter.as_str())
    .bind(key.as_str())
    .bind(amount)
    .bind(id)
    .bind(now)
    .bind(item)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    if fresh.rows_affected() == 0 {
        let (prior, of): (i64, Option<String>) = sqlx::query_as(
            "select amount, item
             from saas.usage_key
             where tenant_id = $1 and meter = $2 and key = $3",
        )
        .bind(tenant.as_uuid())
        .bind(meter.as_str())
        .bind(key.as_str())
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
        if (prior, of.as_deref()) == (*amount, item) {
            return Ok(Corrected::AlreadyCounted);
        }
        return Err(CoreError::KeyReused { key: key.to_string() }.into());
    }
    let window = Counted { counter, window: *window, start: period.start };
    let mut change = *change;
    if let Some(member) = member.filter(|_| change < 0) {
        change = change.max(-used_by_in(tx, &window, by_member, member).await?);
    }
    if let Some(item) = item {
        change = if move_item(tx, &window, item, change > 0, *at).await? { change } else { 0 };
    }
    let most = i64::MAX - held;
    let sum = before.checked_add(change).map(|sum| sum.max(0)).filter(|sum| *sum <= most.max(before));
    let after =
        sum.ok_or_else(|| InvalidInput::new("correction", "would count more than 2^63-1 units", "correct by less"))?;
    let taken = after - before;
    sqlx::query(
        "insert into saas.usage_event
             (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor,
              member, item)
         values ($1, $2, $3, $4, $5, 'correction', $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(tenant.as_uuid())
    .bind(id)
    .bind(now)
    .bind(meter.as_str())
    .bind(counter.as_str())
    .bind(amount)
    .bind(taken)
    .bind(window.window.as_str())
    .bind(window.start)
    .bind(at)
    .bind(key.as_str())
    .bind(actor)
    .bind(member)
    .bind(item)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    sqlx::query(
        "update saas.usage_counter
         set used = $5
         where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4",
    )
    .bind(tenant.as_uuid())
    .bind(counter.as_str())
    .bind(window.window.as_str())
    .bind(window.start)
    .bind(after)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    if over_above.is_some_and(|most| (before > most) != (after > most)) {
        history::turn_in(tx, tenant, (counter, window.window, window.start), now).await?;
    }
    if let Some(member) = member.filter(|_| by_member) {
        add_to_member(tx, &window, member, taken).await?;
    }
    let (draw, used) = (adjustment.as_draw(), units(after)?);
    if taken < 0 {
        edges::resolve_within(tx, &draw, used, edges::Because::Correction, now).await?;
        flag_near_limit(tx, now).await?;
    } else if period.end.is_none_or(|end| end > now) {
        // Nobody acts on the warnings of a window that is over.
        let reached: Vec<i32> = draw.reached(used).into_iter().map(i32::from).collect();
        if !announce(tx, &draw, &reached, used, now).await?.is_empty() {
            flag_near_limit(tx, now).await?;
        }
    }
    let detail = serde_json::json!({
        "event": id, "amount": amount, "units": taken, "at": at, "window_start": period.start, "reason": reason,
    });
    audit::record(tx, audit::Entry::new("usage.corrected", meter).with_detail(detail), now).await?;
    Ok(Corrected::Counted { before: units(before)?, after: units(after)? })
}

/// Names one window of a counter.
struct Counted<'a> {
    counter: &'a MeterKey,
    window: Window,
    start: DateTime<Utc>,
}

/// What a member used of the window: at least 0.
async fn used_by_in(tx: &mut TenantTx, of: &Counted<'_>, by_member: bool, member: &str) -> Result<i64, CoreError> {
    let tenant = tx.tenant();
    let statement = if by_member {
        "select used
         from saas.usage_member
         where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4 and member = $5"
    } else {
        "select saas.bounded(greatest(coalesce(sum(units), 0), 0))
         from saas.usage_event
         where tenant_id = $1 and counter = $2 and window_kind = $3 and window_start = $4 and member = $5"
    };
    let used: Option<i64> = sqlx::query_scalar(statement)
        .bind(tenant.as_uuid())
        .bind(of.counter.as_str())
        .bind(of.window.as_str())
        .bind(of.start)
        .bind(member)
        .fetch_optional(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    Ok(used.unwrap_or(0))
}

async fn add_to_member(tx: &mut TenantTx, of: &Counted<'_>, member: &str, units: i64) -> Result<(), CoreError> {
    let tenant = tx.tenant();
    sqlx::query(
        "insert into saas.usage_member as m (tenant_id, meter, window_kind, window_start, member, used)
         values ($1, $2, $3, $4, $5, greatest($6, 0))
         on conflict (tenant_id, meter, window_kind, window_start, member) do update
         set used = least(m.used, 9223372036854775807 - greatest($6, 0)) + $6",
    )
    .bind(tenant.as_uuid())
    .bind(of.counter.as_str())
    .bind(of.window.as_str())
    .bind(of.start)
    .bind(member)
    .bind(units)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(())
}

/// Puts an item in, or takes it out. Whether that changed anything.
async fn move_item(
    tx: &mut TenantTx,
    of: &Counted<'_>,
    item: &str,
    put_in: bool,
    at: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let tenant = tx.tenant();
    let moved = if put_in {
        sqlx::query(
            "insert into saas.usage_item (tenant_id, meter, window_kind, window_start, item, at)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (tenant_id, meter, window_kind, window_start, item) do nothing",
        )
        .bind(tenant.as_uuid())
        .bind(of.counter.as_str())
        .bind(of.window.as_str())
        .bind(of.start)
        .bind(item)
        .bind(at)
    } else {
        sqlx::query(
            "delete from saas.usage_item
             where tenant_id = $1 and meter = $2 and window_kind = $3 and window_start = $4 and item = $5",
        )
        .bind(tenant.as_uuid())
        .bind(of.counter.as_str())
        .bind(of.window.as_str())
        .bind(of.start)
        .bind(item)
    };
    let moved = moved.execute(&mut **tx).await.map_err(CoreError::from_database)?;
    Ok(moved.rows_affected() == 1)
}
