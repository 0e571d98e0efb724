//! `saas.tenant_status`, and the door of `saas.resident` that follows it.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx, TenantId};

use super::{State, Status};
use crate::postgres::execute;

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.tenant_status", column: "state" };

pub(crate) type Row = (String, String, String, DateTime<Utc>);

pub(crate) fn read((state, reason, changed_by, since): Row) -> Result<Status, CoreError> {
    let state = State::ALL.iter().copied().find(|known| known.as_str() == state).ok_or(CORRUPT)?;
    Ok(Status { state, reason, changed_by, since })
}

pub(crate) async fn find(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<Status>, CoreError> {
    let row: Option<Row> =
        sqlx::query_as("select state, reason, changed_by, since from saas.tenant_status where tenant_id = $1")
            .bind(tenant.as_uuid())
            .fetch_optional(&mut **tx)
            .await
            .map_err(CoreError::from_database)?;
    row.map(read).transpose()
}

pub(crate) async fn put(
    tx: &mut SystemTx,
    tenant: TenantId,
    state: State,
    reason: &str,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let statement = sqlx::query(
        "insert into saas.tenant_status (tenant_id, state, reason, changed_by, since)
         values ($1, $2, $3, $4, $5)
         on conflict (tenant_id) do update
         set state = excluded.state, reason = excluded.reason, changed_by = excluded.changed_by, since = excluded.since",
    )
    .bind(tenant.as_uuid())
    .bind(state.as_str())
    .bind(reason)
    .bind(actor.to_string())
    .bind(now);
    execute(tx, statement).await.map(drop)
}

pub(crate) async fn remove(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    let statement = sqlx::query("delete from saas.tenant_status where tenant_id = $1").bind(tenant.as_uuid());
    execute(tx, statement).await.map(drop)
}

/// Sets the door of this database, where the tenant is at home here. Elsewhere, and during a move, it is not ours to touch.
/// Answers whether it was set.
pub(crate) async fn set_door(
    tx: &mut SystemTx,
    tenant: TenantId,
    door: &'static str,
    reason: Option<&'static str>,
) -> Result<bool, CoreError> {
    let set = sqlx::query(
        "with home as (
            select coalesce(max(generation), 0) as generation,
                   coalesce(bool_and(cluster = 'control' and database_name is null and state = 'active'), true) as is_here
            from saas.placement
            where tenant_id = $1
         )
         insert into saas.resident (tenant_id, generation, state, reason)
         select $1, generation, $2, $3 from home where is_here
         on conflict (tenant_id) do update
         set state = excluded.state, reason = excluded.reason
         where saas.resident.generation = excluded.generation",
    )
    .bind(tenant.as_uuid())
    .bind(door)
    .bind(reason);
    Ok(execute(tx, set).await? > 0)
}

/// Waits until every transaction that came through the door before has left.
pub(crate) async fn wait_until_left(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    let statement = sqlx::query("select pg_advisory_xact_lock(saas.door($1))").bind(tenant.as_uuid());
    execute(tx, statement).await.map(drop)
}
