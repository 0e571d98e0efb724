//! More rows of a table, in which flags, states and empty columns take turns: what a policy or a key says of some rows
//! only is then said of one of these.

use saas_core::CoreError;

use super::{Planter, Seeds, Values};
use crate::testing::{
    catalogue::{Catalogue, Column, Relation},
    graph::linked,
    statement::{insert_returning, row},
    value::{Side, constants},
};

/// Enough for every pair of values of seven two-valued columns.
const ROWS: usize = 8;
/// How many states of one column are tried.
const STATES: usize = 16;

impl Seeds {
    /// Stores what can be stored of them; a combination that the table's rules forbid is none that could leak.
    pub(super) async fn vary(
        &mut self,
        planter: &mut Planter<'_>,
        catalogue: &Catalogue,
        relation: &Relation,
        side: Side,
    ) -> Result<(), CoreError> {
        for variant in self.variants(catalogue, relation, side) {
            let Some(mut values) = self.fresh(catalogue, relation, side) else { break };
            values.extend(variant);
            let stored = planter.store(self.tenant(side), &insert_returning(relation, &values)).await?;
            if let Some(row) = stored.ok().and_then(|answer| row(relation, &answer)) {
                self.keep(relation, side, row);
            }
        }
        Ok(())
    }

    fn variants(&mut self, catalogue: &Catalogue, relation: &Relation, side: Side) -> Vec<Values> {
        let links = self.links(catalogue, relation, side);
        let linked = linked(catalogue, relation);
        let may_vary = |c: &&Column| {
            !c.is_generated
                && !c.is_identity
                && !relation.is_tenant(c.att)
                && !relation.partition_key.contains(&c.att)
                && !catalogue.keys_of(relation.oid).any(|key| key.is_primary && key.columns.contains(&c.att))
        };
        let mut switches: Vec<(i16, Vec<Option<String>>)> = Vec::new();
        for column in relation.columns.iter().filter(may_vary) {
            let mut states: Vec<Option<String>> = if linked.contains(&column.att) {
                vec![links.get(&column.att).cloned().flatten()]
            } else {
                let states = states(catalogue, relation, column);
                if states.is_empty() && !column.not_null {
                    vec![self.maker.value(catalogue, column.type_oid, column.typmod, side)]
                } else {
                    states.into_iter().map(Some).collect()
                }
            };
            if !column.not_null {
                states.push(None);
            }
            states.dedup();
            if states.len() > 1 {
                switches.push((column.att, states));
            }
        }
        let rows = match switches.as_slice() {
            [] => 0,
            [(_, states)] => states.len(),
            several => several.iter().map(|(_, states)| states.len()).max().unwrap_or(0).max(ROWS),
        };
        let combination = |row: usize| {
            let state = |(place, (att, states)): (usize, &(i16, Vec<Option<String>>))| {
                (*att, states.get(turn(row, place, states.len())).cloned().flatten())
            };
            switches.iter().enumerate().map(state).collect()
        };
        (0..rows).map(combination).collect()
    }
}

/// Which of its states a column has in a row. Two columns of two states meet in each combination within [`ROWS`] rows.
const fn turn(row: usize, place: usize, states: usize) -> usize {
    if states == 2 { ((row & (place % (ROWS - 1) + 1)).count_ones() % 2) as usize } else { (row + place) % states }
}

/// What a column of few values can be: a flag, a label, a text that its check names.
fn states(catalogue: &Catalogue, relation: &Relation, column: &Column) -> Vec<String> {
    let Some((base, _)) = catalogue.base(column.type_oid, column.typmod) else { return Vec::new() };
    let mut states = if base.name == "bool" {
        vec!["true".to_owned(), "false".to_owned()]
    } else if !base.labels.is_empty() {
        base.labels.clone()
    } else if matches!(base.name.as_str(), "text" | "varchar" | "bpchar" | "citext") {
        let own = |check: &&crate::testing::catalogue::Check| {
            check.table == relation.oid && check.columns == [column.att] && check.text.contains("ARRAY[")
        };
        catalogue.checks.iter().find(own).map(|check| constants(&check.text).0).unwrap_or_default()
    } else {
        Vec::new()
    };
    states.truncate(STATES);
    states
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn any_two_flags_meet_in_each_combination() {
        for one in 0..ROWS - 1 {
            for other in one + 1..ROWS - 1 {
                let met: HashSet<(usize, usize)> =
                    (0..ROWS).map(|row| (turn(row, one, 2), turn(row, other, 2))).collect();
                assert_eq!(met.len(), 4, "columns {one} and {other}");
            }
        }
        assert_eq!((0..5).map(|row| turn(row, 3, 5)).collect::<HashSet<_>>().len(), 5);
    }
}
