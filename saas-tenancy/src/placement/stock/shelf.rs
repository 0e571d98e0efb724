//! The rows about places that were made ahead. They run as the system role, each as part of the caller's transaction.

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, SystemTx};
use sqlx::PgConnection;

use super::{Readiness, Ready};
use crate::placement::{ClusterName, Mode, Site, Target, ledger::key, record};

pub(super) const STOCK: Actor = Actor::system("stock");

/// The longest reason that is kept, in characters.
const REASON: usize = 2_000;

pub(super) struct Shelf<'a> {
    pub(super) tx: &'a mut SystemTx,
    pub(super) target: &'a Target,
    pub(super) now: DateTime<Utc>,
}

type Row = (String, String, String, Option<i64>, Option<String>, DateTime<Utc>);

fn site(cluster: &str, database: &str, schema: &str) -> Result<Site, CoreError> {
    let named = |name| Some(name).filter(|name: &&str| !name.is_empty());
    record::site(cluster, named(database), named(schema))
}

impl Shelf<'_> {
    pub(super) async fn list(&mut self, of: &[Readiness]) -> Result<Vec<Ready>, CoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "select database_name, schema_name, state, version, reason, changed_at
             from saas.ready_place
             where cluster = $1 and mode = $2 and state = any ($3)
             order by changed_at, database_name, schema_name",
        )
        .bind(self.target.cluster().as_str())
        .bind(self.target.mode().as_str())
        .bind(of.iter().map(|readiness| readiness.as_str()).collect::<Vec<_>>())
        .fetch_all(&mut **self.tx)
        .await
        .map_err(CoreError::from_database)?;
        let corrupt = || CoreError::Corrupt { table: "saas.ready_place", column: "state" };
        rows.into_iter()
            .map(|(database, schema, state, version, reason, since)| {
                let readiness = Readiness::read(&state).ok_or_else(corrupt)?;
                let site = site(self.target.cluster().as_str(), &database, &schema)?;
                Ok(Ready { site, readiness, version, reason, since })
            })
            .collect()
    }

    pub(super) async fn add(&mut self, site: &Site) -> Result<(), CoreError> {
        let (cluster, database, schema) = key(site);
        sqlx::query(
            "insert into saas.ready_place (cluster, database_name, schema_name, mode, state, changed_at)
             values ($1, $2, $3, $4, 'making', $5)",
        )
        .bind(cluster)
        .bind(database)
        .bind(schema)
        .bind(self.target.mode().as_str())
        .bind(self.now)
        .execute(&mut **self.tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
    }

    /// Answers whether the place was still there, and still as far as `from`.
    pub(super) async fn change(
        &mut self,
        site: &Site,
        (from, to): (Readiness, Readiness),
        version: Option<i64>,
        reason: Option<&str>,
    ) -> Result<bool, CoreError> {
        let (cluster, database, schema) = key(site);
        sqlx::query(
            "update saas.ready_place
             set state = $5, version = $6, reason = $7, changed_at = $8
             where cluster = $1 and database_name = $2 and schema_name = $3 and state = $4",
        )
        .bind(cluster)
        .bind(database)
        .bind(schema)
        .bind(from.as_str())
        .bind(to.as_str())
        .bind(version)
        .bind(reason.map(|reason| reason.chars().take(REASON).collect::<String>()))
        .bind(self.now)
        .execute(&mut **self.tx)
        .await
        .map(|done| done.rows_affected() == 1)
        .map_err(CoreError::from_database)
    }

    pub(super) async fn forget(&mut self, site: &Site) -> Result<(), CoreError> {
        let (cluster, database, schema) = key(site);
        sqlx::query(
            "delete from saas.ready_place
             where cluster = $1 and database_name = $2 and schema_name = $3 and state = 'removing'",
        )
        .bind(cluster)
        .bind(database)
        .bind(schema)
        .execute(&mut **self.tx)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
    }
}

/// Takes a ready place out of the stock, for the tenant that the caller's transaction places there. Passes by what others
/// are taking at the same moment, and what has tables that this binary does not know.
pub(in crate::placement) async fn claim_in(
    connection: &mut PgConnection,
    mode: Mode,
    cluster: &ClusterName,
    newest: i64,
) -> Result<Option<Site>, CoreError> {
    let claimed: Option<(String, String)> = sqlx::query_as(
        "with chosen as (
             select cluster, database_name, schema_name
             from saas.ready_place
             where cluster = $1 and mode = $2 and state = 'ready' and version <= $3
             order by changed_at
             limit 1
             for update skip locked)
         delete from saas.ready_place p
         using chosen c
         where p.cluster = c.cluster and p.database_name = c.database_name and p.schema_name = c.schema_name
         returning p.database_name, p.schema_name",
    )
    .bind(cluster.as_str())
    .bind(mode.as_str())
    .bind(newest)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    claimed.map(|(database, schema)| site(cluster.as_str(), &database, &schema)).transpose()
}

/// Whether a place is in the stock.
pub(in crate::placement) async fn is_kept_in(connection: &mut PgConnection, site: &Site) -> Result<bool, CoreError> {
    let (cluster, database, schema) = key(site);
    sqlx::query_scalar(
        "select exists (select from saas.ready_place where cluster = $1 and database_name = $2 and schema_name = $3)",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .fetch_one(connection)
    .await
    .map_err(CoreError::from_database)
}
