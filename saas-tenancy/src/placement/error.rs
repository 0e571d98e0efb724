//! Why a tenant cannot be served where it lives, or a place not be made or migrated.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use saas_core::{CoreError, ErrorKind, InvalidInput, Refusal, TenantId, doctor::Finding};

use super::{ClusterName, Database, Site};

/// Why a tenant cannot be served where it lives, or a place not be made or migrated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The kernel or the database below refused.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// A placement on a cluster that this process does not know.
    #[error("the cluster `{cluster}` is not configured here; add it to `Clusters`")]
    UnknownCluster {
        /// Its name.
        cluster: ClusterName,
    },
    /// Work that needs more than the rights of serving.
    #[error("the cluster `{cluster}` has no admin login here; configure one by `Cluster::with_admin`")]
    NoAdmin {
        /// Its name.
        cluster: ClusterName,
    },
    /// The budget of connections was in use for as long as the request could wait.
    #[error("no connection to `{database}` was to be had in {waited:?}; try again, or raise the pools' limits")]
    PoolsBusy {
        /// The database that was wanted.
        database: Database,
        /// How long the request waited.
        waited: Duration,
    },
    /// The database could not be opened, and is left alone for a while.
    #[error("the database `{database}` cannot be used, and is tried again in {retry_in:?}: {cause}")]
    DatabaseDown {
        /// The database.
        database: Database,
        /// When it is worth trying again.
        retry_in: Duration,
        /// What happened at the last try.
        #[source]
        cause: Arc<CoreError>,
    },
    /// The tenant uses as much as one tenant may.
    #[error("the tenant {tenant} has {limit} transactions open, as many as one tenant may; try again")]
    TenantBusy {
        /// The tenant.
        tenant: TenantId,
        /// How many it may have.
        limit: usize,
    },
    /// The tenant's own place is being made.
    #[error("the place of tenant {tenant} is being made; try again soon")]
    BeingProvisioned {
        /// The tenant.
        tenant: TenantId,
    },
    /// Making the tenant's own place failed.
    #[error("the place of tenant {tenant} could not be made ({reason}); mend that and resume, or abandon it")]
    ProvisioningFailed {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        reason: String,
    },
    /// The database or schema that the placement names does not exist.
    #[error(
        "the place `{site}` of tenant {tenant} has disappeared; restore it from a backup, or correct the placement"
    )]
    Disappeared {
        /// The tenant.
        tenant: TenantId,
        /// What is missing.
        site: Site,
    },
    /// The application's tables of that place are not in a state that this binary was built for.
    #[error("the tables of `{site}` are at {}, this binary serves {known}; {remedy}", version(*found))]
    UnknownVersion {
        /// Where.
        site: Site,
        /// The version of the tables there; `None` for none.
        found: Option<i64>,
        /// What this binary serves.
        known: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The tenant has a place already, or rows in the shared tables.
    #[error("tenant {tenant} {what}; {remedy}")]
    InTheWay {
        /// The tenant.
        tenant: TenantId,
        /// What stands in the way.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Someone else works on the same tenant or place.
    #[error("`{what}` is being worked on by another process; wait for it, or try again")]
    InProgress {
        /// The tenant or the place.
        what: String,
    },
    /// The isolation audit found a leak in a place that was just made.
    #[error("`{site}` would leak: {}; mend the migrations and resume", listed(findings))]
    Leaks {
        /// Where.
        site: Site,
        /// What the audit found.
        findings: Vec<Finding>,
    },
    /// A migration of the application failed. Those before it stay applied.
    #[error("migration {version} failed in `{site}`: {reason}; mend it, then run again")]
    MigrationFailed {
        /// Where.
        site: Site,
        /// Which.
        version: i64,
        /// What the database said.
        reason: String,
        /// Its error.
        #[source]
        cause: Box<CoreError>,
    },
    /// What was applied in a place is not what the binary carries.
    #[error(
        "the migrations of `{site}` do not fit: {what}; deploy the release that migrated it, and never edit a published file"
    )]
    Diverged {
        /// Where.
        site: Site,
        /// How.
        what: String,
    },
}

fn version(found: Option<i64>) -> String {
    found.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"))
}

/// The first few; the rest is in the error itself.
fn listed(findings: &[Finding]) -> String {
    const SHOWN: usize = 5;
    let mut lines: Vec<String> =
        findings.iter().take(SHOWN).map(|f| format!("{}: {} {}", f.code, f.object, f.reason)).collect();
    if findings.len() > SHOWN {
        lines.push(format!("and {} more", findings.len() - SHOWN));
    }
    lines.join("; ")
}

impl PlacementError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Core(error) => error.kind(),
            Self::DatabaseDown { cause, .. } => cause.kind(),
            Self::MigrationFailed { cause, .. } if cause.is_retryable() => ErrorKind::Unavailable,
            Self::PoolsBusy { .. }
            | Self::TenantBusy { .. }
            | Self::BeingProvisioned { .. }
            | Self::InProgress { .. } => ErrorKind::Unavailable,
            Self::InTheWay { .. } => ErrorKind::Conflict,
            Self::UnknownCluster { .. }
            | Self::NoAdmin { .. }
            | Self::ProvisioningFailed { .. }
            | Self::Disappeared { .. }
            | Self::UnknownVersion { .. }
            | Self::Leaks { .. }
            | Self::MigrationFailed { .. }
            | Self::Diverged { .. } => ErrorKind::Misconfigured,
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Core(error) => error.code(),
            Self::DatabaseDown { cause, .. } => match cause.kind() {
                ErrorKind::Unavailable => "database_down",
                _ => cause.code(),
            },
            Self::UnknownCluster { .. } => "unknown_cluster",
            Self::NoAdmin { .. } => "no_admin_login",
            Self::PoolsBusy { .. } => "pools_busy",
            Self::TenantBusy { .. } => "tenant_busy",
            Self::BeingProvisioned { .. } => "being_provisioned",
            Self::ProvisioningFailed { .. } => "provisioning_failed",
            Self::Disappeared { .. } => "placement_disappeared",
            Self::UnknownVersion { .. } => "unknown_schema_version",
            Self::InTheWay { .. } => "placement_in_the_way",
            Self::InProgress { .. } => "in_progress",
            Self::Leaks { .. } => "placement_leaks",
            Self::MigrationFailed { .. } => "migration_failed",
            Self::Diverged { .. } => "migrations_diverged",
        }
    }

    /// Its text and that of what lies behind it: for an operator's report, never for a tenant.
    #[must_use]
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = StdError::source(self);
        while let Some(inner) = cause {
            let next = inner.to_string();
            if !text.contains(&next) {
                text = format!("{text}: {next}");
            }
            cause = inner.source();
        }
        text
    }

    /// Whether the same call can succeed later without anyone changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }
}

impl From<InvalidInput> for PlacementError {
    fn from(error: InvalidInput) -> Self {
        Self::Core(error.into())
    }
}

/// Whether the server said that there is no such database.
pub(super) fn is_missing_database(error: &CoreError) -> bool {
    says(error, &["3D000"])
}

/// Whether the server said that there is no such database, or no such schema in it.
pub(super) fn is_missing_place(error: &CoreError) -> bool {
    says(error, &["3D000", "3F000"])
}

fn says(error: &CoreError, codes: &[&str]) -> bool {
    let mut cause = StdError::source(error);
    while let Some(inner) = cause {
        if let Some(database) = inner.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error) {
            return database.code().is_some_and(|code| codes.contains(&&*code));
        }
        cause = inner.source();
    }
    false
}

/// What a binding answers. The placement's error stays inside, with its kind and code.
impl From<PlacementError> for CoreError {
    fn from(error: PlacementError) -> Self {
        match error {
            PlacementError::Core(error) => error,
            other => Self::Refused(Refusal::new(other.kind(), other.code(), other)),
        }
    }
}
