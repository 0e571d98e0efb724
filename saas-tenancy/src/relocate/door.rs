//! The tenant's door on both sides: `saas.resident`, which `saas.enter` and the log's trigger ask.
//!
//! The door of the source is changed only by the session that holds its lock (the gate), so a mover that was taken for dead
//! and lost that session cannot open what its successor has closed.

use saas_core::{CoreError, TenantId};

use super::{MoveError, session::Session};
use crate::lifecycle::store::Door;

/// Makes sure that the source has a row, so that whoever reads it later finds one.
pub(super) async fn register(gate: &mut Session, tenant: TenantId, generation: i64) -> Result<(), CoreError> {
    sqlx::query(
        "insert into saas.resident (tenant_id, generation, state) values ($1, $2, 'open') on conflict (tenant_id) do nothing",
    )
    .bind(tenant.as_uuid())
    .bind(generation)
    .execute(&mut gate.connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// Closes another database to the tenant while it is being filled: a process with an old placement must not write there.
pub(super) async fn shut_target(target: &mut Session, tenant: TenantId, generation: i64) -> Result<(), MoveError> {
    let known: bool = sqlx::query_scalar("select exists (select from saas.tenant where id = $1)")
        .bind(tenant.as_uuid())
        .fetch_one(&mut target.connection)
        .await
        .map_err(CoreError::from_database)?;
    if !known {
        return Err(MoveError::PlaceGone {
            side: target.side,
            what: "its saas.tenant lacks the tenant: provision the place first".into(),
            is_certain: true,
            cause: None,
        });
    }
    let shut = sqlx::query(
        "insert into saas.resident (tenant_id, generation, state, reason) values ($1, $2, 'closed', 'it is being moved here')
         on conflict (tenant_id) do update set generation = $2, state = 'closed', reason = excluded.reason
         where resident.generation <= $2",
    )
    .bind(tenant.as_uuid())
    .bind(generation)
    .execute(&mut target.connection)
    .await
    .map_err(CoreError::from_database)?;
    if shut.rows_affected() == 1 {
        return Ok(());
    }
    Err(MoveError::Closed { reason: "the target has seen a later generation of the tenant".into() })
}

/// Refuses to move a tenant whose door at the source was set by hand: nobody else knows what it should say at the target.
/// One that follows the tenant's status is no obstacle, since the target's will follow it too.
pub(super) async fn look(gate: &mut Session, tenant: TenantId, generation: i64) -> Result<(), MoveError> {
    let row: Option<(i64, String, Option<String>)> =
        sqlx::query_as("select generation, state, reason from saas.resident where tenant_id = $1")
            .bind(tenant.as_uuid())
            .fetch_optional(&mut gate.connection)
            .await
            .map_err(CoreError::from_database)?;
    let (found, state, reason) = row.unwrap_or((0, "open".into(), None));
    if found != generation {
        return Err(MoveError::Closed { reason: format!("it is at generation {found} there, not {generation}") });
    }
    if Door::follows_a_status(&state, reason.as_deref()) {
        return Ok(());
    }
    Err(MoveError::Closed { reason: format!("{state}: {}", reason.as_deref().unwrap_or("no reason given")) })
}

/// Closes the source for ever. Fails unless the gate has held the lock all along: the statement runs in that very session.
pub(super) async fn close(gate: &mut Session, tenant: TenantId, generation: i64) -> Result<(), MoveError> {
    const CLOSE: &str = "update saas.resident set state = 'closed', reason = 'it has moved'
        where tenant_id = $1 and generation = $2 and reason is distinct from 'it has moved'";
    if run(gate, CLOSE, tenant, generation).await? == 1 { Ok(()) } else { Err(MoveError::Driven) }
}

/// Opens the target at the next generation, as far as the tenant's status lets it.
pub(super) async fn open_target(
    target: &mut Session,
    tenant: TenantId,
    generation: i64,
    door: Door,
) -> Result<(), MoveError> {
    let opened = sqlx::query(
        "insert into saas.resident (tenant_id, generation, state, reason) values ($1, $2, $3, $4)
         on conflict (tenant_id) do update set generation = $2, state = $3, reason = $4
         where resident.generation <= $2",
    )
    .bind(tenant.as_uuid())
    .bind(generation + 1)
    .bind(door.state)
    .bind(door.reason)
    .execute(&mut target.connection)
    .await
    .map_err(CoreError::from_database)?;
    if opened.rows_affected() == 1 { Ok(()) } else { Err(MoveError::Driven) }
}

/// Opens the source again, as far as the tenant's status lets it, after a switch that did not happen. In one database the
/// two doors are one row.
pub(super) async fn reopen(
    gate: &mut Session,
    target: &mut Session,
    is_one_database: bool,
    tenant: TenantId,
    generation: i64,
    door: Door,
) -> Result<(), CoreError> {
    // Back to the generation that it was shut at: nobody has ever been told of the next one.
    const SHUT: &str = "update saas.resident set generation = $2, state = 'closed', reason = 'it is being moved here'
        where tenant_id = $1 and generation = $2 + 1";
    const BACK: &str = "update saas.resident set generation = $2, state = 'closed', reason = 'it has moved'
        where tenant_id = $1 and generation = $2 + 1";
    if is_one_database {
        run(gate, BACK, tenant, generation).await?;
    } else {
        run(target, SHUT, tenant, generation).await?;
    }
    sqlx::query(
        "update saas.resident set state = $3, reason = $4
         where tenant_id = $1 and generation = $2 and state = 'closed' and reason = 'it has moved'",
    )
    .bind(tenant.as_uuid())
    .bind(generation)
    .bind(door.state)
    .bind(door.reason)
    .execute(&mut gate.connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

async fn run(
    session: &mut Session,
    statement: &'static str,
    tenant: TenantId,
    generation: i64,
) -> Result<u64, CoreError> {
    sqlx::query(statement)
        .bind(tenant.as_uuid())
        .bind(generation)
        .execute(&mut session.connection)
        .await
        .map(|done| done.rows_affected())
        .map_err(CoreError::from_database)
}
