//! The statements behind the domains.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, DomainToken, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Claim, ClaimState, DomainName};
use crate::postgres::execute;

const CORRUPT_STATE: CoreError = CoreError::Corrupt { table: "saas.custom_domain", column: "state" };
const CORRUPT_DOMAIN: CoreError = CoreError::Corrupt { table: "saas.custom_domain", column: "domain" };

/// The tenant that a domain leads to. Runs as the system role: a host says nothing yet about who may enter.
pub(crate) async fn find_active_in(
    connection: &mut PgConnection,
    domain: &DomainName,
) -> Result<Option<TenantId>, CoreError> {
    let id = sqlx::query_scalar("select tenant_id from saas.active_domain where domain = $1")
        .bind(domain.as_str())
        .fetch_optional(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(id.map(TenantId::from_uuid))
}

/// Who has the domain, and the start of the look that last proved it.
pub(super) async fn holder(
    connection: &mut PgConnection,
    domain: &DomainName,
) -> Result<Option<(TenantId, DateTime<Utc>)>, CoreError> {
    let row: Option<(Uuid, DateTime<Utc>)> =
        sqlx::query_as("select tenant_id, proven_at from saas.active_domain where domain = $1")
            .bind(domain.as_str())
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    Ok(row.map(|(tenant, proven_at)| (TenantId::from_uuid(tenant), proven_at)))
}

/// Makes every other change of who has the domain wait until the transaction ends. Taken before any tenant's row.
pub(super) async fn lock_domain(connection: &mut PgConnection, domain: &DomainName) -> Result<(), CoreError> {
    let statement = sqlx::query("select pg_advisory_xact_lock(hashtextextended('saas.active_domain:' || $1, 0))")
        .bind(domain.as_str());
    execute(connection, statement).await.map(drop)
}

type Row = (String, Uuid, String, DateTime<Utc>, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

fn claim((domain, token, state, claimed_at, verified_at, failing_since): Row) -> Result<Claim, CoreError> {
    let token = DomainToken::from_uuid(token);
    let state = match (state.as_str(), verified_at) {
        ("pending", _) => ClaimState::Pending,
        ("active", Some(verified_at)) => ClaimState::Active { verified_at, failing_since },
        ("lost", _) => ClaimState::Lost,
        _ => return Err(CORRUPT_STATE),
    };
    Ok(Claim { domain: domain.parse().map_err(|_| CORRUPT_DOMAIN)?, token, state, claimed_at })
}

pub(super) async fn find(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
) -> Result<Option<Claim>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select domain, token, state, claimed_at, verified_at, failing_since
         from saas.custom_domain
         where tenant_id = $1 and domain = $2",
    )
    .bind(tenant.as_uuid())
    .bind(domain.as_str())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(claim).transpose()
}

/// All of a tenant's claims, by name; the service keeps their number small.
pub(super) async fn list(connection: &mut PgConnection, tenant: TenantId) -> Result<Vec<Claim>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "select domain, token, state, claimed_at, verified_at, failing_since
         from saas.custom_domain
         where tenant_id = $1
         order by domain",
    )
    .bind(tenant.as_uuid())
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(claim).collect()
}

pub(super) async fn count(connection: &mut PgConnection, tenant: TenantId) -> Result<i64, CoreError> {
    sqlx::query_scalar("select count(*) from saas.custom_domain where tenant_id = $1")
        .bind(tenant.as_uuid())
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)
}

/// Writes a claim that begins, or begins anew.
pub(super) async fn put_pending(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
    token: DomainToken,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let statement = sqlx::query(
        "insert into saas.custom_domain (tenant_id, domain, token, claimed_at)
         values ($1, $2, $3, $4)
         on conflict (tenant_id, domain) do update
         set token = excluded.token, state = 'pending', claimed_at = excluded.claimed_at, verified_at = null,
             failing_since = null",
    )
    .bind(tenant.as_uuid())
    .bind(domain.as_str())
    .bind(token.as_uuid())
    .bind(now);
    execute(connection, statement).await.map(drop)
}

/// Makes the domain lead to the tenant. `looked_at` is the start of the look that found the proof.
pub(super) async fn activate(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
    looked_at: DateTime<Utc>,
) -> Result<(), CoreError> {
    let statement = sqlx::query(
        "with claim as (
            update saas.custom_domain
            set state = 'active', verified_at = coalesce(verified_at, $3), failing_since = null
            where tenant_id = $1 and domain = $2
         )
         insert into saas.active_domain (domain, tenant_id, proven_at, checked_at)
         values ($2, $1, $3, $3)
         on conflict (domain) do update
         set tenant_id = excluded.tenant_id, proven_at = excluded.proven_at, checked_at = excluded.checked_at",
    )
    .bind(tenant.as_uuid())
    .bind(domain.as_str())
    .bind(looked_at);
    execute(connection, statement).await.map(drop)
}

/// Makes the domain lead to the tenant no longer, and says whether it did.
pub(super) async fn deactivate(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
) -> Result<bool, CoreError> {
    let statement = sqlx::query("delete from saas.active_domain where tenant_id = $1 and domain = $2")
        .bind(tenant.as_uuid())
        .bind(domain.as_str());
    Ok(execute(connection, statement).await? == 1)
}

pub(super) async fn set_lost(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
) -> Result<(), CoreError> {
    let statement = sqlx::query("update saas.custom_domain set state = 'lost' where tenant_id = $1 and domain = $2")
        .bind(tenant.as_uuid())
        .bind(domain.as_str());
    execute(connection, statement).await.map(drop)
}

pub(super) async fn remove(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
) -> Result<(), CoreError> {
    let statement = sqlx::query("delete from saas.custom_domain where tenant_id = $1 and domain = $2")
        .bind(tenant.as_uuid())
        .bind(domain.as_str());
    execute(connection, statement).await.map(drop)
}

/// Notes that a look at an active domain did not find its proof.
pub(super) async fn set_failing(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
    looked_at: DateTime<Utc>,
) -> Result<(), CoreError> {
    let statement = sqlx::query(
        "with claim as (
            update saas.custom_domain
            set failing_since = coalesce(failing_since, $3)
            where tenant_id = $1 and domain = $2
         )
         update saas.active_domain set checked_at = $3 where tenant_id = $1 and domain = $2",
    )
    .bind(tenant.as_uuid())
    .bind(domain.as_str())
    .bind(looked_at);
    execute(connection, statement).await.map(drop)
}

/// Notes that nobody answered, so that the next look is at another domain.
pub(super) async fn set_checked(
    connection: &mut PgConnection,
    tenant: TenantId,
    domain: &DomainName,
    looked_at: DateTime<Utc>,
) -> Result<(), CoreError> {
    let statement = sqlx::query("update saas.active_domain set checked_at = $3 where tenant_id = $1 and domain = $2")
        .bind(tenant.as_uuid())
        .bind(domain.as_str())
        .bind(looked_at);
    execute(connection, statement).await.map(drop)
}

/// Active domains of all tenants that were last looked at before `before`, the longest ago first.
pub(super) async fn due(
    connection: &mut PgConnection,
    before: DateTime<Utc>,
    limit: u32,
) -> Result<Vec<(TenantId, DomainName)>, CoreError> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select tenant_id, domain
         from saas.active_domain
         where checked_at < $1
         order by checked_at, domain
         limit $2",
    )
    .bind(before)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter()
        .map(|(tenant, domain)| Ok((TenantId::from_uuid(tenant), domain.parse().map_err(|_| CORRUPT_DOMAIN)?)))
        .collect()
}
