//! `saas.billing_seat`: seats promised to invitations.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;

use super::Scope;

/// Promises a seat, or promises it for longer.
pub(crate) async fn put(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    holder: &str,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.billing_seat (tenant_id, livemode, holder, reserved_at, expires_at)
         values ($1, $2, $3, $4, $5)
         on conflict (tenant_id, livemode, holder) do update set expires_at = excluded.expires_at",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(holder)
    .bind(now)
    .bind(until)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Takes a promise back; whether there was one.
pub(crate) async fn remove(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    holder: &str,
) -> Result<bool, CoreError> {
    let removed = sqlx::query("delete from saas.billing_seat where tenant_id = $1 and livemode = $2 and holder = $3")
        .bind(tenant.as_uuid())
        .bind(scope.livemode)
        .bind(holder)
        .execute(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(removed.rows_affected() == 1)
}

/// Forgets promises that have ended, and counts those of others than `holder` that have not.
pub(crate) async fn count_others(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    holder: &str,
    now: DateTime<Utc>,
) -> Result<i64, CoreError> {
    sqlx::query("delete from saas.billing_seat where tenant_id = $1 and livemode = $2 and expires_at <= $3")
        .bind(tenant.as_uuid())
        .bind(scope.livemode)
        .bind(now)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    sqlx::query_scalar("select count(*) from saas.billing_seat where tenant_id = $1 and livemode = $2 and holder <> $3")
        .bind(tenant.as_uuid())
        .bind(scope.livemode)
        .bind(holder)
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)
}

/// The members that the operators' list counts.
pub(crate) async fn members(connection: &mut PgConnection, tenant: TenantId) -> Result<i64, CoreError> {
    let seats: Option<i32> = sqlx::query_scalar("select seats from saas.tenant_overview where tenant_id = $1")
        .bind(tenant.as_uuid())
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(seats.unwrap_or(0).into())
}
