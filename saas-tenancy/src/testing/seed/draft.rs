//! Values for rows that are yet to be stored: first ones, other ones after a refusal, and new ones like those stored.

use std::collections::HashSet;

use super::{COMBINATIONS, Seeds, Values};
use crate::testing::{
    catalogue::{Catalogue, Column, Relation},
    graph::{drafted, linked, unique_columns},
    value::Side,
};

impl Seeds {
    /// Other values for the columns that a check reads, in every combination up to a limit.
    pub(super) fn offers(
        &mut self,
        catalogue: &Catalogue,
        relation: &Relation,
        check: &str,
        side: Side,
        fixed: &Values,
    ) -> Vec<Values> {
        let linked = linked(catalogue, relation);
        let free = |column: &&Column| {
            !linked.contains(&column.att) && !fixed.contains_key(&column.att) && !column.is_generated
        };
        let of_table = catalogue.checks.iter().find(|c| c.table == relation.oid && c.name == check);
        let columns: Vec<(&Column, &str)> = match of_table {
            Some(check) => check
                .columns
                .iter()
                .filter_map(|att| relation.column(*att))
                .filter(free)
                .map(|c| (c, check.text.as_str()))
                .collect(),
            None => relation
                .columns
                .iter()
                .filter(free)
                .filter_map(|c| Some((c, catalogue.domain_check(c, check)?)))
                .collect(),
        };
        let mut offers = vec![Values::new()];
        for (column, text) in columns {
            let guesses = self.maker.guesses(catalogue, column, text, side);
            // The later columns vary slowest, so that a limit cuts combinations and not whole columns.
            offers = guesses
                .iter()
                .flat_map(|guess| {
                    offers.iter().map(move |offer| {
                        let mut offer = offer.clone();
                        offer.insert(column.att, guess.clone());
                        offer
                    })
                })
                .take(COMBINATIONS)
                .collect();
        }
        offers
    }

    /// First values: the tenant, the parents' keys, and something for every column without a default.
    pub(super) fn draft(&mut self, catalogue: &Catalogue, relation: &Relation, side: Side) -> Values {
        let mut values = Values::new();
        for column in drafted(relation) {
            values.insert(column.att, self.maker.value(catalogue, column.type_oid, column.typmod, side));
        }
        values.extend(self.links(catalogue, relation, side));
        values
    }

    /// The tenant and the parents' keys, as a row of `side` has them.
    pub(in crate::testing) fn links(&self, catalogue: &Catalogue, relation: &Relation, side: Side) -> Values {
        let mut values = Values::new();
        for key in catalogue.foreign_keys_of(relation.oid) {
            let parent = catalogue.relation(key.parent).and_then(|parent| self.row(catalogue, parent, side));
            for (mine, theirs) in &key.pairs {
                let value = parent.and_then(|row| row.values.get(theirs).cloned().flatten());
                // Two keys may share a column, such as the tenant: a known value stays.
                if value.is_some() || !values.contains_key(mine) {
                    values.insert(*mine, value);
                }
            }
        }
        if let Some(column) = relation.tenant() {
            values.insert(column.att, Some(self.tenant(side).to_string()));
        }
        values
    }

    /// A new row like the seeded one of `side`, with new values where a key wants them; ready for an insert by the
    /// application, which leaves out what it may not write and what has a default.
    pub(in crate::testing) fn fresh(
        &mut self,
        catalogue: &Catalogue,
        relation: &Relation,
        side: Side,
    ) -> Option<Values> {
        let keys = unique_columns(catalogue, relation, catalogue.root(relation));
        self.like_seed(catalogue, relation, side, &keys)
    }

    /// As [`fresh`](Self::fresh), with new texts in every column that no check reads: a trigger may hold them to be a key.
    pub(in crate::testing) fn renewed(
        &mut self,
        catalogue: &Catalogue,
        relation: &Relation,
        side: Side,
    ) -> Option<Values> {
        let root = catalogue.root(relation);
        let mut renewed = unique_columns(catalogue, relation, root);
        let is_free = |c: &&Column| {
            let is_text = catalogue
                .base(c.type_oid, c.typmod)
                .is_some_and(|t| matches!(t.0.name.as_str(), "text" | "varchar" | "uuid"));
            is_text && !catalogue.checks.iter().any(|check| check.table == root.oid && check.columns.contains(&c.att))
        };
        renewed.extend(root.columns.iter().filter(is_free).map(|c| c.att));
        self.like_seed(catalogue, relation, side, &renewed)
    }

    fn like_seed(
        &mut self,
        catalogue: &Catalogue,
        relation: &Relation,
        side: Side,
        keys: &HashSet<i16>,
    ) -> Option<Values> {
        let root = catalogue.root(relation);
        let template = self.row(catalogue, relation, side)?.values.clone();
        let linked = linked(catalogue, root);
        // A domain with a check takes few values, and is asked before any policy: the seed's stays where another column is new.
        let is_new = |c: &&Column| {
            let att = c.att;
            keys.contains(&att) && !linked.contains(&att) && !root.is_tenant(att) && !catalogue.has_domain_check(c)
        };
        let is_told_apart = root.columns.iter().any(|c| is_new(&c));
        let mut values = Values::new();
        for column in root.columns.iter().filter(|c| !c.is_generated && !c.is_identity) {
            let att = column.att;
            let stays = is_told_apart && catalogue.has_domain_check(column);
            let is_placed = root.partition_key.contains(&att) && !root.is_tenant(att);
            let value = template.get(&att).cloned().flatten();
            let may = relation.columns.iter().find(|c| c.name == column.name).is_some_and(|c| c.may_insert);
            if is_placed && keys.contains(&att) {
                values.insert(att, value.map(|text| self.maker.nudge(&text)));
            } else if linked.contains(&att) || root.is_tenant(att) || is_placed {
                values.insert(att, value);
            } else if column.has_default || (!may && !column.not_null) {
                // Left to the database.
            } else if keys.contains(&att) && value.is_some() && !stays {
                values.insert(att, self.maker.value(catalogue, column.type_oid, column.typmod, side));
            } else {
                values.insert(att, value);
            }
        }
        Some(values)
    }
}
