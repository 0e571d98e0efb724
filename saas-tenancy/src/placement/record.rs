//! The row that says where a tenant lives, and the statements that read and change it. They run as the system role.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, TenantId,
    db::{Generation, SchemaName},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{ClusterName, Database, Site};

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$what])* $variant),+
        }

        impl $name {
            /// As it is stored.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn read(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}

words! {
    /// What a tenant shares with others.
    Mode {
        /// The tables.
        Pooled = "pooled",
        /// The database, with tables of its own.
        Schema = "schema",
        /// The server, with a database of its own.
        Database = "database",
    }
    /// Whether the tenant can be served there.
    State {
        /// The place is being made.
        Provisioning = "provisioning",
        /// It is served.
        Active = "active",
        /// Making the place failed.
        Failed = "failed",
        /// It is served there until the move is complete.
        Moving = "moving",
    }
}

/// Where one tenant's own tables live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The tenant.
    pub tenant: TenantId,
    /// What it shares with others.
    pub mode: Mode,
    /// Which database and schema.
    pub site: Site,
    /// The version of the application's tables there; `None` when nobody has noted one.
    pub schema_version: Option<i64>,
    /// How often the tenant has moved.
    pub generation: Generation,
    /// Whether it can be served.
    pub state: State,
    /// Why it cannot.
    pub reason: Option<String>,
}

impl Placement {
    /// Of a tenant that nobody has placed: in the shared tables of the control database.
    #[must_use]
    pub fn implicit(tenant: TenantId, schema_version: Option<i64>) -> Self {
        Self {
            tenant,
            mode: Mode::Pooled,
            site: Site::shared(ClusterName::control()),
            schema_version,
            generation: Generation::FIRST,
            state: State::Active,
            reason: None,
        }
    }
}

type Row = (String, String, Option<String>, Option<String>, Option<i64>, i64, String, Option<String>);
type Listed = (Uuid, String, String, Option<String>, Option<String>, Option<i64>, i64, String, Option<String>);

const fn corrupt(column: &'static str) -> CoreError {
    CoreError::Corrupt { table: "saas.placement", column }
}

pub(super) fn site(cluster: &str, database: Option<&str>, schema: Option<&str>) -> Result<Site, CoreError> {
    let cluster = ClusterName::from_str(cluster).map_err(|_| corrupt("cluster"))?;
    let name = database.map(str::parse).transpose().map_err(|_| corrupt("database_name"))?;
    let schema = schema.map(SchemaName::from_str).transpose().map_err(|_| corrupt("schema_name"))?;
    Ok(Site { database: Database { cluster, name }, schema })
}

fn read(tenant: TenantId, row: Row) -> Result<Placement, CoreError> {
    let (mode, cluster, database, schema, schema_version, generation, state, reason) = row;
    Ok(Placement {
        tenant,
        mode: Mode::read(&mode).ok_or(corrupt("mode"))?,
        site: site(&cluster, database.as_deref(), schema.as_deref())?,
        schema_version,
        generation: Generation::new(generation),
        state: State::read(&state).ok_or(corrupt("state"))?,
        reason,
    })
}

/// Finds a tenant's placement; `None` for one that nobody has placed.
///
/// # Errors
/// When the database does not answer or the row makes no sense.
pub async fn find_in(connection: &mut PgConnection, tenant: TenantId) -> Result<Option<Placement>, CoreError> {
    // A pooled tenant's tables are the shared ones, whose version the fleet's ledger knows.
    let row: Option<Row> = sqlx::query_as(
        "select p.mode, p.cluster, p.database_name, p.schema_name,
                case when p.mode = 'pooled' then s.version else p.schema_version end,
                p.generation, p.state, p.reason
         from saas.placement p
         left join saas.fleet_site s
           on p.mode = 'pooled' and s.cluster = p.cluster and s.database_name = '' and s.schema_name = ''
         where p.tenant_id = $1",
    )
    .bind(tenant.as_uuid())
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    row.map(|row| read(tenant, row)).transpose()
}

/// [`find_in`], or the placement of a tenant that nobody has placed.
///
/// # Errors
/// As [`find_in`].
pub async fn get_in(connection: &mut PgConnection, tenant: TenantId) -> Result<Placement, CoreError> {
    if let Some(placement) = find_in(connection, tenant).await? {
        return Ok(placement);
    }
    let shared: Option<i64> = sqlx::query_scalar(
        "select version from saas.fleet_site where cluster = 'control' and database_name = '' and schema_name = ''",
    )
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?
    .flatten();
    Ok(Placement::implicit(tenant, shared))
}

/// Writes a tenant's placement, whatever it was before.
///
/// # Errors
/// When the database refuses.
pub async fn put_in(connection: &mut PgConnection, placement: &Placement, now: DateTime<Utc>) -> Result<(), CoreError> {
    let schema_version = match placement.mode {
        Mode::Pooled => None,
        Mode::Schema | Mode::Database => placement.schema_version,
    };
    sqlx::query(
        "insert into saas.placement
            (tenant_id, mode, cluster, database_name, schema_name, schema_version, generation, state, reason, changed_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         on conflict (tenant_id) do update set
            mode = excluded.mode, cluster = excluded.cluster, database_name = excluded.database_name,
            schema_name = excluded.schema_name, schema_version = excluded.schema_version,
            generation = excluded.generation, state = excluded.state, reason = excluded.reason,
            changed_at = excluded.changed_at",
    )
    .bind(placement.tenant.as_uuid())
    .bind(placement.mode.as_str())
    .bind(placement.site.database.cluster.as_str())
    .bind(placement.site.database.name.as_ref().map(|name| name.as_str()))
    .bind(placement.site.schema.as_ref().map(|schema| schema.as_str()))
    .bind(schema_version)
    .bind(placement.generation.get())
    .bind(placement.state.as_str())
    .bind(placement.reason.as_deref())
    .bind(now)
    .execute(connection)
    .await
    .map(drop)
    .map_err(CoreError::from_database)
}

/// The tenant that is placed in a site of its own.
pub(super) async fn find_owner_in(connection: &mut PgConnection, site: &Site) -> Result<Option<TenantId>, CoreError> {
    let owner: Option<Uuid> = sqlx::query_scalar(
        "select tenant_id
         from saas.placement -- of whoever it is
         where cluster = $1 and database_name is not distinct from $2 and schema_name is not distinct from $3
           and mode <> 'pooled'
         limit 1",
    )
    .bind(site.database.cluster.as_str())
    .bind(site.database.name.as_ref().map(|name| name.as_str()))
    .bind(site.schema.as_ref().map(|schema| schema.as_str()))
    .fetch_optional(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(owner.map(TenantId::from_uuid))
}

/// The placements of tenants that have one of their own, in the order of their ids: up to `limit` after `after`.
///
/// # Errors
/// As [`find_in`].
pub async fn list_own_in(
    connection: &mut PgConnection,
    after: Option<TenantId>,
    limit: i64,
) -> Result<Vec<Placement>, CoreError> {
    let rows: Vec<Listed> = sqlx::query_as(
        "select tenant_id, mode, cluster, database_name, schema_name, schema_version, generation, state, reason
             from saas.placement
             where mode <> 'pooled' and ($1::uuid is null or tenant_id > $1)
             order by tenant_id
             limit $2",
    )
    .bind(after.map(TenantId::as_uuid))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    rows.into_iter()
        .map(|(id, mode, cluster, database, schema, version, generation, state, reason)| {
            read(TenantId::from_uuid(id), (mode, cluster, database, schema, version, generation, state, reason))
        })
        .collect()
}
