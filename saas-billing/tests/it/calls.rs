//! How the adapter calls: tries, keys, limits, and everything that goes wrong on the way.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use saas_billing::{
    PaymentProvider, ProviderError,
    object::ObjectKind,
    provider::{Command, NewCustomer, Reply},
    stripe::{ApiKey, Retries, StripeApi, StripeConfig},
    testing::{Fault, SimulatorServer, StripeSimulator},
};
use saas_core::IdempotencyKey;

use crate::provider::{KEY, adapter, simulator};

struct Line {
    simulator: Arc<StripeSimulator>,
    _server: SimulatorServer,
    stripe: StripeApi,
}

impl Line {
    async fn open(with: impl FnOnce(StripeConfig) -> StripeConfig) -> Self {
        let (simulator, _) = simulator();
        let server = SimulatorServer::start(Arc::clone(&simulator)).await.unwrap();
        let stripe = StripeApi::new(with(adapter(&server))).unwrap();
        Self { simulator, _server: server, stripe }
    }

    async fn create(&self, key: &str) -> Result<Reply, ProviderError> {
        let key: IdempotencyKey = key.parse().unwrap();
        self.stripe.execute(&customer(), &key).await
    }

    fn customers(&self) -> usize {
        self.simulator.living(ObjectKind::Customer).len()
    }
}

fn customer() -> Command {
    let email = Some("ada@example.com".parse().unwrap());
    Command::CreateCustomer(NewCustomer { email, name: None, metadata: Default::default(), test_clock: None })
}

/// A server that does not answer is waited for this long.
fn hasty(config: StripeConfig) -> StripeConfig {
    config.with_timeouts(Duration::from_millis(1_500), Duration::from_secs(60))
}

// D14: every way in which a try can end without an answer, before and after its effect
#[tokio::test]
async fn whatever_happens_to_a_try_the_next_has_the_same_key_and_there_is_one_effect() {
    let answered = [Fault::RateLimited(0), Fault::KeyInUse, Fault::Unavailable, Fault::CutBefore, Fault::CutAfter];
    let unanswered = [Fault::Silent, Fault::Stuck];
    for (line, faults) in
        [(Line::open(|config| config).await, &answered[..]), (Line::open(hasty).await, &unanswered[..])]
    {
        for (n, fault) in faults.iter().copied().enumerate() {
            line.simulator.inject([fault]);
            let reply = line.create(&format!("key-{n}")).await.unwrap();
            let executed = matches!(fault, Fault::CutAfter | Fault::Silent | Fault::Stuck);
            assert_eq!(reply.replayed, executed, "{fault:?}");
            assert_eq!(line.customers(), n + 1, "{fault:?}");
        }
    }
}

// D14
#[tokio::test]
async fn a_saved_failure_is_told_apart_from_one_that_passes() {
    let line = Line::open(|config| config).await;
    for (fault, key, customers) in [(Fault::Broken, "before", 0), (Fault::BrokenAfterwards, "after", 1)] {
        line.simulator.inject([fault]);
        let why = line.create(key).await.unwrap_err();
        assert!(why.is_key_spent() && !why.is_retryable(), "{fault:?}: {why:?}");
        assert_eq!(line.customers(), customers, "{fault:?}");
    }
}

#[tokio::test]
async fn a_write_without_an_answer_is_unknown_and_one_that_was_never_sent_is_not() {
    let line = Line::open(hasty).await;
    line.simulator.inject([Fault::CutAfter, Fault::Unavailable, Fault::CutBefore]);
    let why = line.create("unsure").await.unwrap_err();
    assert!(matches!(why, ProviderError::OutcomeUnknown { key_spent: false, .. }), "{why:?}");
    assert!(line.create("unsure").await.unwrap().replayed, "the same key tells");

    // A port on which nobody listens.
    let nobody = {
        let (simulator, _) = simulator();
        SimulatorServer::start(simulator).await.unwrap().address().clone()
    };
    let key = ApiKey::new(KEY.to_owned().into()).unwrap();
    let retries = Retries { tries: 1, ..Retries::default() };
    let stripe = StripeApi::new(StripeConfig::new(key).with_address(nobody).with_retries(retries)).unwrap();
    let why = stripe.execute(&customer(), &"key".parse().unwrap()).await.unwrap_err();
    assert!(matches!(why, ProviderError::Unavailable { .. } | ProviderError::OutcomeUnknown { .. }), "{why:?}");
}

// Lesson 19
#[tokio::test]
async fn after_failures_in_a_row_stripe_is_left_alone_and_declined_cards_are_no_failures() {
    let line = Line::open(|config| config.with_breaker(3, Duration::from_secs(3600))).await;
    line.simulator.create_price("price_pro", 2000, "eur", &saas_billing::object::Interval::Month);
    let customer = line.create("ada").await.unwrap().id().unwrap();
    let subscribe = Command::CreateSubscription(saas_billing::provider::NewSubscription {
        customer,
        items: vec![("price_pro".parse().unwrap(), Some(1))],
        trial_days: None,
        discount: None,
        on_failed_payment: saas_billing::provider::OnFailedPayment::Refuse,
        metadata: Default::default(),
    });
    for n in 0..10 {
        let why = line.stripe.execute(&subscribe, &format!("declined-{n}").parse().unwrap()).await.unwrap_err();
        assert!(matches!(why, ProviderError::Declined { .. }), "{why:?}");
    }
    line.simulator.inject([Fault::Unavailable; 3]);
    let _ = line.create("bob").await.unwrap_err();
    let calls = line.simulator.calls();
    let why = line.create("eve").await.unwrap_err();
    assert!(matches!(why, ProviderError::Unavailable { .. }), "{why:?}");
    assert_eq!(line.simulator.calls(), calls, "nothing was sent");
}

#[tokio::test]
async fn whoever_would_wait_too_long_for_the_budget_is_refused_before_anything_is_sent() {
    let patience = Duration::from_secs(2);
    let line = Line::open(|config| config.with_calls_per_second(1).with_timeouts(patience, patience)).await;
    let keys: Vec<String> = (0..12).map(|n| format!("key-{n}")).collect();
    let outcomes = futures_util::future::join_all(keys.iter().map(|key| line.create(key))).await;
    let refused =
        outcomes.iter().filter(|outcome| matches!(outcome, Err(ProviderError::RateLimited { retry_after: Some(_) })));
    let refused = refused.count();
    assert!(refused >= 6, "{outcomes:?}");
    // Whoever was given a place at the end of its patience may not have got to use it.
    assert!(line.simulator.calls() <= 12 - refused as u64, "{outcomes:?}");
}

// W38
#[tokio::test]
async fn a_key_is_rotated_while_the_program_runs() {
    let line = Line::open(|config| config).await;
    line.simulator.accept_only("sk_test_fedcba9876543210");
    assert!(matches!(line.create("ada").await.unwrap_err(), ProviderError::Authentication));
    line.stripe.rotate(ApiKey::new("sk_test_fedcba9876543210".to_owned().into()).unwrap()).unwrap();
    let _ = line.create("ada").await.unwrap();
    assert!(line.stripe.rotate(ApiKey::new("sk_live_fedcba9876543210".to_owned().into()).unwrap()).is_err());
    let text = format!("{:?} {:?}", line.stripe, line.simulator);
    assert!(!text.contains("sk_test"), "{text}");
}

// W38
#[tokio::test]
async fn no_key_and_no_address_of_a_person_gets_into_a_log_or_an_error() {
    let line = Line::open(hasty).await;
    let lines = Lines::default();
    let guard = tracing::subscriber::set_default(lines.clone());
    let mut text = String::new();
    let faults = [Fault::Garbled, Fault::Unauthorized, Fault::Broken, Fault::Silent, Fault::Silent, Fault::Silent];
    for (n, fault) in faults.into_iter().enumerate() {
        line.simulator.inject([fault]);
        let outcome = line.create(&format!("key-{n}")).await;
        text += &format!("{outcome:?}");
        if let Err(why) = outcome {
            let mut cause = std::error::Error::source(&why);
            text += &why.to_string();
            while let Some(one) = cause {
                text += &format!("{one} {one:?}");
                cause = one.source();
            }
        }
    }
    drop(guard);
    text += &lines.0.lock().unwrap().join("\n");
    assert!(text.contains("saas.billing.stripe"), "the log was recorded");
    for secret in [KEY, "sk_test", "ada@example.com", "ada%40example.com"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn without_tls_an_address_that_needs_it_is_refused_when_the_provider_is_made() {
    let key = ApiKey::new(KEY.to_owned().into()).unwrap();
    let made = StripeApi::new(StripeConfig::new(key));
    assert_eq!(made.is_ok(), cfg!(feature = "stripe-rustls-ring"));
}

/// Everything that is logged, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut text = span.metadata().name().to_owned();
        span.record(&mut Fields(&mut text));
        self.0.lock().unwrap().push(text);
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut text = String::new();
        values.record(&mut Fields(&mut text));
        self.0.lock().unwrap().push(text);
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = event.metadata().target().to_owned();
        event.record(&mut Fields(&mut text));
        self.0.lock().unwrap().push(text);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
