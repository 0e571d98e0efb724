//! Where a tenant's tables can be, and how a mover gets in there.

use std::fmt;

use async_trait::async_trait;
use saas_core::CoreError;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;

/// What a tenant shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Tables.
    Pooled,
    /// A database; the schema is its own.
    Schema,
    /// A server; the database is its own.
    Database,
}

impl Mode {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Pooled => "pooled",
            Self::Schema => "schema",
            Self::Database => "database",
        }
    }
}

/// A place for one tenant's tables, as `saas.placement` stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// What is shared.
    pub mode: Mode,
    /// A server that the application configures by name; `control` is the one of the foundation's own rows.
    pub cluster: String,
    /// The tenant's own database; `None` for the cluster's shared one.
    pub database: Option<String>,
    /// The tenant's own schema.
    pub schema: Option<String>,
    /// The application's last migration that was applied there; `None` in shared tables.
    pub schema_version: Option<i64>,
}

impl Address {
    /// The shared tables of a cluster.
    #[must_use]
    pub fn pooled(cluster: impl Into<String>) -> Self {
        Self { mode: Mode::Pooled, cluster: cluster.into(), database: None, schema: None, schema_version: None }
    }

    /// A schema of the tenant's own in the shared database of a cluster.
    #[must_use]
    pub fn schema(cluster: impl Into<String>, schema: impl Into<String>) -> Self {
        Self { mode: Mode::Schema, schema: Some(schema.into()), ..Self::pooled(cluster) }
    }

    /// A database of the tenant's own.
    #[must_use]
    pub fn database(cluster: impl Into<String>, database: impl Into<String>) -> Self {
        Self { mode: Mode::Database, database: Some(database.into()), ..Self::pooled(cluster) }
    }

    /// The version of what is there is not part of where it is: migrations go on during a move and after it.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        (self.mode, &self.cluster, &self.database, &self.schema)
            == (other.mode, &other.cluster, &other.database, &other.schema)
    }

    /// With the version of the application's migrations that was applied there.
    #[must_use]
    pub const fn at_version(mut self, version: i64) -> Self {
        self.schema_version = Some(version);
        self
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.mode.as_str(), self.cluster)?;
        for part in [&self.database, &self.schema].into_iter().flatten() {
            write!(f, "/{part}")?;
        }
        Ok(())
    }
}

/// How a mover gets to the tables at an address.
///
/// The login must see every row (superuser or `BYPASSRLS`), may set `session_replication_role`, and may act as `saas_owner`;
/// the mover says which of these is missing. It is an operator's login: no process that serves requests should have it.
#[derive(Clone)]
pub struct Endpoint {
    pub(super) login: PgConnectOptions,
    pub(super) schema: String,
    pub(super) maintenance: Option<PgConnectOptions>,
}

impl Endpoint {
    /// The tables of `schema` (`public`, say) in the database that the login names.
    #[must_use]
    pub fn new(login: PgConnectOptions, schema: impl Into<String>) -> Self {
        Self { login, schema: schema.into(), maintenance: None }
    }

    /// Lets [`confirm`](super::Mover::confirm) drop this database when it was the tenant's own, from another database of the
    /// same server such as `postgres`. Without it the tenant's rows are deleted, and the database stays.
    #[must_use]
    pub fn with_maintenance(mut self, login: PgConnectOptions) -> Self {
        self.maintenance = Some(login);
        self
    }
}

/// Options may hold a password.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("host", &self.login.get_host())
            .field("port", &self.login.get_port())
            .field("database", &self.login.get_database())
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

/// Finds the way to an address. Nothing secret is stored with a move: who resumes it asks again.
///
/// # Contract
/// - *Stable*: the same address leads to the same tables for as long as a move is under way.
#[async_trait]
pub trait Endpoints: fmt::Debug + Send + Sync + 'static {
    /// The way to an address.
    ///
    /// # Errors
    /// When the cluster is not configured, or the address makes no sense.
    async fn endpoint(&self, address: &Address) -> Result<Endpoint, CoreError>;
}
