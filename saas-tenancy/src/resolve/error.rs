//! Why a request has no tenant.

use saas_core::{ErrorKind, InvalidInput};

use crate::TenancyError;

/// Why a request was not let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The request names no host, several, or one that is no host.
    #[error(transparent)]
    BadHost(InvalidInput),
    /// Nobody is signed in; said before any tenant is looked up.
    #[error("sign in first")]
    NotSignedIn,
    /// The request names no tenant, one that does not exist, one that the person is not in, or two different ones. All of
    /// these look the same from outside.
    #[error("no such tenant")]
    Unknown,
    /// The tenancy service did not let the member in, or the database did not answer.
    #[error(transparent)]
    Tenancy(TenancyError),
}

impl From<TenancyError> for ResolveError {
    fn from(error: TenancyError) -> Self {
        if matches!(error, TenancyError::NotMember) { Self::Unknown } else { Self::Tenancy(error) }
    }
}

impl ResolveError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::BadHost(_) => ErrorKind::Invalid,
            Self::NotSignedIn => ErrorKind::Unauthenticated,
            Self::Unknown => ErrorKind::NotFound,
            Self::Tenancy(error) => error.kind(),
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadHost(_) => "bad_host",
            Self::NotSignedIn => "not_signed_in",
            Self::Unknown => "unknown_tenant",
            Self::Tenancy(error) => error.code(),
        }
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }
}
