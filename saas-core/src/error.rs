//! How things fail. Each crate has one error enum; all of them sort into the [`ErrorKind`]s here.

use std::{borrow::Cow, error::Error as StdError, fmt};

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input is wrong; the same call will fail again (400).
    Invalid,
    /// Nobody is signed in (401).
    Unauthenticated,
    /// The actor may not do this (403; 404 where existence must stay hidden).
    Forbidden,
    /// No such thing in this tenant (404).
    NotFound,
    /// Someone else got there first, or the state does not allow it (409).
    Conflict,
    /// The set-up is wrong: role, privilege, schema, server version, secret. Start-up refuses; an operator must act (500).
    Misconfigured,
    /// Something outside did not answer; try again (503).
    Unavailable,
    /// It may or may not have happened; repeat it with the same idempotency key (503).
    OutcomeUnknown,
    /// A stored value or an answer breaks a rule that should always hold (500).
    Corrupt,
}

impl ErrorKind {
    /// The HTTP status that says so: 400, 401, 403, 404, 409, 500 or 503. What a 500 says is not for the client.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Misconfigured | Self::Corrupt => 500,
            Self::Unavailable | Self::OutcomeUnknown => 503,
        }
    }

    /// Whether the same call can succeed later without anyone changing anything.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::OutcomeUnknown)
    }
}

/// What lies behind an error, for logs; never shown to a user.
pub type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// Input that breaks a rule: what it is, why it is refused, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidInput {
    what: Cow<'static, str>,
    why: Cow<'static, str>,
    remedy: Cow<'static, str>,
}

impl InvalidInput {
    /// An error that reads `{what} {why}; {remedy}`.
    #[must_use]
    pub fn new(
        what: impl Into<Cow<'static, str>>,
        why: impl Into<Cow<'static, str>>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// What the input was meant to be.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to pass instead.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for InvalidInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.what, self.why, self.remedy)
    }
}

impl StdError for InvalidInput {}

/// Why a binding does not serve a tenant, in the words and with the code of whoever made the binding.
#[derive(Debug)]
pub struct Refusal {
    kind: ErrorKind,
    code: &'static str,
    error: Cause,
}

impl Refusal {
    /// A refusal that reads as `error` does.
    #[must_use]
    pub fn new(kind: ErrorKind, code: &'static str, error: impl Into<Cause>) -> Self {
        Self { kind, code, error: error.into() }
    }

    /// The binding's own error, to be taken apart by its type.
    #[must_use]
    pub fn error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self.error.as_ref()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Refusal {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// Why an operation of `saas-core`, or of the database below any of the crates, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// Input breaks a rule.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// A login that row-level security does not bind. Nothing was run under it.
    #[error("role `{role}` must not be used here: {reason}; {remedy}")]
    PrivilegedRole {
        /// The login.
        role: String,
        /// What makes it dangerous.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A PostgreSQL release with a known hole in row-level security.
    #[error("PostgreSQL {found} has known leaks in row-level security; upgrade to {needed} or later")]
    UnsafeServer {
        /// The server's version.
        found: String,
        /// The first safe minor release of that major version.
        needed: String,
    },
    /// The database's schema is not the one this binary was built for.
    #[error("schema of `{module}` is at version {found}, this binary needs {needed}; {remedy}")]
    NotMigrated {
        /// The crate whose tables are meant.
        module: &'static str,
        /// The version that is there; 0 for none.
        found: i64,
        /// The version this binary needs.
        needed: i64,
        /// What to do.
        remedy: &'static str,
    },
    /// The set-up is incomplete or contradicts itself.
    #[error("{what}; {remedy}")]
    Misconfigured {
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A thing does not exist, or not for this tenant.
    #[error("no such {what}")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
    },
    /// A rule of the database refused the change.
    #[error("conflicts with what is stored ({constraint})")]
    Conflict {
        /// The constraint's name: a stable code, never a value.
        constraint: String,
        /// The database's own error.
        #[source]
        cause: Cause,
    },
    /// The database refused the role, or row-level security refused the row.
    #[error("the database does not allow this for the current role and tenant")]
    Forbidden {
        /// The database's own error.
        #[source]
        cause: Cause,
    },
    /// The same idempotency key was used for another request.
    #[error("idempotency key `{key}` was used before for a different request; use a new key for a new request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// An earlier statement of the transaction failed, so nothing was committed.
    #[error("an earlier statement of this transaction failed, so nothing was committed; handle that error instead")]
    Aborted {
        /// The database's own error.
        #[source]
        cause: Cause,
    },
    /// The connection was lost while the commit was on its way.
    #[error(
        "the connection broke during commit: it may or may not have happened; repeat with the same idempotency key"
    )]
    OutcomeUnknown {
        /// What broke.
        #[source]
        cause: Cause,
    },
    /// The database did not answer, or asked to try again.
    #[error("the database is unavailable or asked to try again")]
    Unavailable {
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// The tenant is not served where the request went: it is being moved, has moved, or was closed.
    #[error("the tenant is not at home here: it is being moved, has moved or was closed; try again")]
    Moved {
        /// What the database said.
        #[source]
        cause: Cause,
    },
    /// The binding that was asked for the tenant's place refused.
    #[error(transparent)]
    Refused(Refusal),
    /// A stored value that its type forbids.
    #[error("{table}.{column} holds a value that should not be possible")]
    Corrupt {
        /// Where.
        table: &'static str,
        /// In which column.
        column: &'static str,
    },
    /// A statement the database could not run: a defect, not a condition.
    #[error("the database refused a statement")]
    Statement {
        /// The database's own error.
        #[source]
        cause: Cause,
    },
}

impl CoreError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::KeyReused { .. } => ErrorKind::Invalid,
            Self::PrivilegedRole { .. }
            | Self::UnsafeServer { .. }
            | Self::NotMigrated { .. }
            | Self::Misconfigured { .. } => ErrorKind::Misconfigured,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } | Self::Aborted { .. } => ErrorKind::Conflict,
            Self::Forbidden { .. } => ErrorKind::Forbidden,
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
            Self::Unavailable { .. } | Self::Moved { .. } => ErrorKind::Unavailable,
            Self::Corrupt { .. } | Self::Statement { .. } => ErrorKind::Corrupt,
            Self::Refused(refusal) => refusal.kind,
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_input",
            Self::PrivilegedRole { .. } => "privileged_role",
            Self::UnsafeServer { .. } => "unsafe_server_version",
            Self::NotMigrated { .. } => "not_migrated",
            Self::Misconfigured { .. } => "misconfigured",
            Self::NotFound { .. } => "not_found",
            Self::Conflict { .. } => "conflict",
            Self::Forbidden { .. } => "forbidden",
            Self::KeyReused { .. } => "idempotency_key_reused",
            Self::Aborted { .. } => "transaction_aborted",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::Unavailable { .. } => "unavailable",
            Self::Moved { .. } => "tenant_moved",
            Self::Refused(refusal) => refusal.code,
            Self::Corrupt { .. } => "corrupt",
            Self::Statement { .. } => "statement",
        }
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }
}
