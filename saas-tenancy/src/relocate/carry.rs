//! Changes that the source logged, carried over to the target.
//!
//! A round reads the log and the rows in one snapshot of the source, and makes the target what the source is in that
//! snapshot: all touched rows go, and those that still exist come as they are now. It may be repeated, and a mover that is
//! killed in the middle leaves the log as it was.

use futures_util::{StreamExt as _, TryStreamExt as _};
use saas_core::CoreError;

use super::{
    MoveError,
    load::{check_foreign_keys, require_equal},
    record::Record,
    report::{Listener, Phase, tell},
    sides::{self, Sides},
    tables::Table,
};

/// Keys, or rows, in one statement.
const KEYS_AT_ONCE: usize = 2_000;
/// And no more than this many bytes of rows, but for one row that is larger.
const BYTES_AT_ONCE: usize = 1024 * 1024;

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
        carry_table(sides, record, &table).await?;
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

/// In a few round trips and without `COPY`: here it is the tenant that may be waiting, and each `COPY` ends with a small
/// message that a connection without `TCP_NODELAY`, as the driver opens it, holds back for some 40 ms.
async fn carry_table(sides: &mut Sides, record: &Record, table: &Table) -> Result<(), MoveError> {
    let moved: Vec<String> = sides.tables.iter().map(|table| table.target.clone()).collect();
    let (source, target) = (&mut sides.source, &mut sides.target);
    let (tenant, name) = (record.tenant, table.name.as_str());
    let refused =
        |error| MoveError::TargetRefused { table: table.name.clone(), cause: CoreError::from_database(error) };

    let mut keys = sqlx::query_scalar::<_, String>("select key from saas.move_keys($1, $2, $3) as key")
        .bind(tenant.as_uuid())
        .bind(record.id)
        .bind(name)
        .fetch(&mut source.connection)
        .chunks(KEYS_AT_ONCE);
    while let Some(chunk) = keys.next().await {
        let chunk: Vec<String> = chunk.into_iter().collect::<Result<_, _>>().map_err(CoreError::from_database)?;
        sqlx::query("select saas.move_forget($1::text::regclass, $2, $3, $4)")
            .bind(&table.target)
            .bind(tenant.as_uuid())
            .bind(name)
            .bind(chunk)
            .execute(&mut target.connection)
            .await
            .map_err(refused)?;
    }
    drop(keys);

    let mut rows =
        sqlx::query_scalar::<_, String>("select r from saas.move_rows($1::text::regclass, $2, $3, $4, $5) as r")
            .bind(&table.source)
            .bind(tenant.as_uuid())
            .bind(name)
            .bind(record.id)
            .bind(&table.row)
            .fetch(&mut source.connection);
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    loop {
        let row = rows.try_next().await.map_err(CoreError::from_database)?;
        let is_last = row.is_none();
        bytes += row.as_ref().map_or(0, String::len);
        chunk.extend(row);
        if bytes >= BYTES_AT_ONCE || chunk.len() >= KEYS_AT_ONCE || (is_last && !chunk.is_empty()) {
            sqlx::query("select saas.move_take($1::text::regclass, $2, $3)")
                .bind(&table.target)
                .bind(table.columns.join(", "))
                .bind(std::mem::take(&mut chunk))
                .execute(&mut target.connection)
                .await
                .map_err(refused)?;
            bytes = 0;
        }
        if is_last {
            break;
        }
    }
    drop(rows);

    let (here, there) = tokio::join!(
        sides::checksum(source, &table.source, tenant, Some(name), Some(record.id)),
        sides::checksum(target, &table.target, tenant, Some(name), None),
    );
    require_equal(name, &here?, &there?)?;
    check_foreign_keys(target, table, tenant, &moved, Some(name)).await
}
