//! `saas.billing_fetch`: objects to be read from Stripe, one worker per object at a time.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, LeaseToken};
use sqlx::PgConnection;

use super::{Scope, storable};
use crate::{
    derive::FetchRequest,
    object::{ObjectId, ObjectKind},
};

/// Puts an object on the list. One that is on it stays where it is, and is read once more if it is being read just now.
pub(crate) async fn request(
    connection: &mut PgConnection,
    scope: &Scope,
    request: &FetchRequest,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.billing_fetch as known (account, livemode, object_id, kind, reason, state, due_at)
         values ($1, $2, $3, $4, $5, 'pending', $6)
         on conflict (account, livemode, object_id) do update
         set state = 'pending',
             asked_in = case when known.lease is not null then coalesce(known.asked_in, pg_current_xact_id()) end,
             waits_for = null, reason = excluded.reason,
             attempts = case when known.state = 'pending' then known.attempts else 0 end,
             due_at = case when known.state = 'pending' then known.due_at else excluded.due_at end,
             last_error = case when known.state = 'pending' then known.last_error end
         where known.state <> 'pending' or known.lease is not null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(request.id.as_str())
    .bind(request.kind.as_str())
    .bind(&request.reason)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Puts an object on the list whose next read stands for all that is known about it. What is being read just now counts for
/// nothing.
pub(crate) async fn request_afresh(
    connection: &mut PgConnection,
    scope: &Scope,
    request: &FetchRequest,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.billing_fetch (account, livemode, object_id, kind, reason, state, due_at, afresh)
         values ($1, $2, $3, $4, $5, 'pending', $6, true)
         on conflict (account, livemode, object_id) do update
         set state = 'pending', waits_for = null, reason = excluded.reason, attempts = 0, due_at = excluded.due_at,
             last_error = null, lease = null, asked_in = null, afresh = true",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(request.id.as_str())
    .bind(request.kind.as_str())
    .bind(&request.reason)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The next number in the row of an object's reads, for an answer that came otherwise: of two reads the later one counts.
pub(crate) async fn next_sequence(
    connection: &mut PgConnection,
    scope: &Scope,
    (kind, id): (ObjectKind, &ObjectId),
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let sequence: i64 = sqlx::query_scalar(
        "insert into saas.billing_fetch as known (account, livemode, object_id, kind, reason, state, due_at, sequence)
         values ($1, $2, $3, $4, 'the answer to a write', 'done', $5, 1)
         on conflict (account, livemode, object_id) do update set sequence = known.sequence + 1
         returning sequence",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(id.as_str())
    .bind(kind.as_str())
    .bind(now)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)?;
    u64::try_from(sequence).map_err(|_| CoreError::Corrupt { table: "saas.billing_fetch", column: "sequence" })
}

/// A fetch in the hands of a worker.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) kind: ObjectKind,
    pub(crate) id: ObjectId,
    pub(crate) sequence: u64,
    pub(crate) attempts: i32,
    /// What is read stands for all that was known.
    pub(crate) afresh: bool,
}

/// Takes up to `limit` due fetches until `until`, or until they are finished, and counts each one's sequence up.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    scope: &Scope,
    limit: i64,
    lease: LeaseToken,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<Claimed>, CoreError> {
    let rows: Vec<(String, String, i64, i32, bool)> = sqlx::query_as(
        "with due as (
            select account, livemode, object_id
            from saas.billing_fetch
            where state = 'pending' and due_at <= $3 and account = $1 and livemode = $2
            order by due_at
            limit $4
            for update skip locked
         )
         update saas.billing_fetch as listed
         set attempts = listed.attempts + 1, sequence = listed.sequence + 1, lease = $5, asked_in = null, due_at = $6
         from due
         where listed.account = due.account and listed.livemode = due.livemode and listed.object_id = due.object_id
         returning listed.kind, listed.object_id, listed.sequence, listed.attempts, listed.afresh",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(now)
    .bind(limit)
    .bind(lease.as_uuid())
    .bind(until)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter()
        .map(|(kind, id, sequence, attempts, afresh)| {
            let corrupt = |column| CoreError::Corrupt { table: "saas.billing_fetch", column };
            Ok(Claimed {
                kind: ObjectKind::from_stored(&kind).ok_or(corrupt("kind"))?,
                id: ObjectId::try_from(id).map_err(|_| corrupt("object_id"))?,
                sequence: u64::try_from(sequence).map_err(|_| corrupt("sequence"))?,
                attempts,
                afresh,
            })
        })
        .collect()
}

/// What becomes of a fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End<'a> {
    /// The object is certain now.
    Done,
    /// Again at this instant.
    Again(DateTime<Utc>, &'a str),
    /// Waits from this instant for the link of this object.
    Parked(DateTime<Utc>, &'a str),
    /// Given up.
    Dead(&'a str),
}

/// Ends a fetch, or puts it off; one that another transaction has asked for meanwhile begins anew. `false` when the lease has
/// passed to another worker.
pub(crate) async fn finish(
    connection: &mut PgConnection,
    scope: &Scope,
    (id, lease): (&ObjectId, LeaseToken),
    end: End<'_>,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let (state, due_at, error, waits_for) = match end {
        End::Done => ("done", None, None, None),
        End::Again(at, error) => ("pending", Some(at), Some(error), None),
        End::Parked(at, object) => ("parked", Some(at), Some("waits to be linked to a tenant"), Some(object)),
        End::Dead(error) => ("dead", None, Some(error), None),
    };
    let finished = sqlx::query(
        "with ended as (
            select *, $5 in ('done', 'dead') and asked_in <> pg_current_xact_id() as is_asked
            from saas.billing_fetch
            where account = $1 and livemode = $2 and object_id = $3 and lease = $4  -- only what is pending has one
            for update
         )
         update saas.billing_fetch as listed
         set state = case when is_asked then 'pending' else $5 end,
             attempts = case when is_asked then 0 else listed.attempts end,
             due_at = case when is_asked then $9 else coalesce($6, listed.due_at) end,
             last_error = case when is_asked then null else $7 end,
             waits_for = $8, lease = null, asked_in = null, afresh = listed.afresh and $5 not in ('done', 'dead')
         from ended
         where listed.account = ended.account and listed.livemode = ended.livemode and listed.object_id = ended.object_id",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(id.as_str())
    .bind(lease.as_uuid())
    .bind(state)
    .bind(due_at)
    .bind(error.map(storable))
    .bind(waits_for)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(finished.rows_affected() == 1)
}

/// Sets free what waited for an object's link.
pub(crate) async fn free(
    connection: &mut PgConnection,
    scope: &Scope,
    object_id: &str,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.billing_fetch
         set state = 'pending', waits_for = null, attempts = 0, due_at = $4, last_error = null
         where account = $1 and livemode = $2 and waits_for = $3 and state = 'parked'",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object_id)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Gives up on what has waited for a link since before `parked_before`.
pub(crate) async fn expire_parked(
    connection: &mut PgConnection,
    scope: &Scope,
    parked_before: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let expired = sqlx::query(
        "update saas.billing_fetch
         set state = 'dead', last_error = 'its customer was never linked to a tenant'
         where account = $1 and livemode = $2 and state = 'parked' and due_at < $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(parked_before)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(expired.rows_affected())
}

/// Puts what was given up on the list again.
pub(crate) async fn replay_dead(
    connection: &mut PgConnection,
    scope: &Scope,
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let replayed = sqlx::query(
        "update saas.billing_fetch
         set state = 'pending', waits_for = null, attempts = 0, due_at = $3, last_error = null
         where account = $1 and livemode = $2 and state = 'dead'",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(replayed.rows_affected())
}

/// How many were given up.
pub(crate) async fn count_dead(connection: &mut PgConnection, scope: &Scope) -> Result<i64, CoreError> {
    sqlx::query_scalar(
        "select count(*) from saas.billing_fetch where account = $1 and livemode = $2 and state = 'dead'",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}
