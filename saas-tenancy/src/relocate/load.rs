//! From nothing to a verified copy: the source's changes are logged, then each table is copied and compared.

use saas_core::{CoreError, TenantId};

use super::{
    Mode, MoveError, Side, door,
    pipe::Pipe,
    record::{Control, Record},
    report::{Listener, MovedTable, Phase, Progress, tell},
    session::Session,
    sides::{self, Checksum, Sides, patiently},
    state::State,
    tables::Table,
};

/// Makes sure that the target is empty and shut, and has the source log every change from now on.
pub(super) async fn capture(
    control: &Control,
    sides: &mut Sides,
    record: &mut Record,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    door::look(&mut sides.gate, record.tenant, record.generation).await?;
    if !sides.is_one_database {
        door::shut_target(&mut sides.target, record.tenant, record.generation).await?;
    }
    for table in &sides.tables {
        if sides::has_rows(&mut sides.target, &table.target, record.tenant, false).await? {
            return Err(MoveError::NotEmpty { table: table.target.clone() });
        }
        let is_own = record.target.mode != Mode::Pooled;
        if is_own && sides::has_rows(&mut sides.target, &table.target, record.tenant, true).await? {
            return Err(MoveError::Occupied { address: record.target.to_string() });
        }
    }
    tell(listener, Phase::Planned, "");
    door::register(&mut sides.gate, record.tenant, record.generation).await?;
    for table in &sides.tables {
        tell(listener, Phase::Capture, &table.name);
        let watch = "select saas.move_watch($1::text::regclass, $2, $3, $4)";
        let (id, tenant, generation) = (record.id, record.tenant.as_uuid(), record.generation);
        let query = || sqlx::query(watch).bind(table.source.as_str()).bind(id).bind(tenant).bind(generation);
        patiently(&mut sides.source, &table.source, query).await?;
    }
    record.report.was_captured = true;
    record.report.shape.clone_from(&sides.shape);
    control.advance(record, State::Copying).await
}

/// Copies the tables that have not arrived, each in a transaction of its own, in which it is compared before it stays.
///
/// Each table may come from another snapshot: whatever changed after the log began is carried over later anyway.
pub(super) async fn copy(
    control: &Control,
    sides: &mut Sides,
    record: &Record,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let arrived = control.list_arrived(record).await?;
    for table in sides.tables.clone() {
        if !arrived.contains_key(&table.name) {
            copy_table(control, sides, record, &table, listener).await?;
        }
    }
    Ok(())
}

async fn copy_table(
    control: &Control,
    sides: &mut Sides,
    record: &Record,
    table: &Table,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    tell(listener, Phase::Copy, &table.name);
    let moved: Vec<String> = sides.tables.iter().map(|table| table.target.clone()).collect();
    let (source, target) = (&mut sides.source, &mut sides.target);
    let refused = |cause| MoveError::TargetRefused { table: table.name.clone(), cause };
    // Left over from a mover that was killed between this table's arrival and the note of it. What was there before the
    // move was looked for before the first table came.
    sides::clear_table(target, &table.target, record.tenant).await?;
    source.begin_snapshot().await?;
    target.begin().await?;
    let pipe = Pipe {
        table: &table.name,
        out: table.copy_out(&format!("{} t where t.tenant_id = '{}'", table.source, record.tenant)),
        into: table.copy_in(),
    };
    let carried = pipe.run(source, target, Phase::Copy, listener).await?;
    listener(Progress {
        phase: Phase::Verify,
        table: &table.name,
        rows: carried.rows,
        bytes: carried.bytes,
        bytes_per_second: 0.0,
    });
    let (here, there) = tokio::join!(
        sides::checksum(source, &table.source, record.tenant, None, None),
        sides::checksum(target, &table.target, record.tenant, None, None),
    );
    let (here, there) = (here?, there?);
    require_equal(&table.name, &here, &there)?;
    // Every row that came is the tenant's: as many as were copied are found under its id.
    if there.rows != i64::try_from(carried.rows).unwrap_or(i64::MAX) {
        return Err(unequal(&table.name, i64::try_from(carried.rows).unwrap_or(i64::MAX), there.rows));
    }
    check_foreign_keys(target, table, record.tenant, &moved, None).await?;
    target.commit().await.map_err(refused)?;
    source.rollback().await?;
    if record.target.mode != Mode::Pooled {
        sqlx::query("select saas.move_analyze($1::text::regclass)")
            .bind(&table.target)
            .execute(&mut target.connection)
            .await
            .map_err(CoreError::from_database)?;
    }
    control.arrived(record, &table.name, carried, &here.sum).await
}

pub(super) fn require_equal(table: &str, source: &Checksum, target: &Checksum) -> Result<(), MoveError> {
    if source == target { Ok(()) } else { Err(unequal(table, source.rows, target.rows)) }
}

fn unequal(table: &str, source_rows: i64, target_rows: i64) -> MoveError {
    MoveError::Unequal { table: table.to_owned(), source_rows, target_rows }
}

/// Keys to tables that do not move.
pub(super) async fn check_foreign_keys(
    target: &mut Session,
    table: &Table,
    tenant: TenantId,
    moved: &[String],
    touched: Option<&str>,
) -> Result<(), MoveError> {
    let broken: Option<String> =
        sqlx::query_scalar("select saas.move_orphan($1::text::regclass, $2, $3::text[]::regclass[], $4)")
            .bind(&table.target)
            .bind(tenant.as_uuid())
            .bind(moved)
            .bind(touched)
            .fetch_one(&mut target.connection)
            .await
            .map_err(CoreError::from_database)?;
    match broken {
        None => Ok(()),
        Some(constraint) => Err(MoveError::Orphan { table: table.name.clone(), constraint }),
    }
}

/// Everything that has arrived, for the report.
pub(super) async fn list_moved(control: &Control, record: &Record) -> Result<Vec<MovedTable>, CoreError> {
    let arrived = control.list_arrived(record).await?;
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(arrived
        .into_iter()
        .map(|(name, (rows, bytes, checksum))| MovedTable {
            name,
            rows: positive(rows),
            bytes: positive(bytes),
            checksum,
        })
        .collect())
}

/// Clears the target and begins again: the log has a gap.
pub(super) async fn start_over(control: &Control, sides: &mut Sides, record: &mut Record) -> Result<(), MoveError> {
    sides.unwatch(record).await?;
    sides.clear(Side::Target, record.tenant).await?;
    control.forget_arrived(record).await?;
    control.advance(record, State::Planned).await
}
