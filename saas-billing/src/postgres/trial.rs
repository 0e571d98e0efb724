//! `saas.billing_trial`, `saas.billing_trial_mark`: who has had a trial, and by what they are recognised.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;

use super::Scope;
use crate::object::ObjectId;

/// When the tenant had its trial.
pub(crate) async fn consumed_at(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
) -> Result<Option<DateTime<Utc>>, CoreError> {
    sqlx::query_scalar("select consumed_at from saas.billing_trial where tenant_id = $1 and livemode = $2")
        .bind(tenant.as_uuid())
        .bind(scope.livemode)
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)
}

/// Claims marks for a tenant's checkout; says how many it got. Waits for another tenant that claims one of them at once.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    marks: &[Vec<u8>],
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<u64, CoreError> {
    // In one order, so that two who claim the same ones do not wait for each other.
    let claimed = sqlx::query(
        "insert into saas.billing_trial_mark as known (livemode, mark, tenant, claimed_until)
         select $2, mark, $1, $5 from unnest($3::bytea[]) as mark order by mark
         on conflict (livemode, mark) do update
         set tenant = excluded.tenant, claimed_until = excluded.claimed_until
         where known.consumed_at is null and (known.tenant = excluded.tenant or known.claimed_until <= $4)",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(marks)
    .bind(now)
    .bind(until)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(claimed.rows_affected())
}

/// Records that the tenant has had its trial, once; its marks are nobody's any more.
pub(crate) async fn consume(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    subscription: &ObjectId,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let new = sqlx::query(
        "insert into saas.billing_trial (tenant_id, livemode, object_id, consumed_at)
         values ($1, $2, $3, $4)
         on conflict do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(subscription.as_str())
    .bind(now)
    .execute(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    if new.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "update saas.billing_trial_mark
         set consumed_at = $3
         where tenant = $1 and livemode = $2 and consumed_at is null",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(true)
}
