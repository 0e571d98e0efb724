//! What there is to attack: read from the database's own catalogue, with every identifier quoted by it.

use std::collections::HashMap;

use saas_core::CoreError;
use sqlx::PgConnection;

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
}

impl Catalogue {
    /// Reads it as the set-up's superuser; `login` is the application's.
    pub(super) async fn read(connection: &mut PgConnection, login: &str) -> Result<Self, CoreError> {
        // Then names come out with their schema.
        sqlx::query("select set_config('search_path', 'pg_catalog, pg_temp', false)")
            .execute(&mut *connection)
            .await
            .map_err(CoreError::from_database)?;
        let read = Self::read_qualified(connection, login).await;
        sqlx::raw_sql("reset search_path").execute(connection).await.map_err(CoreError::from_database)?;
        read
    }

    async fn read_qualified(connection: &mut PgConnection, login: &str) -> Result<Self, CoreError> {
        let names =
            "select quote_ident(rolname) from pg_roles where rolname <> $1 and rolname not like 'pg\\_%' order by 1";
        let roles = sqlx::query_scalar(names)
            .bind(login)
            .fetch_all(&mut *connection)
            .await
            .map_err(CoreError::from_database)?;
        let names = "select quote_ident(nspname) from pg_namespace
                     where nspname not in ('pg_catalog', 'information_schema') and nspname not like 'pg\\_%' order by 1";
        let schemas = sqlx::query_scalar(names).fetch_all(&mut *connection).await.map_err(CoreError::from_database)?;
        let (checks, foreign_keys) = checks_and_foreign_keys(connection).await?;
        Ok(Self {
            relations: relations(connection, login).await?,
            types: types(connection).await?,
            checks,
            foreign_keys,
            keys: keys(connection).await?,
            functions: functions(connection, login).await?,
            roles,
            schemas,
        })
    }

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

async fn relations(connection: &mut PgConnection, login: &str) -> Result<Vec<Relation>, CoreError> {
    type Row = (i64, String, String, String, String, Option<i64>, Option<String>, String, Option<String>, bool, bool);
    let rows: Vec<Row> = sqlx::query_as(include_str!("catalogue/relations.sql"))
        .bind(login)
        .fetch_all(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    let mut columns = columns(connection, login).await?;
    Ok(rows
        .into_iter()
        .filter_map(|(oid, name, schema, bare, kind, parent, bound, key, audience, is_reachable, is_invoker)| {
            let kind = match kind.as_str() {
                "r" => Kind::Table,
                "p" => Kind::Partitioned,
                "v" => Kind::View,
                "m" => Kind::MaterializedView,
                "f" => Kind::ForeignTable,
                "S" => Kind::Sequence,
                _ => return None,
            };
            let audience = audience.map(|a| if a == "system" { Audience::System } else { Audience::Everyone });
            let partition_key = key.split_whitespace().filter_map(|att| att.parse().ok()).collect();
            let columns = columns.remove(&oid).unwrap_or_default();
            Some(Relation {
                oid,
                name,
                schema,
                bare,
                kind,
                parent,
                bound,
                partition_key,
                audience,
                is_reachable,
                is_invoker,
                columns,
            })
        })
        .collect())
}

async fn columns(connection: &mut PgConnection, login: &str) -> Result<HashMap<i64, Vec<Column>>, CoreError> {
    type Row = (i64, i16, String, String, i64, i32, bool, bool, String, bool, Vec<bool>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("catalogue/columns.sql"))
        .bind(login)
        .fetch_all(connection)
        .await
        .map_err(CoreError::from_database)?;
    let mut of: HashMap<i64, Vec<Column>> = HashMap::new();
    for (table, att, name, type_name, type_oid, typmod, not_null, has_default, identity, is_generated, may) in rows {
        let may = |place: usize| may.get(place).copied().unwrap_or(false);
        of.entry(table).or_default().push(Column {
            att,
            name,
            type_name,
            type_oid,
            typmod,
            not_null,
            has_default,
            is_identity: !identity.is_empty(),
            is_generated,
            may_select: may(0),
            may_insert: may(1),
            may_update: may(2),
        });
    }
    Ok(of)
}

async fn types(connection: &mut PgConnection) -> Result<HashMap<i64, Type>, CoreError> {
    type Row = (i64, String, String, String, i64, i32, i64, i64, Vec<String>, Vec<String>, Vec<String>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("catalogue/types.sql"))
        .fetch_all(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(rows
        .into_iter()
        .map(|(oid, name, kind, _, base, base_typmod, element, subtype, labels, check_names, check_texts)| {
            let checks = check_names.into_iter().zip(check_texts).collect();
            (oid, Type { name, kind, base, base_typmod, element, subtype, labels, checks })
        })
        .collect())
}

async fn checks_and_foreign_keys(connection: &mut PgConnection) -> Result<(Vec<Check>, Vec<ForeignKey>), CoreError> {
    type Row = (i64, String, String, String, Vec<i16>, i64, Vec<i16>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("catalogue/constraints.sql"))
        .fetch_all(connection)
        .await
        .map_err(CoreError::from_database)?;
    let (mut checks, mut keys) = (Vec::new(), Vec::new());
    for (table, name, kind, text, columns, parent, theirs) in rows {
        if kind == "c" {
            checks.push(Check { table, name, text, columns });
        } else {
            keys.push(ForeignKey { table, name, parent, pairs: columns.into_iter().zip(theirs).collect() });
        }
    }
    Ok((checks, keys))
}

async fn keys(connection: &mut PgConnection) -> Result<Vec<Key>, CoreError> {
    type Row = (i64, String, bool, bool, Vec<i16>, Vec<i16>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("catalogue/keys.sql"))
        .fetch_all(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(rows
        .into_iter()
        .map(|(table, name, is_primary, is_plain, columns, reads)| Key {
            table,
            name,
            is_primary,
            is_plain,
            columns,
            reads,
        })
        .collect())
}

async fn functions(connection: &mut PgConnection, login: &str) -> Result<Vec<Function>, CoreError> {
    type Row = (String, String, String, bool, Vec<i64>, Vec<String>, i32);
    let rows: Vec<Row> = sqlx::query_as(include_str!("catalogue/functions.sql"))
        .bind(login)
        .fetch_all(connection)
        .await
        .map_err(CoreError::from_database)?;
    Ok(rows
        .into_iter()
        .map(|(signature, name, kind, is_elevated, types, type_names, defaults)| Function {
            signature,
            name,
            is_procedure: kind == "p",
            is_elevated,
            arguments: types.into_iter().zip(type_names).collect(),
            defaults: usize::try_from(defaults).unwrap_or(0),
        })
        .collect())
}
