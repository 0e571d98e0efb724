//! `saas.billing_usage_report`: Stripe's reports of usage that it does not count.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Scope, storable};
use crate::{object::ObjectId, usage::UsageTrouble};

/// What a report says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) errors: u64,
    pub(crate) codes: BTreeMap<String, u64>,
    /// Identifiers, with the code of what is wrong.
    pub(crate) samples: Vec<(Uuid, String)>,
}

/// Puts a report on the list, once.
pub(crate) async fn announce(
    connection: &mut PgConnection,
    scope: &Scope,
    (event_id, event_type): (&str, &str),
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.billing_usage_report (account, livemode, event_id, event_type, state, due_at, received_at)
         values ($1, $2, $3, $4, 'pending', $5, $5)
         on conflict (account, livemode, event_id) do nothing",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(event_type)
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Takes reports that are due until `until`, each with the number of its tries.
pub(crate) async fn claim(
    connection: &mut PgConnection,
    scope: &Scope,
    limit: i64,
    (now, until): (DateTime<Utc>, DateTime<Utc>),
) -> Result<Vec<(ObjectId, i32)>, CoreError> {
    let rows: Vec<(String, i32)> = sqlx::query_as(
        "update saas.billing_usage_report r
         set due_at = $4, attempts = attempts + 1
         from (
             select event_id
             from saas.billing_usage_report
             where account = $1 and livemode = $2 and state = 'pending' and due_at <= $3
             order by due_at, event_id
             limit $5
             for update skip locked
         ) due
         where r.account = $1 and r.livemode = $2 and r.event_id = due.event_id
         returning r.event_id, r.attempts",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(now)
    .bind(until)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_usage_report", column: "event_id" };
    rows.into_iter().map(|(id, attempts)| Ok((ObjectId::try_from(id).map_err(corrupt)?, attempts))).collect()
}

/// Writes down what a report says, and marks the rows that it names. Says how many were marked.
pub(crate) async fn finish(
    connection: &mut PgConnection,
    scope: &Scope,
    event: &ObjectId,
    told: &Told,
    now: DateTime<Utc>,
) -> Result<u64, CoreError> {
    let ids: Vec<Uuid> = told.samples.iter().map(|(id, _)| *id).collect();
    let codes: Vec<&str> = told.samples.iter().map(|(_, code)| code.as_str()).collect();
    let marked = sqlx::query(
        "update saas.billing_usage u -- of every tenant: a report names identifiers only
         set state = 'rejected', reason = s.code, settled_at = $2, lease = null
         from unnest($3::uuid[], $4::text[]) as s (id, code)
         where u.id = s.id and u.livemode = $1 and u.state in ('pending', 'sent')",
    )
    .bind(scope.livemode)
    .bind(now)
    .bind(&ids)
    .bind(&codes)
    .execute(&mut *connection)
    .await
    .map_err(CoreError::from_database)?
    .rows_affected();
    sqlx::query(
        "update saas.billing_usage_report
         set state = 'done', errors = $4, matched = matched + $5, codes = $6, reason = null
         where account = $1 and livemode = $2 and event_id = $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event.as_str())
    .bind(i64::try_from(told.errors).unwrap_or(i64::MAX))
    .bind(i64::try_from(marked).unwrap_or(i64::MAX))
    .bind(Json(&told.codes))
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(marked)
}

/// It was not to be had: again at `due_at`, or never.
pub(crate) async fn put_off(
    connection: &mut PgConnection,
    scope: &Scope,
    event: &ObjectId,
    why: &str,
    due_at: Option<DateTime<Utc>>,
) -> Result<(), CoreError> {
    sqlx::query(
        "update saas.billing_usage_report
         set state = case when $5::timestamptz is null then 'dead' else state end, due_at = coalesce($5, due_at), reason = $4
         where account = $1 and livemode = $2 and event_id = $3 and state = 'pending'",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event.as_str())
    .bind(storable(why))
    .bind(due_at)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Deletes reports that were read, or given up, before an instant.
pub(crate) async fn forget(
    connection: &mut PgConnection,
    scope: &Scope,
    before: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "delete from saas.billing_usage_report
         where account = $1 and livemode = $2 and state <> 'pending' and received_at < $3",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(before)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Reports by event, behind `after`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    scope: &Scope,
    after: Option<&ObjectId>,
    limit: i64,
) -> Result<Vec<UsageTrouble>, CoreError> {
    type Row = (String, String, i64, i64, Json<BTreeMap<String, u64>>, DateTime<Utc>, String);
    let rows: Vec<Row> = sqlx::query_as(
        "select event_id, event_type, errors, matched, codes, received_at, state
         from saas.billing_usage_report
         where account = $1 and livemode = $2 and ($3::text is null or event_id > $3)
         order by event_id
         limit $4",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(after.map(ObjectId::as_str))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let corrupt = |_| CoreError::Corrupt { table: "saas.billing_usage_report", column: "event_id" };
    let trouble = |(event, event_type, errors, matched, codes, received_at, state): Row| {
        Ok(UsageTrouble {
            event: ObjectId::try_from(event).map_err(corrupt)?,
            event_type,
            errors: errors.unsigned_abs(),
            matched: matched.unsigned_abs(),
            codes: codes.0,
            received_at,
            is_read: state == "done",
        })
    };
    rows.into_iter().map(trouble).collect()
}
