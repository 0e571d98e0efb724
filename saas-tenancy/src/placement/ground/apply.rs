//! Runs the application's migrations in one place.
//!
//! Each migration and its record in the place's own `_sqlx_migrations` are one transaction (unless the file says
//! `-- no-transaction`), so that a process that is killed leaves whole migrations only.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use saas_core::CoreError;
use sqlx::{
    PgConnection,
    migrate::{Migrate as _, MigrateError, Migration},
};

use super::{Ground, connect, unlock};
use crate::placement::{Blueprint, Login, PlacementError, Site};

/// A migration that stands applied in a place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AppliedStep {
    /// Its version.
    pub version: i64,
    /// What it is called.
    pub description: String,
    /// When it was applied.
    pub at: DateTime<Utc>,
    /// How long it took; `None` when the process that applied it did not live to tell.
    pub took: Option<Duration>,
}

/// How far a place was brought.
#[derive(Debug)]
pub(in crate::placement) struct Applied {
    /// All that stands applied, oldest first.
    pub(in crate::placement) steps: Vec<AppliedStep>,
    /// How many of them were applied now.
    pub(in crate::placement) now: usize,
    /// Why it went no further.
    pub(in crate::placement) failed: Option<PlacementError>,
}

impl Applied {
    pub(in crate::placement) fn version(&self) -> Option<i64> {
        self.steps.last().map(|step| step.version)
    }
}

/// The migrations to run, and the ground to run them on.
#[derive(Debug, Clone, Copy)]
pub(in crate::placement) struct Applying<'a> {
    pub(in crate::placement) ground: &'a Ground,
    pub(in crate::placement) blueprint: &'a Blueprint,
}

impl Applying<'_> {
    /// Brings a place to the newest version, alone: a second process waits for the first one, as long as for any lock.
    ///
    /// Calls `before` with each migration before it runs.
    pub(in crate::placement) async fn apply(
        &self,
        site: &Site,
        before: impl Fn(&Migration) + Send + Sync,
    ) -> Result<Applied, PlacementError> {
        let ground = self.ground;
        let mut connection = connect(&ground.clusters, &site.database, Login::Admin, ground.timeouts).await?;
        let done = self.apply_on(&mut connection, site, before).await;
        // Ended either way: it holds the lock and is set up for this place.
        unlock(connection).await;
        done
    }

    async fn apply_on(
        &self,
        connection: &mut PgConnection,
        site: &Site,
        before: impl Fn(&Migration) + Send + Sync,
    ) -> Result<Applied, PlacementError> {
        let schema = site.schema_or_public();
        lock(connection, site).await?;
        become_owner(connection, schema).await?;
        let table = format!("\"{schema}\"._sqlx_migrations");
        let refused = |error| diverged(site, error);
        connection.ensure_migrations_table(&table).await.map_err(refused)?;
        if let Some(version) = connection.dirty_version(&table).await.map_err(refused)? {
            return Err(refused(MigrateError::Dirty(version)));
        }
        let found = connection.list_applied_migrations(&table).await.map_err(refused)?;
        let pending = self.pending(site, &found.into_iter().map(|m| (m.version, m.checksum)).collect())?;
        let (mut now, mut failed) = (0, None);
        for migration in pending {
            // A script before may have moved it.
            set_search_path(connection, schema).await?;
            before(migration);
            match connection.apply(&table, migration).await {
                Ok(_) => now += 1,
                Err(error) => {
                    failed = Some(failure(site, migration, error));
                    break;
                }
            }
        }
        match (read_steps(connection, schema).await, failed) {
            (Ok(steps), failed) => Ok(Applied { steps, now, failed }),
            // The connection went with the migration: what was applied is read at the next try.
            (Err(_), Some(failed)) => Err(failed),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// What is not applied yet. Refuses a place that was migrated with other files than these.
    fn pending(
        &self,
        site: &Site,
        found: &BTreeMap<i64, std::borrow::Cow<'static, [u8]>>,
    ) -> Result<Vec<&Migration>, PlacementError> {
        let mine: BTreeSet<i64> = self.blueprint.migrations().iter().map(|m| m.version).collect();
        // A newer release may have been here; one that is older than ours and unknown to us cannot.
        let foreign = found.keys().find(|version| !mine.contains(version) && **version < self.blueprint.newest());
        if let Some(version) = foreign {
            let what = format!("version {version} was applied there, and this binary does not carry it");
            return Err(PlacementError::Diverged { site: site.clone(), what });
        }
        let edited = |m: &&Migration| found.get(&m.version).is_some_and(|checksum| *checksum != m.checksum);
        if let Some(migration) = self.blueprint.migrations().iter().find(edited) {
            return Err(diverged(site, MigrateError::VersionMismatch(migration.version)));
        }
        Ok(self.blueprint.migrations().iter().filter(|m| !found.contains_key(&m.version)).collect())
    }
}

/// One process at a time works on a place.
async fn lock(connection: &mut PgConnection, site: &Site) -> Result<(), PlacementError> {
    let locked = sqlx::query("select pg_advisory_lock(hashtextextended('saas.site:' || $1, 0))")
        .bind(site.schema_or_public())
        .execute(connection)
        .await;
    match locked {
        Ok(_) => Ok(()),
        Err(error) if error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "55P03") => {
            Err(PlacementError::InProgress { what: site.to_string() })
        }
        Err(error) => Err(CoreError::from_database(error).into()),
    }
}

const MAY_CREATE: &str = "do $$ begin
    if current_setting('saas.site_schema') = 'public' and not has_schema_privilege('saas_owner', 'public', 'create') then
        grant usage, create on schema public to saas_owner;
    end if;
end $$";

/// Acts as the owner of the tables that are there; in a place without any, as `saas_owner`.
async fn become_owner(connection: &mut PgConnection, schema: &str) -> Result<(), CoreError> {
    let act = async {
        super::schema::name_schema(connection, schema).await?;
        sqlx::raw_sql(MAY_CREATE).execute(&mut *connection).await?;
        let owner: String = sqlx::query_scalar(
            "select coalesce((select pg_get_userbyid(c.relowner)::text
                              from pg_class c join pg_namespace n on n.oid = c.relnamespace
                              where n.nspname = $1 and c.relname = '_sqlx_migrations'), 'saas_owner')",
        )
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
        sqlx::query("select set_config('role', $1, false)").bind(owner).execute(&mut *connection).await.map(drop)
    };
    act.await.map_err(CoreError::from_database)?;
    set_search_path(connection, schema).await
}

/// Unqualified names mean that schema and no other: a table that is missing there is never looked for among the shared
/// ones.
async fn set_search_path(connection: &mut PgConnection, schema: &str) -> Result<(), CoreError> {
    sqlx::query("select set_config('search_path', quote_ident($1), false)")
        .bind(schema)
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// The place's own record.
async fn read_steps(connection: &mut PgConnection, schema: &str) -> Result<Vec<AppliedStep>, CoreError> {
    set_search_path(connection, schema).await?;
    let rows: Vec<(i64, String, DateTime<Utc>, i64)> = sqlx::query_as(
        "select version, description, installed_on, execution_time from _sqlx_migrations where success order by version",
    )
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let took = |nanos: i64| u64::try_from(nanos).ok().map(Duration::from_nanos);
    let step = |(version, description, at, nanos)| AppliedStep { version, description, at, took: took(nanos) };
    Ok(rows.into_iter().map(step).collect())
}

fn failure(site: &Site, migration: &Migration, error: MigrateError) -> PlacementError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            let reason = error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
            let cause = Box::new(CoreError::from_database(error));
            PlacementError::MigrationFailed { site: site.clone(), version: migration.version, reason, cause }
        }
        other => diverged(site, other),
    }
}

fn diverged(site: &Site, error: MigrateError) -> PlacementError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            CoreError::from_database(error).into()
        }
        other => PlacementError::Diverged { site: site.clone(), what: other.to_string() },
    }
}
