//! The statements behind the service. Each names the tenant; row-level security is the backstop, not the filter.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, EmailAddress, PageSize, TenantId, UserId};
use sqlx::{PgConnection, Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use crate::{
    Membership, Role,
    lifecycle::{Status, store as status},
};

const CORRUPT_ROLE: CoreError = CoreError::Corrupt { table: "saas.membership", column: "role" };

/// Runs a statement that answers no rows, and says how many it changed.
pub(crate) async fn execute(
    connection: &mut PgConnection,
    statement: Query<'_, Postgres, PgArguments>,
) -> Result<u64, CoreError> {
    statement.execute(connection).await.map(|done| done.rows_affected()).map_err(CoreError::from_database)
}

/// The account under an address; created if there is none. Safe when two requests bring the same address at once.
pub(crate) async fn ensure_user(
    connection: &mut PgConnection,
    email: &EmailAddress,
    now: DateTime<Utc>,
) -> Result<UserId, CoreError> {
    // `do update` (of nothing) instead of `do nothing`: it waits for a concurrent insert and returns its row.
    let id: Uuid = sqlx::query_scalar(
        "insert into saas.user_account (id, email, created_at)
         values ($1, $2, $3)
         on conflict (email) do update set email = excluded.email
         returning id",
    )
    .bind(UserId::mint_at(now).as_uuid())
    .bind(email.as_str())
    .bind(now)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(UserId::from_uuid(id))
}

pub(crate) async fn add(
    connection: &mut PgConnection,
    tenant: TenantId,
    user: UserId,
    role: Role,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query("insert into saas.membership (tenant_id, user_id, role, created_at) values ($1, $2, $3, $4)")
        .bind(tenant.as_uuid())
        .bind(user.as_uuid())
        .bind(role.as_str())
        .bind(now)
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

pub(crate) async fn role_of(
    connection: &mut PgConnection,
    tenant: TenantId,
    user: UserId,
) -> Result<Option<Role>, CoreError> {
    let role: Option<String> =
        sqlx::query_scalar("select role from saas.membership where tenant_id = $1 and user_id = $2")
            .bind(tenant.as_uuid())
            .bind(user.as_uuid())
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    role.map(|text| text.parse().map_err(|_| CORRUPT_ROLE)).transpose()
}

type Entry = (String, Option<String>, Option<String>, Option<String>, Option<DateTime<Utc>>);

/// A member's role and, unless the tenant is active, what it is.
pub(crate) async fn entry_of(
    connection: &mut PgConnection,
    tenant: TenantId,
    user: UserId,
) -> Result<Option<(Role, Option<Status>)>, CoreError> {
    let row: Option<Entry> = sqlx::query_as(
        "select m.role, s.state, s.reason, s.changed_by, s.since
         from saas.membership m
         left join saas.tenant_status s on s.tenant_id = $1
         where m.tenant_id = $1 and m.user_id = $2",
    )
    .bind(tenant.as_uuid())
    .bind(user.as_uuid())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    let Some((role, state, reason, changed_by, since)) = row else { return Ok(None) };
    let status = match (state, reason, changed_by, since) {
        (Some(state), Some(reason), Some(changed_by), Some(since)) => {
            Some(status::read((state, reason, changed_by, since))?)
        }
        _ => None,
    };
    Ok(Some((role.parse().map_err(|_| CORRUPT_ROLE)?, status)))
}

pub(crate) async fn set_role(
    connection: &mut PgConnection,
    tenant: TenantId,
    user: UserId,
    role: Role,
) -> Result<(), CoreError> {
    sqlx::query("update saas.membership set role = $3 where tenant_id = $1 and user_id = $2")
        .bind(tenant.as_uuid())
        .bind(user.as_uuid())
        .bind(role.as_str())
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

pub(crate) async fn remove(connection: &mut PgConnection, tenant: TenantId, user: UserId) -> Result<(), CoreError> {
    sqlx::query("delete from saas.membership where tenant_id = $1 and user_id = $2")
        .bind(tenant.as_uuid())
        .bind(user.as_uuid())
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

pub(crate) async fn count_owners(connection: &mut PgConnection, tenant: TenantId) -> Result<i64, CoreError> {
    sqlx::query_scalar("select count(*) from saas.membership where tenant_id = $1 and role = 'owner'")
        .bind(tenant.as_uuid())
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)
}

/// Writes the number of members into the operators' list.
pub(crate) async fn count_seats(connection: &mut PgConnection, tenant: TenantId) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.tenant_overview
         set seats = (select count(*) from saas.membership where tenant_id = $1)
         where tenant_id = $1",
    )
    .bind(tenant.as_uuid())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

pub(crate) async fn list(
    connection: &mut PgConnection,
    tenant: TenantId,
    after: Option<(DateTime<Utc>, UserId)>,
    size: PageSize,
) -> Result<Vec<Membership>, CoreError> {
    let rows: Vec<(Uuid, String, DateTime<Utc>)> = sqlx::query_as(
        "select user_id, role, created_at
         from saas.membership
         where tenant_id = $1 and ($2::timestamptz is null or (created_at, user_id) > ($2, $3))
         order by created_at, user_id
         limit $4",
    )
    .bind(tenant.as_uuid())
    .bind(after.map(|(at, _)| at))
    .bind(after.map(|(_, user)| user.as_uuid()))
    .bind(i64::from(size.get()) + 1)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter()
        .map(|(user, role, since)| {
            let role = role.parse().map_err(|_| CORRUPT_ROLE)?;
            Ok(Membership { user: UserId::from_uuid(user), role, since })
        })
        .collect()
}
