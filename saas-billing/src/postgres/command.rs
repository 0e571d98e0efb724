//! `saas.billing_command`: what was asked of Stripe, and what came of it.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, JobId, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Scope, storable};
use crate::{
    object::ObjectId,
    provider::{Command, WebAddress},
};

/// What only one command of a tenant may hold at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Customer,
    Checkout,
}

impl Slot {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Checkout => "checkout",
        }
    }
}

/// How far a command has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To be sent, or sent without an answer yet.
    Pending(Box<Command>),
    /// Stripe did it.
    Done(Outcome),
    /// Stripe will not do it.
    Failed(String),
    /// It was done, and is over.
    Closed,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) object: ObjectId,
    pub(crate) address: Option<WebAddress>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

/// A command of a tenant.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) id: JobId,
    pub(crate) epoch: u32,
    pub(crate) subject: Option<String>,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) stage: Stage,
}

type Row = (
    Uuid,
    i32,
    Option<String>,
    DateTime<Utc>,
    String,
    Option<Vec<u8>>,
    Option<String>,
    Option<String>,
    Option<DateTime<Utc>>,
    Option<String>,
);

impl TryFrom<Row> for Asked {
    type Error = CoreError;

    fn try_from(row: Row) -> Result<Self, CoreError> {
        let corrupt = |column| CoreError::Corrupt { table: "saas.billing_command", column };
        let (id, epoch, subject, created_at, state, command, object, address, expires_at, reason) = row;
        let stage = match state.as_str() {
            "pending" => {
                let command = command.ok_or(corrupt("command"))?;
                Stage::Pending(serde_json::from_slice(&command).map_err(|_| corrupt("command"))?)
            }
            "done" => Stage::Done(Outcome {
                object: object.and_then(|id| id.try_into().ok()).ok_or(corrupt("object_id"))?,
                address: address.map(TryInto::try_into).transpose().map_err(|_| corrupt("address"))?,
                expires_at,
            }),
            "failed" => Stage::Failed(reason.unwrap_or_default()),
            "closed" => Stage::Closed,
            _ => return Err(corrupt("state")),
        };
        let epoch = u32::try_from(epoch).map_err(|_| corrupt("epoch"))?;
        Ok(Self { id: JobId::from_uuid(id), epoch, subject, created_at, stage })
    }
}

/// Asks. Whoever holds the tenant's lock has looked whether the slot is free.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    (what, command): (&str, &Command),
    (slot, subject): (Option<Slot>, Option<&str>),
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_command", column: "command" };
    sqlx::query(
        "insert into saas.billing_command (tenant_id, livemode, id, what, command, slot, subject, state, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, 'pending', $8)",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .bind(what)
    .bind(serde_json::to_vec(command).map_err(corrupt)?)
    .bind(slot.map(Slot::as_str))
    .bind(subject)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// One command.
pub(crate) async fn find(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
) -> Result<Option<Asked>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, epoch, subject, created_at, state, command, object_id, address, expires_at, reason
         from saas.billing_command
         where tenant_id = $1 and livemode = $2 and id = $3",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(TryInto::try_into).transpose()
}

/// The command that holds a slot.
pub(crate) async fn holder(
    connection: &mut PgConnection,
    (tenant, scope, slot): (TenantId, &Scope, Slot),
) -> Result<Option<Asked>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, epoch, subject, created_at, state, command, object_id, address, expires_at, reason
         from saas.billing_command
         where tenant_id = $1 and livemode = $2 and slot = $3 and state in ('pending', 'done')",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(slot.as_str())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(TryInto::try_into).transpose()
}

/// Records what came of a command, once. `false` when that was recorded before.
pub(crate) async fn finish(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let finished = sqlx::query(
        "update saas.billing_command
         set state = 'done', command = null, object_id = $4, address = $5, expires_at = $6, finished_at = $7
         where tenant_id = $1 and livemode = $2 and id = $3 and state = 'pending'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .bind(outcome.object.as_str())
    .bind(outcome.address.as_ref().map(WebAddress::as_str))
    .bind(outcome.expires_at)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(finished.rows_affected() == 1)
}

/// Records that Stripe will not do it. The slot is free again.
pub(crate) async fn fail(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    reason: &str,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let failed = sqlx::query(
        "update saas.billing_command
         set state = 'failed', command = null, reason = $4, finished_at = $5
         where tenant_id = $1 and livemode = $2 and id = $3 and state = 'pending'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .bind(storable(reason))
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(failed.rows_affected() == 1)
}

/// Takes the next key, if nobody has meanwhile.
pub(crate) async fn next_epoch(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    epoch: u32,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.billing_command
         set epoch = epoch + 1
         where tenant_id = $1 and livemode = $2 and id = $3 and epoch = $4 and state = 'pending'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .bind(i32::try_from(epoch).unwrap_or(i32::MAX))
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Frees the slot of what was made and is over: an expired or completed session, a deleted customer.
pub(crate) async fn close(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    object: &ObjectId,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.billing_command
         set state = 'closed'
         where tenant_id = $1 and livemode = $2 and object_id = $3 and state = 'done'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(object.as_str())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The customer that was linked to a tenant last and that Stripe has not deleted.
pub(crate) async fn customer(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
) -> Result<Option<ObjectId>, CoreError> {
    let id: Option<String> = sqlx::query_scalar(
        "select linked.object_id
         from saas.billing_directory linked
         left join saas.billing_object known
           on known.tenant_id = $1 and known.livemode = $3 and known.object_id = linked.object_id
         where linked.tenant = $1 and linked.account = $2 and linked.livemode = $3 and linked.kind = 'customer'
           and known.status is distinct from 'deleted'
         order by linked.linked_at desc, linked.object_id desc
         limit 1",
    )
    .bind(tenant.as_uuid())
    .bind(&scope.account)
    .bind(scope.livemode)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_directory", column: "object_id" };
    id.map(|id| ObjectId::try_from(id).map_err(corrupt)).transpose()
}
