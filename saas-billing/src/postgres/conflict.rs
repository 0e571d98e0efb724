//! `saas.billing_receipt_conflict`: bodies that contradict the receipt of the same event.

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::{PgConnection, PgPool};

use super::{Scope, body::Packed};
use crate::event::Envelope;

/// Whether the receipt that is stored says something else.
pub(crate) async fn contradicts(pool: &PgPool, scope: &Scope, event_id: &str, body: &[u8]) -> Result<bool, CoreError> {
    // Two versions of the crate may pack one body in two ways, so only what differs is read and looked into.
    let other: Option<Vec<u8>> = sqlx::query_scalar(
        "select body
         from saas.billing_receipt
         where account = $1 and livemode = $2 and event_id = $3 and body <> $4",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(Packed::of(body).as_column())
    .fetch_optional(pool)
    .await
    .map_err(CoreError::from_database)?;
    let Some(other) = other else { return Ok(false) };
    let Ok(other) = Packed::from_column(other).unpack() else { return Ok(true) };
    Ok(other != body && !Envelope::say_the_same(&other, body))
}

/// Keeps a body that contradicts, once.
pub(crate) async fn store(
    pool: &PgPool,
    scope: &Scope,
    event_id: &str,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.billing_receipt_conflict (account, livemode, event_id, body_sha256, body, received_at)
         values ($1, $2, $3, sha256($4), $4, $5)
         on conflict do nothing",
    )
    .bind(&scope.account)
    .bind(scope.livemode)
    .bind(event_id)
    .bind(body)
    .bind(now)
    .execute(pool)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// How many bodies contradict a receipt.
pub(crate) async fn count(connection: &mut PgConnection, scope: &Scope) -> Result<i64, CoreError> {
    sqlx::query_scalar("select count(*) from saas.billing_receipt_conflict where account = $1 and livemode = $2")
        .bind(&scope.account)
        .bind(scope.livemode)
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)
}
