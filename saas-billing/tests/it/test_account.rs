//! The library's histories, as far as a test account of Stripe can live through them: by the operations of the service, over HTTP,
//! with test clocks and test cards. With the simulator's server always, with Stripe itself on request as in `provider.rs`.
//!
//! Each is heard by two services: by one as it happens, and by another one that hears all of it at the end, backwards and twice.
//! What needs a person at a page or at the dashboard of Stripe is not told here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use saas_billing::{
    Billing, BillingConfig, Mode, ObjectId, ObjectSource as _, PaymentProvider as _, SigningSecrets,
    WebhookProcessor as _,
    derive::Derived,
    object::{Interval, ObjectKind, PauseBehavior},
    provider::{
        Cancellation, Command, Fetched, NewCustomer, NewPrice, NewProduct, NewSubscription, OnFailedPayment, PageLimit,
        PricedBy, Query,
    },
    stripe::{StripeApi, TestCard},
    subscription::{Change, PlanChange},
    testing::{SimulatorServer, Story, StripeSimulator},
};
use saas_core::{IdempotencyKey, PlanCatalog, RequestContext, SharedClock, TestClock, testing::TestDatabase};
use serde_json::Value;

use crate::provider::{adapter, simulator};

/// Reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Those that need nobody at a page, a bank or the dashboard.
const TOLD: [Story; 12] = [
    Story::TrialToPaid,
    Story::UpgradeMidPeriod,
    Story::DowngradeTakenBack,
    Story::FailedAndRecovered,
    Story::SuspendedAndCancelled,
    Story::OneOfTwoPaid,
    Story::PausedAndResumed,
    Story::SeatsInParallel,
    Story::PortalChange,
    Story::DeletedWithLateUpdate,
    Story::SameSecondPairs,
    Story::LinkedLate,
];

/// A test account.
struct Account {
    stripe: StripeApi,
    /// No other run has it.
    word: String,
    /// That of the simulator, which has one for all test clocks, or the machine's.
    clock: SharedClock,
    /// By how much events may come behind what they tell of.
    lag: Duration,
    small: ObjectId,
    weekly: ObjectId,
    large: ObjectId,
    _kept: Option<SimulatorServer>,
}

async fn over_http() -> Account {
    let (simulator, clock) = simulator();
    let server = SimulatorServer::start(simulator).await.unwrap();
    let stripe = StripeApi::new(adapter(&server)).unwrap();
    Account::open(stripe, "run".to_owned(), (Arc::new(clock), Duration::ZERO), Some(server)).await
}

#[cfg(stripe_itself)]
async fn at_stripe() -> Account {
    let (stripe, word, _) = crate::provider::test_account();
    Account::open(stripe, word, (Arc::new(saas_core::SystemClock), Duration::from_secs(5)), None).await
}

impl Account {
    async fn open(
        stripe: StripeApi,
        word: String,
        (clock, lag): (SharedClock, Duration),
        kept: Option<SimulatorServer>,
    ) -> Self {
        let price = async |name: &str, amount, interval| {
            let product: ObjectId = format!("prod_{word}_{name}").parse().unwrap();
            let new = NewProduct { id: product.clone(), name: name.to_owned(), metadata: BTreeMap::new() };
            let key = |what: &str| format!("{word}-{name}-{what}").parse().unwrap();
            let _ = stripe.execute(&Command::CreateProduct(new), &key("product")).await.unwrap();
            let new = NewPrice {
                product,
                currency: "eur".to_owned(),
                interval,
                by: PricedBy::Unit(amount),
                meter: None,
                lookup_key: format!("{word}-{name}"),
                takes_over_key: false,
                metadata: BTreeMap::new(),
            };
            stripe.execute(&Command::CreatePrice(new), &key("price")).await.unwrap().id().unwrap()
        };
        let small = price("small", 2000, Interval::Month).await;
        let weekly = price("weekly", 700, Interval::Week).await;
        let large = price("large", 5000, Interval::Month).await;
        Self { stripe, word, clock, lag, small, weekly, large, _kept: kept }
    }

    fn catalog(&self) -> PlanCatalog {
        PlanCatalog::from_toml(&format!(
            "default_plan = 'free'\n[plans.free]\nrank = 0\n[[plans.free.versions]]\nversion = 1\n\
             [plans.small]\nrank = 10\n[[plans.small.versions]]\nversion = 1\nprices = ['{}', '{}']\n\
             [plans.large]\nrank = 20\n[[plans.large.versions]]\nversion = 1\nprices = ['{}']",
            self.small, self.weekly, self.large
        ))
        .unwrap()
    }
}

/// A service with a tenant, that hears of the customer.
struct Ear {
    database: TestDatabase,
    billing: Billing,
    ctx: RequestContext,
    /// Signs what was not delivered but listed.
    signer: StripeSimulator,
}

impl Ear {
    async fn open(account: &Account) -> Self {
        let schemas = [&saas_core::SCHEMA, &saas_billing::SCHEMA];
        let database = TestDatabase::builder().max_system_connections(4).start(&schemas).await;
        let ctx = database.create_tenant("acme").await;
        let signer = StripeSimulator::new("whsec_test_0123456789abcdef", database.clock().clone()).unwrap();
        let secrets = SigningSecrets::new(vec![signer.secret()]).unwrap();
        let config = BillingConfig::new(account.catalog(), secrets, Mode::Test);
        let (tenants, system, clock) = (database.tenants(), database.system(), database.clock());
        let billing = Billing::new(config, Arc::new(tenants.clone()), system.clone(), Arc::new(clock.clone()));
        Self { database, billing, ctx, signer }
    }

    fn clock(&self) -> &TestClock {
        self.database.clock()
    }

    /// Receives and applies, and reads what must be read, until there is nothing to do.
    async fn hear(&self, stripe: &StripeApi, bodies: impl IntoIterator<Item = &Vec<u8>>) {
        for body in bodies {
            let _ = self.billing.process(body, &self.signer.sign(body)).await.unwrap();
        }
        loop {
            let applied = self.billing.apply_pending(100).await.unwrap().total();
            let read = self.billing.fetch_pending(stripe, 100).await.unwrap().done;
            if applied + read == 0 {
                return;
            }
        }
    }

    async fn derived(&self) -> Derived {
        self.billing.derived(&self.ctx).await.unwrap()
    }
}

/// A customer with a test clock.
struct Life<'a> {
    account: &'a Account,
    name: String,
    clock: ObjectId,
    customer: ObjectId,
    ear: Ear,
    begun: DateTime<Utc>,
    now: DateTime<Utc>,
    /// In the order in which they were told.
    events: Vec<Vec<u8>>,
    seen: BTreeSet<String>,
    acts: u32,
}

impl<'a> Life<'a> {
    async fn begin(account: &'a Account, name: String) -> Self {
        let ear = Ear::open(account).await;
        let (now, stripe) = (account.clock.now().trunc_subsecs(0), &account.stripe);
        ear.clock().set(now);
        let clock = stripe.create_test_clock(now).await.unwrap();
        let metadata = BTreeMap::from([("run".to_owned(), account.word.clone())]);
        let new = NewCustomer { email: None, name: None, metadata, test_clock: Some(clock.clone()) };
        let key = format!("{}-{name}", account.word).parse().unwrap();
        let customer = stripe.execute(&Command::CreateCustomer(new), &key).await.unwrap().id().unwrap();
        let (events, seen) = (Vec::new(), BTreeSet::new());
        let life = Self { account, name, clock, customer, ear, begun: now, now, events, seen, acts: 0 };
        life.card(TestCard::Works).await;
        life
    }

    fn key(&mut self) -> IdempotencyKey {
        self.acts += 1;
        format!("{}-{}-{}", self.account.word, self.name, self.acts).parse().unwrap()
    }

    async fn card(&self, card: TestCard) {
        self.account.stripe.give_test_card(&self.customer, card).await.unwrap();
    }

    async fn link(&self) {
        self.ear.billing.link_customer(&self.ear.ctx, &self.customer).await.unwrap();
    }

    fn subscription(&self, price: &ObjectId, seats: u64, trial_days: Option<u32>) -> Command {
        Command::CreateSubscription(NewSubscription {
            customer: self.customer.clone(),
            items: vec![(price.clone(), Some(seats))],
            trial_days,
            discount: None,
            on_failed_payment: OnFailedPayment::Owe,
            metadata: BTreeMap::new(),
        })
    }

    async fn subscribe(&mut self, price: &ObjectId, seats: u64, trial_days: Option<u32>) -> ObjectId {
        let command = self.subscription(price, seats, trial_days);
        let id = self.account.stripe.execute(&command, &self.key()).await.unwrap().id().unwrap();
        self.until("the subscription is not heard of", |derived| derived.subscription.is_some()).await;
        id
    }

    async fn advance(&mut self, days: i64) {
        self.now += TimeDelta::days(days);
        self.account.stripe.advance_test_clock(&self.clock, self.now).await.unwrap();
        self.ear.clock().set(self.now);
        self.listen().await;
    }

    async fn change(&mut self, change: PlanChange) -> Change {
        let key = self.key();
        let changed = self.ear.billing.change_plan(&self.account.stripe, &self.ear.ctx, &change, &key).await.unwrap();
        self.listen().await;
        changed
    }

    async fn cancel(&mut self, when: Cancellation) {
        let key = self.key();
        let change = self.ear.billing.cancel(&self.account.stripe, &self.ear.ctx, when, &key).await.unwrap();
        assert!(matches!(change, Change::Made | Change::Scheduled { .. }), "{change:?}");
        self.listen().await;
    }

    async fn pay(&mut self, invoice: ObjectId) {
        let key = self.key();
        let _ = self.account.stripe.execute(&Command::PayInvoice(invoice), &key).await.unwrap();
        self.listen().await;
    }

    async fn latest_invoice(&self, subscription: &ObjectId) -> ObjectId {
        match self.account.stripe.fetch(ObjectKind::Subscription, subscription).await.unwrap() {
            Fetched::Found { object, .. } => {
                let object: Value = serde_json::from_str(object.get()).unwrap();
                object["latest_invoice"].as_str().unwrap().parse().unwrap()
            }
            Fetched::Missing => panic!("{subscription} is missing"),
        }
    }

    /// Hears what Stripe tells of the customer, until nothing comes any more.
    async fn listen(&mut self) {
        let mut last = Instant::now();
        loop {
            if self.hear_news().await {
                last = Instant::now();
            }
            if last.elapsed() >= self.account.lag {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn hear_news(&mut self) -> bool {
        let query = Query::Events { created_from: Some(self.begun - TimeDelta::minutes(5)) };
        let (mut told, mut after) = (Vec::new(), None);
        loop {
            let page = self.account.stripe.list(&query, after.as_ref(), PageLimit::MAX).await.unwrap();
            for json in page.objects {
                let event: Value = serde_json::from_str(json.get()).unwrap();
                let object = &event["data"]["object"];
                let is_own = [&object["customer"], &object["id"]].contains(&&Value::from(self.customer.as_str()));
                if is_own && self.seen.insert(event["id"].as_str().unwrap().to_owned()) {
                    told.push(json.get().as_bytes().to_vec());
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        told.reverse();
        self.ear.hear(&self.account.stripe, &told).await;
        let is_news = !told.is_empty();
        self.events.extend(told);
        is_news
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Derived) -> bool) -> Derived {
        let started = Instant::now();
        loop {
            self.listen().await;
            let derived = self.ear.derived().await;
            if is_so(&derived) {
                return derived;
            }
            assert!(started.elapsed() < PATIENCE, "{}: {what}: {derived:?}", self.name);
        }
    }

    /// What a story comes to: the plan, how much is owed, and whether it ends by itself.
    async fn live(&mut self, story: Story) -> (Option<&'static str>, usize, bool) {
        let (small, large) = (self.account.small.clone(), self.account.large.clone());
        if story != Story::LinkedLate {
            self.link().await;
        }
        match story {
            Story::TrialToPaid => {
                self.subscribe(&small, 1, Some(14)).await;
                self.advance(15).await;
                (Some("small"), 0, false)
            }
            Story::UpgradeMidPeriod => {
                self.subscribe(&small, 1, None).await;
                self.advance(10).await;
                assert_eq!(self.change(PlanChange::to_price(large)).await, Change::Made);
                self.advance(32).await;
                (Some("large"), 0, false)
            }
            Story::DowngradeTakenBack => {
                self.subscribe(&large, 1, None).await;
                self.advance(3).await;
                let change = self.change(PlanChange::to_price(small)).await;
                assert!(matches!(change, Change::Scheduled { .. }), "{change:?}");
                self.advance(3).await;
                let key = self.key();
                let back = self.ear.billing.withdraw_change(&self.account.stripe, &self.ear.ctx, &key).await.unwrap();
                assert_eq!(back, Change::Made);
                self.advance(32).await;
                (Some("large"), 0, false)
            }
            Story::FailedAndRecovered => {
                let subscription = self.subscribe(&small, 1, None).await;
                self.card(TestCard::Declines).await;
                self.advance(32).await;
                self.until("the failure is not heard of", |derived| derived.unpaid_since.is_some()).await;
                self.card(TestCard::Works).await;
                let invoice = self.latest_invoice(&subscription).await;
                self.pay(invoice).await;
                (Some("small"), 0, false)
            }
            Story::SuspendedAndCancelled => {
                self.subscribe(&small, 1, None).await;
                self.card(TestCard::Declines).await;
                self.advance(32).await;
                self.until("the failure is not heard of", |derived| derived.unpaid_since.is_some()).await;
                // Stripe itself cancels after two weeks, unless the account says otherwise.
                self.advance(7).await;
                self.cancel(Cancellation::Now).await;
                (None, 0, false)
            }
            Story::OneOfTwoPaid => {
                // Weekly, so that both fail before Stripe gives up.
                let weekly = self.account.weekly.clone();
                let subscription = self.subscribe(&weekly, 1, None).await;
                self.card(TestCard::Declines).await;
                self.advance(8).await;
                let first = self.latest_invoice(&subscription).await;
                self.advance(7).await;
                self.until("the second failure is not heard of", |derived| derived.debts.len() == 2).await;
                self.card(TestCard::Works).await;
                self.pay(first).await;
                (Some("small"), 1, false)
            }
            Story::PausedAndResumed => {
                self.subscribe(&small, 1, None).await;
                let (stripe, key) = (&self.account.stripe, self.key());
                let pause = self.ear.billing.pause(stripe, &self.ear.ctx, PauseBehavior::Void, None, &key).await;
                assert_eq!(pause.unwrap(), Change::Made);
                self.advance(32).await;
                let (stripe, key) = (&self.account.stripe, self.key());
                assert_eq!(self.ear.billing.resume(stripe, &self.ear.ctx, &key).await.unwrap(), Change::Made);
                self.advance(31).await;
                (Some("small"), 0, false)
            }
            Story::SeatsInParallel => {
                self.subscribe(&small, 3, None).await;
                for seats in [4, 5, 3, 7, 6] {
                    assert_eq!(self.change(PlanChange::to_quantity(seats)).await, Change::Made, "{seats}");
                }
                (Some("small"), 0, false)
            }
            Story::PortalChange => {
                self.subscribe(&small, 1, None).await;
                self.advance(5).await;
                self.cancel(Cancellation::AtPeriodEnd).await;
                self.cancel(Cancellation::Never).await;
                assert_eq!(self.change(PlanChange::to_price(large)).await, Change::Made);
                self.advance(32).await;
                (Some("large"), 0, false)
            }
            Story::DeletedWithLateUpdate => {
                self.subscribe(&small, 1, None).await;
                self.advance(1).await;
                assert_eq!(self.change(PlanChange::to_quantity(2)).await, Change::Made);
                self.cancel(Cancellation::Now).await;
                (None, 0, false)
            }
            Story::SameSecondPairs => {
                self.subscribe(&small, 1, None).await;
                assert_eq!(self.change(PlanChange::to_price(large)).await, Change::Made);
                self.advance(1).await;
                assert_eq!(self.change(PlanChange::to_quantity(2)).await, Change::Made);
                self.cancel(Cancellation::AtPeriodEnd).await;
                (Some("large"), 0, true)
            }
            Story::LinkedLate => {
                let (command, key) = (self.subscription(&small, 1, None), self.key());
                let _ = self.account.stripe.execute(&command, &key).await.unwrap();
                self.advance(1).await;
                assert_eq!(self.ear.derived().await.plan, None, "nobody knows whose it is");
                self.link().await;
                (Some("small"), 0, false)
            }
            other => panic!("{other:?} needs a person"),
        }
    }
}

async fn stories_come_to_one_end_in_any_order(account: Account) {
    for story in TOLD {
        let mut life = Life::begin(&account, format!("{story:?}")).await;
        let (plan, debts, ends) = life.live(story).await;
        let name = |derived: &Derived| derived.plan.as_ref().map(|version| version.plan.to_string());
        let is_end = |derived: &Derived| {
            name(derived).as_deref() == plan && derived.debts.len() == debts && derived.ends_at.is_some() == ends
        };
        let derived = life.until("it does not come to its end", is_end).await;
        // All at once, backwards and twice.
        let late = Ear::open(&account).await;
        late.clock().set(life.now);
        late.billing.link_customer(&late.ctx, &life.customer).await.unwrap();
        late.hear(&account.stripe, life.events.iter().rev().chain(life.events.iter())).await;
        let [one, other] = [&derived, &late.derived().await].map(|derived| serde_json::to_value(derived).unwrap());
        assert_eq!(one, other, "{story:?}");
        account.stripe.delete_test_clock(&life.clock).await.unwrap();
    }
}

#[tokio::test]
async fn the_simulator_over_http() {
    stories_come_to_one_end_in_any_order(over_http().await).await;
}

#[cfg(stripe_itself)]
#[tokio::test]
async fn stripe_itself() {
    stories_come_to_one_end_in_any_order(at_stripe().await).await;
}
