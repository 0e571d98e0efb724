//! Changes that the source logged, carried over to the target.
//!
//! A round reads the log and the rows in one snapshot of the source, and makes the target what the source is in that
//! snapshot: all touched rows go, and those that still exist come as they are now. It may be repeated, and a mover that is
//! killed in the middle leaves the log as it was.

use saas_core::CoreError;
use uuid::Uuid;

use super::{
    MoveError,
    load::{check_foreign_keys, raise_identity, require_equal},
    pipe::Pipe,
    record::Record,
    report::{Listener, Phase, tell},
    sides::{self, Sides},
    tables::Table,
};

/// Carries over what is in the log; answers how many rows that were.
pub(super) async fn round(
    sides: &mut Sides,
    record: &Record,
    phase: Phase,
    listener: Listener<'_>,
) -> Result<u64, MoveError> {
    tell(listener, phase, "");
    sides.target.begin().await?;
    sides.source.begin_snapshot().await?;
    let touched: Vec<(String, i64)> = sqlx::query_as(
        "select table_name, count(distinct key) from saas.move_change where tenant_id = $1 and move_id = $2 group by table_name",
    )
    .bind(record.tenant.as_uuid())
    .bind(record.id)
    .fetch_all(&mut sides.source.connection)
    .await
    .map_err(CoreError::from_database)?;
    let mut total = 0;
    for (name, keys) in &touched {
        let table = sides.tables.iter().find(|table| table.name == *name).cloned();
        // A forged line of the log, or a table that was renamed: it is not among those that were found to fit.
        let table =
            table.ok_or_else(|| MoveError::Differs { table: name.clone(), what: "is in the log only".into() })?;
        carry_table(sides, record, &table, phase, listener).await?;
        total += u64::try_from(*keys).unwrap_or(0);
    }
    if !touched.is_empty() {
        sides.target.run("truncate pg_temp.saas_move_key").await?;
        sides::forget_log(&mut sides.source, record).await?;
    }
    let lost = |cause| MoveError::TargetRefused { table: "the log".into(), cause };
    sides.target.commit().await.map_err(lost)?;
    // Only what the snapshot has seen leaves the log; if this does not arrive, the next round does the same again.
    sides.source.commit().await?;
    Ok(total)
}

async fn carry_table(
    sides: &mut Sides,
    record: &Record,
    table: &Table,
    phase: Phase,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let moved: Vec<String> = sides.tables.iter().map(|table| table.target.clone()).collect();
    let (source, target) = (&mut sides.source, &mut sides.target);
    let tenant = record.tenant;
    let keys = Pipe {
        table: &table.name,
        out: format!(
            "copy (select distinct table_name, key from saas.move_change
                   where tenant_id = '{tenant}' and move_id = '{}' and table_name = {}) to stdout",
            record.id,
            literal(&table.name),
        ),
        into: "copy pg_temp.saas_move_key (table_name, key) from stdin".to_owned(),
    };
    keys.run(source, target, phase, listener).await?;
    sqlx::query("select saas.move_forget($1::text::regclass, $2, $3)")
        .bind(&table.target)
        .bind(&table.name)
        .bind(tenant.as_uuid())
        .execute(&mut target.connection)
        .await
        .map_err(|error| refused(table, error))?;
    let touched: String = sqlx::query_scalar("select saas.move_touched($1::text::regclass, $2, $3, $4)")
        .bind(&table.source)
        .bind(tenant.as_uuid())
        .bind(&table.name)
        .bind(record.id)
        .fetch_one(&mut source.connection)
        .await
        .map_err(CoreError::from_database)?;
    let rows = Pipe { table: &table.name, out: table.copy_out(&touched), into: table.copy_in() };
    rows.run(source, target, phase, listener).await?;
    let name = Some(table.name.as_str());
    let (here, there) = tokio::join!(
        sides::checksum(source, &table.source, tenant, name, Some(record.id)),
        sides::checksum(target, &table.target, tenant, name, None::<Uuid>),
    );
    require_equal(&table.name, &here?, &there?)?;
    check_foreign_keys(target, table, tenant, &moved, name).await?;
    raise_identity(target, table, tenant).await?;
    Ok(())
}

fn refused(table: &Table, error: sqlx::Error) -> MoveError {
    MoveError::TargetRefused { table: table.name.clone(), cause: CoreError::from_database(error) }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
