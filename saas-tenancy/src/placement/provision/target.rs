//! What a tenant is to get, and how far the making of it has come.

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::TenantId;

use crate::placement::{ClusterName, Mode, Placement, Site};

/// What kind of place a tenant gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Among all others. In the control cluster that is where a tenant is from the beginning.
    Pooled(ClusterName),
    /// A schema of its own in the cluster's shared database.
    Schema(ClusterName),
    /// A database of its own on the cluster.
    Database(ClusterName),
}

impl Target {
    /// The place that is made for a tenant: named after it, unless it gets one that was made ahead (see
    /// [`Stock`](crate::placement::Stock)).
    #[must_use]
    pub fn site(&self, tenant: TenantId) -> Site {
        match self {
            Self::Pooled(cluster) => Site::shared(cluster.clone()),
            Self::Schema(cluster) => Site::schema_of(tenant, cluster.clone()),
            Self::Database(cluster) => Site::database_of(tenant, cluster.clone()),
        }
    }

    /// The cluster that it is on.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterName {
        match self {
            Self::Pooled(cluster) | Self::Schema(cluster) | Self::Database(cluster) => cluster,
        }
    }

    /// Whether a placement is what was asked for, whatever its name.
    pub(super) fn is_met_by(&self, placement: &Placement) -> bool {
        placement.mode == self.mode() && placement.site.database.cluster == *self.cluster()
    }

    /// What the tenant shares there.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        match self {
            Self::Pooled(_) => Mode::Pooled,
            Self::Schema(_) => Mode::Schema,
            Self::Database(_) => Mode::Database,
        }
    }
}

/// How far the making of a place has come. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It was asked for.
    Requested,
    /// The database and the schema are there, with the kernel's tables.
    Created,
    /// The tenant is registered there, behind a closed door.
    Prepared,
    /// The application's tables are there.
    Migrated,
    /// The isolation audit found nothing.
    Examined,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Requested, Self::Created, Self::Prepared, Self::Migrated, Self::Examined];

    /// As it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Created => "created",
            Self::Prepared => "prepared",
            Self::Migrated => "migrated",
            Self::Examined => "examined",
        }
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == text)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the making of a tenant's place stands, for showing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Where it will be, and whether it is being made, served, or failed and why.
    pub placement: Placement,
    /// The last step that is complete; `None` once the place is served.
    pub step: Option<Step>,
    /// How often it was begun.
    pub tries: i32,
    /// Since when it stands there.
    pub since: Option<DateTime<Utc>>,
}
