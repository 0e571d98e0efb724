//! Both ends of a move, opened and found to fit.

use std::time::Duration;

use saas_core::{CoreError, TenantId};
use sqlx::{Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{
    Endpoint, Mode, MoveError, Side, layout,
    record::Record,
    session::{self, Lock, Session, is_lock_timeout},
    tables::{self, Table},
};

/// How long a mover waits for one that was killed to let go.
pub(super) const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// Rows that are deleted in one transaction.
const CLEAR_BATCH: i64 = 10_000;

/// The sessions of one mover, and the tables that move.
///
/// The target's session holds the lock of the right to change the target for as long as it lives, so whoever was taken for
/// dead cannot write there any more. The gate is the only one that changes the source's door.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) gate: Session,
    pub(super) source: Session,
    pub(super) target: Session,
    pub(super) is_one_database: bool,
    pub(super) tables: Vec<Table>,
    /// What the tables of both sides look like, as a digest.
    pub(super) shape: String,
    schemas: [String; 2],
}

/// Number and checksum of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checksum {
    pub(super) rows: i64,
    pub(super) sum: String,
}

impl Sides {
    /// Opens both ends for the one mover that may drive.
    pub(super) async fn open(record: &Record, from: &Endpoint, to: &Endpoint) -> Result<Self, MoveError> {
        let mut target = Session::open(to, Side::Target).await?;
        if target.lock(record.tenant, Lock::Target, TAKE_OVER_PATIENCE).await?.is_none() {
            return Err(MoveError::Driven);
        }
        let mut gate = Session::open(from, Side::Source).await?;
        let mut source = Session::open(from, Side::Source).await?;
        // Held by the session that makes the triggers: who stops the log knows that no more of them come.
        if source.lock(record.tenant, Lock::Source, TAKE_OVER_PATIENCE).await?.is_none() {
            return Err(MoveError::Driven);
        }
        session::prepare(&mut source, &from.login).await?;
        session::prepare(&mut target, &to.login).await?;
        // Held until the sessions end: rows that are copied while their tables change would not arrive whole.
        source.keep_tables(&from.schema).await?;
        target.keep_tables(&to.schema).await?;
        let is_one_database = source.identity().await? == target.identity().await?;
        if is_one_database && from.schema == to.schema {
            return Err(MoveError::AlreadyThere { address: record.target.to_string() });
        }
        let here = layout::read(&mut source, &from.schema).await?;
        let there = layout::read(&mut target, &to.schema).await?;
        layout::refuse_leftovers(&mut source, &from.schema, record.source.mode == Mode::Schema).await?;
        let tables = tables::compare(&here, &there)?;
        // Keys of touched rows on their way from the log; gone with the session.
        target.run("create temporary table saas_move_key (table_name text not null, key jsonb not null)").await?;
        gate.run("set application_name = 'saas mover gate'").await?;
        let (shape, schemas) = (here.digest(&there), [from.schema.clone(), to.schema.clone()]);
        Ok(Self { gate, source, target, is_one_database, tables, shape, schemas })
    }

    /// Makes sure that the tables are the ones that were found to fit, and whose changes are logged.
    pub(super) async fn require_unchanged(&mut self, record: &Record) -> Result<(), MoveError> {
        let [here, there] = &self.schemas;
        let (here, there) = tokio::join!(layout::read(&mut self.source, here), layout::read(&mut self.target, there));
        if here?.digest(&there?) == record.report.shape { Ok(()) } else { Err(MoveError::ChangedMeanwhile) }
    }

    /// Whether every table of the source logs its changes for this move.
    pub(super) async fn is_captured(&mut self, record: &Record) -> Result<bool, CoreError> {
        let names: Vec<&str> = self.tables.iter().map(|table| table.source.as_str()).collect();
        sqlx::query_scalar(
            "select not exists (
                 select
                 from unnest($1::text[]) as t (name)
                 cross join unnest(array['new', 'old', 'key', 'all']) as kind
                 where not exists (select from pg_trigger g
                                   where g.tgrelid = t.name::regclass and g.tgname = saas.move_trigger($2, kind)
                                     and g.tgenabled in ('O', 'A')))",
        )
        .bind(names)
        .bind(record.id)
        .fetch_one(&mut self.source.connection)
        .await
        .map_err(CoreError::from_database)
    }

    /// Deletes the tenant's rows of one side, some at a time. Triggers do not fire, and no other tenant's row is touched.
    pub(super) async fn clear(&mut self, side: Side, tenant: TenantId) -> Result<(), MoveError> {
        for table in &self.tables {
            let (session, name) = match side {
                Side::Source => (&mut self.source, &table.source),
                Side::Target => (&mut self.target, &table.target),
            };
            clear_table(session, name, tenant).await?;
        }
        Ok(())
    }

    /// Takes the triggers of this move off the source, and empties its log.
    pub(super) async fn unwatch(&mut self, record: &Record) -> Result<(), MoveError> {
        for table in &self.tables {
            unwatch_table(&mut self.source, &table.source, record.id).await?;
        }
        Ok(forget_log(&mut self.source, record).await?)
    }
}

pub(super) async fn unwatch_table(source: &mut Session, table: &str, id: Uuid) -> Result<(), MoveError> {
    let unwatch = || sqlx::query("select saas.move_unwatch($1::text::regclass, $2)").bind(table).bind(id);
    patiently(source, table, unwatch).await
}

pub(super) async fn forget_log(source: &mut Session, record: &Record) -> Result<(), CoreError> {
    sqlx::query("delete from saas.move_change where tenant_id = $1 and move_id = $2")
        .bind(record.tenant.as_uuid())
        .bind(record.id)
        .execute(&mut source.connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

pub(super) async fn clear_table(session: &mut Session, table: &str, tenant: TenantId) -> Result<(), CoreError> {
    loop {
        let gone: i64 = sqlx::query_scalar("select saas.move_empty($1::text::regclass, $2, $3)")
            .bind(table)
            .bind(tenant.as_uuid())
            .bind(CLEAR_BATCH)
            .fetch_one(&mut session.connection)
            .await
            .map_err(CoreError::from_database)?;
        if gone == 0 {
            return Ok(());
        }
    }
}

pub(super) async fn has_rows(
    session: &mut Session,
    table: &str,
    tenant: TenantId,
    of_others: bool,
) -> Result<bool, CoreError> {
    sqlx::query_scalar("select saas.move_has_rows($1::text::regclass, $2, $3)")
        .bind(table)
        .bind(tenant.as_uuid())
        .bind(of_others)
        .fetch_one(&mut session.connection)
        .await
        .map_err(CoreError::from_database)
}

/// Number and checksum of all the tenant's rows, or of those that were touched; `log` names the move whose log says which.
pub(super) async fn checksum(
    session: &mut Session,
    qualified: &str,
    tenant: TenantId,
    touched: Option<&str>,
    log: Option<Uuid>,
) -> Result<Checksum, CoreError> {
    let (rows, sum) =
        sqlx::query_as("select row_count, checksum from saas.move_checksum($1::text::regclass, $2, $3, $4)")
            .bind(qualified)
            .bind(tenant.as_uuid())
            .bind(touched)
            .bind(log)
            .fetch_one(&mut session.connection)
            .await
            .map_err(CoreError::from_database)?;
    Ok(Checksum { rows, sum })
}

/// Waits this long for a table at a time: behind a waiting lock, everyone else waits too.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
/// Between two tries, for the others to get on with it; grows with each.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const LOCK_TRIES: u32 = 40;

/// Runs a statement that needs a table for itself for a moment.
pub(super) async fn patiently<'q>(
    session: &mut Session,
    table: &str,
    statement: impl Fn() -> Query<'q, Postgres, PgArguments> + Send,
) -> Result<(), MoveError> {
    session.set_patience(LOCK_PATIENCE).await?;
    for attempt in 1..=LOCK_TRIES {
        match statement().execute(&mut session.connection).await {
            Ok(_) => return Ok(session.set_patience(TAKE_OVER_PATIENCE).await?),
            Err(error) if is_lock_timeout(&error) => tokio::time::sleep(LOCK_PAUSE * attempt.min(10)).await,
            Err(error) => return Err(CoreError::from_database(error).into()),
        }
    }
    session.set_patience(TAKE_OVER_PATIENCE).await?;
    Err(MoveError::Busy { what: format!("the table {table}") })
}
