//! What the past is said to have been is what the gate answered then, with plans that billing keeps.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use saas_billing::{
    Billing, BillingConfig, Mode, SigningSecrets, WebhookProcessor,
    dunning::DunningPolicy,
    object::Interval,
    testing::{Chaos, CheckoutRequest, Purchase, StripeSimulator},
};
use saas_core::{
    Actor, Clock, FeatureKey, IdempotencyKey, MeterKey, PlanCatalog, RequestContext, Revision, SharedClock, SystemTx,
    TenantContext, TenantId, revision, subscription::AccessLevel, testing::TestDatabase,
};
use saas_entitlements::{
    Adjustments, Correction, Entitlements, History, Meter, NewOverride, Origin, OverrideGrant, Overrides,
    PostgresCounters, PostgresSource, Snapshot,
};

const CATALOG: &str = r#"
default_plan = "free"
[features]
csv = { kind = "boolean", fail = "closed" }
read = { kind = "boolean", fail = "open", min_access = "restricted" }
seats = { kind = "integer", fail = "open" }
[meters]
calls = { aggregation = "sum" }
files = { aggregation = "sum" }
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
grants = { seats = 1, read = true }
limits.files = { max = 2, window = "lifetime", overage = "block", over_limit = { grace_days = 3 } }
[plans.basic]
rank = 1
[[plans.basic.versions]]
version = 1
prices = ["price_basic"]
grants = { seats = 3, read = true }
limits.calls = { max = 100, window = "month", anchor = "billing", overage = "block", over_limit = "read_only" }
limits.files = { max = 5, window = "lifetime", overage = "block", over_limit = "read_only" }
[plans.pro]
rank = 2
[[plans.pro.versions]]
version = 1
prices = ["price_pro"]
grants = { seats = 5, read = true, csv = true }
limits.calls = { max = 1000, window = "month", anchor = "billing", overage = "block" }
limits.files = { max = 50, window = "lifetime", overage = "block" }
"#;

static ACTOR: Actor = Actor::system("test");
const FEATURES: [FeatureKey; 3] =
    [FeatureKey::from_static("csv"), FeatureKey::from_static("read"), FeatureKey::from_static("seats")];
const CALLS: MeterKey = MeterKey::from_static("calls");
const FILES: MeterKey = MeterKey::from_static("files");

/// Everything that a gate answers about a tenant, and how it explains it.
fn answers(snapshot: &Snapshot) -> Vec<String> {
    let plan = snapshot.plan_version().map(|version| version.reference().to_string());
    let (limits, excess) = ([CALLS, FILES].map(|meter| snapshot.limit(&meter)), snapshot.excess());
    let mut answers =
        vec![format!("{plan:?} {:?} {limits:?} {excess:?} {:?}", snapshot.access(), snapshot.next_boundary())];
    answers.extend(FEATURES.iter().map(|feature| {
        let why = snapshot.explain(feature).unwrap();
        format!("{} {:?} {why}", why.in_full(), why.value)
    }));
    answers
}

/// What the gate answered, when, and what it was made of.
struct Answered {
    tenant: TenantId,
    at: DateTime<Utc>,
    answers: Vec<String>,
    revision: Revision,
    access: AccessLevel,
    plan: Option<String>,
}

struct Shop {
    database: TestDatabase,
    stripe: StripeSimulator,
    billing: Billing,
    gate: Entitlements,
    overrides: Overrides,
    meter: Meter,
    adjustments: Adjustments,
    history: History,
    answered: Vec<Answered>,
}

impl Shop {
    async fn open() -> Self {
        let database =
            TestDatabase::start(&[&saas_core::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA]).await;
        let clock: SharedClock = Arc::new(database.clock().clone());
        let stripe = StripeSimulator::new("whsec_past_0123456789abcdef", database.clock().clone()).unwrap();
        stripe.create_price("price_basic", 900, "eur", &Interval::Month);
        stripe.create_price("price_pro", 2_900, "eur", &Interval::Month);
        let (tenants, system) = (Arc::new(database.tenants().clone()), database.system().clone());
        let billing = Self::billing(&database, &stripe, 7);
        let history = History::new(system.clone(), &billing);
        let catalog = history.publish(CATALOG, &ACTOR, clock.now()).await.unwrap();
        let counters = Arc::new(PostgresCounters::new(tenants.clone()));
        let source = PostgresSource::new(tenants, Arc::new(billing.clone()));
        let gate = Entitlements::new(catalog, Arc::new(source), clock.clone());
        gate.tick();
        let overrides = Overrides::new(system, gate.clone());
        let (meter, adjustments) =
            (Meter::new(gate.clone(), counters.clone()), Adjustments::new(gate.clone(), counters));
        Self { database, stripe, billing, gate, overrides, meter, adjustments, history, answered: Vec::new() }
    }

    fn billing(database: &TestDatabase, stripe: &StripeSimulator, grace_days: u32) -> Billing {
        let secrets = SigningSecrets::new(vec![stripe.secret()]).unwrap();
        let dunning = DunningPolicy::without_messages(grace_days, 5).unwrap();
        let config = BillingConfig::new(PlanCatalog::from_toml(CATALOG).unwrap(), secrets, Mode::Test);
        let (tenants, clock) = (Arc::new(database.tenants().clone()), Arc::new(database.clock().clone()));
        Billing::new(config.with_dunning(dunning), tenants, database.system().clone(), clock)
    }

    /// What Stripe has to tell comes in, over a network of this kind, and the gate hears of what it changed.
    async fn deliver(&self, chaos: Chaos) {
        for delivery in self.stripe.deliveries_through(chaos) {
            let _ = self.billing.process(&delivery.body, &delivery.signature).await.unwrap();
        }
        while self.billing.apply_pending(100).await.unwrap().total() > 0 {}
        while self.billing.fetch_pending(&self.stripe, 50).await.unwrap().done > 0 {}
    }

    /// Files come and go. Some uses are refused.
    async fn r#use(&self, ctx: &RequestContext, meter: MeterKey, amount: i64, key: String) {
        let key: IdempotencyKey = key.parse().unwrap();
        if let Ok(amount @ 1..) = u64::try_from(amount) {
            let _ = self.meter.consume(ctx, &meter, amount, &key).await.unwrap();
        } else {
            let (at, reason) = (self.database.clock().now(), "removed".into());
            let correction = Correction { meter, amount, key, item: None, member: None, at, reason };
            let _ = self.adjustments.correct(ctx, correction).await.unwrap();
        }
    }

    async fn ask(&mut self, tenants: &[TenantId]) {
        let at = self.database.clock().now();
        for tenant in tenants {
            let mut tx = SystemTx::begin(self.database.system(), ACTOR.clone(), "hear").await.unwrap();
            self.gate.hear(*tenant, revision::current_in(&mut tx, *tenant).await.unwrap());
            tx.rollback().await.unwrap();
            self.gate.tick();
            let snapshot = self.gate.snapshot(*tenant).await.at(at);
            assert_eq!(snapshot.origin(), Origin::Loaded);
            let plan = snapshot.plan_version().map(|version| version.reference().to_string());
            self.answered.push(Answered {
                tenant: *tenant,
                at,
                answers: answers(&snapshot),
                revision: snapshot.revision(),
                access: snapshot.access(),
                plan,
            });
        }
    }

    /// Asks about every instant at which the gate was asked, and returns how many different answers there were.
    async fn compare(&self, run: &str) -> usize {
        let (mut different, mut seen) = (std::collections::HashSet::new(), std::collections::HashSet::new());
        // At one instant the last answer counts.
        for then in self.answered.iter().rev() {
            if seen.insert((then.tenant, then.at)) {
                let past = self.history.at(then.tenant, then.at).await.unwrap();
                assert_eq!(answers(&past), then.answers, "{run}: {} at {}", then.tenant, then.at);
                different.insert(&then.answers);
            }
        }
        different.len()
    }

    /// How often a tenant got another access level, and how often another plan, while nothing was heard.
    fn by_time_alone(&self, tenant: TenantId) -> (usize, usize) {
        let of: Vec<_> = self.answered.iter().filter(|then| then.tenant == tenant).collect();
        let pairs = || of.windows(2).filter(|pair| pair[0].revision == pair[1].revision);
        let access = pairs().filter(|pair| pair[0].access != pair[1].access).count();
        (access, pairs().filter(|pair| pair[0].plan != pair[1].plan).count())
    }
}

#[tokio::test]
async fn the_past_is_answered_as_the_gate_answered_then_with_plans_of_billing() {
    let (mut levels, mut plans) = (0, 0);
    for seed in 0..2 {
        let (by_access, by_plan) = record_and_compare(seed).await;
        (levels, plans) = (levels + by_access, plans + by_plan);
    }
    assert!(levels > 3 && plans > 0, "{levels} ends of grace and {plans} of plans by time alone: too few to say much");
}

async fn record_and_compare(seed: u64) -> (usize, usize) {
    let mut shop = Shop::open().await;
    let mut random = fastrand::Rng::with_seed(seed);
    shop.database.clock().advance(TimeDelta::seconds(1));
    let mut contexts = Vec::new();
    for slug in ["one", "two", "three"] {
        contexts.push(shop.database.create_tenant(slug).await);
    }
    let tenants: Vec<_> = contexts.iter().map(TenantContext::tenant).collect();
    let mut bought: [Option<Purchase>; 3] = [const { None }; 3];
    for step in 0..130 {
        let which = random.usize(0..tenants.len());
        match (&bought[which], random.u8(0..12)) {
            (None, 0..=8) => {
                let price = if random.bool() { "price_pro" } else { "price_basic" };
                let days = if random.bool() { 0 } else { random.u32(3..15) };
                let session = shop.stripe.checkout(CheckoutRequest::new(price).with_trial_days(days));
                shop.billing.record_checkout(&contexts[which], &session).await.unwrap();
                bought[which] = Some(shop.stripe.complete_checkout(&session).unwrap());
            }
            (Some(purchase), 0 | 1) => shop.stripe.fail_next_payment(&purchase.customer),
            (Some(purchase), 2) => shop.stripe.pay(&purchase.customer),
            (Some(purchase), 3) => shop.stripe.remove_payment_method(&purchase.customer),
            (Some(purchase), 4 | 5) => shop.stripe.cancel_at_period_end(&purchase.subscription, random.u8(0..3) > 0),
            (Some(purchase), 6) => {
                shop.stripe
                    .update_price(&purchase.subscription, if random.bool() { "price_pro" } else { "price_basic" });
            }
            (Some(purchase), 7) => {
                shop.stripe.cancel(&purchase.subscription);
                bought[which] = None;
            }
            (_, 8) => {
                let grant = OverrideGrant::Switch { feature: FEATURES[0].clone(), on: random.bool() };
                let until = shop.database.clock().now() + TimeDelta::days(random.i64(1..20));
                let new = NewOverride::new(grant, "test", until).unwrap();
                shop.overrides.put_override(tenants[which], new, &ACTOR).await.unwrap();
            }
            (Some(_), 9) => {
                let key = format!("calls-{step}");
                shop.r#use(&contexts[which], CALLS, random.i64(50..200), key).await;
            }
            (_, 10 | 11) => {
                let amount = [-6, -4, -2, 1, 3, 5, 7, 9][random.usize(0..8)];
                shop.r#use(&contexts[which], FILES, amount, format!("files-{step}")).await;
            }
            _ => {}
        }
        // What happens is told late, in another order, twice, or only with the next time. Time goes on meanwhile.
        if random.u8(0..3) > 0 {
            shop.deliver(Chaos::shuffled(seed * 1_000 + step).duplicating(20).delaying(25)).await;
        }
        shop.ask(&tenants).await;
        for _ in 0..random.u8(0..3) {
            shop.stripe.advance(TimeDelta::minutes(random.i64(1..6_000)));
            shop.ask(&tenants).await;
        }
        if step % 40 == 39 {
            // Everything is told, and time alone passes: grace periods, trials and plans end by themselves.
            shop.deliver(Chaos::shuffled(step)).await;
            shop.ask(&tenants).await;
            for _ in 0..16 {
                shop.database.clock().advance(TimeDelta::hours(random.i64(12..48)));
                shop.ask(&tenants).await;
            }
        }
    }
    let over = shop.answered.iter().filter(|then| then.answers[0].contains("Excess")).count();
    assert!(over > 20, "only {over} answers beyond a limit: the run proves little");
    let different = shop.compare(&format!("seed {seed}")).await;
    assert!(different > 20, "only {different} different answers: the run proves little");
    tenants.iter().map(|tenant| shop.by_time_alone(*tenant)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

#[tokio::test]
async fn another_grace_policy_is_on_record_from_when_it_was_derived_anew() {
    let mut shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    shop.billing.record_checkout(&ctx, &session).await.unwrap();
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.deliver(Chaos::shuffled(1)).await;
    shop.stripe.advance(TimeDelta::days(33));
    shop.deliver(Chaos::shuffled(2)).await;
    let tenants = [ctx.tenant()];
    for _ in 0..14 {
        shop.ask(&tenants).await;
        shop.database.clock().advance(TimeDelta::days(1));
    }
    let suspended = shop.answered.last().unwrap().access;
    assert_eq!(suspended, AccessLevel::Suspended);

    // A release that is more patient.
    let patient = Shop::billing(&shop.database, &shop.stripe, 60);
    assert!(patient.rederive(&ctx).await.unwrap(), "it means something else now");
    assert!(!patient.rederive(&ctx).await.unwrap(), "and is told once");
    let source = PostgresSource::new(Arc::new(shop.database.tenants().clone()), Arc::new(patient));
    let clock: SharedClock = Arc::new(shop.database.clock().clone());
    shop.gate = Entitlements::new(PlanCatalog::from_toml(CATALOG).unwrap(), Arc::new(source), clock);
    shop.ask(&tenants).await;
    assert_eq!(shop.answered.last().unwrap().access, AccessLevel::Full);
    shop.compare("another policy").await;
}
