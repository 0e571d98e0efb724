//! What sources of plans answered in the past: `saas.plan_record`, which each of them writes and anyone may ask.
//!
//! # Which instant a change has
//! The gate answers from a change once its transaction has committed, and no statement of a transaction knows when that will
//! be. The instant that is recorded is read while the tenant's row is locked, so changes have the order in which they
//! committed, and it is early by what is left of the transaction: at an instant within it, a gate still answered from the state
//! before. Nothing waits for a lock after that instant.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, types::Json};

use super::PlanAssignment;
use crate::{CoreError, Revision, TenantId};

/// What a source of plans answered from an instant on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRecord {
    /// The revision that the change made.
    pub revision: Revision,
    /// Since when.
    pub at: DateTime<Utc>,
    /// What the tenant was on; `None` when nothing was ever bought and the default plan of the catalogue held.
    pub assignment: Option<PlanAssignment>,
}

/// Records what `source` answers for the tenant from `now` on. Instants inside the assignment need no record of their own: a
/// grace period, a trial or a plan that ends by itself is recorded when it is known.
///
/// Call it in the transaction of the change, after [`bump_in`](crate::revision::bump_in), once for each revision, with the time
/// of a clock that was read after the tenant's row was locked. `source` is what
/// [`PlanSource::recorded_as`](super::PlanSource::recorded_as) says.
///
/// # Errors
/// [`Conflict`](CoreError::Conflict) when the revision has been recorded already; the caller must then roll back.
pub async fn record_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    source: &str,
    revision: Revision,
    assignment: Option<&PlanAssignment>,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.plan_record (tenant_id, source, revision, at, assignment)
         select $1, $2, $3,
                greatest($4, (select max(r.at) from saas.plan_record r where r.tenant_id = $1 and r.source = $2)), $5",
    )
    .bind(tenant.as_uuid())
    .bind(source)
    .bind(i64::try_from(revision.get()).unwrap_or(i64::MAX))
    .bind(now)
    .bind(assignment.map(Json))
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Raises the tenant's revision, as [`bump_in`](crate::revision::bump_in) does, and records what `source` answers from it on,
/// as [`record_in`] does, in one round trip: for who has locked the tenant's row already, and read `now` since. Returns the
/// revision.
///
/// # Errors
/// [`NotFound`](CoreError::NotFound) when the tenant does not exist or the transaction is bound to another one.
pub async fn record_next_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    source: &str,
    assignment: Option<&PlanAssignment>,
    now: DateTime<Utc>,
) -> Result<Revision, CoreError> {
    let revision: Option<i64> = sqlx::query_scalar(
        "with bumped as materialized (select saas.bump_revision($1) as revision)
         insert into saas.plan_record (tenant_id, source, revision, at, assignment)
         select $1, $2, bumped.revision,
                greatest($3, (select max(r.at) from saas.plan_record r where r.tenant_id = $1 and r.source = $2)), $4
         from bumped
         where bumped.revision is not null
         returning revision",
    )
    .bind(tenant.as_uuid())
    .bind(source)
    .bind(now)
    .bind(assignment.map(Json))
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    revision_of(revision.ok_or(CoreError::NotFound { what: "tenant" })?)
}

/// What `source` answered for the tenant at `instant`; `None` when nothing had been recorded by then.
///
/// # Errors
/// When the database does not answer.
pub async fn recorded_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    source: &str,
    instant: DateTime<Utc>,
) -> Result<Option<PlanRecord>, CoreError> {
    let row: Option<(i64, DateTime<Utc>, Option<Json<PlanAssignment>>)> = sqlx::query_as(
        "select revision, at, assignment
         from saas.plan_record
         where tenant_id = $1 and source = $2 and at <= $3
         order by revision desc
         limit 1",
    )
    .bind(tenant.as_uuid())
    .bind(source)
    .bind(instant)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(|(revision, at, assignment)| {
        Ok(PlanRecord {
            revision: revision_of(revision)?,
            at,
            assignment: assignment.map(|Json(assignment)| assignment),
        })
    })
    .transpose()
}

fn revision_of(number: i64) -> Result<Revision, CoreError> {
    u64::try_from(number)
        .map(Revision::new)
        .map_err(|_| CoreError::Corrupt { table: "saas.plan_record", column: "revision" })
}
