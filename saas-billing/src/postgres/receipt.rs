//! `saas.billing_receipt`: what was delivered, and how far it has come.

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::{CoreError, LeaseToken, TenantId};
use sqlx::{PgConnection, PgPool};

use super::{Scope, body::Packed, storable};
use crate::object::ObjectId;

/// A receipt to be stored.
pub(crate) struct NewReceipt {
    pub(crate) scope: Scope,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) created: Option<DateTime<Utc>>,
    pub(crate) api_version: Option<String>,
    /// Whose receipts it is taken with.
    pub(crate) customer: Option<ObjectId>,
    pub(crate) body: Packed,
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
    /// The endpoint that quarantines it as another one's.
    pub(crate) quarantined_by: Option<String>,
    pub(crate) received_at: DateTime<Utc>,
}

impl fmt::Debug for NewReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewReceipt")
            .field("event_id", &self.event_id)
            .field("state", &self.state)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// Account, mode, event id.
pub(crate) type Key = (String, bool, String);

impl NewReceipt {
    pub(crate) fn key(&self) -> Key {
        (self.scope.account.clone(), self.scope.livemode, self.event_id.clone())
    }
}

/// How far a receipt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    Applied,
    Ignored,
    Parked,
    Quarantined,
    Dead,
}

impl State {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
            Self::Quarantined => "quarantined",
            Self::Dead => "dead",
        }
    }
}

/// Stores a receipt, durably, in one round trip. `false` when the event's id is already there.
///
/// One statement on its own is a transaction: a BEGIN and a COMMIT around it would triple the time to an answer. It touches
/// one table of the system and no tenant's row.
pub(crate) async fn store(pool: &PgPool, new: &NewReceipt) -> Result<bool, CoreError> {
    let stored = sqlx::query(
        "insert into saas.billing_receipt
            (account, livemode, event_id, event_type, created_at, api_version, body, state, reason, quarantined_by, due_at,
             received_at, customer)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)
         on conflict do nothing",
    )
    .bind(&new.scope.account)
    .bind(new.scope.livemode)
    .bind(&new.event_id)
    .bind(&new.event_type)
    .bind(new.created)
    .bind(new.api_version.as_deref())
    .bind(new.body.as_column())
    .bind(new.state.as_str())
    .bind(new.reason.as_deref())
    .bind(new.quarantined_by.as_deref())
    .bind(new.received_at)
    .bind(new.customer.as_ref().map(ObjectId::as_str))
    .execute(pool)
    .await
    .map_err(CoreError::from_database)?;
    Ok(stored.rows_affected() == 1)
}

/// Stores several in one round trip and one flush. Returns the keys of those that were not there.
pub(crate) async fn store_many(pool: &PgPool, new: &[&NewReceipt]) -> Result<Vec<Key>, CoreError> {
    sqlx::query_as(
        "insert into saas.billing_receipt
            (account, livemode, event_id, event_type, created_at, api_version, body, state, reason, quarantined_by, due_at,
             received_at, customer)
         select account, livemode, event_id, event_type, created_at, api_version, body, state, reason, quarantined_by, at, at,
                customer
         from unnest($1::text[], $2::boolean[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::bytea[],
                     $8::text[], $9::text[], $10::text[], $11::timestamptz[], $12::text[])
              as new (account, livemode, event_id, event_type, created_at, api_version, body, state, reason,
                      quarantined_by, at, customer)
         order by account, livemode, event_id  -- two inserts that overlap take their keys in one order
         on conflict do nothing
         returning account, livemode, event_id",
    )
    .bind(column(new, |receipt| receipt.scope.account.as_str()))
    .bind(column(new, |receipt| receipt.scope.livemode))
    .bind(column(new, |receipt| receipt.event_id.as_str()))
    .bind(column(new, |receipt| receipt.event_type.as_str()))
    .bind(column(new, |receipt| receipt.created))
    .bind(column(new, |receipt| receipt.api_version.as_deref()))
    .bind(column(new, |receipt| receipt.body.as_column()))
    .bind(column(new, |receipt| receipt.state.as_str()))
    .bind(column(new, |receipt| receipt.reason.as_deref()))
    .bind(column(new, |receipt| receipt.quarantined_by.as_deref()))
    .bind(column(new, |receipt| receipt.received_at))
    .bind(column(new, |receipt| receipt.customer.as_ref().map(ObjectId::as_str)))
    .fetch_all(pool)
    .await
    .map_err(CoreError::from_database)
}

fn column<'a, T>(new: &[&'a NewReceipt], field: impl Fn(&'a NewReceipt) -> T) -> Vec<T> {
    new.iter().map(|receipt| field(receipt)).collect()
}

/// Lets in a receipt that another endpoint has quarantined, with the body that its own endpoint received: endpoints may be
/// pinned to different API versions. `false` when none waits for that.
pub(crate) async fn admit(
    pool: &PgPool,
    (scope, event_id): (&Scope, &str),
    body: &Packed,
    state: State,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let admitted = sqlx::query(
        "update saas.billing_receipt
         set state = $5, reason = $6, body = $4, quarantined_by = null, attempts = 0, due_at = $7, received_at = $7
         where account = $1 and livemode = $2 and event_id = $3
           and state = 'quarantined' and quarantined_by is not null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(body.as_column())
    .bind(state.as_str())
    .bind(reason)
    .bind(now)
    .execute(pool)
    .await
    .map_err(CoreError::from_database)?;
    Ok(admitted.rows_affected() == 1)
}

/// A receipt in the hands of a worker.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) event_id: String,
    pub(crate) body: Packed,
    /// Whether it was tried before, or taken by a worker that never came back.
    pub(crate) is_suspect: bool,
}

/// How many of those that became due last are taken at once: enough for what has just come in.
const NEWEST: i64 = 25;

/// How many more of one customer are taken: as many as go into one transaction.
const FELLOWS: i64 = 64;

/// Takes up to `limit` due receipts until `until`, or until they are finished. Being taken is no try yet.
///
/// A quarter of them, and no more than [`NEWEST`], are those that became due last: behind a backlog, or behind one tenant's
/// flood, what has just come in does not wait for all of it. The others are the longest due, so that nothing waits for ever; up
/// to a half of all are what else is due of the same customers, so that one transaction does for them.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    scope: &Scope,
    limit: i64,
    lease: LeaseToken,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<Claimed>, CoreError> {
    let (newest, fellows) = ((limit / 4).min(NEWEST), limit / 2);
    let rows: Vec<(String, Vec<u8>, bool)> = sqlx::query_as(
        "with oldest as (
            select account, livemode, event_id, lease is not null as was_taken, customer
            from saas.billing_receipt
            where state = 'pending' and due_at <= $3 and account = $1 and livemode = $2
            order by due_at
            limit $4
            for update skip locked
         ), newest as (
            select account, livemode, event_id, lease is not null as was_taken, customer
            from saas.billing_receipt
            where state = 'pending' and due_at <= $3 and account = $1 and livemode = $2
            order by due_at desc
            limit $7
            for update skip locked
         ), ends as (
            select * from oldest union select * from newest
         ), fellows as (
            select fellow.*
            from (select distinct customer from ends where customer is not null) as taken
            cross join lateral (
                select account, livemode, event_id, lease is not null as was_taken, customer
                from saas.billing_receipt
                where account = $1 and livemode = $2 and customer = taken.customer and finished_at is null and due_at <= $3
                  and event_id not in (select event_id from ends)
                order by due_at
                limit $9
                for update skip locked
            ) as fellow
            limit $8
         ), due as (
            select * from ends union all select * from fellows
         )
         update saas.billing_receipt as receipt
         set lease = $5, due_at = $6
         from due
         where receipt.account = due.account and receipt.livemode = due.livemode and receipt.event_id = due.event_id
         returning receipt.event_id, receipt.body, due.was_taken or receipt.attempts > 0",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(now)
    .bind(limit - newest - fellows)
    .bind(lease.as_uuid())
    .bind(until)
    .bind(newest)
    .bind(fellows)
    .bind(FELLOWS)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let claimed = |(event_id, body, is_suspect)| Claimed { event_id, body: Packed::from_column(body), is_suspect };
    Ok(rows.into_iter().map(claimed).collect())
}

/// Counts a try of a receipt, durably before it is made, and holds the receipt until `until`. Returns how many there are
/// with it; `None` when the lease has passed to another worker.
pub(crate) async fn count_try(
    pool: &PgPool,
    scope: &Scope,
    (event_id, lease): (&str, LeaseToken),
    until: DateTime<Utc>,
) -> Result<Option<u32>, CoreError> {
    let attempts: Option<i32> = sqlx::query_scalar(
        "update saas.billing_receipt
         set attempts = attempts + 1, due_at = $5
         where account = $1 and livemode = $2 and event_id = $3 and lease = $4  -- only what is pending has one
         returning attempts",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(lease.as_uuid())
    .bind(until)
    .fetch_optional(pool)
    .await
    .map_err(CoreError::from_database)?;
    Ok(attempts.map(|attempts| u32::try_from(attempts).unwrap_or(u32::MAX)))
}

/// How a receipt ends, for now.
#[derive(Debug, Default)]
pub(crate) struct Ending<'a> {
    pub(crate) reason: Option<&'a str>,
    pub(crate) waits_for: Option<&'a str>,
    pub(crate) tenant: Option<TenantId>,
}

/// Ends a receipt. `false` when the lease has passed to another worker, whose work this must not touch.
pub(crate) async fn finish(
    connection: &mut PgConnection,
    scope: &Scope,
    (event_id, lease): (&str, LeaseToken),
    state: State,
    ending: Ending<'_>,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let finished = sqlx::query(
        "update saas.billing_receipt
         set state = $5, reason = $6, waits_for = $7, tenant = $8, finished_at = $9, lease = null
         where account = $1 and livemode = $2 and event_id = $3 and lease = $4  -- only what is pending has one",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(lease.as_uuid())
    .bind(state.as_str())
    .bind(ending.reason.map(storable))
    .bind(ending.waits_for)
    .bind(ending.tenant.map(TenantId::as_uuid))
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(finished.rows_affected() == 1)
}

/// Ends several receipts in one way, in a transaction whose costs are bounded. `false` when the lease of some has passed to
/// another worker; roll back then.
pub(crate) async fn finish_all(
    connection: &mut PgConnection,
    scope: &Scope,
    (event_ids, lease): (&[&str], LeaseToken),
    state: State,
    ending: Ending<'_>,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let finished = sqlx::query(
        "update saas.billing_receipt
         set state = $5, reason = $6, waits_for = $7, tenant = $8, finished_at = $9, lease = null
         where account = $1 and livemode = $2 and event_id = any($3) and lease = $4  -- only what is pending has one",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_ids)
    .bind(lease.as_uuid())
    .bind(state.as_str())
    .bind(ending.reason.map(storable))
    .bind(ending.waits_for)
    .bind(ending.tenant.map(TenantId::as_uuid))
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(usize::try_from(finished.rows_affected()) == Ok(event_ids.len()))
}

/// Gives a receipt back with this many tries counted, to be tried again at `due_at`.
pub(crate) async fn release(
    connection: &mut PgConnection,
    scope: &Scope,
    (event_id, lease): (&str, LeaseToken),
    attempts: u32,
    reason: &str,
    due_at: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let released = sqlx::query(
        "update saas.billing_receipt
         set attempts = $7, reason = $5, due_at = $6, lease = null
         where account = $1 and livemode = $2 and event_id = $3 and lease = $4  -- only what is pending has one",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(lease.as_uuid())
    .bind(storable(reason))
    .bind(due_at)
    .bind(i32::try_from(attempts).unwrap_or(i32::MAX))
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(released.rows_affected() == 1)
}
