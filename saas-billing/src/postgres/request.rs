//! `saas.billing_request`: what a tenant wants of its subscription, and how far it has come.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, IdempotencyKey, JobId, TenantId};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Scope, storable};
use crate::{
    object::ObjectId,
    subscription::{Change, Goal},
};

/// How far a request has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is to be seen through.
    Pending(Box<Goal>),
    /// Everything was asked; a payment decides.
    Waiting(Box<Goal>, Change),
    /// It is so.
    Done(Change),
    /// It will not be so.
    Failed(String),
}

/// A request of a tenant.
#[derive(Debug, Clone)]
pub(crate) struct Requested {
    pub(crate) id: JobId,
    /// [`Goal::what`] of what was asked.
    pub(crate) what: String,
    pub(crate) fingerprint: String,
    pub(crate) object: ObjectId,
    pub(crate) progress: Progress,
    /// The command asked last.
    pub(crate) command: Option<JobId>,
    /// What was asked so far, in order.
    pub(crate) steps: Vec<String>,
}

type Row =
    (Uuid, String, String, String, String, Option<Vec<u8>>, Option<Uuid>, Vec<String>, Option<Value>, Option<String>);

impl TryFrom<Row> for Requested {
    type Error = CoreError;

    fn try_from(row: Row) -> Result<Self, CoreError> {
        let corrupt = |column| CoreError::Corrupt { table: "saas.billing_request", column };
        let (id, what, fingerprint, object, state, goal, command, steps, outcome, reason) = row;
        let goal = goal.map(|goal| serde_json::from_slice(&goal)).transpose().map_err(|_| corrupt("goal"))?;
        let goal = || goal.ok_or(corrupt("goal"));
        let outcome = outcome.map(serde_json::from_value).transpose().map_err(|_| corrupt("outcome"))?;
        let outcome = || outcome.ok_or(corrupt("outcome"));
        let progress = match state.as_str() {
            "pending" => Progress::Pending(goal()?),
            "waiting" => Progress::Waiting(goal()?, outcome()?),
            "done" => Progress::Done(outcome()?),
            "failed" => Progress::Failed(reason.unwrap_or_default()),
            _ => return Err(corrupt("state")),
        };
        let object = object.try_into().map_err(|_| corrupt("object_id"))?;
        let (id, command) = (JobId::from_uuid(id), command.map(JobId::from_uuid));
        Ok(Self { id, what, fingerprint, object, progress, command, steps })
    }
}

/// What a request is called, and by whom it is recognised.
pub(crate) struct NewRequest<'a> {
    pub(crate) id: JobId,
    pub(crate) key: &'a IdempotencyKey,
    pub(crate) goal: &'a Goal,
    pub(crate) object: &'a ObjectId,
}

/// Asks. Whoever holds the tenant's lock has looked that nothing is under way.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    new: NewRequest<'_>,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_request", column: "goal" };
    sqlx::query(
        "insert into saas.billing_request
            (tenant_id, livemode, id, key, fingerprint, what, goal, object_id, state, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 'pending', $9)",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(new.id.as_uuid())
    .bind(new.key.as_str())
    .bind(new.goal.fingerprint().as_str())
    .bind(new.goal.what())
    .bind(serde_json::to_vec(new.goal).map_err(corrupt)?)
    .bind(new.object.as_str())
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// One request.
pub(crate) async fn find(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
) -> Result<Option<Requested>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, what, fingerprint, object_id, state, goal, command, steps, outcome, reason
         from saas.billing_request
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

/// The request that came with a key.
pub(crate) async fn find_by_key(
    connection: &mut PgConnection,
    (tenant, scope, key): (TenantId, &Scope, &IdempotencyKey),
) -> Result<Option<Requested>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, what, fingerprint, object_id, state, goal, command, steps, outcome, reason
         from saas.billing_request
         where tenant_id = $1 and livemode = $2 and key = $3",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(key.as_str())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(TryInto::try_into).transpose()
}

/// The request under way.
pub(crate) async fn pending(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
) -> Result<Option<Requested>, CoreError> {
    let row: Option<Row> = sqlx::query_as(
        "select id, what, fingerprint, object_id, state, goal, command, steps, outcome, reason
         from saas.billing_request
         where tenant_id = $1 and livemode = $2 and state = 'pending'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(TryInto::try_into).transpose()
}

/// The requests that a payment for an object decides.
pub(crate) async fn waiting(
    connection: &mut PgConnection,
    (tenant, scope): (TenantId, &Scope),
    object: &ObjectId,
) -> Result<Vec<Requested>, CoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "select id, what, fingerprint, object_id, state, goal, command, steps, outcome, reason
         from saas.billing_request
         where tenant_id = $1 and livemode = $2 and object_id = $3 and state = 'waiting'
         order by id",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(object.as_str())
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Notes the next command, if nobody has gone on from `former` meanwhile.
pub(crate) async fn step(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    former: Option<JobId>,
    (what, command): (&str, JobId),
) -> Result<bool, CoreError> {
    let stepped = sqlx::query(
        "update saas.billing_request
         set command = $5, steps = array_append(steps, $6)
         where tenant_id = $1 and livemode = $2 and id = $3 and command is not distinct from $4 and state = 'pending'",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .bind(former.map(JobId::as_uuid))
    .bind(command.as_uuid())
    .bind(what)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(stepped.rows_affected() == 1)
}

/// Records what came of a request, if that is news.
pub(crate) async fn conclude(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    change: &Change,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_request", column: "outcome" };
    let waits = matches!(change, Change::AwaitingPayment { .. });
    let concluded = sqlx::query(
        "update saas.billing_request
         set state = case when $4 then 'waiting' else 'done' end, goal = case when $4 then goal end,
             outcome = $5, finished_at = $6
         where tenant_id = $1 and livemode = $2 and id = $3
           and (state = 'pending' or state = 'waiting' and not $4)",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .bind(waits)
    .bind(serde_json::to_value(change).map_err(corrupt)?)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(concluded.rows_affected() == 1)
}

/// Records that it will not be so.
pub(crate) async fn fail(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
    reason: &str,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let failed = sqlx::query(
        "update saas.billing_request
         set state = 'failed', goal = null, reason = $4, finished_at = $5
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

/// Forgets a request of which nothing was sent: its key is free again.
pub(crate) async fn withdraw(
    connection: &mut PgConnection,
    (tenant, scope, id): (TenantId, &Scope, JobId),
) -> Result<bool, CoreError> {
    let withdrawn = sqlx::query(
        "delete from saas.billing_request
         where tenant_id = $1 and livemode = $2 and id = $3 and state = 'pending' and command is null",
    )
    .bind(tenant.as_uuid())
    .bind(scope.livemode)
    .bind(id.as_uuid())
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(withdrawn.rows_affected() == 1)
}
