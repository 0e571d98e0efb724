//! A change of the plan in mid-period, told by Stripe in whatever order, does to usage what the catalogue declares.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use saas_billing::{
    Billing, BillingConfig, Mode, SigningSecrets, WebhookProcessor,
    object::Interval,
    testing::{Chaos, CheckoutRequest, Delivery, Purchase, StripeSimulator},
};
use saas_core::{
    Clock, MeterKey, PlanCatalog, RequestContext, SharedClock, TenantContext,
    plan::Limit,
    subscription::{PlanAssignment, PlanSource},
    testing::TestDatabase,
};
use saas_entitlements::{Entitlements, Meter, PostgresCounters, PostgresSource, Usage};

/// Months are billing periods, so that every change of these tests is within one.
const CATALOG: &str = r#"
default_plan = "free"
[meters]
kept = { aggregation = "sum" }
share = { aggregation = "sum" }
fresh = { aggregation = "sum" }
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.free.versions.limits]
kept = { max = 10, window = "year", overage = "block", on_plan_change = "keep" }
share = { max = 10, window = "year", overage = "block", on_plan_change = "prorate" }
fresh = { max = 10, window = "year", overage = "block", on_plan_change = "reset" }
[plans.basic]
rank = 1
[[plans.basic.versions]]
version = 1
prices = ["price_basic"]
[plans.basic.versions.limits]
kept = { max = 3_650, window = "year", overage = "block", on_plan_change = "keep" }
share = { max = 3_650, window = "year", overage = "block", on_plan_change = "prorate" }
fresh = { max = 3_650, window = "year", overage = "block", on_plan_change = "reset" }
[plans.pro]
rank = 2
[[plans.pro.versions]]
version = 1
prices = ["price_pro"]
[plans.pro.versions.limits]
kept = { max = 36_500, window = "year", overage = "block", on_plan_change = "keep" }
share = { max = 36_500, window = "year", overage = "block", on_plan_change = "prorate" }
fresh = { max = 36_500, window = "year", overage = "block", on_plan_change = "reset" }
"#;

const KEPT: MeterKey = MeterKey::from_static("kept");
const SHARE: MeterKey = MeterKey::from_static("share");
const FRESH: MeterKey = MeterKey::from_static("fresh");

struct Shop {
    database: TestDatabase,
    stripe: StripeSimulator,
    billing: Billing,
    gate: Entitlements,
    meter: Meter,
}

impl Shop {
    /// On the first of January.
    async fn open() -> Self {
        let database =
            TestDatabase::start(&[&saas_core::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA]).await;
        database.clock().set(day(0));
        let clock: SharedClock = Arc::new(database.clock().clone());
        let stripe = StripeSimulator::new("whsec_change_0123456789abcdef", database.clock().clone()).unwrap();
        stripe.create_price("price_basic", 900, "eur", &Interval::Month);
        stripe.create_price("price_pro", 2_900, "eur", &Interval::Month);
        let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
        let config =
            BillingConfig::new(catalog.clone(), SigningSecrets::new(vec![stripe.secret()]).unwrap(), Mode::Test);
        let (tenants, system) = (Arc::new(database.tenants().clone()), database.system().clone());
        let billing = Billing::new(config, tenants.clone(), system, clock.clone());
        let source = PostgresSource::new(tenants.clone(), Arc::new(billing.clone()));
        let gate = Entitlements::new(catalog, Arc::new(source), clock);
        let meter = Meter::new(gate.clone(), Arc::new(PostgresCounters::new(tenants)));
        Self { database, stripe, billing, gate, meter }
    }

    async fn buyer(&self, slug: &str, price: &str) -> (RequestContext, Purchase) {
        let ctx = self.database.create_tenant(slug).await;
        let session = self.stripe.checkout(CheckoutRequest::new(price));
        self.billing.record_checkout(&ctx, &session).await.unwrap();
        (ctx, self.stripe.complete_checkout(&session).unwrap())
    }

    async fn deliver(&self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let _ = self.billing.process(&delivery.body, &delivery.signature).await.unwrap();
        }
        while self.billing.apply_pending(100).await.unwrap().total() > 0 {}
        while self.billing.fetch_pending(&self.stripe, 50).await.unwrap().done > 0 {}
        self.gate.flush();
    }

    async fn plan(&self, ctx: &RequestContext) -> PlanAssignment {
        self.billing.plan_of(ctx, self.database.clock().now()).await.unwrap()
    }

    async fn r#use(&self, ctx: &RequestContext, amount: u64, key: &str) {
        for meter in [KEPT, SHARE, FRESH] {
            let used = self.meter.consume(ctx, &meter, amount, &key.parse().unwrap()).await.unwrap();
            assert!(used.is_granted(), "{meter}: {used}");
        }
    }

    /// What was used of which limit, of each meter.
    async fn usage(&self, ctx: &RequestContext) -> [(u64, Limit); 3] {
        let mut usage = [(0, Limit::Unlimited); 3];
        for (place, meter) in [KEPT, SHARE, FRESH].iter().enumerate() {
            let Usage { used, limit, .. } = self.meter.usage(ctx, meter).await.unwrap().unwrap();
            usage[place] = (used, limit);
        }
        usage
    }
}

/// So many days into 2027, which has 365.
fn day(days: i64) -> DateTime<Utc> {
    "2027-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(days)
}

// f-M14
#[tokio::test]
async fn a_billed_tenants_change_keeps_shares_and_resets_as_declared() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme", "price_basic").await;
    shop.deliver(shop.stripe.deliveries()).await;
    shop.r#use(&ctx, 100, "before").await;

    shop.stripe.advance(TimeDelta::days(73));
    shop.stripe.update_price(&purchase.subscription, "price_pro");
    // Told two days late: the instant is Stripe's.
    shop.stripe.advance(TimeDelta::days(2));
    shop.deliver(shop.stripe.deliveries()).await;
    let plan = shop.plan(&ctx).await;
    assert_eq!((plan.plan.as_str(), plan.since), ("pro", Some(day(73))));
    let before: Vec<_> = plan.before.iter().map(|past| (past.plan.as_str(), past.version, past.since)).collect();
    assert_eq!(before, [("basic", Some(1), Some(day(0))), ("free", None, None)]);
    // A fifth of the year on basic, the rest on pro.
    let shared = 3_650 / 5 + 36_500 * 4 / 5;
    let expected = [(100, Limit::Max(36_500)), (100, Limit::Max(shared)), (0, Limit::Max(36_500))];
    assert_eq!(shop.usage(&ctx).await, expected);
    shop.r#use(&ctx, 7, "after").await;

    // Back to nothing bought, another fifth later.
    shop.stripe.advance(TimeDelta::days(71));
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver(shop.stripe.deliveries()).await;
    let plan = shop.plan(&ctx).await;
    assert_eq!((plan.plan.as_str(), plan.version, plan.since), ("free", None, Some(day(146))));
    let shared = (3_650 + 36_500) / 5 + 10 * 3 / 5;
    let expected = [(107, Limit::Max(10)), (107, Limit::Max(shared)), (0, Limit::Max(10))];
    assert_eq!(shop.usage(&ctx).await, expected);
    let recorded: Vec<Option<String>> =
        sqlx::query_scalar("select assignment ->> 'plan' from saas.plan_record where tenant_id = $1 order by revision")
            .bind(ctx.tenant().as_uuid())
            .fetch_all(&mut shop.database.owner().await)
            .await
            .unwrap();
    assert_eq!(recorded.last().unwrap().as_deref(), Some("free"), "the change to the default plan is on record");
    assert!(recorded.contains(&Some("basic".to_owned())) && recorded.contains(&Some("pro".to_owned())));

    // And bought again: the time without anything is known, too.
    shop.stripe.advance(TimeDelta::days(10));
    let session = shop.stripe.checkout(CheckoutRequest::new("price_basic"));
    shop.billing.record_checkout(&ctx, &session).await.unwrap();
    shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver(shop.stripe.deliveries()).await;
    let plan = shop.plan(&ctx).await;
    assert_eq!((plan.plan.as_str(), plan.since), ("basic", Some(day(156))));
    let before: Vec<_> = plan.before.iter().map(|past| (past.plan.as_str(), past.since)).collect();
    assert_eq!(before[..2], [("free", Some(day(146))), ("pro", Some(day(73)))]);
}

// f-M14, D1
#[tokio::test]
async fn a_billed_tenants_change_is_the_same_however_it_is_told() {
    let mut told = Vec::new();
    for seed in 0..6 {
        let shop = Shop::open().await;
        let (ctx, purchase) = shop.buyer("acme", "price_basic").await;
        for (days, price) in [(20, "price_pro"), (53, "price_basic"), (40, "price_pro")] {
            shop.stripe.advance(TimeDelta::days(days));
            shop.stripe.update_price(&purchase.subscription, price);
        }
        // Everything at once, doubled and shuffled: the changes are told out of order.
        let deliveries = match seed {
            0 => shop.stripe.deliveries(),
            seed => shop.stripe.deliveries_through(Chaos::shuffled(seed).duplicating(30)),
        };
        shop.deliver(deliveries).await;
        let plan = shop.plan(&ctx).await;
        assert_eq!((plan.plan.as_str(), plan.since), ("pro", Some(day(113))));
        told.push((plan.before, shop.usage(&ctx).await));
    }
    assert!(told.windows(2).all(|two| two[0] == two[1]), "{told:#?}");
}
