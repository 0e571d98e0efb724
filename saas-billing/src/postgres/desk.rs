//! `saas.billing_receipt` from an operator's desk: what waits, what is set free, replayed, given up, listed, counted, deleted.

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::PgConnection;

use super::{Scope, body::Packed, receipt::State};

/// Sets free what waited for an object's link.
pub(crate) async fn free(
    connection: &mut PgConnection,
    scope: &Scope,
    object_id: &str,
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let freed = sqlx::query(
        "update saas.billing_receipt
         set state = 'pending', waits_for = null, quarantined_by = null, reason = null, attempts = 0, due_at = $4, finished_at = null
         where account = $1 and livemode = $2 and waits_for = $3 and state in ('parked', 'quarantined')",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(object_id)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(freed.rows_affected())
}

/// Gives up on what has waited for a link since before `parked_before`.
pub(crate) async fn expire_parked(
    connection: &mut PgConnection,
    scope: &Scope,
    parked_before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let expired = sqlx::query(
        "update saas.billing_receipt
         set state = 'dead', reason = 'its customer was never linked to a tenant', finished_at = $4
         where account = $1 and livemode = $2 and state = 'parked' and finished_at < $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(parked_before)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(expired.rows_affected())
}

/// The body of a receipt of the account and mode, or of one that this endpoint quarantined.
pub(crate) async fn body(
    connection: &mut PgConnection,
    scope: &Scope,
    event_id: &str,
) -> Result<Option<Packed>, CoreError> {
    let body: Option<Vec<u8>> = sqlx::query_scalar(
        "select body
         from saas.billing_receipt
         where event_id = $3 and (account = $1 and livemode = $2 or quarantined_by = $4)",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(scope.endpoint())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(body.map(Packed::from_column))
}

/// Sends a receipt through the worker again, whatever became of it.
pub(crate) async fn replay(
    connection: &mut PgConnection,
    scope: &Scope,
    event_id: &str,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let replayed = sqlx::query(
        "update saas.billing_receipt
         set state = 'pending', waits_for = null, quarantined_by = null, attempts = 0, due_at = $4, finished_at = null, lease = null
         where account = $1 and livemode = $2 and event_id = $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(replayed.rows_affected() == 1)
}

/// Sends what other endpoints have kept from this account and mode through its worker, up to `limit`, oldest first.
pub(crate) async fn take_over(
    connection: &mut PgConnection,
    scope: &Scope,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<u64, CoreError> {
    let taken = sqlx::query(
        "with kept as (
            select account, livemode, event_id
            from saas.billing_receipt
            where account = $1 and livemode = $2 and state = 'quarantined' and state <> 'pending'
              and quarantined_by is not null
            order by received_at, event_id
            limit $4
            for update skip locked
         )
         update saas.billing_receipt as receipt
         set state = 'pending', quarantined_by = null, reason = null, attempts = 0, due_at = $3, finished_at = null,
             lease = null
         from kept
         where receipt.account = kept.account and receipt.livemode = kept.livemode and receipt.event_id = kept.event_id",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(now)
    .bind(limit)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(taken.rows_affected())
}

/// Sends every dead letter through the worker again.
pub(crate) async fn replay_dead(
    connection: &mut PgConnection,
    scope: &Scope,
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let replayed = sqlx::query(
        "update saas.billing_receipt
         set state = 'pending', waits_for = null, quarantined_by = null, attempts = 0, due_at = $3, finished_at = null, lease = null
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

/// Account, mode, event id, type, reason, what it waits for, attempts, when received.
pub(crate) type Listed = (String, bool, String, String, Option<String>, Option<String>, i32, DateTime<Utc>);

/// The receipts of one state, newest first: those of the account and mode, and those that this endpoint quarantined.
pub(crate) async fn list(
    connection: &mut PgConnection,
    scope: &Scope,
    state: State,
    after: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> Result<Vec<Listed>, CoreError> {
    sqlx::query_as(
        "select account, livemode, event_id, event_type, reason, waits_for, attempts, received_at
         from (
            (select account, livemode, event_id, event_type, reason, waits_for, attempts, received_at
             from saas.billing_receipt
             where account = $1 and livemode = $2 and state = $3 and state <> 'pending'
               and ($4::timestamptz is null or (received_at, event_id) < ($4, $5))
             order by received_at desc, event_id desc
             limit $6)
            union all
            (select account, livemode, event_id, event_type, reason, waits_for, attempts, received_at
             from saas.billing_receipt
             where quarantined_by = $7 and state = $3
               and ($4::timestamptz is null or (received_at, event_id) < ($4, $5))
             order by received_at desc, event_id desc
             limit $6)
         ) as stuck
         order by received_at desc, event_id desc
         limit $6",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(state.as_str())
    .bind(after.map(|(at, _)| at))
    .bind(after.map(|(_, id)| id))
    .bind(limit)
    .bind(scope.endpoint())
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// State, how many, the first and the last that came in, how many have failed.
pub(crate) type Counted = (String, i64, Option<DateTime<Utc>>, Option<DateTime<Utc>>, i64);

/// How many receipts are in each state; a state can come twice. Of what is over only what came in since `over_since` is
/// counted: the rest only grows.
pub(crate) async fn count(
    connection: &mut PgConnection,
    scope: &Scope,
    over_since: DateTime<Utc>,
) -> Result<Vec<Counted>, CoreError> {
    sqlx::query_as(
        "select state, count(*), min(received_at), max(received_at), count(*) filter (where attempts > 0)
         from saas.billing_receipt
         where state = 'pending' and account = $1 and livemode = $2
         group by state
         union all
         select state, count(*), min(received_at), max(received_at), 0
         from saas.billing_receipt
         where state in ('parked', 'quarantined', 'dead') and state <> 'pending' and account = $1 and livemode = $2
         group by state
         union all
         select state, count(*), min(received_at), max(received_at), 0
         from saas.billing_receipt
         where quarantined_by = $3
         group by state
         union all
         select state, count(*), min(received_at), max(received_at), 0
         from saas.billing_receipt
         where state in ('applied', 'ignored') and state <> 'pending' and received_at >= $4 and account = $1 and livemode = $2
         group by state",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(scope.endpoint())
    .bind(over_since)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}
