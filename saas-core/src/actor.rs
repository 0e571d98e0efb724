//! Who acts. Every change of state names one.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use crate::{ApiKeyId, UserId};

/// Who is behind an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Actor {
    /// A member of the tenant, signed in.
    User {
        /// Who.
        id: UserId,
    },
    /// A machine credential of the tenant.
    ApiKey {
        /// Which.
        id: ApiKeyId,
    },
    /// A person of the vendor, under their own name.
    Operator {
        /// Who.
        id: UserId,
    },
    /// An operator who sees the application as a member does. Both stand in every row that is written.
    Impersonation {
        /// Who really acts.
        operator: UserId,
        /// As whom.
        user: UserId,
    },
    /// A job of the foundation or of the adopter, such as `dunning`.
    System {
        /// The job's name.
        name: Cow<'static, str>,
    },
}

impl Actor {
    /// A background job, by name.
    #[must_use]
    pub const fn system(name: &'static str) -> Self {
        Self::System { name: Cow::Borrowed(name) }
    }

    /// The member in whose name something is done: the one signed in, or the one an operator looks through.
    #[must_use]
    pub const fn person(&self) -> Option<UserId> {
        match self {
            Self::User { id } => Some(*id),
            Self::Impersonation { user, .. } => Some(*user),
            Self::ApiKey { .. } | Self::Operator { .. } | Self::System { .. } => None,
        }
    }

    /// A member of the tenant.
    #[must_use]
    pub const fn user(id: UserId) -> Self {
        Self::User { id }
    }
}

/// `user:0190…`, `system:dunning`, `operator:0190… as user:0191…`: the form that the audit log stores.
impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { id } => write!(f, "user:{id}"),
            Self::ApiKey { id } => write!(f, "api_key:{id}"),
            Self::Operator { id } => write!(f, "operator:{id}"),
            Self::Impersonation { operator, user } => write!(f, "operator:{operator} as user:{user}"),
            Self::System { name } => write!(f, "system:{name}"),
        }
    }
}
