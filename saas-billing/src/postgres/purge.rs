//! What is deleted after its retention, in batches that an index finds: no call goes through what it leaves.
//!
//! What stands in the way of a row is counted and not asked for by `not exists`: of that PostgreSQL makes a join, for which it
//! reads and sorts all that is old, whatever the limit.

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::{PgConnection, postgres::PgArguments, query::Query};

use super::{Scope, receipt::State};

/// Receipts of the account and mode in a state. One with a contradicting body stays for a person to see.
const IN_STATE: &str = "
    with old as (
        select account, livemode, event_id
        from saas.billing_receipt as receipt
        where account = $1 and livemode = $2 and state = $5 and state <> 'pending' and received_at < $3
          and (
            select count(*) from saas.billing_receipt_conflict as conflict
            where conflict.account = receipt.account and conflict.livemode = receipt.livemode
              and conflict.event_id = receipt.event_id) = 0
        order by received_at
        limit $4
        for update skip locked
    )
    delete from saas.billing_receipt as receipt
    using old
    where receipt.account = old.account and receipt.livemode = old.livemode and receipt.event_id = old.event_id";

/// Receipts that the endpoint of this account and mode has kept from another one, which has not asked for them.
const KEPT: &str = "
    with old as (
        select account, livemode, event_id
        from saas.billing_receipt as receipt
        where quarantined_by = $1 and received_at < $2
          and (
            select count(*) from saas.billing_receipt_conflict as conflict
            where conflict.account = receipt.account and conflict.livemode = receipt.livemode
              and conflict.event_id = receipt.event_id) = 0
        order by received_at
        limit $3
        for update skip locked
    )
    delete from saas.billing_receipt as receipt
    using old
    where receipt.account = old.account and receipt.livemode = old.livemode and receipt.event_id = old.event_id";

/// Bodies that contradicted a receipt.
const CONFLICTS: &str = "
    with old as (
        select account, livemode, event_id, body_sha256
        from saas.billing_receipt_conflict
        where account = $1 and livemode = $2 and received_at < $3
        order by received_at
        limit $4
    )
    delete from saas.billing_receipt_conflict as conflict
    using old
    where conflict.account = old.account and conflict.livemode = old.livemode and conflict.event_id = old.event_id
      and conflict.body_sha256 = old.body_sha256";

/// Notices that somebody has seen.
const NOTICES: &str = "
    with old as (
        select account, livemode, kind, object_id
        from saas.billing_notice
        where account = $1 and livemode = $2 and seen_at < $3 and seen_at is not null
        order by seen_at
        limit $4
    )
    delete from saas.billing_notice as notice
    using old
    where notice.account = old.account and notice.livemode = old.livemode and notice.kind = old.kind
      and notice.object_id = old.object_id and notice.seen_at < $3";

/// Commands of all tenants that are settled, but not one whose slot says that something is there, and not one that an open
/// request waits for.
const COMMANDS: &str = "
    with old as (
        select tenant_id, livemode, id
        from saas.billing_command as command
        where (state in ('failed', 'closed') or state = 'done' and slot is null) and finished_at < $1
          and (
            select count(*) from saas.billing_request as request
            where request.tenant_id = command.tenant_id and request.livemode = command.livemode
              and request.command = command.id and request.state in ('pending', 'waiting')) = 0
        order by finished_at
        limit $2
        for update skip locked
    )
    delete from saas.billing_command as command
    using old
    where command.tenant_id = old.tenant_id and command.livemode = old.livemode and command.id = old.id";

/// Requests of all tenants that are settled.
const REQUESTS: &str = "
    with old as (
        select tenant_id, livemode, id
        from saas.billing_request
        where state in ('done', 'failed') and finished_at < $1
        order by finished_at
        limit $2
        for update skip locked
    )
    delete from saas.billing_request as request
    using old
    where request.tenant_id = old.tenant_id and request.livemode = old.livemode and request.id = old.id";

async fn run(connection: &mut PgConnection, query: Query<'_, sqlx::Postgres, PgArguments>) -> Result<u64, CoreError> {
    Ok(query.execute(connection).await.map_err(CoreError::from_database)?.rows_affected())
}

fn scoped<'q>(
    sql: &'static str,
    scope: &'q Scope,
    before: DateTime<Utc>,
    limit: i64,
) -> Query<'q, sqlx::Postgres, PgArguments> {
    sqlx::query(sql).bind(&scope.account).bind(scope.livemode).bind(before).bind(limit)
}

/// Receipts that are over, of this endpoint and kept by it from others.
pub(crate) async fn receipts(
    connection: &mut PgConnection,
    scope: &Scope,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, CoreError> {
    let mut purged = 0;
    for state in [State::Applied, State::Ignored] {
        let query = scoped(IN_STATE, scope, before, left(limit, purged)).bind(state.as_str());
        purged += run(connection, query).await?;
    }
    let kept = sqlx::query(KEPT).bind(scope.endpoint()).bind(before).bind(left(limit, purged));
    Ok(purged + run(connection, kept).await?)
}

/// What needed a person.
pub(crate) async fn stuck(
    connection: &mut PgConnection,
    scope: &Scope,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, CoreError> {
    let mut purged = run(connection, scoped(CONFLICTS, scope, before, limit)).await?;
    for state in [State::Dead, State::Quarantined] {
        let query = scoped(IN_STATE, scope, before, left(limit, purged)).bind(state.as_str());
        purged += run(connection, query).await?;
    }
    Ok(purged)
}

fn left(limit: i64, purged: u64) -> i64 {
    limit.saturating_sub(i64::try_from(purged).unwrap_or(limit))
}

/// Notices that somebody has seen.
pub(crate) async fn notices(
    connection: &mut PgConnection,
    scope: &Scope,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, CoreError> {
    run(connection, scoped(NOTICES, scope, before, limit)).await
}

/// Commands and requests that are settled.
pub(crate) async fn settled(
    connection: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, CoreError> {
    let commands = run(connection, sqlx::query(COMMANDS).bind(before).bind(limit)).await?;
    Ok(commands + run(connection, sqlx::query(REQUESTS).bind(before).bind(limit)).await?)
}
