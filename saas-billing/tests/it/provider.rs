//! The promises of the provider: of the simulator in the process, of the adapter over HTTP, and, where a key of a test
//! account is given, of Stripe itself.

use std::sync::Arc;

use saas_billing::{
    payment_provider_conformance,
    provider::conformance::Fixture,
    stripe::{ApiKey, Retries, StripeApi, StripeConfig},
    testing::{SimulatorServer, StripeSimulator},
};
use saas_core::{Clock as _, TestClock};
use std::time::Duration;

pub(crate) const KEY: &str = "sk_test_0123456789abcdef";

pub(crate) fn simulator() -> (Arc<StripeSimulator>, TestClock) {
    let clock = TestClock::starting("2027-01-31T10:00:00Z");
    (Arc::new(StripeSimulator::new("whsec_test_0123456789abcdef", clock.clone()).unwrap()), clock)
}

/// An adapter that calls the server, without the pauses that Stripe would need.
pub(crate) fn adapter(server: &SimulatorServer) -> StripeConfig {
    let key = ApiKey::new(KEY.to_owned().into()).unwrap();
    let retries = Retries { tries: 3, base: Duration::ZERO, cap: Duration::ZERO };
    StripeConfig::new(key).with_address(server.address().clone()).with_retries(retries).with_calls_per_second(100_000)
}

async fn in_the_process() -> Fixture {
    let (simulator, clock) = simulator();
    Fixture::new(simulator, "run", clock.now(), ())
}

async fn over_http() -> Fixture {
    let (simulator, clock) = simulator();
    let server = SimulatorServer::start(simulator).await.unwrap();
    let stripe = StripeApi::new(adapter(&server)).unwrap();
    Fixture::new(Arc::new(stripe), "run", clock.now(), server)
}

async fn in_the_old_shape() -> Fixture {
    let (simulator, clock) = simulator();
    let server = SimulatorServer::start(simulator).await.unwrap();
    let stripe = StripeApi::new(adapter(&server).with_version("2024-06-20")).unwrap();
    Fixture::new(Arc::new(stripe), "run", clock.now(), server)
}

/// Stripe itself, only on request: `RUSTFLAGS="--cfg stripe_itself"`, `STRIPE_SECRET_KEY` of a test account, and the feature
/// `stripe-rustls-ring`. Without the flag these tests are not there, so none passes without having asked.
#[cfg(stripe_itself)]
async fn at_stripe() -> Fixture {
    let (stripe, run, now) = test_account();
    Fixture::new(Arc::new(stripe), run, now, ())
}

/// A test account of Stripe, a word that no other run has, and the time.
#[cfg(stripe_itself)]
pub(crate) fn test_account() -> (StripeApi, String, chrono::DateTime<chrono::Utc>) {
    let key = std::env::var("STRIPE_SECRET_KEY").unwrap();
    let key = ApiKey::new(key.into()).unwrap();
    assert_eq!(key.mode(), saas_billing::Mode::Test, "the suite makes objects: never in live mode");
    let now = saas_core::SystemClock.now();
    let stripe = StripeApi::new(StripeConfig::new(key)).unwrap();
    (stripe, format!("t{}", saas_core::JobId::mint_at(now).as_uuid().simple()), now)
}

payment_provider_conformance!(the_simulator, in_the_process);
payment_provider_conformance!(the_adapter_over_http, over_http);
payment_provider_conformance!(the_adapter_of_an_older_version, in_the_old_shape);
#[cfg(stripe_itself)]
payment_provider_conformance!(stripe_itself, at_stripe);
