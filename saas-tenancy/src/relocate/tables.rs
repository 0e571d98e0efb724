//! Which tables move, and whether the target has the same ones.
//!
//! The order in which they move does not matter: the target checks no foreign key while rows arrive (see `session`), and
//! what arrives is one snapshot in which the source's own keys hold. So cycles and self-references need nothing special.

use super::{
    MoveError, Side,
    layout::{Column, Layout, Shape},
};

/// A table that moves.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    /// Schema and name, quoted.
    pub(super) source: String,
    pub(super) target: String,
    /// The columns to copy, quoted; generated ones come by themselves.
    pub(super) columns: Vec<String>,
    /// A row of the source as one of the target: the target's columns in its order, null for a generated one.
    pub(super) row: String,
    pub(super) is_binary: bool,
}

impl Table {
    /// Sends the rows of a from item that calls this table `t`.
    pub(super) fn copy_out(&self, from: &str) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| format!("t.{column}")).collect();
        format!("copy (select {} from {from}) to stdout (format {})", columns.join(", "), self.format())
    }

    /// Takes them in.
    pub(super) fn copy_in(&self) -> String {
        format!("copy {} ({}) from stdin (format {})", self.target, self.columns.join(", "), self.format())
    }

    const fn format(&self) -> &'static str {
        if self.is_binary { "binary" } else { "text" }
    }
}

/// The tables to move, or the first difference that stands in the way.
pub(super) fn compare(source: &Layout, target: &Layout) -> Result<Vec<Table>, MoveError> {
    let differs = |table: &Shape, what: String| Err(MoveError::Differs { table: table.name.clone(), what });
    if let Some(extra) = target.tables.iter().find(|table| !source.tables.iter().any(|other| other.name == table.name))
    {
        return differs(extra, format!("exists only in the {}", Side::Target));
    }
    let mut tables = Vec::with_capacity(source.tables.len());
    for here in &source.tables {
        if !here.has_key {
            return Err(MoveError::Unmovable {
                table: here.qualified.clone(),
                reason: "it has no primary key, so a changed row cannot be found again".into(),
                remedy: format!("alter table {} add primary key (tenant_id, …)", here.qualified),
            });
        }
        let Some(there) = target.tables.iter().find(|table| table.name == here.name) else {
            return differs(here, format!("exists only in the {}", Side::Source));
        };
        if let Some(what) = difference(here, there) {
            return differs(here, what);
        }
        tables.push(Table {
            name: here.name.clone(),
            source: here.qualified.clone(),
            target: there.qualified.clone(),
            columns: here.columns.iter().filter(|c| c.generated.is_empty()).map(|c| c.quoted.clone()).collect(),
            row: row(there),
            is_binary: here.is_plain && there.is_plain && source.release == target.release,
        });
    }
    Ok(tables)
}

fn row(of: &Shape) -> String {
    let mut columns: Vec<&Column> = of.columns.iter().collect();
    columns.sort_by_key(|column| column.place);
    let cells = columns.into_iter().map(|column| match column.generated.as_str() {
        "" => format!("t.{}", column.quoted),
        _ => "null".to_owned(),
    });
    cells.collect::<Vec<_>>().join(", ")
}

fn difference(here: &Shape, there: &Shape) -> Option<String> {
    for (column, side, other) in here
        .columns
        .iter()
        .map(|column| (column, Side::Source, there))
        .chain(there.columns.iter().map(|column| (column, Side::Target, here)))
    {
        let Some(twin) = other.columns.iter().find(|twin| twin.name == column.name) else {
            return Some(format!("has a column {} only in the {side}", column.name));
        };
        if twin.kind != column.kind {
            return Some(format!("has a column {} of another type: {} and {}", column.name, column.kind, twin.kind));
        }
        if twin.is_required != column.is_required || twin.generated != column.generated {
            return Some(format!("has a column {} that is not null, or computed, on one side only", column.name));
        }
    }
    let only = |mine: &Shape, other: &Shape| mine.constraints.iter().find(|k| !other.constraints.contains(k)).cloned();
    if let Some(constraint) = only(here, there) {
        return Some(format!("has a constraint only in the {}: {constraint}", Side::Source));
    }
    only(there, here).map(|constraint| format!("has a constraint only in the {}: {constraint}", Side::Target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str, columns: &[(&str, &str)]) -> Shape {
        let columns = columns.iter().zip(1..).map(|((name, kind), place)| Column {
            name: (*name).into(),
            place,
            quoted: (*name).into(),
            kind: (*kind).into(),
            is_required: true,
            generated: String::new(),
        });
        let constraints = vec!["PRIMARY KEY (tenant_id, id)".into()];
        let (name, qualified) = (name.to_owned(), format!("public.{name}"));
        Shape {
            name,
            qualified,
            columns: columns.collect(),
            constraints,
            partitions: String::new(),
            is_plain: true,
            has_key: true,
        }
    }

    fn layout(tables: Vec<Shape>) -> Layout {
        Layout { tables, release: 15 }
    }

    const COLUMNS: &[(&str, &str)] = &[("id", "uuid"), ("tenant_id", "uuid")];

    #[test]
    fn equal_tables_move_and_a_column_that_is_computed_is_not_copied() {
        let mut project = shape("project", &[("id", "uuid"), ("size", "integer"), ("tenant_id", "uuid")]);
        project.columns[1].generated = "1 + 1".into();
        let tables = compare(&layout(vec![project.clone()]), &layout(vec![project.clone()])).unwrap();
        assert_eq!((tables[0].columns.join(","), tables[0].is_binary), ("id,tenant_id".into(), true));
        assert_eq!(tables[0].row, "t.id, null, t.tenant_id");
        let mut turned = project.clone();
        turned.columns[0].place = 9;
        let tables = compare(&layout(vec![project.clone()]), &layout(vec![turned])).unwrap();
        assert_eq!(tables[0].row, "null, t.tenant_id, t.id", "in the order of the target");
        let newer = Layout { tables: vec![project.clone()], release: 16 };
        assert!(!compare(&layout(vec![project]), &newer).unwrap()[0].is_binary, "another release");
    }

    #[test]
    fn the_first_difference_is_named() {
        let source = layout(vec![shape("project", COLUMNS)]);
        let told = |target: Vec<Shape>| compare(&source, &layout(target)).unwrap_err().to_string();
        assert!(told(vec![]).starts_with("the table project exists only in the source;"));
        let more = told(vec![shape("project", COLUMNS), shape("task", COLUMNS)]);
        assert!(more.starts_with("the table task exists only in the target;"), "{more}");
        let kind = told(vec![shape("project", &[("id", "mood"), ("tenant_id", "uuid")])]);
        assert!(kind.starts_with("the table project has a column id of another type: uuid and mood;"), "{kind}");
        let column = told(vec![shape("project", &COLUMNS[1..])]);
        assert!(column.starts_with("the table project has a column id only in the source;"), "{column}");
        let mut loose = shape("project", COLUMNS);
        loose.constraints.clear();
        let constraint = told(vec![loose]);
        assert!(
            constraint.contains("has a constraint only in the source: PRIMARY KEY (tenant_id, id);"),
            "{constraint}"
        );
    }

    #[test]
    fn a_table_without_a_key_is_refused_with_the_mend() {
        let mut heap = shape("heap", COLUMNS);
        heap.has_key = false;
        let error = compare(&layout(vec![heap.clone()]), &layout(vec![heap])).unwrap_err();
        assert_eq!(error.code(), "table_unmovable");
        assert!(error.to_string().ends_with("alter table public.heap add primary key (tenant_id, …)"), "{error}");
    }
}
