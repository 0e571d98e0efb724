//! The key of Stripe's API, and how it changes while the program runs.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use saas_core::InvalidInput;
use secrecy::{ExposeSecret, SecretString};

use crate::mode::Mode;

/// A secret (`sk_…`) or restricted (`rk_…`) key. Never printed.
#[derive(Clone)]
pub struct ApiKey {
    secret: SecretString,
    mode: Mode,
}

impl ApiKey {
    /// Checks that a key is one, and for which mode.
    ///
    /// # Errors
    /// When it is empty, a publishable key, a webhook secret or otherwise none.
    pub fn new(secret: SecretString) -> Result<Self, InvalidInput> {
        let text = secret.expose_secret();
        let mode = if text.starts_with("sk_test_") || text.starts_with("rk_test_") {
            Some(Mode::Test)
        } else if text.starts_with("sk_live_") || text.starts_with("rk_live_") {
            Some(Mode::Live)
        } else {
            None
        };
        let shaped = (16..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match mode.filter(|_| shaped) {
            Some(mode) => Ok(Self { secret, mode }),
            None => Err(InvalidInput::new(
                "the API key",
                "is not a secret or restricted key of Stripe",
                "pass the one that begins with sk_ or rk_, from the dashboard's page of API keys",
            )),
        }
    }

    /// The mode that it works in.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// The present key, which the next call uses.
#[derive(Debug)]
pub(super) struct Present(RwLock<Arc<ApiKey>>);

impl Present {
    pub(super) fn new(key: ApiKey) -> Self {
        Self(RwLock::new(Arc::new(key)))
    }

    /// The value of the header; marked as sensitive by whoever sends it.
    pub(super) fn bearer(&self) -> String {
        let key = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        format!("Bearer {}", key.secret.expose_secret())
    }

    pub(super) fn replace(&self, key: ApiKey) -> Result<(), InvalidInput> {
        let mut present = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if present.mode != key.mode {
            return Err(InvalidInput::new(
                "the new API key",
                "is of the other mode",
                "pass a key of the mode that this provider was made for; test and live data never mix",
            ));
        }
        *present = Arc::new(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<ApiKey, InvalidInput> {
        ApiKey::new(SecretString::from(text))
    }

    // W40
    #[test]
    fn only_secret_and_restricted_keys_are_keys() {
        for wrong in ["", "sk_test_", "pk_test_0123456789abcdef", "whsec_0123456789abcdef", "sk_test_0123 456789abcdef"]
        {
            assert!(key(wrong).is_err(), "{wrong}");
        }
        assert_eq!(key("rk_live_0123456789abcdef").unwrap().mode(), Mode::Live);
    }

    // W18, W38
    #[test]
    fn a_key_is_replaced_within_its_mode_and_never_shown() {
        let present = Present::new(key("sk_test_0123456789abcdef").unwrap());
        assert!(present.replace(key("sk_live_0123456789abcdef").unwrap()).is_err());
        present.replace(key("sk_test_fedcba9876543210").unwrap()).unwrap();
        assert_eq!(present.bearer(), "Bearer sk_test_fedcba9876543210");
        assert!(!format!("{present:?}").contains("fedcba"));
    }
}
