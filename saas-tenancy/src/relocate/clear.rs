//! Clearing the side where the tenant does not live: the source once the move is confirmed, the target when it is rolled back.

use saas_core::CoreError;
use sqlx::{Connection as _, PgConnection};

use super::{
    Address, Endpoint, Mode, MoveError, Side, layout,
    record::{Control, Record},
    report::{Listener, Phase, tell},
    session::{self, Lock, Session},
    sides::{TAKE_OVER_PATIENCE, clear_table, forget_log, has_rows, unwatch_table},
    state::State,
};

/// What becomes of the place that the tenant has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Nothing of it: a schema or database of the tenant's own goes as a whole.
    Nothing,
    /// The place without the rows, for the tenant to come back to.
    Place,
}

/// Removes the tenant's rows from the source. The placement says that the tenant lives in the target.
pub(super) async fn source(
    control: &Control,
    record: &mut Record,
    from: &Endpoint,
    leave: Leave,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let mut session = match Session::open(from, Side::Source).await {
        Ok(session) => session,
        // Removed by a mover that was killed before it could say so.
        Err(error) if is_gone(&error) => {
            let gone = record.source.clone();
            return control.finish(record, State::Confirmed, "tenant.move_confirmed", Some(&gone)).await;
        }
        Err(error) => return Err(error),
    };
    session::prepare(&mut session, &from.login).await?;
    require_left(&mut session, record).await?;
    let layout = layout::read(&mut session, &from.schema).await?;
    let is_whole = leave == Leave::Nothing
        && match record.source.mode {
            Mode::Pooled => false,
            Mode::Schema => true,
            Mode::Database => from.maintenance.is_some(),
        };
    if is_whole {
        for table in &layout.tables {
            if has_rows(&mut session, &table.qualified, record.tenant, true).await? {
                return Err(MoveError::Unmovable {
                    table: table.qualified.clone(),
                    reason: "it holds rows of other tenants, so it is not this tenant's own".into(),
                    remedy: "correct the placement, or move the others out first".into(),
                });
            }
        }
        tell(listener, Phase::Clear, "");
        drop_place(session, record, from).await?;
    } else {
        for table in &layout.tables {
            tell(listener, Phase::Clear, &table.name);
            clear_table(&mut session, &table.qualified, record.tenant).await?;
            unwatch_table(&mut session, &table.qualified, record.id).await?;
        }
        forget_log(&mut session, record).await?;
    }
    let gone = is_whole.then(|| record.source.clone());
    control.finish(record, State::Confirmed, "tenant.move_confirmed", gone.as_ref()).await
}

/// Forgets in the fleet's ledger a place of a tenant's own that is no more.
pub(super) async fn forget_site_in(control: &mut PgConnection, gone: &Address) -> Result<(), CoreError> {
    let Address { mode, cluster, database, schema, .. } = gone;
    if *mode == Mode::Pooled {
        return Ok(());
    }
    sqlx::query(
        "delete from saas.fleet_site
         where cluster = $1 and database_name = coalesce($2, '') and schema_name = coalesce($3, '')",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .execute(control)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The last look before rows are deleted: at the source itself, not at what was recorded.
async fn require_left(source: &mut Session, record: &Record) -> Result<(), MoveError> {
    let has_left: Option<bool> = sqlx::query_scalar(
        "select generation > $2 or (generation = $2 and state = 'closed') from saas.resident where tenant_id = $1",
    )
    .bind(record.tenant.as_uuid())
    .bind(record.generation)
    .fetch_optional(&mut source.connection)
    .await
    .map_err(CoreError::from_database)?;
    if has_left == Some(true) { Ok(()) } else { Err(MoveError::PlacementChanged { state: record.state }) }
}

/// What the fence and the audit remember about the tables of a schema.
const FORGET_TABLES: [&str; 3] = [
    "delete from saas.fenced_table where starts_with(name, quote_ident($1) || '.')",
    "delete from saas.global_table where starts_with(name, quote_ident($1) || '.')",
    "delete from saas.accepted_finding where starts_with(object, quote_ident($1) || '.')",
];

async fn drop_place(mut session: Session, record: &Record, from: &Endpoint) -> Result<(), MoveError> {
    if record.source.mode == Mode::Schema {
        sqlx::query("select saas.move_drop_schema($1)")
            .bind(&from.schema)
            .execute(&mut session.connection)
            .await
            .map_err(CoreError::from_database)?;
        for statement in FORGET_TABLES {
            sqlx::query(statement)
                .bind(&from.schema)
                .execute(&mut session.connection)
                .await
                .map_err(CoreError::from_database)?;
        }
        return Ok(forget_log(&mut session, record).await?);
    }
    let Some(maintenance) = &from.maintenance else { return Ok(()) };
    let quoted: String = sqlx::query_scalar("select quote_ident(current_database())")
        .fetch_one(&mut session.connection)
        .await
        .map_err(CoreError::from_database)?;
    drop(session);
    let mut connection = PgConnection::connect_with(maintenance).await.map_err(CoreError::from_database)?;
    sqlx::raw_sql(drop_database(&quoted)).execute(&mut connection).await.map_err(CoreError::from_database)?;
    drop(connection.close().await);
    Ok(())
}

#[expect(clippy::disallowed_types, reason = "DROP DATABASE runs in no function; the server itself quoted the name")]
fn drop_database(quoted: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("drop database if exists {quoted} with (force)"))
}

/// Stops the log and removes the tenant's rows from the target. The placement says that the tenant lives in the source,
/// whose door is open.
///
/// The source comes first: whatever state the target is in, the tenant is rid of the move.
pub(super) async fn target(
    control: &Control,
    record: &mut Record,
    from: &Endpoint,
    to: Result<Endpoint, CoreError>,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let mut source = Session::open(from, Side::Source).await?;
    if source.lock(record.tenant, Lock::Source, TAKE_OVER_PATIENCE).await?.is_none() {
        return Err(MoveError::Driven);
    }
    session::prepare(&mut source, &from.login).await?;
    let watched: Vec<String> = sqlx::query_scalar(
        "select distinct format('%I.%I', n.nspname, c.relname)
         from pg_trigger g
         join pg_class c on c.oid = g.tgrelid
         join pg_namespace n on n.oid = c.relnamespace
         where g.tgparentid = 0 and g.tgname in
             (select saas.move_trigger($1, kind) from unnest(array['new', 'old', 'key', 'all']) as kind)",
    )
    .bind(record.id)
    .fetch_all(&mut source.connection)
    .await
    .map_err(CoreError::from_database)?;
    for table in &watched {
        unwatch_table(&mut source, table, record.id).await?;
    }
    forget_log(&mut source, record).await?;
    let gone = match clear_target(&mut source, record, &to?, listener).await {
        Ok(()) => None,
        Err(error) if is_gone(&error) => Some(record.target.clone()),
        Err(error) => return Err(error),
    };
    control.forget_arrived(record).await?;
    control.finish(record, State::RolledBack, "tenant.move_rolled_back", gone.as_ref()).await
}

async fn clear_target(
    source: &mut Session,
    record: &Record,
    to: &Endpoint,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let mut session = Session::open(to, Side::Target).await?;
    if session.lock(record.tenant, Lock::Target, TAKE_OVER_PATIENCE).await?.is_none() {
        return Err(MoveError::Driven);
    }
    // A move that was never captured has put nothing there, and what is there is not its own.
    if record.report.was_captured {
        session::prepare(&mut session, &to.login).await?;
        if source.identity().await? != session.identity().await? {
            require_shut(&mut session, record).await?;
        }
        for table in layout::read(&mut session, &to.schema).await?.tables {
            tell(listener, Phase::Clear, &table.name);
            clear_table(&mut session, &table.qualified, record.tenant).await?;
        }
    }
    Ok(())
}

/// Nobody works at the target.
async fn require_shut(target: &mut Session, record: &Record) -> Result<(), MoveError> {
    let is_shut: Option<bool> =
        sqlx::query_scalar("select generation <= $2 and state = 'closed' from saas.resident where tenant_id = $1")
            .bind(record.tenant.as_uuid())
            .bind(record.generation + 1)
            .fetch_optional(&mut target.connection)
            .await
            .map_err(CoreError::from_database)?;
    if is_shut == Some(true) { Ok(()) } else { Err(MoveError::PlacementChanged { state: record.state }) }
}

/// The place does not exist, for certain: as opposed to one that does not answer.
fn is_gone(error: &MoveError) -> bool {
    matches!(error, MoveError::PlaceGone { is_certain: true, .. })
}
