//! What becomes of jobs afterwards: those given up are listed with their reason and can be sent again; those done are
//! removed after a while.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Actor, CoreError, JobId, Page, PageSize, SystemTx, TenantId, audit};

/// A job that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub id: JobId,
    /// What kind.
    pub topic: String,
    /// How often it was tried.
    pub attempts: i32,
    /// The last error.
    pub reason: String,
    /// When it was given up.
    pub since: DateTime<Utc>,
}

type Row = (Uuid, Uuid, String, i32, Option<String>, Option<DateTime<Utc>>);

impl TryFrom<Row> for DeadLetter {
    type Error = CoreError;

    fn try_from((tenant, id, topic, attempts, reason, since): Row) -> Result<Self, CoreError> {
        Ok(Self {
            tenant: TenantId::from_uuid(tenant),
            id: JobId::from_uuid(id),
            topic,
            attempts,
            reason: reason.unwrap_or_default(),
            since: since.ok_or(CoreError::Corrupt { table: "saas.outbox", column: "finished_at" })?,
        })
    }
}

/// Lists dead letters of all tenants, newest first; `after` is the last one of the previous page.
///
/// # Errors
/// When the database does not answer.
pub async fn list_dead(
    tx: &mut SystemTx,
    after: Option<(DateTime<Utc>, JobId)>,
    size: PageSize,
) -> Result<Page<DeadLetter, (DateTime<Utc>, JobId)>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, id, topic, attempts, last_error, finished_at
         from saas.outbox
         where state = 'dead' and ($1::timestamptz is null or (finished_at, id) < ($1, $2))
         order by finished_at desc, id desc
         limit $3",
    )
    .bind(after.map(|(since, _)| since))
    .bind(after.map(|(_, id)| id.as_uuid()))
    .bind(i64::from(size.get()) + 1)
    .fetch_all(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    let letters = rows.into_iter().map(DeadLetter::try_from).collect::<Result<_, _>>()?;
    Ok(Page::from_rows(letters, size, |letter: &DeadLetter| (letter.since, letter.id)))
}

/// Sends a dead letter again, with all its tries. Runs as the system role.
///
/// # Errors
/// [`NotFound`](CoreError::NotFound) when there is no such dead letter.
pub async fn replay_dead_in(
    connection: &mut PgConnection,
    actor: &Actor,
    tenant: TenantId,
    id: JobId,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let updated = sqlx::query(
        "update saas.outbox
         set state = 'pending', due_at = $3, attempts = 0, finished_at = null, lease = null
         where tenant_id = $1 and id = $2 and state = 'dead'",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .bind(now)
    .execute(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    if updated.rows_affected() == 0 {
        return Err(CoreError::NotFound { what: "dead letter" });
    }
    audit::record_in(connection, tenant, actor, audit::Entry::new("outbox.replayed", id), now).await?;
    Ok(())
}

/// Removes jobs that were done before `before`, at most 10,000 a call, and says how many. Call it until it says 0.
///
/// # Errors
/// When the database does not answer.
pub async fn purge_done_in(tx: &mut SystemTx, before: DateTime<Utc>) -> Result<u64, CoreError> {
    let deleted = sqlx::query(
        "delete from saas.outbox
         where (tenant_id, id) in (
            select tenant_id, id from saas.outbox where state = 'done' and finished_at < $1 order by finished_at limit 10000)",
    )
    .bind(before)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(deleted.rows_affected())
}
