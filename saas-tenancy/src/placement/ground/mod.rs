//! What is done to a database so that it can hold a tenant's tables. Runs with the admin's login, or the system's.
//!
//! Every operation here may be repeated: it finds what is there and adds what is missing.

mod apply;
mod database;
mod schema;
mod tenant;

use std::time::Duration;

use saas_core::{CoreError, Schema, SystemPool, doctor, doctor::Finding};
use sqlx::{Connection as _, PgConnection};

pub use self::apply::AppliedStep;
pub(super) use self::{
    apply::{Applied, Applying},
    tenant::{Stub, find_rows_in, lock_door_in, set_door_in, set_lock_timeout_in},
};
use super::{Clusters, Database, Login, PlacementError, Site};

/// The tables that every database needs in which an application's tables stand.
pub(super) static KERNEL: [&Schema; 1] = [&saas_core::SCHEMA];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a statement of a migration may wait for a lock, and how long it may run. It must not hold traffic up.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For each lock; 5 s unless set.
    pub lock: Duration,
    /// For each statement; 15 min unless set.
    pub statement: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { lock: Duration::from_secs(5), statement: Duration::from_secs(900) }
    }
}

/// A connection of its own: what fails half-way leaves no lock behind.
pub(super) async fn connect(
    clusters: &Clusters,
    database: &Database,
    login: Login,
    timeouts: Timeouts,
) -> Result<PgConnection, PlacementError> {
    let millis = |duration: Duration| duration.as_millis().clamp(1, 2_147_483_647).to_string();
    let options = clusters
        .options(database, login)?
        .options([("lock_timeout", millis(timeouts.lock)), ("statement_timeout", millis(timeouts.statement))]);
    tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
        .await
        .map_err(|late| CoreError::Unavailable { cause: Box::new(late) })?
        .map_err(|error| CoreError::from_database(error).into())
}

/// Says goodbye; a server that is gone already is as good.
pub(super) async fn close(connection: PgConnection) {
    drop(connection.close().await);
}

/// Gives up the locks of a session and ends it. Ended alone, it would keep them until the server has noticed: whoever asks
/// right afterwards would be refused.
pub(super) async fn unlock(mut connection: PgConnection) {
    drop(sqlx::query("select pg_advisory_unlock_all()").execute(&mut connection).await);
    close(connection).await;
}

/// The ground that places are made on.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    pub(super) clusters: Clusters,
    pub(super) timeouts: Timeouts,
}

impl Ground {
    /// Makes the database and the schema of a site, with the kernel's tables where they are missing.
    pub(super) async fn create(&self, site: &Site) -> Result<(), PlacementError> {
        if site.database.name.is_some() {
            database::create(self, &site.database).await?;
        }
        if !site.database.is_control() {
            saas_core::migrate(&self.clusters.options(&site.database, Login::Admin)?, &KERNEL).await?;
        }
        if site.database.name.is_some() {
            database::restrict(self, &site.database).await?;
        }
        match &site.schema {
            Some(name) => schema::create(self, &site.database, name).await,
            None => Ok(()),
        }
    }

    /// Removes the schema or the database of a site with all that is in it. Shared tables are left alone.
    pub(super) async fn remove(&self, site: &Site) -> Result<(), PlacementError> {
        match (&site.schema, &site.database.name) {
            (Some(name), _) => schema::remove(self, &site.database, name).await,
            (None, Some(_)) => database::remove(self, &site.database).await,
            (None, None) => Ok(()),
        }
    }

    /// What the isolation audit has against a site. In a database with others, only what concerns its schema counts.
    pub(super) async fn examine(&self, site: &Site) -> Result<Vec<Finding>, PlacementError> {
        let system = self.system(&site.database).await?;
        let findings = match &site.schema {
            Some(schema) => doctor::examine_schema(system.pool(), schema).await,
            None => doctor::examine(system.pool()).await,
        };
        system.pool().close().await;
        let concerns = |object: &str| match &site.schema {
            Some(schema) => object == schema.as_str() || object.contains(&format!("{schema}.")),
            None => !site.is_shared(),
        };
        Ok(findings?.into_iter().filter(|finding| concerns(&finding.object)).collect())
    }

    /// A pool of one connection of the system's login. To be closed by whoever asks for it.
    pub(super) async fn system(&self, database: &Database) -> Result<SystemPool, PlacementError> {
        // A pool asks a server that refuses again and again, and then says only that it took too long.
        close(connect(&self.clusters, database, Login::System, self.timeouts).await?).await;
        let options = self.clusters.options(database, Login::System)?;
        let pool = saas_core::db::pool_options()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options);
        Ok(SystemPool::open(pool, &KERNEL).await?)
    }
}
