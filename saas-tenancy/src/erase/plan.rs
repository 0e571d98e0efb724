//! What an erasure would do, decided from the catalogue alone: which tables, in which order, and what stands in the way.
//! Pure: facts in, a plan out.

use std::collections::{BTreeMap, BTreeSet};

use saas_core::dependents::Dependent;
use serde::Serialize;

/// What is known of a table with the tenant's rows. Names are quoted as SQL needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableFacts {
    pub(crate) name: String,
    /// The reason of `saas.retain`.
    pub(crate) retained: Option<String>,
    pub(crate) is_fenced: bool,
    pub(crate) may_delete: bool,
}

/// A foreign key onto a table with the tenant's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReferenceFacts {
    pub(crate) name: String,
    pub(crate) from: String,
    pub(crate) to: String,
    /// Whether the tenant is part of it.
    pub(crate) names_tenant: bool,
}

/// What becomes of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// They are erased.
    Erase,
    /// They are kept.
    Keep {
        /// Why.
        reason: String,
    },
}

/// One table of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlannedTable {
    /// Schema and table, quoted as SQL needs it.
    pub name: String,
    /// The tenant's own place that it is in; `None` for the control database.
    pub place: Option<String>,
    /// Rows of the tenant, at present; `None` when the system role may not read the table.
    pub rows: Option<u64>,
    /// What becomes of them.
    #[serde(flatten)]
    pub fate: Fate,
}

/// Why a table cannot be erased, and what to write in a migration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Obstacle {
    /// The table.
    pub table: String,
    /// Why.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// What an erasure would do now: the answer of a dry run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ErasePlan {
    /// The tables, those to be erased first, in the order in which they are emptied.
    pub tables: Vec<PlannedTable>,
    /// What the schema forbids.
    pub obstacles: Vec<Obstacle>,
    /// What depends on the tenant.
    pub dependents: Vec<Dependent>,
}

impl ErasePlan {
    /// Whether nothing stands in the way.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.obstacles.is_empty() && self.dependents.is_empty()
    }
}

/// The tables to be emptied, whoever refers before whoever is referred to, and what stands in the way.
pub(crate) fn order(tables: &[TableFacts], references: &[ReferenceFacts]) -> (Vec<String>, Vec<Obstacle>) {
    let mut obstacles = BTreeSet::new();
    let erased: BTreeSet<&str> =
        tables.iter().filter(|table| table.retained.is_none()).map(|table| table.name.as_str()).collect();
    for table in tables.iter().filter(|table| table.retained.is_none()) {
        obstacles.extend(own_obstacle(table));
    }
    // Of each table, those whose rows have to go before.
    let mut before: BTreeMap<&str, BTreeSet<&str>> = erased.iter().map(|name| (*name, BTreeSet::new())).collect();
    for reference in references {
        let Some(first) = before.get_mut(reference.to.as_str()) else { continue };
        if !reference.names_tenant {
            obstacles.insert(Obstacle {
                table: reference.from.clone(),
                reason: format!(
                    "its foreign key {} reaches rows of {} without tenant_id: another tenant's rows may hang on them",
                    reference.name, reference.to
                ),
                remedy: "reference (tenant_id, id) instead".to_owned(),
            });
        } else if !erased.contains(reference.from.as_str()) {
            obstacles.insert(Obstacle {
                table: reference.from.clone(),
                reason: format!("is kept, and its foreign key {} needs rows of {}", reference.name, reference.to),
                remedy: format!(
                    "in a migration, select saas.retain('{}', 'why'); or drop the foreign key",
                    reference.to
                ),
            });
        } else if reference.from != reference.to {
            first.insert(reference.from.as_str());
        }
    }
    let mut ordered: Vec<String> = Vec::new();
    while !before.is_empty() {
        let free: Vec<&str> = before
            .iter()
            .filter(|(_, first)| first.iter().all(|name| !before.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        if free.is_empty() {
            obstacles.extend(before.keys().map(|name| Obstacle {
                table: (*name).to_owned(),
                reason:
                    "is part of a circle of foreign keys, or is referred to by one, so no order empties it".to_owned(),
                remedy: "drop one of the foreign keys of the circle, or select saas.retain('…', 'why')".to_owned(),
            }));
            break;
        }
        for name in free {
            before.remove(name);
            ordered.push(name.to_owned());
        }
    }
    (ordered, obstacles.into_iter().collect())
}

fn own_obstacle(table: &TableFacts) -> Option<Obstacle> {
    let name = &table.name;
    let (reason, remedy) = if !table.is_fenced {
        ("has no fence: the system role may not see its rows", format!("in a migration, select saas.fence('{name}');"))
    } else if !table.may_delete {
        (
            "the system role may not delete from it",
            format!(
                "in a migration, grant select, delete on {name} to saas_system; or select saas.retain('{name}', 'why');"
            ),
        )
    } else {
        return None;
    };
    Some(Obstacle { table: name.clone(), reason: reason.to_owned(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> TableFacts {
        TableFacts { name: name.to_owned(), retained: None, is_fenced: true, may_delete: true }
    }

    fn kept(name: &str) -> TableFacts {
        TableFacts { retained: Some("law".to_owned()), ..table(name) }
    }

    fn reference(from: &str, to: &str) -> ReferenceFacts {
        ReferenceFacts { name: format!("{from}_{to}"), from: from.to_owned(), to: to.to_owned(), names_tenant: true }
    }

    fn reasons(tables: &[TableFacts], references: &[ReferenceFacts]) -> Vec<(String, String)> {
        order(tables, references).1.into_iter().map(|obstacle| (obstacle.table, obstacle.reason)).collect()
    }

    #[test]
    fn whoever_refers_goes_first() {
        let tables = [table("a"), table("b"), table("c"), kept("tenant")];
        let references = [reference("b", "a"), reference("c", "b"), reference("c", "c"), reference("a", "tenant")];
        assert_eq!(order(&tables, &references), (vec!["c".into(), "b".into(), "a".into()], vec![]));
    }

    #[test]
    fn what_cannot_be_ordered_or_reached_is_an_obstacle() {
        let circle = reasons(&[table("a"), table("b"), table("c")], &[reference("a", "b"), reference("b", "a")]);
        assert_eq!(circle.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);

        let without_tenant = ReferenceFacts { names_tenant: false, ..reference("b", "a") };
        let found = reasons(&[table("a"), table("b")], &[without_tenant]);
        assert!(found[0].0 == "b" && found[0].1.contains("without tenant_id"), "{found:?}");

        let found = reasons(&[table("a"), kept("b")], &[reference("b", "a")]);
        assert!(found[0].0 == "b" && found[0].1.contains("is kept"), "{found:?}");

        let stranger = reasons(&[table("a")], &[reference("elsewhere", "a")]);
        assert!(stranger[0].0 == "elsewhere", "{stranger:?}");

        let closed = [TableFacts { may_delete: false, ..table("a") }, TableFacts { is_fenced: false, ..table("b") }];
        let found = reasons(&closed, &[]);
        assert!(found[0].1.contains("may not delete") && found[1].1.contains("no fence"), "{found:?}");
        assert_eq!(reasons(&[TableFacts { may_delete: false, ..kept("a") }], &[]), []);
    }
}
