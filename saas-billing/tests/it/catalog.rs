//! Plans as code: from the file to Stripe, over HTTP, by several processes and through what goes wrong on the way.

use std::{collections::BTreeSet, sync::Arc};

use saas_billing::{
    BillingConfig, BillingError, Mode, SigningSecrets,
    catalog::{self, Cause, OldPrices, PriceList, SyncError, SyncPlan},
    provider::{Command, NewMeter, NewPrice, PageLimit, PaymentProvider, PricedBy, Query},
    stripe::{Retries, StripeApi},
    testing::{CheckoutRequest, Fault, SimulatorServer, StripeSimulator},
};
use saas_core::{Clock as _, PlanCatalog, subscription::PlanSource as _};
use serde_json::Value;

use crate::{
    provider::{adapter, simulator},
    shop::{OPERATOR, Shop},
};

const TEXT: &str = r#"
default_plan = "free"
[features.export]
kind = "boolean"
fail = "closed"
[features.sso]
kind = "boolean"
fail = "closed"
[meters.api-calls]
aggregation = "sum"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = ["pro-monthly", "pro-yearly", "pro-calls"]
grants = { export = true, sso = true }
limits.api-calls = { max = 1_000, window = "month", overage = "bill" }
[plans.team]
rank = 20
[[plans.team.versions]]
version = 1
prices = ["team-seats"]
grants = { export = true }
[addons.more]
mode = "stack"
max_quantity = 3
prices = ["more"]
grants = { export = true }

[products.pro]
name = "Pro"
[products.team]
name = "Team"
[products.more]
name = "More"
[products.calls]
name = "API calls"

[prices.pro-monthly]
per = "flat"
interval = "month"
amounts = { eur = "20.00", jpy = "3000", kwd = "6.500" }
[prices.pro-yearly]
per = "flat"
interval = "year"
amounts = { eur = "200.00" }
[prices.pro-calls]
product = "calls"
per = "usage"
meter = "api-calls"
interval = "month"
tiers = "graduated"
steps = [{ up_to = 1_000, unit = { eur = "0" } }, { unit = { eur = "0.02" } }]
[prices.team-seats]
per = "seat"
interval = "month"
tiers = "volume"
steps = [{ up_to = 10, unit = { eur = "8.00" } }, { unit = { eur = "6.00" }, flat = { eur = "5.00" } }]
[prices.more]
per = "seat"
interval = "month"
amounts = { eur = "3.00" }
"#;

fn list(text: &str) -> PriceList {
    PriceList::from_toml(text, &PlanCatalog::from_toml(text).unwrap()).unwrap()
}

fn dearer() -> String {
    TEXT.replace("eur = \"20.00\"", "eur = \"25.00\"")
}

/// Another process: a client of its own.
fn process(server: &SimulatorServer) -> StripeApi {
    StripeApi::new(adapter(server)).unwrap()
}

/// A process that does not try again: what its first try comes to is what it dies with.
fn brittle(server: &SimulatorServer) -> StripeApi {
    let once = Retries { tries: 1, ..Retries::default() };
    StripeApi::new(adapter(server).with_retries(once).with_breaker(u32::MAX, std::time::Duration::ZERO)).unwrap()
}

async fn apply(stripe: &dyn PaymentProvider, text: &str) -> Result<SyncPlan, SyncError> {
    catalog::apply(stripe, &list(text), Mode::Test, OldPrices::Keep).await.map(|applied| applied.plan)
}

async fn plan(stripe: &dyn PaymentProvider, text: &str) -> SyncPlan {
    catalog::plan(stripe, &list(text), Mode::Test, OldPrices::Keep).await.unwrap()
}

async fn all(stripe: &dyn PaymentProvider, query: Query) -> Vec<Value> {
    let page = stripe.list(&query, None, PageLimit::MAX).await.unwrap();
    page.objects.iter().map(|object| serde_json::from_str(object.get()).unwrap()).collect()
}

/// Everything of the catalogue at Stripe, without ids that Stripe mints: equal for equal results, longer for second ones.
async fn digest(stripe: &dyn PaymentProvider) -> Vec<String> {
    let mut lines = Vec::new();
    for meter in all(stripe, Query::Meters).await {
        lines.push(format!("meter {} {}", meter["event_name"], meter["default_aggregation"]["formula"]));
    }
    for feature in all(stripe, Query::Features { lookup_key: None }).await {
        lines.push(format!("feature {}", feature["lookup_key"]));
    }
    for product in all(stripe, Query::Products).await {
        let id: saas_billing::ObjectId = product["id"].as_str().unwrap().parse().unwrap();
        let features = all(stripe, Query::ProductFeatures { product: id.clone() }).await;
        let mut features: Vec<_> =
            features.iter().map(|one| one["entitlement_feature"]["lookup_key"].clone()).collect();
        features.sort_by_key(ToString::to_string);
        lines.push(format!("product {id} {} {features:?}", product["name"]));
        for price in all(stripe, Query::PricesOf { product: id }).await {
            let recurring = &price["recurring"];
            lines.push(format!(
                "price {} {} {} {} {} {} {} {}",
                price["lookup_key"],
                price["currency"],
                price["unit_amount"],
                price["tiers"],
                recurring["interval"],
                recurring["usage_type"],
                price["active"],
                price["metadata"]
            ));
        }
    }
    lines.sort();
    lines
}

async fn stage() -> (Arc<StripeSimulator>, SimulatorServer) {
    let (simulator, _) = simulator();
    let server = SimulatorServer::start(Arc::clone(&simulator)).await.unwrap();
    (simulator, server)
}

// L6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_becomes_products_prices_features_and_meters_with_amounts_in_each_currencys_units() {
    let (_simulator, server) = stage().await;
    let stripe = process(&server);
    let said = plan(&stripe, TEXT).await.to_string();
    assert!(said.contains("price pro-monthly-eur: not there; made, 20.00 EUR per month"), "{said}");
    assert!(
        said.contains("price team-seats-eur: not there; made, volume (to 10: 8.00 EUR, any: 6.00 EUR + 5.00 EUR)"),
        "{said}"
    );
    assert!(digest(&stripe).await.is_empty(), "a plan changes nothing");
    apply(&stripe, TEXT).await.unwrap();
    let made = digest(&stripe).await;
    for line in [
        r#"meter "api-calls" "sum""#,
        r#"product prod_pro "Pro" [String("export"), String("sso")]"#,
        r#"product prod_more "More" [String("export")]"#,
        r#"price "pro-monthly-eur" "eur" 2000 null "month" "licensed" true {"saas_per":"flat","saas_price":"pro-monthly"}"#,
        r#"price "pro-monthly-jpy" "jpy" 3000 null "month" "licensed" true {"saas_per":"flat","saas_price":"pro-monthly"}"#,
        r#"price "pro-monthly-kwd" "kwd" 6500 null "month" "licensed" true {"saas_per":"flat","saas_price":"pro-monthly"}"#,
        r#"price "pro-yearly-eur" "eur" 20000 null "year" "licensed" true {"saas_per":"flat","saas_price":"pro-yearly"}"#,
    ] {
        assert!(made.iter().any(|made| made == line), "{line}\n{made:#?}");
    }
    assert!(made.iter().any(|line| line.starts_with("price \"pro-calls-eur\"") && line.contains("\"metered\"")));
    assert_eq!(plan(&stripe, TEXT).await.to_string(), "Stripe has what the catalogue says");
}

/// Four processes, none of which waits for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applied_by_several_processes_at_once_everything_is_there_once() {
    let (_simulator, server) = stage().await;
    let once = {
        let (_simulator, server) = stage().await;
        apply(&process(&server), TEXT).await.unwrap();
        apply(&process(&server), &dearer()).await.unwrap();
        digest(&process(&server)).await
    };
    for text in [TEXT, &dearer()] {
        let processes = [(); 4].map(|()| process(&server));
        let [a, b, c, d] = &processes;
        let (a, b, c, d) = tokio::join!(apply(a, text), apply(b, text), apply(c, text), apply(d, text));
        for applied in [a, b, c, d] {
            applied.unwrap();
        }
    }
    assert_eq!(digest(&process(&server)).await, once);
}

/// D14: whatever ends a run, and at whichever call, the next one ends where one run would have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_call_and_run_again_the_result_is_the_same_and_nothing_is_there_twice() {
    let (simulator, server) = stage().await;
    apply(&process(&server), TEXT).await.unwrap();
    let first = simulator.calls();
    apply(&process(&server), &dearer()).await.unwrap();
    let (calls, once) = (simulator.calls(), digest(&process(&server)).await);
    for fault in [Fault::CutAfter, Fault::CutBefore, Fault::Broken, Fault::BrokenAfterwards] {
        let mut met = 0;
        for at in 0..calls {
            let (simulator, server) = stage().await;
            simulator.inject_after(usize::try_from(at).unwrap(), [fault]);
            let died = apply(&brittle(&server), TEXT).await.is_err();
            if !died {
                let _died = apply(&brittle(&server), &dearer()).await;
            }
            met += 1 - simulator.heal();
            let another = process(&server);
            apply(&another, TEXT).await.unwrap_or_else(|why| panic!("{fault:?} at {at}: {why}"));
            apply(&another, &dearer()).await.unwrap_or_else(|why| panic!("{fault:?} at {at}: {why}"));
            assert_eq!(digest(&another).await, once, "{fault:?} at call {at} of {calls}");
        }
        assert!(met > usize::try_from(first).unwrap(), "{met}");
    }
}

/// Within one run: the client tries again with the same key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_gets_through_429_500_and_lost_answers() {
    let (simulator, server) = stage().await;
    let stripe = process(&server);
    for at in [4, 9, 15, 22, 28] {
        simulator.inject_after(at, [Fault::RateLimited(0), Fault::CutAfter]);
    }
    simulator.inject_after(2, [Fault::BrokenAfterwards]);
    apply(&stripe, TEXT).await.unwrap();
    simulator.heal();
    assert!(plan(&stripe, TEXT).await.is_empty());
    let keys: Vec<_> = digest(&stripe).await.into_iter().filter(|line| line.starts_with("price")).collect();
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "{keys:#?}");
}

/// What a customer is on is never changed: the new amount is another price, and the old one stays theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_price_is_another_one_that_takes_the_key_and_who_pays_the_old_one_goes_on() {
    let plans = PlanCatalog::from_toml(TEXT).unwrap();
    let shop = Shop::open_with(|stripe| stripe, |config| config).await;
    let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
    let service = |plans: PlanCatalog| {
        crate::shop::service(&shop.database, BillingConfig::new(plans, secrets.clone(), Mode::Test))
    };
    let billing = service(plans.clone());
    let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
    let stripe = process(&server);
    billing.apply_prices(&stripe, &list(TEXT), OldPrices::Keep, &OPERATOR).await.unwrap();
    let eur = "eur".parse().unwrap();
    let old = billing.price("pro-monthly", eur).await.unwrap();
    let buy = async |billing: &saas_billing::Billing, slug: &str, price: &str| {
        let ctx = shop.database.create_tenant(slug).await;
        let session = shop.stripe.checkout(CheckoutRequest::new(price));
        billing.record_checkout(&ctx, &session).await.unwrap();
        let purchase = shop.stripe.complete_checkout(&session).unwrap();
        (ctx, purchase)
    };
    let (acme, bought) = buy(&billing, "acme", old.as_str()).await;

    // Another process has never heard of either price; it learns from the table.
    let other = service(plans);
    other.apply_prices(&stripe, &list(&dearer()), OldPrices::Archive, &OPERATOR).await.unwrap();
    let new = billing.price("pro-monthly", eur).await.unwrap();
    assert_ne!(new, old);
    let (globex, _) = buy(&other, "globex", new.as_str()).await;
    let third = service(PlanCatalog::from_toml(TEXT).unwrap());
    for delivery in shop.stripe.deliveries() {
        let _ = saas_billing::WebhookProcessor::process(&third, &delivery.body, &delivery.signature).await.unwrap();
    }
    while third.apply_pending(100).await.unwrap().total() > 0 {}
    let now = shop.database.clock().now();
    for ctx in [&acme, &globex] {
        assert_eq!(third.plan_of(ctx, now).await.unwrap().plan.as_str(), "pro");
        assert!(third.derived(ctx).await.unwrap().alerts.is_empty());
    }
    let subscription =
        shop.stripe.object(saas_billing::object::ObjectKind::Subscription, &bought.subscription).unwrap();
    assert_eq!(subscription["items"]["data"][0]["price"]["id"], old.as_str(), "the payer's price is what it was");
    assert_eq!(subscription["items"]["data"][0]["price"]["unit_amount"], 2000);
    assert_eq!(subscription["items"]["data"][0]["price"]["active"], false, "and nobody else can buy it");

    // Back to the amount of before: the price of then is sold again, no third one made.
    let before = digest(&stripe).await.len();
    let back = other.plan_prices(&stripe, &list(TEXT), OldPrices::Keep).await.unwrap().to_string();
    assert!(back.contains("amount 25.00 EUR → 20.00 EUR, changed in the catalogue;"), "{back}");
    other.apply_prices(&stripe, &list(TEXT), OldPrices::Keep, &OPERATOR).await.unwrap();
    assert_eq!(billing.price("pro-monthly", eur).await.unwrap(), old);
    assert_eq!(digest(&stripe).await.len(), before);
    let Err(BillingError::Invalid(why)) = billing.price("pro-monthly", "usd".parse().unwrap()).await else { panic!() };
    assert!(why.to_string().contains("apply the price list"), "{why}");
}

/// Somebody edits in the dashboard: each field is named, and told from a change of the text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_edited_at_stripe_is_reported_field_by_field_and_mended() {
    let (simulator, server) = stage().await;
    let stripe = process(&server);
    apply(&stripe, TEXT).await.unwrap();
    let made = digest(&stripe).await;
    simulator.edit_product("prod_pro", "Pro!", false);
    let price_of = async |key: &str| {
        let prices = all(&stripe, Query::Prices { lookup_keys: vec![key.to_owned()] }).await;
        prices[0]["id"].as_str().unwrap().to_owned()
    };
    simulator.edit_price(&price_of("more-eur").await, true, None);
    simulator.edit_price(&price_of("pro-yearly-eur").await, false, Some("pro-yearly-eur"));
    let text = TEXT.replace("name = \"Team\"", "name = \"Teams\"");
    let found = plan(&stripe, &text).await;
    let mut causes: Vec<_> = found.differences.iter().map(|one| (one.name.as_str(), one.cause)).collect();
    causes.sort_by_key(|(name, _)| *name);
    let expected = [
        ("more-eur", Cause::Drift),
        ("pro-yearly-eur", Cause::Drift),
        ("prod_pro", Cause::Drift),
        ("prod_team", Cause::Changed),
    ];
    assert_eq!(causes, expected);
    let fields: Vec<_> = found.drift().flat_map(|one| one.fields.iter().map(|field| field.field)).collect();
    assert_eq!(fields, ["name", "active", "lookup_key", "active"]);
    assert!(
        found
            .to_string()
            .contains("product prod_pro: name Pro! → Pro, active false → true, edited at Stripe; said anew"),
        "{found}"
    );
    apply(&stripe, TEXT).await.unwrap();
    assert_eq!(digest(&stripe).await, made);
    // The same edit again within a day: no saved answer stands in for what is to be done.
    for _ in 0..3 {
        simulator.edit_product("prod_pro", "Pro!", true);
        apply(&stripe, TEXT).await.unwrap();
        assert_eq!(digest(&stripe).await, made);
    }
}

/// What is there and cannot be changed into what is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meter_that_counts_otherwise_is_refused_and_nothing_is_sent() {
    let (_simulator, server) = stage().await;
    let stripe = process(&server);
    let meter = NewMeter {
        name: "Calls".to_owned(),
        event_name: "api-calls".to_owned(),
        aggregation: saas_billing::provider::Aggregation::Last,
    };
    stripe.execute(&Command::CreateMeter(meter), &"meter".parse().unwrap()).await.unwrap();
    let before = digest(&stripe).await;
    let Err(SyncError::List(why)) = apply(&stripe, TEXT).await else { panic!() };
    assert_eq!(why.faults()[0].place, "meters.api-calls");
    assert_eq!(digest(&stripe).await, before);
}

/// A price of somebody else's that has the key: the key comes here, the price stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_price_has_is_taken_over_and_said_so() {
    let (_simulator, server) = stage().await;
    let stripe = process(&server);
    apply(&stripe, TEXT).await.unwrap();
    let foreign = NewPrice {
        product: "prod_pro".parse().unwrap(),
        currency: "eur".to_owned(),
        interval: saas_billing::object::Interval::Month,
        by: PricedBy::Unit(1),
        meter: None,
        lookup_key: "pro-monthly-eur".to_owned(),
        takes_over_key: true,
        metadata: Default::default(),
    };
    stripe.execute(&Command::CreatePrice(foreign), &"by-hand".parse().unwrap()).await.unwrap();
    let found = plan(&stripe, TEXT).await;
    assert_eq!(found.differences.len(), 1);
    assert_eq!((found.differences[0].cause, found.differences[0].fields[0].field), (Cause::Drift, "amount"));
    apply(&stripe, TEXT).await.unwrap();
    assert!(plan(&stripe, TEXT).await.is_empty());
    // The price of before is sold again.
    assert_eq!(digest(&stripe).await.iter().filter(|line| line.contains("\"eur\" 2000 null")).count(), 1);
}

// W18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_of_the_other_mode_is_refused_before_anything_is_sent() {
    let (simulator, server) = stage().await;
    let stripe = process(&server);
    let live = catalog::apply(&stripe, &list(TEXT), Mode::Live, OldPrices::Keep).await;
    assert!(matches!(live, Err(SyncError::OtherMode { wanted: Mode::Live })));
    assert_eq!(simulator.calls(), 0);
}
