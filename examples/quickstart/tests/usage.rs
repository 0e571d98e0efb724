//! Uses that the meter has counted come to Stripe's bill: entitlements hand their batches over, billing sends them.

use std::sync::Arc;

use async_trait::async_trait;
use saas_billing::{
    Billing, BillingConfig, Mode, SigningSecrets,
    catalog::{OldPrices, PriceList},
    testing::StripeSimulator,
    usage::{UsageItem, UsagePolicy},
};
use saas_core::{
    Actor, CoreError, MeterKey, PageSize, PlanCatalog, SharedClock, subscription::FixedPlan, testing::TestDatabase,
};
use saas_entitlements::{
    Entitlements, EntitlementsError, Meter, PostgresCounters, PostgresSource,
    usage::{Delivery, UsageBatch, UsageExport, UsageKind, UsagePipeline, UsageRow},
};

const TEXT: &str = r#"
default_plan = "pro"
[meters.calls]
aggregation = "sum"
[plans.pro]
rank = 0
[[plans.pro.versions]]
version = 1
prices = ["calls"]
limits.calls = { max = 10, window = "month", overage = "bill" }
[products.pro]
name = "Pro"
[prices.calls]
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.01" }
"#;

const CALLS: MeterKey = MeterKey::from_static("calls");
const OPERATOR: Actor = Actor::system("test");

/// What an application writes to join the two.
#[derive(Debug)]
struct ToStripe {
    billing: Billing,
    policy: UsagePolicy,
}

#[async_trait]
impl UsageExport for ToStripe {
    async fn deliver(&self, batch: &UsageBatch) -> Result<Vec<Delivery>, EntitlementsError> {
        // What a lost process may not have used is counted against the limit, and not charged.
        let charged = batch.rows.iter().filter(|row| row.kind != UsageKind::Stranded);
        let items: Vec<UsageItem> = charged.map(item).collect();
        let accepted = self.billing.accept_usage(&self.policy, &items).await;
        accepted.map_err(|why| CoreError::Unavailable { cause: Box::new(why) })?;
        Ok(vec![Delivery::Taken; batch.rows.len()])
    }
}

fn item(row: &UsageRow) -> UsageItem {
    UsageItem {
        id: row.id,
        tenant: row.tenant,
        meter: row.counter.clone(),
        amount: row.amount,
        units: row.units,
        at: row.at,
        window_start: row.window_start,
    }
}

#[tokio::test]
async fn what_the_meter_counted_is_what_stripe_charges_for() {
    let schemas = [&saas_core::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
    let database = TestDatabase::builder().max_system_connections(6).start(&schemas).await;
    let clock: SharedClock = Arc::new(database.clock().clone());
    let catalog = PlanCatalog::from_toml(TEXT).unwrap();
    let list = PriceList::from_toml(TEXT, &catalog).unwrap();
    let stripe = StripeSimulator::new("whsec_test_0123456789abcdef", database.clock().clone()).unwrap();
    let secrets = SigningSecrets::new(vec![stripe.secret()]).unwrap();
    let config = BillingConfig::new(catalog.clone(), secrets, Mode::Test);
    let tenants = Arc::new(database.tenants().clone());
    let billing = Billing::new(config, tenants.clone(), database.system().clone(), clock.clone());
    let source = PostgresSource::new(tenants.clone(), Arc::new(FixedPlan("pro".parse().unwrap())));
    let gate = Entitlements::new(catalog, Arc::new(source), clock.clone());
    let meter = Meter::new(gate, Arc::new(PostgresCounters::new(tenants)));
    let pipeline = UsagePipeline::new(database.system().clone(), clock);

    billing.apply_prices(&stripe, &list, OldPrices::Keep, &OPERATOR).await.unwrap();
    let acme = database.create_tenant("acme").await;
    billing.ensure_customer(&stripe, &acme, &Default::default()).await.unwrap();
    let to_stripe = ToStripe { billing: billing.clone(), policy: UsagePolicy::of(&list) };
    for n in 1_u64..=12 {
        let used = meter.consume(&acme, &CALLS, n, &format!("call-{n}").parse().unwrap()).await.unwrap();
        assert!(used.is_granted(), "beyond the limit a use is billed: {used}");
    }
    assert_eq!(pipeline.export("stripe", &to_stripe).await.unwrap().taken, 12);
    assert_eq!(pipeline.export("stripe", &to_stripe).await.unwrap().taken, 0);
    assert_eq!(billing.send_usage(&stripe, &to_stripe.policy, 100).await.unwrap().sent, 12);
    let (day, size) = (stripe.now().date_naive(), PageSize::new(10).unwrap());
    let totals = billing.compare_usage(&stripe, &OPERATOR, day, None, size).await.unwrap().items;
    assert_eq!((totals[0].ours, totals[0].theirs), (78, Some(78)));
}
