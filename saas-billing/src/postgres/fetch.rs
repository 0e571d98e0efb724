//! `saas.billing_fetch`: objects to be read from Stripe, one worker per object at a time.

use chrono::{DateTime, Utc};
use saas_core::{CoreError, LeaseToken};
use sqlx::PgConnection;

use super::{Scope, storable};
use crate::{
    derive::FetchRequest,
    object::{ObjectId, ObjectKind},
};

/// Puts an object on the list. One that is on it stays where it is.
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
         set state = 'pending', reason = excluded.reason, attempts = 0, due_at = excluded.due_at, last_error = null
         where known.state <> 'pending'",
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

/// A fetch in the hands of a worker.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) kind: ObjectKind,
    pub(crate) id: ObjectId,
    pub(crate) sequence: u64,
    pub(crate) attempts: i32,
}

/// Takes up to `limit` due fetches until `until`, or until they are finished, and counts each one's sequence up.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    scope: &Scope,
    limit: i64,
    lease: LeaseToken,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<Claimed>, CoreError> {
    let rows: Vec<(String, String, i64, i32)> = sqlx::query_as(
        "with due as (
            select account, livemode, object_id
            from saas.billing_fetch
            where state = 'pending' and due_at <= $3 and account = $1 and livemode = $2
            order by due_at
            limit $4
            for update skip locked
         )
         update saas.billing_fetch as listed
         set attempts = listed.attempts + 1, sequence = listed.sequence + 1, lease = $5, due_at = $6
         from due
         where listed.account = due.account and listed.livemode = due.livemode and listed.object_id = due.object_id
         returning listed.kind, listed.object_id, listed.sequence, listed.attempts",
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
        .map(|(kind, id, sequence, attempts)| {
            let corrupt = |column| CoreError::Corrupt { table: "saas.billing_fetch", column };
            Ok(Claimed {
                kind: ObjectKind::from_stored(&kind).ok_or(corrupt("kind"))?,
                id: ObjectId::try_from(id).map_err(|_| corrupt("object_id"))?,
                sequence: u64::try_from(sequence).map_err(|_| corrupt("sequence"))?,
                attempts,
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
    /// Given up.
    Dead(&'a str),
}

/// Ends a fetch, or puts it off. `false` when the lease has passed to another worker.
pub(crate) async fn finish(
    connection: &mut PgConnection,
    scope: &Scope,
    (id, lease): (&ObjectId, LeaseToken),
    end: End<'_>,
) -> Result<bool, CoreError> {
    let (state, due_at, error) = match end {
        End::Done => ("done", None, None),
        End::Again(at, error) => ("pending", Some(at), Some(error)),
        End::Dead(error) => ("dead", None, Some(error)),
    };
    let finished = sqlx::query(
        "update saas.billing_fetch
         set state = $5, due_at = coalesce($6, due_at), last_error = $7, lease = null
         where account = $1 and livemode = $2 and object_id = $3 and lease = $4 and state = 'pending'",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(id.as_str())
    .bind(lease.as_uuid())
    .bind(state)
    .bind(due_at)
    .bind(error.map(storable))
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(finished.rows_affected() == 1)
}
