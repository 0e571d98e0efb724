//! What there is to attack, with every identifier quoted by the database.

mod read;

use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Table,
    Partitioned,
    View,
    MaterializedView,
    ForeignTable,
    Sequence,
}

impl Kind {
    /// Whether rows are stored under this name.
    pub(super) const fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Partitioned)
    }
}

/// Who may read a table that was declared to belong to no tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Everyone,
    System,
}

#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) oid: i64,
    /// Schema and name, quoted.
    pub(super) name: String,
    pub(super) schema: String,
    /// The name alone, quoted.
    pub(super) bare: String,
    pub(super) kind: Kind,
    /// Of a partition.
    pub(super) parent: Option<i64>,
    pub(super) bound: Option<String>,
    pub(super) partition_key: Vec<i16>,
    pub(super) audience: Option<Audience>,
    pub(super) is_reachable: bool,
    pub(super) is_invoker: bool,
    /// Whether storing or removing a row can do more than that.
    pub(super) has_effects: bool,
    pub(super) columns: Vec<Column>,
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) att: i16,
    /// Quoted.
    pub(super) name: String,
    pub(super) type_name: String,
    pub(super) type_oid: i64,
    pub(super) typmod: i32,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    pub(super) is_identity: bool,
    pub(super) is_generated: bool,
    pub(super) may_select: bool,
    pub(super) may_insert: bool,
    pub(super) may_update: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Type {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) base: i64,
    pub(super) base_typmod: i32,
    pub(super) element: i64,
    pub(super) subtype: i64,
    pub(super) labels: Vec<String>,
    /// Name and text.
    pub(super) checks: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub(super) struct Check {
    pub(super) table: i64,
    pub(super) name: String,
    pub(super) text: String,
    pub(super) columns: Vec<i16>,
}

#[derive(Debug, Clone)]
pub(super) struct ForeignKey {
    pub(super) table: i64,
    pub(super) name: String,
    pub(super) parent: i64,
    /// Column here, column there.
    pub(super) pairs: Vec<(i16, i16)>,
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) table: i64,
    pub(super) name: String,
    pub(super) is_primary: bool,
    /// Whether `on conflict` can name its columns.
    pub(super) is_plain: bool,
    pub(super) columns: Vec<i16>,
    /// With those that its expressions and its predicate read.
    pub(super) reads: Vec<i16>,
}

#[derive(Debug, Clone)]
pub(super) struct Function {
    /// With the types of its arguments.
    pub(super) signature: String,
    /// Quoted.
    pub(super) name: String,
    pub(super) is_procedure: bool,
    /// Runs with other rights or settings than its caller's.
    pub(super) is_elevated: bool,
    pub(super) arguments: Vec<(i64, String)>,
    pub(super) defaults: usize,
}

#[derive(Debug)]
pub(super) struct Catalogue {
    pub(super) relations: Vec<Relation>,
    pub(super) types: HashMap<i64, Type>,
    pub(super) checks: Vec<Check>,
    pub(super) foreign_keys: Vec<ForeignKey>,
    pub(super) keys: Vec<Key>,
    pub(super) functions: Vec<Function>,
    /// Roles that the login could try to become, quoted.
    pub(super) roles: Vec<String>,
    /// Quoted.
    pub(super) schemas: Vec<String>,
    /// Tables that show members their own rows only, quoted.
    pub(super) row_fences: Vec<String>,
}

impl Catalogue {
    pub(super) fn relation(&self, oid: i64) -> Option<&Relation> {
        self.relations.iter().find(|r| r.oid == oid)
    }

    /// The table whose foreign keys, checks and seeds a partition shares.
    pub(super) fn root<'a>(&'a self, relation: &'a Relation) -> &'a Relation {
        let mut root = relation;
        while let Some(parent) = root.parent.and_then(|oid| self.relation(oid)) {
            root = parent;
        }
        root
    }

    pub(super) fn keys_of(&self, table: i64) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| key.table == table)
    }

    pub(super) fn foreign_keys_of(&self, table: i64) -> impl Iterator<Item = &ForeignKey> {
        self.foreign_keys.iter().filter(move |key| key.table == table)
    }

    /// The type under all domains, with the modifier that applies.
    pub(super) fn base(&self, oid: i64, typmod: i32) -> Option<(&Type, i32)> {
        let mut found = (self.types.get(&oid)?, typmod);
        while found.0.kind == "d" {
            let typmod = if found.0.base_typmod >= 0 { found.0.base_typmod } else { found.1 };
            found = (self.types.get(&found.0.base)?, typmod);
        }
        Some(found)
    }

    /// Whether the column's type is a domain that refuses some values, or is made of one.
    pub(super) fn has_domain_check(&self, column: &Column) -> bool {
        let mut oid = column.type_oid;
        while let Some(domain) = self.types.get(&oid).filter(|t| t.kind == "d") {
            if !domain.checks.is_empty() {
                return true;
            }
            oid = domain.base;
        }
        false
    }

    /// The text of a domain's check, if the column's type, or a domain below it, has one of that name.
    pub(super) fn domain_check(&self, column: &Column, name: &str) -> Option<&str> {
        let mut oid = column.type_oid;
        while let Some(domain) = self.types.get(&oid).filter(|t| t.kind == "d") {
            if let Some((_, text)) = domain.checks.iter().find(|(check, _)| check == name) {
                return Some(text);
            }
            oid = domain.base;
        }
        None
    }
}

impl Relation {
    pub(super) fn column(&self, att: i16) -> Option<&Column> {
        self.columns.iter().find(|c| c.att == att)
    }

    /// The column that says whose a row is.
    pub(super) fn tenant(&self) -> Option<&Column> {
        let name = if self.name == "saas.tenant" { "id" } else { "tenant_id" };
        self.columns.iter().find(|c| c.name == name)
    }

    pub(super) fn is_tenant(&self, att: i16) -> bool {
        self.tenant().is_some_and(|column| column.att == att)
    }

    pub(super) fn readable(&self) -> Vec<&str> {
        self.columns.iter().filter(|c| c.may_select).map(|c| c.name.as_str()).collect()
    }
}
