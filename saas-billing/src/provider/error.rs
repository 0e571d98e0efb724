//! How Stripe says no, and how it says nothing.

use std::time::Duration;

use saas_core::{Cause, ErrorKind};

use crate::object::ObjectId;

/// Why a call had no answer that can be used. Codes are Stripe's words; messages of Stripe are never kept, they quote input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The bank or the card network refused the payment. Show the customer a way to pay otherwise.
    #[error("the payment was declined ({code})")]
    Declined {
        /// Such as `card_declined` or `authentication_required`.
        code: String,
        /// Such as `insufficient_funds`, if the bank says.
        decline_code: Option<String>,
    },
    /// Stripe will never accept this call.
    #[error("Stripe refuses the call ({code}{}); see https://docs.stripe.com/error-codes", param.as_deref().map(|param| format!(", parameter {param}")).unwrap_or_default())]
    Refused {
        /// Such as `resource_already_exists` or `parameter_invalid_empty`.
        code: String,
        /// Which parameter.
        param: Option<String>,
    },
    /// Stripe does not know an object that the call names: it is of another account or mode, or deleted.
    #[error("Stripe does not know {}; it may be of the other mode", id.as_ref().map_or("the object", ObjectId::as_str))]
    Missing {
        /// Which, where the call says.
        id: Option<ObjectId>,
    },
    /// The object is in a state that does not allow it.
    #[error("the state of the object does not allow it ({code})")]
    WrongState {
        /// Stripe's code.
        code: String,
    },
    /// The API key is not valid (any more).
    #[error("Stripe does not accept the API key; rotate it")]
    Authentication,
    /// The API key may not do this.
    #[error("the API key may not do this; give the restricted key the permission")]
    Permission,
    /// The idempotency key was used for another call before. Nothing was done.
    #[error("the idempotency key belongs to another call")]
    KeyReused,
    /// Too many calls, here or at Stripe. Nothing was done.
    #[error("too many calls to Stripe")]
    RateLimited {
        /// When Stripe or our own budget would like to be asked again.
        retry_after: Option<Duration>,
    },
    /// Stripe did not do it: it could not be reached, it said so, or too much failed just before.
    #[error("Stripe is unavailable")]
    Unavailable {
        /// What happened.
        #[source]
        cause: Cause,
    },
    /// The write may or may not have happened.
    #[error("it is not known whether Stripe did it")]
    OutcomeUnknown {
        /// What happened.
        #[source]
        cause: Cause,
        /// Stripe has saved its failure under the key and will repeat that: look what is there, then use another key.
        key_spent: bool,
    },
    /// Stripe answered something that cannot be understood.
    #[error("Stripe's answer cannot be read: {what}")]
    Unreadable {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl ProviderError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Declined { .. } | Self::WrongState { .. } => ErrorKind::Conflict,
            Self::Refused { .. } | Self::KeyReused => ErrorKind::Invalid,
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Authentication | Self::Permission => ErrorKind::Misconfigured,
            Self::RateLimited { .. } | Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
            Self::Unreadable { .. } => ErrorKind::Corrupt,
        }
    }

    /// A stable name for logs, metrics and clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Declined { .. } => "payment_declined",
            Self::Refused { .. } => "stripe_refused",
            Self::Missing { .. } => "stripe_missing",
            Self::WrongState { .. } => "stripe_wrong_state",
            Self::Authentication => "stripe_authentication",
            Self::Permission => "stripe_permission",
            Self::KeyReused => "stripe_key_reused",
            Self::RateLimited { .. } => "stripe_rate_limited",
            Self::Unavailable { .. } => "stripe_unavailable",
            Self::OutcomeUnknown { .. } => "stripe_outcome_unknown",
            Self::Unreadable { .. } => "stripe_unreadable",
        }
    }

    /// Whether the same call with the same key can succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.kind().is_retryable() && !self.is_key_spent()
    }

    /// Whether only another key can succeed, after a look at what is there.
    #[must_use]
    pub const fn is_key_spent(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { key_spent: true, .. })
    }
}
