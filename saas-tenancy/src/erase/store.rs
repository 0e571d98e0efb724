//! The statements on an erasure's own tables, and on the tombstone.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx, TenantId};

use super::{EraseState, ErasedTable, Erasure};

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.erasure", column: "state" };

type Row = (
    String,
    bool,
    String,
    String,
    DateTime<Utc>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<String>,
    Option<DateTime<Utc>>,
);

/// The erasure of a tenant, locked until the transaction ends: whoever runs it runs alone.
pub(super) async fn find_locked(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<Erasure>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select state, frees_slug, reason, requested_by, requested_at, approved_by, approved_at, failure, finished_at
         from saas.erasure
         where tenant_id = $1
         for update",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let Some((state, frees_slug, reason, requested_by, requested_at, approved_by, approved_at, failure, finished_at)) =
        row
    else {
        return Ok(None);
    };
    let state = EraseState::ALL.iter().copied().find(|known| known.as_str() == state).ok_or(CORRUPT)?;
    let tables = steps(tx, tenant).await?.into_iter().map(|(table, _)| table).collect();
    Ok(Some(Erasure {
        tenant,
        state,
        frees_slug,
        reason,
        requested_by,
        requested_at,
        approved_by,
        approved_at,
        failure,
        finished_at,
        tables,
    }))
}

/// The tables of an erasure in their order, each with whether it is still to be emptied.
async fn steps(tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<(ErasedTable, bool)>, CoreError> {
    let rows: Vec<(String, i64, i64, Option<String>, bool)> = sqlx::query_as(
        "select table_name, rows_erased, rows_kept, kept_reason, finished_at is null
         from saas.erasure_step
         where tenant_id = $1
         order by place, table_name",
    )
    .bind(tenant.as_uuid())
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    Ok(rows
        .into_iter()
        .map(|(name, erased, kept, kept_reason, is_open)| {
            (ErasedTable { name, rows_erased: count(erased), rows_kept: count(kept), kept_reason }, is_open)
        })
        .collect())
}

/// The first table that is still to be emptied.
pub(super) async fn next_table(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<String>, CoreError> {
    sqlx::query_scalar(
        "select table_name
         from saas.erasure_step
         where tenant_id = $1 and finished_at is null
         order by place, table_name
         limit 1",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)
}

pub(super) async fn request(
    tx: &mut SystemTx,
    tenant: TenantId,
    actor: &Actor,
    reason: &str,
    frees_slug: bool,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.erasure (tenant_id, state, frees_slug, reason, requested_by, requested_at)
         values ($1, 'requested', $2, $3, $4, $5)",
    )
    .bind(tenant.as_uuid())
    .bind(frees_slug)
    .bind(reason)
    .bind(actor.to_string())
    .bind(now)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

pub(super) async fn approve(
    tx: &mut SystemTx,
    tenant: TenantId,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query("update saas.erasure set state = 'approved', approved_by = $2, approved_at = $3 where tenant_id = $1")
        .bind(tenant.as_uuid())
        .bind(actor.to_string())
        .bind(now)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

pub(super) async fn withdraw(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query("delete from saas.erasure where tenant_id = $1")
        .bind(tenant.as_uuid())
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// Sets a state that says nothing else: running, failed with a code, or done at an instant.
pub(super) async fn set_state(
    tx: &mut SystemTx,
    tenant: TenantId,
    state: EraseState,
    failure: Option<&str>,
    finished_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    sqlx::query("update saas.erasure set state = $2, failure = $3, finished_at = $4 where tenant_id = $1")
        .bind(tenant.as_uuid())
        .bind(state.as_str())
        .bind(failure)
        .bind(finished_at)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// Puts a table on the list, or on it again; what was counted before stays counted.
pub(super) async fn open_step(tx: &mut SystemTx, tenant: TenantId, table: &str, place: i32) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.erasure_step (tenant_id, table_name, place)
         values ($1, $2, $3)
         on conflict (tenant_id, table_name) do update
         set place = excluded.place, finished_at = null, kept_reason = null, rows_kept = 0",
    )
    .bind(tenant.as_uuid())
    .bind(table)
    .bind(place)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Counts a batch; a table is finished, at an instant, when a batch found nothing.
pub(super) async fn count_step(
    tx: &mut SystemTx,
    tenant: TenantId,
    table: &str,
    rows: i64,
    finished_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.erasure_step
         set rows_erased = rows_erased + $3, finished_at = $4
         where tenant_id = $1 and table_name = $2",
    )
    .bind(tenant.as_uuid())
    .bind(table)
    .bind(rows)
    .bind(finished_at)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Records a table that was kept.
pub(super) async fn keep_step(
    tx: &mut SystemTx,
    tenant: TenantId,
    table: &str,
    rows: u64,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.erasure_step (tenant_id, table_name, place, rows_kept, kept_reason, finished_at)
         values ($1, $2, 2147483647, $3, $4, $5)
         on conflict (tenant_id, table_name) do update
         set rows_kept = excluded.rows_kept, kept_reason = excluded.kept_reason, finished_at = excluded.finished_at",
    )
    .bind(tenant.as_uuid())
    .bind(table)
    .bind(i64::try_from(rows).unwrap_or(i64::MAX))
    .bind(reason)
    .bind(now)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Remembers who is a member, before the memberships go.
pub(super) async fn note_accounts(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.erasure_account (tenant_id, user_id)
         select tenant_id, user_id from saas.membership where tenant_id = $1
         on conflict (tenant_id, user_id) do nothing",
    )
    .bind(tenant.as_uuid())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Looks at a batch of the noted accounts: how many, and how many were erased.
pub(super) async fn erase_accounts(tx: &mut SystemTx, tenant: TenantId, batch: i32) -> Result<(i64, i64), CoreError> {
    sqlx::query_as("select looked, erased from saas.erase_accounts($1, $2)")
        .bind(tenant.as_uuid())
        .bind(batch)
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}

/// Takes the names from the tenant's row. The row stays: what is kept refers to it, and no other tenant gets its id.
pub(super) async fn bury(tx: &mut SystemTx, tenant: TenantId, frees_slug: bool) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.tenant
         set name = 'erased', slug = case when $2 then 'erased-' || id::text else slug end
         where id = $1",
    )
    .bind(tenant.as_uuid())
    .bind(frees_slug)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    if frees_slug {
        sqlx::query("delete from saas.tenant_slug where tenant_id = $1")
            .bind(tenant.as_uuid())
            .execute(&mut **tx)
            .await
            .map_err(CoreError::from_database)?;
    }
    Ok(())
}
