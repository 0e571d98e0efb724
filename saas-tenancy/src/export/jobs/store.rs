//! The statements on `saas.export_job`.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, ExportId, SystemTx, TenantId};
use uuid::Uuid;

use super::{ExportJob, ExportJobState, ExportProgress};
use crate::postgres::execute;

const CORRUPT: CoreError = CoreError::Corrupt { table: "saas.export_job", column: "state" };

type Row = (
    Uuid,
    String,
    String,
    DateTime<Utc>,
    i32,
    Option<String>,
    i64,
    i64,
    Option<String>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<DateTime<Utc>>,
);

fn read(tenant: TenantId, row: Row) -> Result<ExportJob, CoreError> {
    let (id, state, requested_by, requested_at, tries, table, rows, bytes, place, failure, finished_at, expires_at) =
        row;
    let state = ExportJobState::ALL.iter().copied().find(|known| known.as_str() == state).ok_or(CORRUPT)?;
    Ok(ExportJob {
        tenant,
        id: ExportId::from_uuid(id),
        state,
        requested_by,
        requested_at,
        tries: u32::try_from(tries).unwrap_or(0),
        table,
        rows: u64::try_from(rows).unwrap_or(0),
        bytes: u64::try_from(bytes).unwrap_or(0),
        place,
        failure,
        finished_at,
        expires_at,
    })
}

/// The newest jobs of a tenant.
pub(super) async fn list(tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<ExportJob>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "select id, state, requested_by, requested_at, tries, at_table, row_count, byte_count, place, failure,
                finished_at, expires_at
         from saas.export_job
         where tenant_id = $1
         order by requested_at desc, id desc
         limit 100",
    )
    .bind(tenant.as_uuid())
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(|row| read(tenant, row)).collect()
}

/// The one that is neither over nor given up: always among the newest.
pub(super) async fn find_under_way(tx: &mut SystemTx, tenant: TenantId) -> Result<Option<ExportJob>, CoreError> {
    let is_open = |job: &ExportJob| matches!(job.state, ExportJobState::Requested | ExportJobState::Running);
    Ok(list(tx, tenant).await?.into_iter().find(is_open))
}

pub(super) async fn get(tx: &mut SystemTx, tenant: TenantId, id: ExportId) -> Result<ExportJob, CoreError> {
    let found = list(tx, tenant).await?.into_iter().find(|job| job.id == id);
    found.ok_or(CoreError::NotFound { what: "export" })
}

/// Tenants with one to be done.
pub(super) async fn list_to_run(tx: &mut SystemTx) -> Result<Vec<TenantId>, CoreError> {
    let tenants: Vec<Uuid> = sqlx::query_scalar(
        "select tenant_id
         from saas.export_job -- of every tenant
         where state in ('requested', 'running')
         order by requested_at, id
         limit 1000",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenants.into_iter().map(TenantId::from_uuid).collect())
}

/// Becomes the only one that exports the tenant, until the transaction ends. Waits a moment for one that has just died.
pub(super) async fn lock(tx: &mut SystemTx, tenant: TenantId) -> Result<bool, CoreError> {
    execute(tx, sqlx::query("set local lock_timeout = '1s'")).await?;
    let locked = sqlx::query("select pg_advisory_xact_lock(hashtextextended('saas.export_job:' || $1, 0))");
    match execute(tx, locked.bind(tenant.to_string())).await {
        Ok(_) => Ok(true),
        Err(CoreError::Unavailable { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Fails when the lock is gone with its connection, and keeps the server from taking the transaction for forgotten.
pub(super) async fn ping(tx: &mut SystemTx) -> Result<(), CoreError> {
    execute(tx, sqlx::query("select 1")).await.map(drop)
}

pub(super) async fn request(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    actor: &Actor,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let put = sqlx::query(
        "insert into saas.export_job (tenant_id, id, state, requested_by, requested_at)
         values ($1, $2, 'requested', $3, $4)",
    );
    execute(tx, put.bind(tenant.as_uuid()).bind(id.as_uuid()).bind(actor.to_string()).bind(now)).await.map(drop)
}

/// Notes an attempt before it begins, and answers those that may have left something.
pub(super) async fn start(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    attempt: ExportId,
) -> Result<Vec<ExportId>, CoreError> {
    let attempts: Vec<Uuid> = sqlx::query_scalar(
        "update saas.export_job
         set state = 'running', tries = tries + 1, attempts = attempts || $3::uuid, at_table = null, row_count = 0, byte_count = 0
         where tenant_id = $1 and id = $2
         returning attempts",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .bind(attempt.as_uuid())
    .fetch_one(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(attempts.into_iter().map(ExportId::from_uuid).filter(|earlier| *earlier != attempt).collect())
}

/// Nothing is left of any attempt but this one.
pub(super) async fn forget_attempts(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    but: ExportId,
) -> Result<(), CoreError> {
    let set = sqlx::query("update saas.export_job set attempts = array[$3::uuid] where tenant_id = $1 and id = $2");
    execute(tx, set.bind(tenant.as_uuid()).bind(id.as_uuid()).bind(but.as_uuid())).await.map(drop)
}

pub(super) async fn tell(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    now: &ExportProgress,
) -> Result<(), CoreError> {
    let set = sqlx::query(
        "update saas.export_job set at_table = $3, row_count = $4, byte_count = $5 where tenant_id = $1 and id = $2",
    );
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let set = set.bind(tenant.as_uuid()).bind(id.as_uuid()).bind(&now.table);
    execute(tx, set.bind(count(now.rows)).bind(count(now.bytes))).await.map(drop)
}

/// Answers whether the job is still there.
pub(super) async fn finish(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    place: &str,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let set = sqlx::query(
        "update saas.export_job
         set state = 'done', failure = null, place = $3, finished_at = $4, expires_at = $5
         where tenant_id = $1 and id = $2",
    );
    let set = set.bind(tenant.as_uuid()).bind(id.as_uuid()).bind(place).bind(now).bind(expires_at);
    Ok(execute(tx, set).await? > 0)
}

/// Why the last attempt failed; there will be another one.
pub(super) async fn note_failure(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    code: &str,
) -> Result<(), CoreError> {
    let set = sqlx::query("update saas.export_job set failure = $3 where tenant_id = $1 and id = $2");
    execute(tx, set.bind(tenant.as_uuid()).bind(id.as_uuid()).bind(code)).await.map(drop)
}

/// Gives it up; what it left is due for removal.
pub(super) async fn fail(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
    code: &str,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let set = sqlx::query(
        "update saas.export_job
         set state = 'failed', failure = $3, finished_at = $4, expires_at = $4
         where tenant_id = $1 and id = $2",
    );
    execute(tx, set.bind(tenant.as_uuid()).bind(id.as_uuid()).bind(code).bind(now)).await.map(drop)
}

/// Jobs that are over and whose time is, the longest overdue first.
pub(super) async fn list_expired(
    tx: &mut SystemTx,
    now: DateTime<Utc>,
    limit: u32,
) -> Result<Vec<(TenantId, ExportId)>, CoreError> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "select tenant_id, id
         from saas.export_job -- of every tenant
         where state in ('done', 'failed') and expires_at <= $1
         order by expires_at, id
         limit $2",
    )
    .bind(now)
    .bind(i64::from(limit))
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(rows.into_iter().map(|(tenant, id)| (TenantId::from_uuid(tenant), ExportId::from_uuid(id))).collect())
}

/// Under which ids something of a job that is over may lie in the target.
pub(super) async fn attempts_of_ended(
    tx: &mut SystemTx,
    tenant: TenantId,
    id: ExportId,
) -> Result<Vec<ExportId>, CoreError> {
    let attempts: Option<Vec<Uuid>> = sqlx::query_scalar(
        "select attempts from saas.export_job
         where tenant_id = $1 and id = $2 and state in ('done', 'failed', 'removed')",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .fetch_optional(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let attempts = attempts.ok_or(CoreError::NotFound { what: "export that is over" })?;
    Ok(attempts.into_iter().map(ExportId::from_uuid).collect())
}

/// Answers whether it was not so before.
pub(super) async fn set_removed(tx: &mut SystemTx, tenant: TenantId, id: ExportId) -> Result<bool, CoreError> {
    let set = sqlx::query(
        "update saas.export_job
         set state = 'removed', attempts = '{}', place = null
         where tenant_id = $1 and id = $2 and state in ('done', 'failed')",
    );
    Ok(execute(tx, set.bind(tenant.as_uuid()).bind(id.as_uuid())).await? > 0)
}

/// Jobs that may have something in the target, or may yet.
pub(super) async fn count_kept(tx: &mut SystemTx, tenant: TenantId) -> Result<i64, CoreError> {
    sqlx::query_scalar("select count(*) from saas.export_job where tenant_id = $1 and state <> 'removed'")
        .bind(tenant.as_uuid())
        .fetch_one(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}
