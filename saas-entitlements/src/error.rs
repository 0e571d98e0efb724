//! How entitlements and counting fail.

use chrono::{DateTime, Utc};
use saas_core::{
    AddOnKey, CatalogError, Cause, CoreError, ErrorKind, FeatureKey, InvalidInput, MeterKey, PlanKey, Revision,
};

use crate::FeatureRequired;

/// Why an operation of `saas-entitlements` failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntitlementsError {
    /// The database or the kernel refused.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// Input breaks a rule.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// The catalogue has no such feature.
    #[error("the plan catalogue has no feature `{key}`; declare it there or correct the key")]
    UnknownFeature {
        /// What was asked for.
        key: FeatureKey,
    },
    /// The catalogue has no such meter.
    #[error("the plan catalogue has no meter `{key}`; declare it there or correct the key")]
    UnknownMeter {
        /// What was asked for.
        key: MeterKey,
    },
    /// A tenant is on a plan that this binary's catalogue does not have.
    #[error(
        "a tenant is on `{plan}` version {version:?}, which the plan catalogue lacks; keep every version that somebody is on"
    )]
    UnknownPlan {
        /// The plan.
        plan: PlanKey,
        /// Its version.
        version: Option<u32>,
    },
    /// A tenant has an add-on that this binary's catalogue does not have.
    #[error("a tenant has the add-on `{key}`, which the plan catalogue lacks; keep every add-on that somebody has")]
    UnknownAddOn {
        /// The add-on.
        key: AddOnKey,
    },
    /// The tenant's entitlements changed after the snapshot was taken. Nothing was written.
    #[error("the tenant's entitlements changed meanwhile (revision {revision}); take a new snapshot and repeat")]
    Outdated {
        /// The present revision.
        revision: Revision,
    },
    /// The window of the instant that a use names takes no more uses.
    #[error(
        "the window of that instant ended at {ended_at} and takes late uses for {late_hours} hours; correct it with `Adjustments::correct` under the same key"
    )]
    TooLate {
        /// When the window ended.
        ended_at: DateTime<Utc>,
        /// For how long it took uses after that.
        late_hours: u16,
    },
    /// How far usage events are read is written down in the transactions of another server. Nothing was read or dropped.
    #[error(
        "how far usage events are read is not known on this server: {why}; after a restore or an upgrade call `UsagePipeline::adopt_positions` once"
    )]
    ForeignPositions {
        /// What shows it.
        why: String,
    },
    /// A document is no plan catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The tenant has had its trial.
    #[error("the tenant had its trial at {started_at}; there is one for ever")]
    TrialUsed {
        /// When it started.
        started_at: DateTime<Utc>,
    },
    /// The history does not reach back that far.
    #[error("{what} was not recorded at {at}; ask about a later instant")]
    Unrecorded {
        /// What is not known.
        what: &'static str,
        /// When.
        at: DateTime<Utc>,
    },
    /// The tenant does not have a feature that was required.
    #[error(transparent)]
    FeatureRequired(Box<FeatureRequired>),
    /// What the tenant may do could not be read, and nothing recent enough is known.
    #[error("the tenant's entitlements cannot be read at present")]
    Unavailable {
        /// What happened, where it is known.
        #[source]
        cause: Option<Cause>,
    },
}

impl EntitlementsError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Core(error) => error.kind(),
            Self::Invalid(_)
            | Self::Catalog(_)
            | Self::UnknownFeature { .. }
            | Self::UnknownMeter { .. }
            | Self::TooLate { .. } => ErrorKind::Invalid,
            Self::UnknownPlan { .. } | Self::UnknownAddOn { .. } | Self::ForeignPositions { .. } => {
                ErrorKind::Misconfigured
            }
            Self::Outdated { .. } | Self::TrialUsed { .. } => ErrorKind::Conflict,
            Self::Unrecorded { .. } => ErrorKind::NotFound,
            Self::FeatureRequired(refused) => refused.kind(),
            Self::Unavailable { .. } => ErrorKind::Unavailable,
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Core(error) => error.code(),
            Self::Invalid(_) => "invalid_input",
            Self::UnknownFeature { .. } => "unknown_feature",
            Self::UnknownMeter { .. } => "unknown_meter",
            Self::UnknownPlan { .. } => "unknown_plan",
            Self::UnknownAddOn { .. } => "unknown_addon",
            Self::Outdated { .. } => "entitlements_outdated",
            Self::TooLate { .. } => "use_too_late",
            Self::ForeignPositions { .. } => "foreign_usage_positions",
            Self::Catalog(_) => "invalid_catalog",
            Self::TrialUsed { .. } => "trial_used",
            Self::Unrecorded { .. } => "unrecorded",
            Self::FeatureRequired(_) => "feature_required",
            Self::Unavailable { .. } => "entitlements_unavailable",
        }
    }

    /// The HTTP status that says so: 402 for a required feature that is for sale, otherwise that of the kind.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            Self::FeatureRequired(refused) => refused.http_status(),
            other => other.kind().http_status(),
        }
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }
}
