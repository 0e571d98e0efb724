//! Jobs that were given up: listed with their reason, and sent again when someone decides so.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Actor, CoreError, JobId, PageSize, TenantId, audit};

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

/// Lists dead letters of all tenants, newest first. Runs as the system role.
///
/// # Errors
/// When the database does not answer.
pub async fn list_dead(connection: &mut PgConnection, size: PageSize) -> Result<Vec<DeadLetter>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "select tenant_id, id, topic, attempts, last_error, finished_at
         from saas.outbox
         where state = 'dead'
         order by finished_at desc
         limit $1",
    )
    .bind(i64::from(size.get()))
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(DeadLetter::try_from).collect()
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
