//! Rows as SQL, there and back.

use super::{
    catalogue::{Column, Relation},
    seed::{Row, Values},
    session::literal,
};

/// `insert into t (…) values (…)`, with the columns of `root`, whose numbers the values carry.
pub(super) fn insert(into: &str, root: &Relation, values: &Values) -> String {
    let columns: Vec<&Column> = values.keys().filter_map(|att| root.column(*att)).collect();
    if columns.is_empty() {
        return format!("insert into {into} default values");
    }
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    let values: Vec<String> = columns.iter().map(|c| typed(c, values)).collect();
    format!("insert into {into} ({}) values ({})", names.join(", "), values.join(", "))
}

/// A column's value as SQL of its type.
pub(super) fn typed(column: &Column, values: &Values) -> String {
    match values.get(&column.att).and_then(Option::as_deref) {
        Some(text) => format!("{}::{}", literal(Some(text)), column.type_name),
        None => "null".to_owned(),
    }
}

/// Where a row is, and all that is in it, as one JSON text.
pub(super) fn image(relation: &Relation) -> String {
    let columns: Vec<String> = relation.columns.iter().map(|c| format!("t.{}::text", c.name)).collect();
    format!("json_build_array(t.tableoid::bigint, array[{}]::text[])::text", columns.join(", "))
}

pub(super) fn insert_returning(relation: &Relation, values: &Values) -> String {
    let into = format!("{} as t", relation.name);
    format!("{} returning {}", insert(&into, relation, values), image(relation))
}

/// The row that [`image`] describes.
pub(super) fn row(relation: &Relation, answer: &[String]) -> Option<Row> {
    let (holder, texts): (i64, Vec<Option<String>>) = serde_json::from_str(answer.first()?).ok()?;
    let values = relation.columns.iter().map(|c| c.att).zip(texts).collect();
    Some(Row { holder, values })
}
