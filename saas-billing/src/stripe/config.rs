//! What an adopter decides about the calls to Stripe. Never reads the environment.

use std::time::Duration;

use super::{ApiKey, Retries};
use crate::{mode::Mode, object::ObjectId, provider::WebAddress};

/// The version of the API that is asked for. Answers are read tolerantly, so that a later one is no danger.
pub const API_VERSION: &str = "2026-09-30.endive";

/// How Stripe is called.
#[derive(Debug, Clone)]
pub struct StripeConfig {
    pub(super) key: ApiKey,
    pub(super) address: Option<WebAddress>,
    pub(super) stream_address: Option<WebAddress>,
    pub(super) version: String,
    pub(super) account: Option<ObjectId>,
    pub(super) retries: Retries,
    pub(super) try_timeout: Duration,
    pub(super) deadline: Duration,
    pub(super) calls_per_second: u32,
    pub(super) breaker: (u32, Duration),
}

impl StripeConfig {
    /// The usual: three tries of at most ten seconds each and 30 in all, calls at four fifths of what Stripe allows (25 per
    /// second in test mode, 100 in live mode), ten seconds of rest after five failures in a row.
    #[must_use]
    pub fn new(key: ApiKey) -> Self {
        let calls_per_second = match key.mode() {
            Mode::Test => 20,
            Mode::Live => 80,
        };
        Self {
            key,
            address: None,
            stream_address: None,
            version: API_VERSION.to_owned(),
            account: None,
            retries: Retries::default(),
            try_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            calls_per_second,
            breaker: (5, Duration::from_secs(10)),
        }
    }

    /// Calls another address than `https://api.stripe.com`, such as the simulator's.
    #[must_use]
    pub fn with_address(mut self, address: WebAddress) -> Self {
        self.address = Some(address);
        self
    }

    /// Hands readings over at another address than `https://meter-events.stripe.com`, or than that of
    /// [`with_address`](Self::with_address).
    #[must_use]
    pub fn with_stream_address(mut self, address: WebAddress) -> Self {
        self.stream_address = Some(address);
        self
    }

    /// Asks for another version of the API.
    #[must_use]
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Acts for a connected account.
    #[must_use]
    pub fn with_account(mut self, account: ObjectId) -> Self {
        self.account = Some(account);
        self
    }

    /// How often and how far apart one call is tried.
    #[must_use]
    pub const fn with_retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }

    /// How long one try may take, and how long a call may take in all, pauses included.
    #[must_use]
    pub const fn with_timeouts(mut self, one_try: Duration, in_all: Duration) -> Self {
        self.try_timeout = one_try;
        self.deadline = in_all;
        self
    }

    /// How many calls a second this process may make, at least one. Processes that share an account share its limit.
    #[must_use]
    pub const fn with_calls_per_second(mut self, calls: u32) -> Self {
        self.calls_per_second = calls;
        self
    }

    /// After how many failures in a row Stripe is left alone, and for how long.
    #[must_use]
    pub const fn with_breaker(mut self, failures: u32, rest: Duration) -> Self {
        self.breaker = (failures, rest);
        self
    }
}
