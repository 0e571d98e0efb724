//! A place that holds an application's tables: the shared ones of a database, or those of one tenant.

use std::fmt;

use saas_core::{TenantId, db::SchemaName};

use super::{ClusterName, Database, DatabaseName};

/// A set of the application's tables: which database, and which schema in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Site {
    /// The database.
    pub database: Database,
    /// `None`: the schema `public`.
    pub schema: Option<SchemaName>,
}

impl Site {
    /// The shared tables of a cluster.
    #[must_use]
    pub const fn shared(cluster: ClusterName) -> Self {
        Self { database: Database { cluster, name: None }, schema: None }
    }

    /// A schema of the tenant's own in the cluster's shared database.
    #[must_use]
    pub fn schema_of(tenant: TenantId, cluster: ClusterName) -> Self {
        Self { database: Database { cluster, name: None }, schema: Some(SchemaName::of(tenant)) }
    }

    /// A database of the tenant's own.
    #[must_use]
    pub fn database_of(tenant: TenantId, cluster: ClusterName) -> Self {
        Self { database: Database { cluster, name: Some(DatabaseName::of(tenant)) }, schema: None }
    }

    /// Whether several tenants live there.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.schema.is_none() && self.database.name.is_none()
    }

    /// The schema's name.
    pub(super) fn schema_or_public(&self) -> &str {
        self.schema.as_ref().map_or("public", SchemaName::as_str)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{}:{schema}", self.database),
            None => self.database.fmt(f),
        }
    }
}

/// As it is shown.
impl serde::Serialize for Site {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
