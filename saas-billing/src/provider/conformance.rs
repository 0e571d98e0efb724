//! What every [`PaymentProvider`] must do, as tests that any implementation runs with
//! [`payment_provider_conformance!`](crate::payment_provider_conformance).

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a panic is how they report")]

use std::{any::Any, collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::IdempotencyKey;
use serde_json::Value;

use super::{
    Aggregation, Cancellation, Command, CustomerUpdate, Fetched, ItemChange, MAX_STREAMED, MeterReading, NewCheckout,
    NewCustomer, NewFeature, NewMeter, NewPrice, NewProduct, NewSubscription, OnFailedPayment, PageLimit,
    PaymentProvider, Phase, PostalAddress, PricedBy, Proration, ProviderError, Query, Reply, SubscriptionChange, Tier,
    TrialPayment,
};
use crate::object::{Interval, ObjectId, ObjectKind, PauseBehavior};

/// A provider to be tested. It may be an account that others use: names of a run are the run's own.
#[derive(Debug)]
pub struct Fixture {
    provider: Arc<dyn PaymentProvider>,
    run: String,
    now: DateTime<Utc>,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A fixture. `run` is a word that no other run has; `kept` lives as long as it, such as the server behind it.
    pub fn new(
        provider: Arc<dyn PaymentProvider>,
        run: impl Into<String>,
        now: DateTime<Utc>,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { provider, run: run.into(), now, _kept: Box::new(kept) }
    }

    fn key(&self, name: &str) -> IdempotencyKey {
        format!("{}-{name}", self.run).parse().unwrap()
    }

    fn customer(&self, name: &str) -> Command {
        let email = Some(format!("{name}@example.com").parse().unwrap());
        let metadata = BTreeMap::from([("run".to_owned(), self.run.clone())]);
        Command::CreateCustomer(NewCustomer { email, name: Some(name.to_owned()), metadata, test_clock: None })
    }

    async fn done(&self, command: Command, key: &str) -> Reply {
        self.provider.execute(&command, &self.key(key)).await.unwrap()
    }

    async fn refused(&self, command: Command, key: &str) -> ProviderError {
        match self.provider.execute(&command, &self.key(key)).await {
            Ok(reply) => panic!("{command:?} was done: {reply:?}"),
            Err(why) => why,
        }
    }

    async fn price(&self, key: &str, by: PricedBy) -> ObjectId {
        let product: ObjectId = format!("prod_{}_{key}", self.run).parse().unwrap();
        let new = NewProduct { id: product.clone(), name: key.to_owned(), metadata: BTreeMap::new() };
        self.done(Command::CreateProduct(new), &format!("{key}-product")).await;
        self.done(Command::CreatePrice(self.new_price(product, key, by)), key).await.id().unwrap()
    }

    fn new_price(&self, product: ObjectId, key: &str, by: PricedBy) -> NewPrice {
        NewPrice {
            product,
            currency: "eur".to_owned(),
            interval: Interval::Month,
            by,
            meter: None,
            lookup_key: format!("{}-{key}", self.run),
            takes_over_key: false,
            metadata: BTreeMap::new(),
        }
    }

    /// A customer in a trial: nobody needs a card for that.
    async fn trial(&self, price: &ObjectId) -> (ObjectId, ObjectId) {
        let customer = self.done(self.customer("ada"), "ada").await.id().unwrap();
        let new = NewSubscription {
            customer: customer.clone(),
            items: vec![(price.clone(), Some(2))],
            trial_days: Some(30),
            discount: None,
            on_failed_payment: OnFailedPayment::Owe,
            metadata: BTreeMap::new(),
        };
        (customer, self.done(Command::CreateSubscription(new), "trial").await.id().unwrap())
    }

    async fn read(&self, kind: ObjectKind, id: &ObjectId) -> Value {
        match self.provider.fetch(kind, id).await.unwrap() {
            Fetched::Found { object, .. } => json(&object),
            Fetched::Missing => panic!("{id} is missing"),
        }
    }
}

fn json(object: &serde_json::value::RawValue) -> Value {
    serde_json::from_str(object.get()).unwrap()
}

fn id(text: &str) -> ObjectId {
    text.parse().unwrap()
}

/// However often and however many at once.
pub async fn one_key_has_one_effect(fixture: Fixture) {
    let (command, key) = (fixture.customer("ada"), fixture.key("ada"));
    let calls = [(); 3].map(|()| fixture.provider.execute(&command, &key));
    let [first, second, third] = calls;
    let (first, second, third) = tokio::join!(first, second, third);
    let ids = [first, second, third].map(|reply| reply.unwrap().id().unwrap());
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let again = fixture.provider.execute(&command, &key).await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.id().unwrap(), ids[0]);
}

/// The key names the call.
pub async fn a_key_of_another_call_is_refused(fixture: Fixture) {
    fixture.done(fixture.customer("ada"), "key").await;
    let why = fixture.refused(fixture.customer("bob"), "key").await;
    assert!(matches!(why, ProviderError::KeyReused), "{why:?}");
}

/// Absence is an answer for reads, and an error for writes.
pub async fn what_is_not_there_is_missing(fixture: Fixture) {
    let absent = id("cus_absent0000000");
    assert!(matches!(fixture.provider.fetch(ObjectKind::Customer, &absent).await.unwrap(), Fetched::Missing));
    let when = Cancellation::AtPeriodEnd;
    let command = Command::CancelSubscription { subscription: id("sub_absent0000000"), when };
    let why = fixture.refused(command, "absent").await;
    assert!(matches!(why, ProviderError::Missing { .. }), "{why:?}");
}

/// W38: neither names nor addresses are in errors.
pub async fn a_refusal_says_what_and_not_whose(fixture: Fixture) {
    let price = id("price_absent00000");
    let customer = fixture.done(fixture.customer("secretive"), "secretive").await.id().unwrap();
    let command = Command::OpenCheckout(page(&customer, &price));
    let why = fixture.refused(command, "no-price").await;
    assert!(matches!(why, ProviderError::Missing { .. } | ProviderError::Refused { .. }), "{why:?}");
    let text = format!("{why} {why:?} {:?} {:?}", fixture.provider, fixture.customer("secretive"));
    assert!(!text.contains("secretive"), "{text}");
}

fn page(customer: &ObjectId, price: &ObjectId) -> NewCheckout {
    NewCheckout {
        customer: customer.clone(),
        items: vec![(price.clone(), Some(1))],
        success: "https://app.example.com/done?session={CHECKOUT_SESSION_ID}".parse().unwrap(),
        cancel: "https://app.example.com/billing".parse().unwrap(),
        trial_days: Some(14),
        trial_payment: TrialPayment::IfDue,
        promotion_codes: true,
        discount: None,
        automatic_tax: false,
        tax_ids: false,
        metadata: BTreeMap::new(),
    }
}

/// Every object once, in pages.
pub async fn a_list_is_read_page_by_page(fixture: Fixture) {
    let mut made = Vec::new();
    for name in ["one", "two", "three"] {
        made.push(fixture.done(fixture.customer(name), name).await.id().unwrap());
    }
    let query = Query::Customers { created_from: Some(fixture.now - TimeDelta::minutes(1)) };
    let (mut seen, mut after) = (Vec::new(), None);
    for _ in 0..200 {
        let page = fixture.provider.list(&query, after.as_ref(), PageLimit::new(2)).await.unwrap();
        assert!(page.objects.len() <= 2);
        let ids = page.objects.iter().map(|object| id(json(object)["id"].as_str().unwrap()));
        seen.extend(ids.filter(|id| made.contains(id)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    made.reverse();
    assert_eq!(seen, made, "newest first");
}

/// From an open page to a closed one.
pub async fn a_page_opens_is_listed_and_closes_once(fixture: Fixture) {
    let price = fixture.price("seat", PricedBy::Unit(2000)).await;
    let customer = fixture.done(fixture.customer("ada"), "ada").await.id().unwrap();
    let opened = fixture.done(Command::OpenCheckout(page(&customer, &price)), "page").await;
    let session = opened.id().unwrap();
    let query = Query::OpenCheckouts { customer };
    let open = fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap().objects;
    assert_eq!(open.iter().map(|object| json(object)["id"].clone()).collect::<Vec<_>>(), [session.as_str()]);
    let closed = fixture.done(Command::ExpireCheckout(session.clone()), "close").await;
    assert_eq!(json(&closed.object)["status"], "expired");
    assert!(fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap().objects.is_empty());
    let why = fixture.refused(Command::ExpireCheckout(session), "close-again").await;
    assert!(matches!(why, ProviderError::WrongState { .. }), "{why:?}");
}

/// The whole life of a subscription that nobody pays for yet.
pub async fn a_subscription_changes_pauses_and_ends(fixture: Fixture) {
    let (small, large) =
        (fixture.price("small", PricedBy::Unit(1000)).await, fixture.price("large", PricedBy::Unit(3000)).await);
    let (_, subscription) = fixture.trial(&small).await;
    let before = fixture.read(ObjectKind::Subscription, &subscription).await;
    assert_eq!((&before["status"], &before["items"]["data"][0]["quantity"]), (&"trialing".into(), &2.into()));
    let item = id(before["items"]["data"][0]["id"].as_str().unwrap());
    let change = SubscriptionChange {
        subscription: subscription.clone(),
        items: vec![ItemChange::Set { item, price: Some(large.clone()), quantity: Some(5) }],
        proration: Proration::NextInvoice,
        proration_date: None,
        on_failed_payment: OnFailedPayment::Owe,
    };
    let preview = fixture.provider.preview(&change).await.unwrap();
    assert_eq!(json(&preview.object)["total"], 15_000);
    assert_eq!(fixture.read(ObjectKind::Subscription, &subscription).await["items"]["data"][0]["quantity"], 2);
    let changed = json(&fixture.done(Command::ChangeSubscription(change), "change").await.object);
    assert_eq!(changed["items"]["data"][0]["price"]["id"], large.as_str());

    let cancel = |when| Command::CancelSubscription { subscription: subscription.clone(), when };
    let ending = json(&fixture.done(cancel(Cancellation::AtPeriodEnd), "at-end").await.object);
    assert_eq!(ending["cancel_at_period_end"], true);
    let staying = json(&fixture.done(cancel(Cancellation::Never), "never").await.object);
    assert_eq!(staying["cancel_at_period_end"], false);
    let pause = |behavior| Command::PauseCollection { subscription: subscription.clone(), behavior, resumes_at: None };
    let paused = json(&fixture.done(pause(Some(PauseBehavior::KeepAsDraft)), "pause").await.object);
    assert_eq!(paused["pause_collection"]["behavior"], "keep_as_draft");
    assert!(json(&fixture.done(pause(None), "go-on").await.object)["pause_collection"].is_null());
    for _ in 0..2 {
        let ended = json(&fixture.done(cancel(Cancellation::Now), "now").await.object);
        assert_eq!(ended["status"], "canceled", "also when it is asked for again");
    }
}

/// What is not named stays; an address is one thing.
pub async fn a_customer_takes_other_words(fixture: Fixture) {
    let customer = fixture.done(fixture.customer("ada"), "ada").await.id().unwrap();
    let update = |name: Option<&str>, city: &str, line2: Option<&str>| {
        let address =
            PostalAddress { city: Some(city.to_owned()), line2: line2.map(str::to_owned), ..PostalAddress::default() };
        let (name, address) = (name.map(str::to_owned), Some(address));
        Command::UpdateCustomer(CustomerUpdate { customer: customer.clone(), email: None, name, address })
    };
    fixture.done(update(Some("Ada"), "London", Some("Second floor")), "first").await;
    let after = json(&fixture.done(update(None, "Paris", None), "second").await.object);
    assert_eq!((&after["name"], &after["email"]), (&"Ada".into(), &"ada@example.com".into()));
    assert_eq!((&after["address"]["city"], &after["address"]["line2"]), (&"Paris".into(), &Value::Null));
}

/// A downgrade that waits for the end of the period, and is called off.
pub async fn a_schedule_plans_and_lets_go(fixture: Fixture) {
    let (small, large) =
        (fixture.price("less", PricedBy::Unit(1000)).await, fixture.price("more", PricedBy::Unit(3000)).await);
    let (customer, subscription) = fixture.trial(&large).await;
    let attached = json(&fixture.done(Command::AttachSchedule(subscription.clone()), "attach").await.object);
    let schedule = id(attached["id"].as_str().unwrap());
    let instant = |value: &Value| DateTime::from_timestamp(value.as_i64().unwrap(), 0);
    let present = &attached["phases"][0];
    let phases = vec![
        Phase {
            start: instant(&present["start_date"]),
            end: instant(&present["end_date"]),
            items: vec![(large, Some(2))],
            proration: Proration::None,
            discounts: Vec::new(),
        },
        Phase {
            start: None,
            end: None,
            items: vec![(small, Some(2))],
            proration: Proration::None,
            discounts: Vec::new(),
        },
    ];
    let planned = json(&fixture.done(Command::PlanPhases { schedule: schedule.clone(), phases }, "plan").await.object);
    assert_eq!(planned["phases"].as_array().unwrap().len(), 2);
    let query = Query::Schedules { customer };
    let listed = fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap().objects;
    let [listed] = listed.as_slice() else { panic!("{} schedules", listed.len()) };
    let listed = json(listed);
    assert_eq!((&listed["id"], &listed["current_phase"]), (&planned["id"], &planned["current_phase"]));
    assert_eq!(fixture.read(ObjectKind::Subscription, &subscription).await["schedule"], schedule.as_str());
    fixture.done(Command::ReleaseSchedule(schedule), "release").await;
    assert!(fixture.read(ObjectKind::Subscription, &subscription).await["schedule"].is_null());
}

/// Plans as code need what they made to be found again.
pub async fn prices_and_features_are_found_by_their_keys(fixture: Fixture) {
    let tiers = vec![
        Tier { up_to: Some(10), unit_amount: 100, flat_amount: 0 },
        Tier { up_to: None, unit_amount: 80, flat_amount: 500 },
    ];
    let old = fixture.price("tiered", PricedBy::Graduated(tiers.clone())).await;
    let query = Query::Prices { lookup_keys: vec![format!("{}-tiered", fixture.run)] };
    let found = async || {
        let page = fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap();
        page.objects.iter().map(|object| id(json(object)["id"].as_str().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(found().await, std::slice::from_ref(&old));
    let product = id(&format!("prod_{}_tiered", fixture.run));
    let new =
        NewPrice { takes_over_key: true, ..fixture.new_price(product.clone(), "tiered", PricedBy::Volume(tiers)) };
    let new = fixture.done(Command::CreatePrice(new), "tiered-anew").await.id().unwrap();
    assert_eq!(found().await, [new], "the key moves to the new price");
    assert_eq!(json(&fixture.done(Command::ArchivePrice(old), "archive").await.object)["active"], false);
    let twice = NewProduct { id: product, name: "again".to_owned(), metadata: BTreeMap::new() };
    let why = fixture.refused(Command::CreateProduct(twice), "twice").await;
    assert!(matches!(why, ProviderError::Refused { ref code, .. } if code == "resource_already_exists"), "{why:?}");

    let lookup_key = format!("{}-export", fixture.run);
    let feature = NewFeature { lookup_key: lookup_key.clone(), name: "Export".to_owned(), metadata: BTreeMap::new() };
    let made = fixture.done(Command::CreateFeature(feature), "feature").await.id().unwrap();
    let query = Query::Features { lookup_key: Some(lookup_key) };
    let page = fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap();
    assert_eq!(page.objects.iter().map(|one| json(one)["id"].clone()).collect::<Vec<_>>(), [made.as_str()]);
}

/// What is said anew, is offered again, and is tied to a product.
pub async fn a_catalogue_is_mended_in_place(fixture: Fixture) {
    let price = fixture.price("mended", PricedBy::Unit(700)).await;
    let product = id(&format!("prod_{}_mended", fixture.run));
    let new = NewProduct { id: product.clone(), name: "Anew".to_owned(), metadata: BTreeMap::new() };
    assert_eq!(json(&fixture.done(Command::ChangeProduct(new), "say").await.object)["name"], "Anew");
    fixture.done(Command::ArchivePrice(price.clone()), "archive").await;
    let lookup_key = format!("{}-mended", fixture.run);
    let metadata = BTreeMap::from([("by".to_owned(), "us".to_owned())]);
    let offer = Command::OfferPrice { price: price.clone(), lookup_key: lookup_key.clone(), metadata };
    let offered = json(&fixture.done(offer, "offer").await.object);
    assert_eq!(
        (&offered["active"], &offered["lookup_key"], &offered["metadata"]["by"]),
        (&true.into(), &lookup_key.into(), &"us".into())
    );
    let query = Query::PricesOf { product: product.clone() };
    let listed = fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap().objects;
    assert_eq!(listed.iter().map(|one| json(one)["id"].clone()).collect::<Vec<_>>(), [price.as_str()]);

    let lookup_key = format!("{}-mended", fixture.run);
    let feature = NewFeature { lookup_key, name: "Export".to_owned(), metadata: BTreeMap::new() };
    let feature = fixture.done(Command::CreateFeature(feature), "feature").await.id().unwrap();
    let renamed = Command::ChangeFeature { feature: feature.clone(), name: "Take".into(), metadata: BTreeMap::new() };
    assert_eq!(json(&fixture.done(renamed, "rename").await.object)["name"], "Take");
    let attach = Command::AttachFeature { product: product.clone(), feature: feature.clone() };
    let attachment = fixture.done(attach, "attach").await.id().unwrap();
    let query = Query::ProductFeatures { product: product.clone() };
    let attached = async || fixture.provider.list(&query, None, PageLimit::MAX).await.unwrap().objects;
    let first = json(&attached().await[0]);
    assert_eq!(
        (&first["id"], &first["entitlement_feature"]["id"]),
        (&attachment.as_str().into(), &feature.as_str().into())
    );
    for key in ["detach", "detach-again"] {
        fixture.done(Command::DetachFeature { product: product.clone(), attachment: attachment.clone() }, key).await;
    }
    assert!(attached().await.is_empty());
}

/// Many readings in one call: each counts once, and what is asked for again is no error.
pub async fn a_stream_of_readings_counts_each_once(fixture: Fixture) {
    let customer = fixture.done(fixture.customer("ada"), "ada").await.id().unwrap();
    let event_name = format!("{}-streamed", fixture.run);
    let meter = NewMeter { name: "Streamed".to_owned(), event_name: event_name.clone(), aggregation: Aggregation::Sum };
    let meter = fixture.done(Command::CreateMeter(meter), "meter").await.id().unwrap();
    let renamed = Command::RenameMeter { meter: meter.clone(), name: "Calls".to_owned() };
    assert_eq!(json(&fixture.done(renamed, "rename").await.object)["display_name"], "Calls");
    let at = DateTime::from_timestamp(fixture.now.timestamp(), 0).unwrap();
    let reading = |n: usize| MeterReading {
        event_name: event_name.clone(),
        customer: customer.clone(),
        value: 1,
        at,
        identifier: format!("{}-streamed-{n}", fixture.run),
    };
    let readings: Vec<MeterReading> = (0..MAX_STREAMED).map(reading).collect();
    for _ in 0..2 {
        fixture.provider.stream(&readings).await.unwrap();
    }
    let too_many: Vec<MeterReading> = (0..=MAX_STREAMED).map(reading).collect();
    assert!(matches!(fixture.provider.stream(&too_many).await, Err(ProviderError::Refused { .. })));
    let cancel = Command::CancelReading { event_name, identifier: readings[0].identifier.clone() };
    fixture.done(cancel, "cancel").await;
    assert!(matches!(fixture.provider.event(&id("evt_absent000000")).await.unwrap(), Fetched::Missing));
}

/// The identifier is the reading's name: known means delivered.
pub async fn a_reading_counts_once_and_its_repeat_is_no_error(fixture: Fixture) {
    let customer = fixture.done(fixture.customer("ada"), "ada").await.id().unwrap();
    let event_name = format!("{}-calls", fixture.run);
    let meter = NewMeter { name: "Calls".to_owned(), event_name: event_name.clone(), aggregation: Aggregation::Sum };
    fixture.done(Command::CreateMeter(meter), "meter").await;
    let identifier = format!("{}-row-1", fixture.run);
    let at = DateTime::from_timestamp(fixture.now.timestamp(), 0).unwrap();
    let reading = MeterReading { event_name, customer, value: 7, at, identifier };
    for key in ["reading", "reading", "reading-under-another-key"] {
        let reply = fixture.done(Command::ReportUsage(reading.clone()), key).await;
        assert_eq!(json(&reply.object)["identifier"], reading.identifier);
    }
    let old = MeterReading { at: at - TimeDelta::days(36), identifier: format!("{}-row-2", fixture.run), ..reading };
    let why = fixture.refused(Command::ReportUsage(old), "old").await;
    assert!(matches!(why, ProviderError::Refused { .. }), "{why:?}");
}

/// Tests a provider: `payment_provider_conformance!(name, async || fixture)` makes a module of one test per promise.
#[macro_export]
macro_rules! payment_provider_conformance {
    ($name:ident, $fixture:expr) => {
        $crate::payment_provider_conformance!(
            @tests $name, $fixture;
            one_key_has_one_effect, a_key_of_another_call_is_refused, what_is_not_there_is_missing,
            a_refusal_says_what_and_not_whose, a_list_is_read_page_by_page, a_page_opens_is_listed_and_closes_once,
            a_subscription_changes_pauses_and_ends, a_schedule_plans_and_lets_go,
            a_customer_takes_other_words,
            a_catalogue_is_mended_in_place, a_stream_of_readings_counts_each_once,
            prices_and_features_are_found_by_their_keys, a_reading_counts_once_and_its_repeat_is_no_error,
        );
    };
    (@tests $name:ident, $fixture:expr; $($test:ident),+ $(,)?) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let fixture = ($fixture)().await;
                    $crate::provider::conformance::$test(fixture).await;
                }
            )+
        }
    };
}
