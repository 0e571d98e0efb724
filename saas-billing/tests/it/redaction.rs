//! No key, no signing secret and nobody's address in any log, span, error or `Debug` output, whatever goes wrong.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::TimeDelta;
use saas_billing::{
    PaymentProvider as _, Stuck, WebhookProcessor as _,
    command::{CheckoutPage, CustomerDetails},
    event::Envelope,
    object::ObjectKind,
    provider::{Command, CustomerUpdate, NewCustomer},
    stripe::{ApiKey, StripeApi, StripeConfig},
    subscription::BillingDetails,
    testing::{Fault, SimulatorServer},
};
use saas_core::{
    PageSize,
    testing::leaks::{self, Fields, error_chain as chain, leak},
};
use serde_json::json;
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

use crate::{
    provider::{KEY, adapter},
    shop::{OPERATOR, Shop, config, id},
};

/// What no log of this suite may have in it, also in part, beside what looks like a key or a mail address.
pub(crate) const SECRETS: [&str; 2] = ["0123456789abcdef", "fedcba9876543210"];
const EMAIL: &str = "ada.lovelace@example.com";
const NAME: &str = "Ada Lovelace";
const NEW_SECRET: &str = "whsec_rolled_fedcba9876543210";
const NEW_KEY: &str = "sk_test_fedcba9876543210";
/// What must not be seen of a person, also in part.
const PERSON: [&str; 3] = ["lovelace", "Lovelace", "ada."];

/// Everything that is logged, at the finest level, as text.
#[derive(Debug, Clone, Default)]
struct Recorder {
    text: Arc<Mutex<String>>,
    spans: Arc<AtomicU64>,
}

impl Recorder {
    fn add(&self, write: impl FnOnce(&mut Fields<'_>)) {
        let mut text = self.text.lock().unwrap();
        write(&mut Fields(&mut text));
        text.push('\n');
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.add(|line| {
            let _ = write!(line.0, "span {}", span.metadata().name());
            span.record(line);
        });
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        self.add(|line| values.record(line));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.add(|line| {
            let _ = write!(line.0, "{} {}", event.metadata().level(), event.metadata().target());
            event.record(line);
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn page() -> CheckoutPage {
    let (success, cancel) = ("https://app.example.org/done", "https://app.example.org/billing");
    CheckoutPage::new(id("price_pro"), Some(1), success.parse().unwrap(), cancel.parse().unwrap())
}

// W38, f-B25: every flow, and every way in which it fails
#[tokio::test]
async fn no_secret_and_no_address_is_seen_in_any_log_error_or_debug_output() {
    let shop = Shop::open().await;
    let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
    let recorder = Recorder::default();
    let guard = tracing::subscriber::set_default(recorder.clone());
    let mut seen: Vec<String> = Vec::new();

    // Set-up.
    let adapter: StripeConfig = adapter(&server).with_breaker(1_000, std::time::Duration::ZERO);
    seen.push(format!("{adapter:?} {:?}", config(&shop.stripe)));
    let stripe = StripeApi::new(adapter).unwrap();
    let secret = saas_billing::StripeSecret::new(NEW_SECRET.to_owned().into()).unwrap();
    let key = ApiKey::new(NEW_KEY.to_owned().into()).unwrap();
    seen.push(format!("{stripe:?} {secret:?} {key:?} {:?} {:?}", shop.billing, shop.stripe));
    for wrong in ["", "sk_test_", "pk_test_0123456789abcdef", "whsec_test_0123456789abcdef"] {
        seen.push(chain(&ApiKey::new(wrong.to_owned().into()).unwrap_err()));
    }
    seen.push(chain(&saas_billing::StripeSecret::new(format!(" {NEW_SECRET}").into()).unwrap_err()));

    // Writes, with every fault there is, and reads.
    let ctx = shop.database.create_tenant("acme").await;
    let email = Some(EMAIL.parse().unwrap());
    let details = CustomerDetails { email: email.clone(), name: Some(NAME.to_owned()) };
    let faults = [
        Fault::Unauthorized,
        Fault::Garbled,
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Broken,
        Fault::BrokenAfterwards,
        Fault::Unavailable,
        Fault::KeyInUse,
        Fault::RateLimited(0),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        shop.stripe.inject([fault, fault, fault]);
        let new = NewCustomer {
            email: email.clone(),
            name: Some(NAME.to_owned()),
            metadata: Default::default(),
            test_clock: None,
        };
        let command = Command::CreateCustomer(new);
        let done = stripe.execute(&command, &format!("key-{n}").parse().unwrap()).await;
        seen.push(format!("{command:?} {done:?}"));
        seen.extend(done.err().map(|why| chain(&why)));
        shop.stripe.inject([fault, fault, fault]);
        seen.extend(stripe.execute(&command, &format!("key-{n}").parse().unwrap()).await.err().map(|why| chain(&why)));
        shop.stripe.heal();
    }
    let customer = shop.billing.ensure_customer(&stripe, &ctx, &details).await.unwrap();
    seen.push(format!("{details:?} {:?}", shop.billing.checkout(&stripe, &ctx, &page()).await.unwrap()));
    let billing_details =
        BillingDetails { email: email.clone(), name: Some(NAME.to_owned()), ..BillingDetails::default() };
    let update = CustomerUpdate { customer: customer.clone(), email, name: Some(NAME.to_owned()), address: None };
    seen.push(format!("{billing_details:?} {update:?}"));
    let fetched = saas_billing::ObjectSource::fetch(&stripe, ObjectKind::Customer, &customer).await.unwrap();
    seen.push(format!("{fetched:?} {:?}", Command::UpdateCustomer(update)));
    stripe.rotate(key).unwrap();
    shop.stripe.accept_only(KEY);
    let refused = stripe
        .execute(
            &Command::CancelSubscription { subscription: id("sub_1"), when: saas_billing::provider::Cancellation::Now },
            &"key-refused".parse().unwrap(),
        )
        .await;
    seen.push(chain(&refused.unwrap_err()));
    shop.stripe.accept_only(NEW_KEY);

    // Deliveries: good, forged, stale, unreadable, contradictory, poisoned below us.
    let (_, purchase) = shop.buyer("other").await;
    let deliveries = shop.stripe.deliveries();
    seen.push(format!("{deliveries:?}"));
    for delivery in &deliveries {
        let _ = shop.receive(delivery).await;
    }
    let event = |event: &str, object: serde_json::Value| {
        json!({"id": event, "object": "event", "type": "customer.updated", "livemode": false, "created": 1_768_478_400,
            "data": {"object": object, "previous_attributes": {"email": EMAIL}}})
        .to_string()
    };
    let poisoned =
        event("evt_poison", json!({"id": purchase.customer, "object": "customer", "email": EMAIL, "balance": EMAIL}));
    let nobodys = event("evt_lost", json!({"id": [EMAIL], "object": "customer", "email": EMAIL}));
    for body in
        [poisoned.clone(), nobodys, format!("{{\"email\": \"{EMAIL}\""), poisoned.replace("balance", "balances")]
    {
        let _ = shop.receive_body(body.as_bytes()).await;
        seen.push(format!("{:?}", Envelope::read(body.as_bytes())));
    }
    let signature = shop.stripe.sign(poisoned.as_bytes());
    seen.push(chain(&shop.billing.process(b"{}", &signature).await.unwrap_err()));
    shop.billing.roll_secret(&OPERATOR, secret, TimeDelta::hours(1)).unwrap();
    sqlx::raw_sql(
        "create function public.poison() returns trigger language plpgsql as $$
         begin raise exception 'poison %', new.merged; end $$;
         create trigger poison before insert or update on saas.billing_object for each row execute function public.poison();",
    )
    .execute(&mut *shop.owner.lock().await)
    .await
    .unwrap();
    for _ in 0..9 {
        shop.apply().await;
        seen.push(format!("{:?}", shop.billing.fetch_pending(&stripe, 10).await));
        shop.database.clock().advance(TimeDelta::hours(2));
    }
    seen.extend(shop.billing.process(poisoned.as_bytes(), &signature).await.err().map(|why| chain(&why)));
    for stuck in [Stuck::Dead, Stuck::Parked, Stuck::Quarantined] {
        let list = shop.billing.list_stuck(&OPERATOR, stuck, None, PageSize::default()).await.unwrap();
        assert!(stuck != Stuck::Dead || list.items.len() >= 3, "{list:?}");
        seen.push(format!("{list:?}"));
    }
    seen.push(format!("{:?}", shop.billing.webhook_health(&stripe, &OPERATOR).await.unwrap()));
    drop(guard);

    let logged = recorder.text.lock().unwrap().clone();
    for expected in
        ["saas.billing.webhook.receive", "saas.billing.webhook.apply", "saas.billing.stripe", "a dead letter"]
    {
        assert!(logged.contains(expected), "this was to be listened to: {expected}");
    }
    for line in logged.lines().chain(seen.iter().map(String::as_str)) {
        let seen = leak(line).or_else(|| PERSON.into_iter().find(|part| line.contains(part)));
        assert_eq!(seen, None, "in: {line}");
    }
}

// W38, f-B25
#[tokio::test]
async fn what_the_tests_log_is_heard() {
    let before = leaks::heard();
    let shop = Shop::open().await;
    let _ = shop.billing.inbox_health(&OPERATOR).await.unwrap();
    let (_, _) = shop.buyer("acme").await;
    shop.deliver_all().await;
    assert!(leaks::heard() > before);
}
