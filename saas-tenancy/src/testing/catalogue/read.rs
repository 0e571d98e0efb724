//! Reads the catalogue of the attack from the database's own.

use std::collections::HashMap;

use saas_core::CoreError;
use sqlx::PgConnection;

use super::{Audience, Catalogue, Check, Column, ForeignKey, Function, Key, Kind, Relation, Type};

impl Catalogue {
    /// Reads it as the set-up's superuser; `login` is the application's.
    pub(in crate::testing) async fn read(connection: &mut PgConnection, login: &str) -> Result<Self, CoreError> {
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
        let names = "select quote_ident(rolname) from pg_roles where rolname <> $1 order by 1";
        let roles = sqlx::query_scalar(names)
            .bind(login)
            .fetch_all(&mut *connection)
            .await
            .map_err(CoreError::from_database)?;
        let names = "select quote_ident(nspname) from pg_namespace
                     where nspname not in ('pg_catalog', 'information_schema') and nspname not like 'pg\\_%' order by 1";
        let schemas = sqlx::query_scalar(names).fetch_all(&mut *connection).await.map_err(CoreError::from_database)?;
        let names = "select name from saas.row_fence where to_regclass(name) is not null order by 1";
        let row_fences =
            sqlx::query_scalar(names).fetch_all(&mut *connection).await.map_err(CoreError::from_database)?;
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
            row_fences,
        })
    }
}

async fn relations(connection: &mut PgConnection, login: &str) -> Result<Vec<Relation>, CoreError> {
    type Row = (i64, String, String, String, String, Option<i64>, Option<String>, String, Option<String>, Vec<bool>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("relations.sql"))
        .bind(login)
        .fetch_all(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    let mut columns = columns(connection, login).await?;
    Ok(rows
        .into_iter()
        .filter_map(|(oid, name, schema, bare, kind, parent, bound, key, audience, facts)| {
            let fact = |place: usize| facts.get(place).copied().unwrap_or(false);
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
                is_reachable: fact(0),
                is_invoker: fact(1),
                has_effects: fact(2),
                columns,
            })
        })
        .collect())
}

async fn columns(connection: &mut PgConnection, login: &str) -> Result<HashMap<i64, Vec<Column>>, CoreError> {
    type Row = (i64, i16, String, String, i64, i32, bool, bool, String, bool, Vec<bool>);
    let rows: Vec<Row> = sqlx::query_as(include_str!("columns.sql"))
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
    let rows: Vec<Row> =
        sqlx::query_as(include_str!("types.sql")).fetch_all(connection).await.map_err(CoreError::from_database)?;
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
    let rows: Vec<Row> = sqlx::query_as(include_str!("constraints.sql"))
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
    let rows: Vec<Row> =
        sqlx::query_as(include_str!("keys.sql")).fetch_all(connection).await.map_err(CoreError::from_database)?;
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
    let rows: Vec<Row> = sqlx::query_as(include_str!("functions.sql"))
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
