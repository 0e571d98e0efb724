//! `saas.tenant_status`, and the door of `saas.resident` that follows it.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx, TenantId, db::Generation, tenant};
use sqlx::PgConnection;
use uuid::Uuid;

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

/// What a tenant's door says, wherever it is: the state of `saas.resident`, and what a session reads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) state: &'static str,
    pub(crate) reason: Option<&'static str>,
}

impl Door {
    pub(crate) const OPEN: Self = Self { state: "open", reason: None };

    pub(crate) const fn closed(reason: &'static str) -> Self {
        Self { state: "closed", reason: Some(reason) }
    }

    /// The door that goes with a status.
    pub(crate) const fn of(status: Option<State>) -> Self {
        let (state, reason) = match status {
            None => return Self::OPEN,
            Some(State::ReadOnly) => ("read_only", "the tenant is read-only"),
            Some(State::Suspended) => ("read_only", "the tenant is suspended"),
            Some(State::Maintenance) => ("closed", "the tenant is in maintenance"),
            Some(State::Erasing) => ("closed", "the tenant is being erased"),
            Some(State::Erased) => ("closed", "the tenant was erased"),
        };
        Self { state, reason: Some(reason) }
    }

    /// Whether a door that reads so follows some status, and was not set by hand.
    pub(crate) fn follows_a_status(state: &str, reason: Option<&str>) -> bool {
        state == "open"
            || State::ALL.iter().any(|status| {
                let door = Self::of(Some(*status));
                (door.state, door.reason) == (state, reason)
            })
    }
}

/// Takes the tenant's row, so that no status changes until the caller's transaction ends, and answers what its door has to
/// say until then.
pub(crate) async fn lock_door(connection: &mut PgConnection, tenant: TenantId) -> Result<Door, CoreError> {
    tenant::lock_in(connection, tenant).await?;
    Ok(Door::of(find_state(connection, tenant).await?))
}

/// What the tenant is; `None` for an active one.
pub(crate) async fn find_state(connection: &mut PgConnection, tenant: TenantId) -> Result<Option<State>, CoreError> {
    let row: Option<String> = sqlx::query_scalar("select state from saas.tenant_status where tenant_id = $1")
        .bind(tenant.as_uuid())
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)?;
    row.map(|state| State::ALL.iter().copied().find(|known| known.as_str() == state).ok_or(CORRUPT)).transpose()
}

/// Sets the door of this database, where the tenant is at home here. Of one that lives elsewhere, notes that its door there
/// is due. A door that a mover has closed behind the tenant is the mover's, who looks at the status when it opens another.
pub(crate) async fn set_door(
    tx: &mut SystemTx,
    tenant: TenantId,
    door: Door,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "with home as (
            select coalesce(max(generation), 0) as generation,
                   coalesce(bool_and(cluster = 'control' and database_name is null and state = 'active'), true) as is_here
            from saas.placement
            where tenant_id = $1
         ), due as (
            insert into saas.door_due (tenant_id, since)
            select $1, $4 from home where not is_here
            on conflict (tenant_id) do nothing
         )
         insert into saas.resident (tenant_id, generation, state, reason)
         select $1, generation, $2, $3 from home where is_here
         on conflict (tenant_id) do update
         set state = excluded.state, reason = excluded.reason
         where saas.resident.generation = excluded.generation
           and saas.resident.reason is distinct from 'it has moved'",
    )
    .bind(tenant.as_uuid())
    .bind(door.state)
    .bind(door.reason)
    .bind(now)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Sets the door of another database, at whose connection this runs.
pub(crate) async fn set_door_there(
    there: &mut SystemTx,
    tenant: TenantId,
    generation: Generation,
    door: Door,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.resident
         set state = $3, reason = $4
         where tenant_id = $1 and generation = $2 and reason is distinct from 'it has moved'",
    )
    .bind(tenant.as_uuid())
    .bind(generation.get())
    .bind(door.state)
    .bind(door.reason)
    .execute(&mut **there)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The tenants whose door is due, the longest first.
pub(crate) async fn list_due(tx: &mut SystemTx, limit: i64) -> Result<Vec<TenantId>, CoreError> {
    let rows: Vec<Uuid> = sqlx::query_scalar("select tenant_id from saas.door_due order by since limit $1")
        .bind(limit)
        .fetch_all(&mut **tx)
        .await
        .map_err(CoreError::from_database)?;
    Ok(rows.into_iter().map(TenantId::from_uuid).collect())
}

/// The door tells the status.
pub(crate) async fn forget_due(connection: &mut PgConnection, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query("delete from saas.door_due where tenant_id = $1")
        .bind(tenant.as_uuid())
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// Waits until every transaction that came through the door before has left.
pub(crate) async fn wait_until_left(tx: &mut SystemTx, tenant: TenantId) -> Result<(), CoreError> {
    let statement = sqlx::query("select pg_advisory_xact_lock(saas.door($1))").bind(tenant.as_uuid());
    execute(tx, statement).await.map(drop)
}
