//! The audit log: who did what, in the transaction that did it. No audit row, no change.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Actor, AuditId, CoreError, RequestId, TenantContext, TenantId, TenantTx};

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What happened: a stable, dotted name such as `subscription.activated`.
    pub action: &'static str,
    /// To what: an id or a key.
    pub subject: String,
    /// The particulars. Ids and values, no secrets; text of people only where the log is the right home for it.
    pub detail: Value,
}

impl Entry {
    /// An entry without particulars.
    #[must_use]
    pub fn new(action: &'static str, subject: impl ToString) -> Self {
        Self { action, subject: subject.to_string(), detail: Value::Object(serde_json::Map::new()) }
    }

    /// Adds the particulars.
    #[must_use]
    pub fn with_detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}

/// Records an entry in the caller's transaction.
///
/// # Errors
/// When the row cannot be written; the caller's change must then not be committed either.
pub async fn record_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    entry: Entry,
    now: DateTime<Utc>,
) -> Result<AuditId, CoreError> {
    insert(connection, tenant, actor, None, entry, now).await
}

/// Records entries in the caller's transaction at once; their ids are in their order.
///
/// # Errors
/// As [`record_in`].
pub async fn record_all_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    entries: Vec<Entry>,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut ids: Vec<Uuid> = entries.iter().map(|_| AuditId::mint_at(now).as_uuid()).collect();
    ids.sort_unstable();
    let (mut actions, mut subjects, mut details) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        actions.push(entry.action);
        subjects.push(without_nul(entry.subject));
        details.push(storable(entry.detail));
    }
    sqlx::query(
        "insert into saas.audit (tenant_id, id, at, actor, action, subject, detail)
         select $1, id, $3, $4, action, subject, detail
         from unnest($2::uuid[], $5::text[], $6::text[], $7::jsonb[]) as entry (id, action, subject, detail)",
    )
    .bind(tenant.as_uuid())
    .bind(ids)
    .bind(now)
    .bind(without_nul(actor.to_string()))
    .bind(actions)
    .bind(subjects)
    .bind(details)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Records an entry under the tenant, actor and request of a context, in any transaction.
///
/// # Errors
/// As [`record_in`].
pub async fn record_for(
    connection: &mut PgConnection,
    ctx: &dyn TenantContext,
    entry: Entry,
    now: DateTime<Utc>,
) -> Result<AuditId, CoreError> {
    insert(connection, ctx.tenant(), ctx.actor(), Some(ctx.request()), entry, now).await
}

/// Records an entry under the tenant, actor and request of a tenant's transaction.
///
/// # Errors
/// As [`record_in`].
pub async fn record(tx: &mut TenantTx, entry: Entry, now: DateTime<Utc>) -> Result<AuditId, CoreError> {
    let (tenant, actor, request) = (tx.tenant(), tx.actor().clone(), tx.request());
    insert(tx, tenant, &actor, Some(request), entry, now).await
}

async fn insert(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    request: Option<RequestId>,
    entry: Entry,
    now: DateTime<Utc>,
) -> Result<AuditId, CoreError> {
    let id = AuditId::mint_at(now);
    sqlx::query(
        "insert into saas.audit (tenant_id, id, at, actor, request_id, action, subject, detail)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .bind(now)
    .bind(without_nul(actor.to_string()))
    .bind(request.map(RequestId::as_uuid))
    .bind(entry.action)
    .bind(without_nul(entry.subject))
    .bind(storable(entry.detail))
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(id)
}

/// `jsonb` refuses NUL, and a change must not fail for the text it describes.
fn storable(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_nul(text)),
        Value::Array(items) => items.into_iter().map(storable).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (without_nul(key), storable(value))).collect(),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_)) => plain,
    }
}

fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}
