//! Numbers that columns draw by default: from identities, `serial` and sequences of the application's own.
//!
//! A number that was drawn is not drawn again, also when its row is gone: the target's sequence goes on where the source's
//! has stopped, or where it is itself, whichever is farther. Carried while the tenant waits, when nothing of it is drawn.

use saas_core::CoreError;

use super::{MoveError, sides::Sides};

pub(super) async fn carry(sides: &mut Sides) -> Result<(), MoveError> {
    let (sources, targets): (Vec<&str>, Vec<&str>) =
        sides.tables.iter().map(|table| (table.source.as_str(), table.target.as_str())).unzip();
    let drawn: Vec<(i64, String, i64)> = sqlx::query_as(
        "select t.place, n.column_name, n.drawn
         from unnest($1::text[]) with ordinality as t (name, place)
         cross join lateral saas.move_numbers(t.name::regclass) as n",
    )
    .bind(sources)
    .fetch_all(&mut sides.source.connection)
    .await
    .map_err(CoreError::from_database)?;
    if drawn.is_empty() {
        return Ok(());
    }
    let (mut places, mut columns, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for (place, column, number) in drawn {
        places.push(place);
        columns.push(column);
        numbers.push(number);
    }
    sqlx::query(
        "select saas.move_go_on(($1::text[])[d.place]::regclass, d.column_name, d.drawn)
         from unnest($2::bigint[], $3::text[], $4::bigint[]) as d (place, column_name, drawn)",
    )
    .bind(targets)
    .bind(places)
    .bind(columns)
    .bind(numbers)
    .execute(&mut sides.target.connection)
    .await
    .map(drop)
    .map_err(|error| MoveError::TargetRefused { table: "its sequences".into(), cause: CoreError::from_database(error) })
}
