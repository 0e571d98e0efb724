//! The webhook endpoint for web frameworks: each adapter reads the raw body itself, up to the processor's limit and
//! deadline, so that no extractor, parser or limit of the application's comes in between. All answer alike.

#[cfg(feature = "actix")]
pub mod actix;
#[cfg(feature = "tower")]
pub mod tower;

use std::time::Duration;

use saas_core::ErrorKind;

use crate::{BillingError, port::Accepted};

/// What an endpoint answers with. The body is empty: Stripe shows it to whoever has access to the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// What the caller may do instead.
    pub(crate) allow: Option<&'static str>,
    /// Whether the connection ends with it.
    pub(crate) closes: bool,
}

impl Answer {
    const fn of(status: u16) -> Self {
        Self { status, allow: None, closes: false }
    }

    /// Of a request by another method than POST.
    pub(crate) const fn wrong_method() -> Self {
        Self { status: 405, allow: Some("POST"), closes: false }
    }

    /// Of a body that is larger than the processor takes.
    pub(crate) fn too_large(limit: usize) -> Self {
        tracing::warn!(target: "saas.billing.web", limit, "a delivery is larger than the limit; raise it if Stripe sent it");
        Self::of(413)
    }

    /// Of a body that broke off.
    pub(crate) const fn cut_off() -> Self {
        Self::of(400)
    }

    /// Of a body that took longer than the processor waits (RFC 9110, 15.5.9: the connection is closed). Anybody can send one:
    /// no warning.
    pub(crate) fn too_slow(deadline: Duration) -> Self {
        tracing::debug!(target: "saas.billing.web", ?deadline, "a body did not come in in time");
        Self { status: 408, allow: None, closes: true }
    }
}

impl From<Result<Accepted, BillingError>> for Answer {
    /// Logs what an operator can mend: this is where such an error ends.
    fn from(done: Result<Accepted, BillingError>) -> Self {
        let error = match done {
            Ok(_) => return Self::of(200),
            Err(error) => error,
        };
        match (&error, error.kind()) {
            (BillingError::TooLarge { limit, .. }, _) => Self::too_large(*limit),
            (_, ErrorKind::Invalid) => {
                tracing::warn!(target: "saas.billing.web", code = error.code(), "a delivery that is not from Stripe");
                Self::of(400)
            }
            (_, kind) => {
                tracing::error!(target: "saas.billing.web", error = &error as &dyn std::error::Error, code = error.code(), "a delivery was not stored; Stripe sends it again");
                Self::of(if kind == ErrorKind::Unavailable { 503 } else { 500 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // W1: what is answered decides whether Stripe comes again
    #[test]
    fn stripe_comes_again_for_what_was_not_stored_and_for_nothing_else() {
        let status = |done| Answer::from(done).status;
        let accepted = [
            Accepted::Stored,
            Accepted::Ignored,
            Accepted::Duplicate,
            Accepted::Conflict,
            Accepted::Quarantined,
            Accepted::Unreadable,
        ];
        assert!(accepted.into_iter().all(|accepted| status(Ok(accepted)) == 200));
        assert_eq!(status(Err(BillingError::TooLarge { bytes: 9, limit: 8 })), 413);
        assert_eq!(status(Err(crate::SignatureError::Malformed.into())), 400);
        assert_eq!(status(Err(BillingError::TooSlow { seconds: 5 })), 503);
        let corrupt = saas_core::CoreError::Corrupt { table: "saas.billing_receipt", column: "state" };
        assert_eq!(status(Err(corrupt.into())), 500);
    }
}
