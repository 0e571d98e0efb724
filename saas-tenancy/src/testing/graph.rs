//! How tables hang together: which must be filled, and which of their columns others decide.

use std::collections::HashSet;

use super::catalogue::{Catalogue, Column, Key, Relation};

/// Tables that hold tenants' rows, and whatever those point at.
pub(super) fn needed(catalogue: &Catalogue) -> Vec<i64> {
    let is_root = |r: &&Relation| r.kind.is_table() && r.parent.is_none();
    let mut needed: Vec<i64> = catalogue
        .relations
        .iter()
        .filter(is_root)
        .filter(|r| r.audience.is_none() && (r.tenant().is_some() || r.is_reachable))
        .map(|r| r.oid)
        .collect();
    loop {
        let missing: Vec<i64> = catalogue
            .foreign_keys
            .iter()
            .flat_map(|key| {
                let is_declared = |oid| catalogue.relation(oid).is_none_or(|r| r.audience.is_some());
                let parent = needed.contains(&key.table).then_some(key.parent);
                // A child of a tenant's row is the tenant's too, whether or not it says so.
                let child = (needed.contains(&key.parent) && !is_declared(key.table) && !is_declared(key.parent))
                    .then_some(key.table);
                parent.into_iter().chain(child)
            })
            .filter(|oid| !needed.contains(oid) && catalogue.relation(*oid).is_some_and(|r| is_root(&r)))
            .collect();
        if missing.is_empty() {
            return needed;
        }
        needed.extend(missing);
        needed.sort_unstable();
        needed.dedup();
    }
}

pub(super) fn is_required(catalogue: &Catalogue, table: i64, pairs: &[(i16, i16)]) -> bool {
    let relation = catalogue.relation(table);
    pairs.iter().all(|(mine, _)| relation.and_then(|r| r.column(*mine)).is_some_and(|c| c.not_null))
}

/// Columns whose value another row or the tenant gives.
pub(super) fn linked(catalogue: &Catalogue, relation: &Relation) -> HashSet<i16> {
    let keys = catalogue.foreign_keys_of(relation.oid).flat_map(|key| key.pairs.iter().map(|(mine, _)| *mine));
    keys.chain(relation.tenant().map(|c| c.att)).collect()
}

pub(super) fn unique_columns(catalogue: &Catalogue, relation: &Relation, root: &Relation) -> HashSet<i16> {
    let of_root = catalogue.keys_of(root.oid);
    // A partition's column numbers may differ from its parent's; its names do not.
    let of_partition = catalogue.keys_of(relation.oid).filter(|_| relation.oid != root.oid);
    let by_name = |att: &i16| {
        let name = &relation.column(*att)?.name;
        root.columns.iter().find(|c| c.name == *name).map(|c| c.att)
    };
    let names = of_partition.flat_map(|key: &Key| key.reads.iter().filter_map(by_name)).collect::<Vec<_>>();
    of_root.flat_map(|key| key.reads.iter().copied()).chain(names).collect()
}

pub(super) fn drafted(relation: &Relation) -> impl Iterator<Item = &Column> {
    relation.columns.iter().filter(|c| !c.is_generated && !c.is_identity && !c.has_default)
}
