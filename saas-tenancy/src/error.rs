//! Why an operation on tenants or memberships was refused.

use chrono::{DateTime, Utc};
use saas_core::{Cause, CoreError, ErrorKind, InvalidInput};

use crate::{Permission, Role};

/// Why an operation on tenants or memberships was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenancyError {
    /// The kernel or the database below refused.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The address belongs to another tenant.
    #[error("the slug `{0}` is taken; choose another")]
    SlugTaken(String),
    /// The person is in the tenant already.
    #[error("this person is already a member")]
    AlreadyMember,
    /// No such tenant, or the person is not in it: from outside, both look the same.
    #[error("no such tenant")]
    NotMember,
    /// The actor's role lacks a permission.
    #[error("the role `{role}` may not {permission}")]
    NotAllowed {
        /// The actor's role.
        role: Role,
        /// What was asked.
        permission: Permission,
    },
    /// The role to give holds more than the actor's own, or that of the member to change stands above it.
    #[error("a member with role `{actor}` may not give, change or remove the role `{target}`")]
    RankTooLow {
        /// The actor's role.
        actor: Role,
        /// The other role.
        target: Role,
    },
    /// Only people change memberships, under their own name.
    #[error("memberships are changed by a signed-in member under their own name, not by {actor}")]
    NotAPerson {
        /// Who tried.
        actor: String,
    },
    /// A tenant always has an owner.
    #[error("the last owner cannot leave or give up the role; make someone else owner first")]
    LastOwner,
    /// The tenant is suspended.
    #[error("the tenant is suspended since {since}; its members should ask the vendor")]
    Suspended {
        /// Since when.
        since: DateTime<Utc>,
    },
    /// The tenant is in maintenance.
    #[error("the tenant is in maintenance since {since}; try again later")]
    InMaintenance {
        /// Since when.
        since: DateTime<Utc>,
    },
    /// The tenant can be looked at only.
    #[error("the tenant is read-only since {since}, so nothing in it can be changed")]
    ReadOnly {
        /// Since when.
        since: DateTime<Utc>,
    },
    /// Members and their keys cannot do what only the vendor may.
    #[error("this is for an operator under their own name, not for {actor}")]
    NotAnOperator {
        /// Who tried.
        actor: String,
    },
    /// The status of the tenant does not allow the change.
    #[cfg(feature = "postgres")]
    #[error("the tenant is {present}; end that first")]
    Status {
        /// What it is.
        present: crate::lifecycle::State,
    },
    /// The tenant's status changed, and the door of the database that it lives in does not tell it yet.
    #[error(
        "the status is set and members are refused, but the door at {place} was not set ({cause}); repeat the call"
    )]
    DoorNotSet {
        /// Where the tenant lives.
        place: String,
        /// What was in the way.
        #[source]
        cause: Box<CoreError>,
    },
    /// The erasure of the tenant is not where this could be done.
    #[cfg(feature = "postgres")]
    #[error("{}", match present {
        Some(state) => format!("the tenant's erasure is {state}, which does not allow this"),
        None => "no erasure of the tenant was asked for; request one first".to_owned(),
    })]
    Erasure {
        /// How far it is.
        present: Option<crate::erase::EraseState>,
    },
    /// Whoever asks for an erasure does not approve it.
    #[error("an erasure is approved by another operator than the one who asked for it")]
    SameOperator,
    /// Something forbids to erase the tenant.
    #[cfg(feature = "postgres")]
    #[error("the tenant cannot be erased: {}", in_the_way(obstacles, dependents))]
    EraseBlocked {
        /// What the schema forbids.
        obstacles: Vec<crate::erase::Obstacle>,
        /// What depends on the tenant.
        dependents: Vec<saas_core::dependents::Dependent>,
    },
    /// The tenant does not claim this domain, or lost it.
    #[error("the tenant does not claim this domain; claim it first")]
    DomainNotClaimed,
    /// The tenant claims as many domains as one may.
    #[error("a tenant may claim {limit} domains; release one first")]
    TooManyDomains {
        /// How many.
        limit: u32,
    },
    /// What is published about a domain could not be read; nothing was changed.
    #[error("what is published about the domain could not be read; try again later")]
    ProofUnread {
        /// What the port said.
        #[source]
        cause: Cause,
    },
    /// A table with tenants' rows that no fence protects.
    #[cfg(feature = "postgres")]
    #[error("{table} holds tenants' rows without a fence; in a migration, `select saas.fence('{table}');`")]
    Unfenced {
        /// Which.
        table: String,
    },
    /// Where an export should go, it did not.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Target(#[from] crate::export::TargetError),
}

impl From<InvalidInput> for TenancyError {
    fn from(error: InvalidInput) -> Self {
        Self::Core(error.into())
    }
}

impl TenancyError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Core(error) => error.kind(),
            Self::SlugTaken(_)
            | Self::AlreadyMember
            | Self::LastOwner
            | Self::TooManyDomains { .. }
            | Self::ReadOnly { .. } => ErrorKind::Conflict,
            Self::Suspended { .. } | Self::NotAnOperator { .. } | Self::SameOperator => ErrorKind::Forbidden,
            #[cfg(feature = "postgres")]
            Self::Status { .. } | Self::Erasure { .. } | Self::EraseBlocked { .. } => ErrorKind::Conflict,
            Self::NotMember | Self::DomainNotClaimed => ErrorKind::NotFound,
            Self::ProofUnread { .. } | Self::InMaintenance { .. } | Self::DoorNotSet { .. } => ErrorKind::Unavailable,
            Self::NotAllowed { .. } | Self::RankTooLow { .. } | Self::NotAPerson { .. } => ErrorKind::Forbidden,
            #[cfg(feature = "postgres")]
            Self::Unfenced { .. } => ErrorKind::Misconfigured,
            #[cfg(feature = "postgres")]
            Self::Target(error) => error.kind(),
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Core(error) => error.code(),
            Self::SlugTaken(_) => "slug_taken",
            Self::AlreadyMember => "already_member",
            Self::NotMember => "not_a_member",
            Self::NotAllowed { .. } => "not_allowed",
            Self::RankTooLow { .. } => "rank_too_low",
            Self::NotAPerson { .. } => "not_a_person",
            Self::LastOwner => "last_owner",
            Self::Suspended { .. } => "tenant_suspended",
            Self::InMaintenance { .. } => "tenant_in_maintenance",
            Self::ReadOnly { .. } => "tenant_read_only",
            Self::NotAnOperator { .. } => "not_an_operator",
            Self::SameOperator => "same_operator",
            #[cfg(feature = "postgres")]
            Self::Status { .. } => "tenant_status",
            #[cfg(feature = "postgres")]
            Self::Erasure { .. } => "erasure_state",
            #[cfg(feature = "postgres")]
            Self::EraseBlocked { .. } => "erase_blocked",
            Self::DoorNotSet { .. } => "door_not_set",
            Self::DomainNotClaimed => "domain_not_claimed",
            Self::TooManyDomains { .. } => "too_many_domains",
            Self::ProofUnread { .. } => "proof_unread",
            #[cfg(feature = "postgres")]
            Self::Unfenced { .. } => "table_unfenced",
            #[cfg(feature = "postgres")]
            Self::Target(error) => error.code(),
        }
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }
}

#[cfg(feature = "postgres")]
fn in_the_way(obstacles: &[crate::erase::Obstacle], dependents: &[saas_core::dependents::Dependent]) -> String {
    let obstacles = obstacles.iter().map(|it| format!("{} {}; {}", it.table, it.reason, it.remedy));
    obstacles.chain(dependents.iter().map(ToString::to_string)).collect::<Vec<_>>().join(" | ")
}
