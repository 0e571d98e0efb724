//! Brings the schema `saas` to the version of this binary.
//!
//! Each crate has its own migrations and its own table for them, so that an adopter takes one crate or all, beside their
//! own migrator. Forward only; a published file is never edited.

use std::{borrow::Cow, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool, SqlSafeStr,
    migrate::{MigrationType, Migrator},
    postgres::PgConnectOptions,
};

use crate::CoreError;

/// One file of a crate's schema.
#[derive(Debug)]
pub struct Migration {
    /// Its place in the order; never reused.
    pub version: i64,
    /// What it is about.
    pub name: &'static str,
    /// Its text.
    pub sql: &'static str,
}

/// The tables of one crate.
#[derive(Debug)]
pub struct Schema {
    /// The crate's short name, such as `core`.
    pub module: &'static str,
    /// The table that remembers which files ran.
    pub table: &'static str,
    /// The highest version that ran successfully.
    pub version_query: &'static str,
    /// All files, in order.
    pub migrations: &'static [Migration],
}

/// Declares the [`Schema`] of a crate: its short name, then `version "file"` for each of its migrations.
#[macro_export]
macro_rules! schema {
    ($module:literal: $($version:literal $file:literal),+ $(,)?) => {
        $crate::db::Schema {
            module: $module,
            table: concat!("saas._migrations_", $module),
            version_query: concat!("select coalesce(max(version), 0) from saas._migrations_", $module, " where success"),
            migrations: &[$($crate::db::Migration {
                version: $version,
                name: $file,
                sql: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/", $file, ".sql")),
            }),+],
        }
    };
}

impl Schema {
    /// The version that this binary needs.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.migrations.iter().map(|m| m.version).max().unwrap_or(0)
    }
}

/// How long a migration waits for a lock before it gives up and leaves traffic alone.
const LOCK_TIMEOUT: &str = "10s";
/// How long one statement may run.
const STATEMENT_TIMEOUT: &str = "15min";
/// How long to wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Creates what is missing: the roles, the schema `saas`, and the tables of `schemas`, in the order given.
///
/// Safe to call from several processes at once and any number of times. Runs on a connection of its own, which is closed
/// afterwards: a failed migration leaves no lock behind. The login must be allowed to create roles, or the roles
/// `saas_owner`, `saas_app` and `saas_system` must exist; the tables belong to `saas_owner`, never to the login.
///
/// # Errors
/// [`Misconfigured`](CoreError::Misconfigured) when a privilege is missing or a published file was edited;
/// [`Unavailable`](CoreError::Unavailable) when a lock was not to be had in 10 seconds.
pub async fn migrate(options: &PgConnectOptions, schemas: &[&Schema]) -> Result<(), CoreError> {
    let options = options.clone().options([("lock_timeout", LOCK_TIMEOUT), ("statement_timeout", STATEMENT_TIMEOUT)]);
    let mut connection = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
        .await
        .map_err(|late| CoreError::Unavailable { cause: Box::new(late) })?
        .map_err(CoreError::from_database)?;
    let result = run(&mut connection, schemas).await;
    // Closed either way: a failed migrator leaves its advisory lock on the connection.
    let _ = connection.close().await;
    result
}

async fn run(connection: &mut PgConnection, schemas: &[&Schema]) -> Result<(), CoreError> {
    let privilege = |error: sqlx::Error| match CoreError::from_database(error) {
        CoreError::Forbidden { .. } => CoreError::Misconfigured {
            what: "the migrating login may not create roles or schemas".into(),
            remedy:
                "migrate as a superuser or as the database's owner with CREATEROLE; on a restricted server, create the \
                     roles saas_owner (nologin), saas_app and saas_system first and grant saas_owner to the login"
                    .into(),
        },
        other => other,
    };
    sqlx::raw_sql(ROLES).execute(&mut *connection).await.map_err(privilege)?;
    sqlx::raw_sql(AS_OWNER).execute(&mut *connection).await.map_err(privilege)?;
    for schema in schemas {
        migrator(schema).run_direct(None, &mut *connection, false).await.map_err(|error| refused(schema, error))?;
    }
    sqlx::raw_sql(READ_LEDGERS).execute(&mut *connection).await.map_err(CoreError::from_database)?;
    Ok(())
}

const ROLES: &str = include_str!("roles.sql");

const AS_OWNER: &str = "set role saas_owner; set search_path = pg_catalog, pg_temp";

// One at a time: two processes that start together would change the same rows of the catalogue, which is an error there.
const READ_LEDGERS: &str = "do $$ declare t regclass; begin
    perform pg_advisory_xact_lock(hashtextextended('saas.migrate', 0));
    for t in select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = 'saas' and c.relname like '\\_migrations\\_%' and c.relkind = 'r' loop
        execute format('grant select on %s to saas_app, saas_system', t);
    end loop;
end $$";

fn migrator(schema: &Schema) -> Migrator {
    let migrations = schema
        .migrations
        .iter()
        .map(|m| {
            let name = Cow::Borrowed(m.name);
            sqlx::migrate::Migration::new(m.version, name, MigrationType::Simple, m.sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // A newer release may have migrated first; expand and contract keeps this binary working.
    migrator.set_ignore_missing(true);
    migrator.dangerous_set_table_name(schema.table);
    migrator
}

fn refused(schema: &Schema, error: sqlx::migrate::MigrateError) -> CoreError {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => CoreError::from_database(error),
        other => CoreError::Misconfigured {
            what: format!("the migrations of `{}` do not fit this database: {other}", schema.module),
            remedy: "a published migration must not be edited; deploy the release that the database was migrated with"
                .into(),
        },
    }
}

/// What [`migrate`] would do to the database of `pool`, as one script for a database administrator: read it, then run it
/// with `psql -v ON_ERROR_STOP=1`. It is one transaction, and keeps the same record of applied files, so that `migrate`
/// finds nothing left to do. Empty when nothing is pending.
///
/// # Errors
/// When the database does not answer.
pub async fn pending(pool: &PgPool, schemas: &[&Schema]) -> Result<String, CoreError> {
    use std::fmt::Write as _;
    let mut files = String::new();
    #[expect(clippy::disallowed_methods, reason = "reads two catalogues, outside any tenant")]
    let mut connection = pool.acquire().await.map_err(CoreError::from_database)?;
    for schema in schemas {
        let found = found(&mut connection, schema).await?;
        let table = schema.table;
        for migration in migrator(schema).iter().filter(|m| m.version > found) {
            let (version, name, sql) = (migration.version, &migration.description, migration.sql.as_str());
            let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
            // Writing to a String cannot fail.
            let _ = write!(
                files,
                "\n-- {module} {name}\n\
                 create table if not exists {table} (version bigint primary key, description text not null, \
                 installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, \
                 execution_time bigint not null);\n{sql}\n\
                 insert into {table} (version, description, success, checksum, execution_time) \
                 values ({version}, '{name}', true, '\\x{checksum}', 0);\n",
                module = schema.module,
            );
        }
    }
    if files.is_empty() {
        return Ok(files);
    }
    Ok(format!("begin;\n{ROLES}\n{AS_OWNER};\n{files}\n{READ_LEDGERS};\nreset role;\nreset search_path;\ncommit;\n"))
}

/// Refuses a database whose schema is older than the binary.
pub(super) async fn verify(connection: &mut PgConnection, schemas: &[&Schema]) -> Result<(), CoreError> {
    for schema in schemas {
        let (found, needed) = (found(connection, schema).await?, schema.version());
        if found < needed {
            let remedy = "call saas_core::db::migrate before opening a pool";
            return Err(CoreError::NotMigrated { module: schema.module, found, needed, remedy });
        }
    }
    Ok(())
}

async fn found(connection: &mut PgConnection, schema: &Schema) -> Result<i64, CoreError> {
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(schema.table)
        .fetch_one(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
    if !exists {
        return Ok(0);
    }
    sqlx::query_scalar(schema.version_query).fetch_one(connection).await.map_err(CoreError::from_database)
}
