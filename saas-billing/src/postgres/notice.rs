//! `saas.billing_notice`: what Stripe has told and an operator should know.

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Scope;
use crate::event::{Notice, NoticeKind};

/// Notes what an event has told. `false` when something later is known, or this.
pub(crate) async fn note(
    connection: &mut PgConnection,
    scope: &Scope,
    notice: &Notice,
    (event_id, event_type): (&str, &str),
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let noted = sqlx::query(
        "insert into saas.billing_notice as known
            (account, livemode, kind, object_id, about, event_id, event_type, created_at, noted_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         on conflict (account, livemode, kind, object_id) do update
         set about = excluded.about, event_id = excluded.event_id, event_type = excluded.event_type,
             created_at = excluded.created_at, noted_at = excluded.noted_at, seen_at = null, seen_by = null
         where (known.created_at, known.event_id) < (excluded.created_at, excluded.event_id)",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(notice.kind.as_str())
    .bind(notice.object.as_str())
    .bind(notice.about.as_ref().map(crate::ObjectId::as_str))
    .bind(event_id)
    .bind(event_type)
    .bind(notice.created)
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(noted.rows_affected() == 1)
}

/// Kind, object, about, event id and type, created, noted, tenant.
pub(crate) type Listed = (String, String, Option<String>, String, String, DateTime<Utc>, DateTime<Utc>, Option<Uuid>);

/// What nobody has seen yet, newest first, with the tenant that it concerns where one is linked.
pub(crate) async fn list(
    connection: &mut PgConnection,
    scope: &Scope,
    after: Option<(DateTime<Utc>, &str, &str)>,
    limit: i64,
) -> Result<Vec<Listed>, CoreError> {
    sqlx::query_as(
        "select notice.kind, notice.object_id, notice.about, notice.event_id, notice.event_type, notice.created_at,
                notice.noted_at, known.tenant
         from saas.billing_notice as notice
         left join saas.billing_directory as known
           on known.account = notice.account and known.livemode = notice.livemode and known.object_id = notice.about
         where notice.account = $1 and notice.livemode = $2 and notice.seen_at is null
           and ($3::timestamptz is null or (notice.noted_at, notice.kind, notice.object_id) < ($3, $4, $5))
         order by notice.noted_at desc, notice.kind desc, notice.object_id desc
         limit $6",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(after.map(|(at, _, _)| at))
    .bind(after.map(|(_, kind, _)| kind))
    .bind(after.map(|(_, _, object)| object))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

/// Takes a notice off the list. `false` when it is not on it, or says something newer than the event that was seen.
pub(crate) async fn see(
    connection: &mut PgConnection,
    scope: &Scope,
    (kind, object_id, event_id): (NoticeKind, &str, &str),
    by: &str,
    now: DateTime<Utc>,
) -> Result<bool, CoreError> {
    let seen = sqlx::query(
        "update saas.billing_notice
         set seen_at = $6, seen_by = $7
         where account = $1 and livemode = $2 and kind = $3 and object_id = $4 and event_id = $5 and seen_at is null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(kind.as_str())
    .bind(object_id)
    .bind(event_id)
    .bind(now)
    .bind(by)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(seen.rows_affected() == 1)
}

/// How many nobody has seen yet.
pub(crate) async fn count(connection: &mut PgConnection, scope: &Scope) -> Result<i64, CoreError> {
    sqlx::query_scalar(
        "select count(*) from saas.billing_notice where account = $1 and livemode = $2 and seen_at is null",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}
