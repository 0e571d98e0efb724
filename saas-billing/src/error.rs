//! Why a billing operation failed, and what the caller can do about it.

use saas_core::{CoreError, ErrorKind, InvalidInput};

use crate::{catalog::SyncError, provider::ProviderError, signature::SignatureError};

/// Why an operation of `saas-billing` failed. Never carries a payload or a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BillingError {
    /// The delivery is not from Stripe, or too old. Nothing was parsed or stored; answer 400.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The body is larger than the configured limit. Nothing was hashed, parsed or stored; answer 413 or 400.
    #[error("the body has {bytes} bytes, the limit is {limit}; raise the limit if Stripe really sent it")]
    TooLarge {
        /// Bytes received.
        bytes: usize,
        /// Bytes accepted.
        limit: usize,
    },
    /// Input breaks a rule.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// A customer or checkout session already belongs to another tenant.
    #[error("this Stripe {what} belongs to another tenant")]
    AlreadyLinked {
        /// The kind of object.
        what: &'static str,
    },
    /// The set-up is incomplete or contradicts itself.
    #[error("{what}; {remedy}")]
    Misconfigured {
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The price list was not applied.
    #[error(transparent)]
    Catalog(#[from] SyncError),
    /// Stripe said no, or nothing.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A command to Stripe was refused before, or is over.
    #[error("the command to Stripe came to nothing ({code}); ask anew")]
    CommandFailed {
        /// Why.
        code: String,
    },
    /// The tenant has no subscription to do this with.
    #[error("the tenant has no subscription; let it subscribe by a checkout")]
    NoSubscription,
    /// The tenant has no customer at Stripe.
    #[error("the tenant has no customer at Stripe; `ensure_customer` or a checkout makes one")]
    NoCustomer,
    /// It cannot be done in the present state. Nothing was changed.
    #[error("{what} cannot be done: {why}; {remedy}")]
    StateForbids {
        /// What was asked.
        what: &'static str,
        /// What is in the way.
        why: &'static str,
        /// What to do first.
        remedy: &'static str,
    },
    /// The trial was used, by this tenant or by another one with the same fingerprint. Nothing was opened.
    #[error("the trial was used before; there is one for ever: open the checkout without one")]
    TrialUsed,
    /// The receipt could not be stored in time; answer 503, Stripe delivers again.
    #[error("the receipt was not stored within {seconds} s")]
    TooSlow {
        /// The configured bound.
        seconds: u64,
    },
    /// The database, or a rule of the kernel.
    #[error(transparent)]
    Core(#[from] CoreError),
}

impl BillingError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Signature(_) | Self::TooLarge { .. } | Self::Invalid(_) => ErrorKind::Invalid,
            Self::AlreadyLinked { .. } | Self::CommandFailed { .. } | Self::StateForbids { .. } | Self::TrialUsed => {
                ErrorKind::Conflict
            }
            Self::NoSubscription | Self::NoCustomer => ErrorKind::NotFound,
            Self::Misconfigured { .. } => ErrorKind::Misconfigured,
            Self::Catalog(why) => why.kind(),
            Self::Provider(why) => why.kind(),
            Self::TooSlow { .. } => ErrorKind::Unavailable,
            Self::Core(core) => core.kind(),
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Signature(why) => why.code(),
            Self::TooLarge { .. } => "body_too_large",
            Self::Invalid(_) => "invalid_input",
            Self::AlreadyLinked { .. } => "already_linked",
            Self::Misconfigured { .. } => "misconfigured",
            Self::Catalog(why) => why.code(),
            Self::Provider(why) => why.code(),
            Self::CommandFailed { .. } => "command_failed",
            Self::NoSubscription => "no_subscription",
            Self::NoCustomer => "no_customer",
            Self::StateForbids { .. } => "state_forbids",
            Self::TrialUsed => "trial_used",
            Self::TooSlow { .. } => "too_slow",
            Self::Core(core) => core.code(),
        }
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Provider(why) => why.is_retryable(),
            other => other.kind().is_retryable(),
        }
    }
}
