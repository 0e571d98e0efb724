//! Creates and drops databases: the only statements here whose text is made at run time, because PostgreSQL takes no
//! parameters for them and does not let a function run them.

use saas_core::CoreError;
use sqlx::PgConnection;

use super::{Ground, close, connect};
use crate::placement::{Database, DatabaseName, Login, PlacementError};

/// A session in the cluster's shared database, from where others are made.
async fn neighbour(ground: &Ground, database: &Database) -> Result<PgConnection, PlacementError> {
    let shared = Database { cluster: database.cluster.clone(), name: None };
    connect(&ground.clusters, &shared, Login::Admin, ground.timeouts).await
}

async fn exists(connection: &mut PgConnection, name: &DatabaseName) -> Result<bool, CoreError> {
    sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(name.as_str())
        .fetch_one(connection)
        .await
        .map_err(CoreError::from_database)
}

pub(super) async fn create(ground: &Ground, database: &Database) -> Result<(), PlacementError> {
    let Some(name) = &database.name else { return Ok(()) };
    let mut connection = neighbour(ground, database).await?;
    let created = async {
        if exists(&mut connection, name).await? {
            return Ok(());
        }
        match sqlx::raw_sql(statement("create database ", name, "")).execute(&mut connection).await {
            Ok(_) => Ok(()),
            // Someone was faster.
            Err(error) if error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "42P04") => {
                Ok(())
            }
            Err(error) => Err(CoreError::from_database(error)),
        }
    }
    .await;
    close(connection).await;
    Ok(created?)
}

/// Lets only the foundation's logins in. The roles must be there.
pub(super) async fn restrict(ground: &Ground, database: &Database) -> Result<(), PlacementError> {
    let mut connection = connect(&ground.clusters, database, Login::Admin, ground.timeouts).await?;
    let done = sqlx::raw_sql(
        "do $$ begin
            execute format('revoke connect on database %I from public', current_database());
            execute format('grant connect on database %I to saas_app, saas_system, saas_owner', current_database());
            revoke all on schema public from public;
            grant usage on schema public to saas_app, saas_system;
            grant usage, create on schema public to saas_owner;
        end $$",
    )
    .execute(&mut connection)
    .await;
    close(connection).await;
    done.map_err(CoreError::from_database)?;
    Ok(())
}

pub(super) async fn remove(ground: &Ground, database: &Database) -> Result<(), PlacementError> {
    let Some(name) = &database.name else { return Ok(()) };
    let mut connection = neighbour(ground, database).await?;
    // With force: whoever is still connected has nothing to lose there.
    let dropped = sqlx::raw_sql(statement("drop database if exists ", name, " with (force)"))
        .execute(&mut connection)
        .await
        .map_err(CoreError::from_database);
    close(connection).await;
    dropped?;
    Ok(())
}

#[expect(clippy::disallowed_types, reason = "two literals and a name of lower-case letters, digits and underscores")]
fn statement(before: &'static str, name: &DatabaseName, after: &'static str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("{before}\"{name}\"{after}"))
}
