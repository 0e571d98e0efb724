//! The ledger in the control database: which of the application's migrations stand applied where. Runs as the system.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{CoreError, TenantId, db::SchemaName, revision};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{AppliedStep, DatabaseName, PlacementError, Site, ground::Applied, record};

/// The key of a site's rows.
pub(super) fn key(site: &Site) -> (&str, &str, &str) {
    let database = site.database.name.as_ref().map_or("", DatabaseName::as_str);
    (site.database.cluster.as_str(), database, site.schema.as_ref().map_or("", SchemaName::as_str))
}

/// Writes down how far a site was brought, and why no further; for a tenant's own site, in its placement as well, and
/// tells every process.
pub(super) async fn record_in(
    connection: &mut PgConnection,
    site: &Site,
    tenant: Option<TenantId>,
    applied: &Applied,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    note_in(connection, site, tenant, Some(applied.version()), applied.failed.as_ref(), now).await?;
    let (cluster, database, schema) = key(site);
    let (mut versions, mut descriptions, mut ats, mut tooks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in &applied.steps {
        versions.push(step.version);
        descriptions.push(step.description.as_str());
        ats.push(step.at);
        tooks.push(step.took.and_then(|took| i64::try_from(took.as_micros()).ok()));
    }
    sqlx::query(
        "insert into saas.fleet_step (cluster, database_name, schema_name, version, description, applied_at, took_us)
         select $1, $2, $3, s.version, s.description, s.at, s.took
         from unnest($4::bigint[], $5::text[], $6::timestamptz[], $7::bigint[]) as s (version, description, at, took)
         on conflict (cluster, database_name, schema_name, version) do nothing",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .bind(versions)
    .bind(descriptions)
    .bind(ats)
    .bind(tooks)
    .execute(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    let Some(tenant) = tenant else { return Ok(()) };
    let changed = sqlx::query(
        "update saas.placement set schema_version = $2, changed_at = $3
         where tenant_id = $1 and mode <> 'pooled' and schema_version is distinct from $2
           and cluster = $4 and coalesce(database_name, '') = $5 and coalesce(schema_name, '') = $6",
    )
    .bind(tenant.as_uuid())
    .bind(applied.version())
    .bind(now)
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .execute(&mut *connection)
    .await
    .map_err(CoreError::from_database)?;
    if changed.rows_affected() > 0 {
        revision::bump_in(connection, tenant).await?;
    }
    Ok(())
}

/// Writes down that a site could not even be looked at. Its version stays as it was noted.
pub(super) async fn fail_in(
    connection: &mut PgConnection,
    site: &Site,
    tenant: Option<TenantId>,
    error: &PlacementError,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    note_in(connection, site, tenant, None, Some(error), now).await
}

async fn note_in(
    connection: &mut PgConnection,
    site: &Site,
    tenant: Option<TenantId>,
    version: Option<Option<i64>>,
    failed: Option<&PlacementError>,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    let (cluster, database, schema) = key(site);
    let failed_version = match failed {
        Some(PlacementError::MigrationFailed { version, .. }) => Some(*version),
        Some(_) | None => None,
    };
    sqlx::query(
        "insert into saas.fleet_site as s
            (cluster, database_name, schema_name, tenant_id, version, failed, failed_version, error, tries, changed_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 1, $9)
         on conflict (cluster, database_name, schema_name) do update set
            tenant_id = excluded.tenant_id,
            version = case when $10 then excluded.version else s.version end,
            failed = excluded.failed, failed_version = excluded.failed_version, error = excluded.error,
            tries = least(s.tries + 1, 1000000), changed_at = excluded.changed_at",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .bind(tenant.map(TenantId::as_uuid))
    .bind(version.flatten())
    .bind(failed.is_some())
    .bind(failed_version)
    .bind(failed.map(PlacementError::in_full))
    .bind(now)
    .bind(version.is_some())
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The version that is noted for a site.
pub(super) async fn version_in(connection: &mut PgConnection, site: &Site) -> Result<Option<i64>, CoreError> {
    let (cluster, database, schema) = key(site);
    let version: Option<Option<i64>> = sqlx::query_scalar(
        "select version from saas.fleet_site where cluster = $1 and database_name = $2 and schema_name = $3",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(version.flatten())
}

/// The tenant that a site was made for.
pub(super) async fn owner_in(connection: &mut PgConnection, site: &Site) -> Result<Option<TenantId>, CoreError> {
    let (cluster, database, schema) = key(site);
    let owner: Option<Option<Uuid>> = sqlx::query_scalar(
        "select tenant_id from saas.fleet_site where cluster = $1 and database_name = $2 and schema_name = $3",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(owner.flatten().map(TenantId::from_uuid))
}

/// Forgets a site that is gone.
pub(super) async fn forget_in(connection: &mut PgConnection, site: &Site) -> Result<(), CoreError> {
    let (cluster, database, schema) = key(site);
    sqlx::query("delete from saas.fleet_site where cluster = $1 and database_name = $2 and schema_name = $3")
        .bind(cluster)
        .bind(database)
        .bind(schema)
        .execute(connection)
        .await
        .map(drop)
        .map_err(CoreError::from_database)
}

/// At which migration the last try failed, and why.
pub(super) type Failure = (Option<i64>, String);

/// The sites where the last try failed.
pub(super) async fn failures_in(connection: &mut PgConnection) -> Result<HashMap<Site, Failure>, CoreError> {
    let rows: Vec<(String, String, String, Option<i64>, String)> = sqlx::query_as(
        "select cluster, database_name, schema_name, failed_version, coalesce(error, '') from saas.fleet_site where failed",
    )
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter()
        .map(|(cluster, database, schema, version, error)| {
            let named = |name: String| Some(name).filter(|name| !name.is_empty());
            let site = record::site(&cluster, named(database).as_deref(), named(schema).as_deref())?;
            Ok((site, (version, error)))
        })
        .collect()
}

/// What stands applied in a site, oldest first.
pub(super) async fn history_in(connection: &mut PgConnection, site: &Site) -> Result<Vec<AppliedStep>, CoreError> {
    let (cluster, database, schema) = key(site);
    let rows: Vec<(i64, String, DateTime<Utc>, Option<i64>)> = sqlx::query_as(
        "select version, description, applied_at, took_us
         from saas.fleet_step
         where cluster = $1 and database_name = $2 and schema_name = $3
         order by version",
    )
    .bind(cluster)
    .bind(database)
    .bind(schema)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    let took = |micros: Option<i64>| micros.and_then(|us| u64::try_from(us).ok()).map(Duration::from_micros);
    let step = |(version, description, at, micros)| AppliedStep { version, description, at, took: took(micros) };
    Ok(rows.into_iter().map(step).collect())
}
