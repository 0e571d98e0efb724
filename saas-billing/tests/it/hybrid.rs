//! Plans with a fee and a usage price of their own: another plan brings its usage price along, and what was used at the one
//! before is charged at that, over HTTP, through what goes wrong on the way.

use std::sync::Arc;

use chrono::TimeDelta;
use saas_billing::{
    BillingConfig, BillingError, Mode, ObjectId, PaymentProvider, ProviderError, SigningSecrets,
    catalog::{OldPrices, PriceList},
    command::{Checkout, CheckoutPage},
    derive::Alert,
    object::{BillingMode, ObjectKind},
    provider::{Cancellation, Command, MeterReading, PageLimit, Proration, Query},
    stripe::StripeApi,
    subscription::{Change, PlanChange, When},
    testing::{Fault, Purchase, SimulatorServer},
};
use saas_core::{PlanCatalog, RequestContext, subscription::PlanSource as _};
use serde_json::Value;

use crate::{
    provider::adapter,
    shop::{OPERATOR, Shop, id, service},
    till::{key, text},
};

const TEXT: &str = r#"
default_plan = "free"
[meters.calls]
aggregation = "sum"
[meters.stored]
aggregation = "latest"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.payg]
rank = 5
[[plans.payg.versions]]
version = 1
prices = ["payg-calls"]
[plans.flat]
rank = 7
[[plans.flat.versions]]
version = 1
prices = ["flat"]
[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = ["pro", "pro-yearly", "pro-calls"]
[plans.team]
rank = 20
[[plans.team.versions]]
version = 1
prices = ["team", "team-calls", "team-stored"]

[products.all]
name = "All"
[prices.payg-calls]
product = "all"
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.20" }
[prices.flat]
product = "all"
per = "flat"
interval = "month"
amounts = { eur = "15.00" }
[prices.pro]
product = "all"
per = "seat"
interval = "month"
amounts = { eur = "20.00", usd = "22.00" }
[prices.pro-yearly]
product = "all"
per = "flat"
interval = "year"
amounts = { eur = "200.00" }
[prices.pro-calls]
product = "all"
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.10", usd = "0.11" }
[prices.team]
product = "all"
per = "seat"
interval = "month"
amounts = { eur = "50.00", usd = "55.00" }
[prices.team-calls]
product = "all"
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.04", usd = "0.05" }
[prices.team-stored]
product = "all"
per = "usage"
meter = "stored"
interval = "month"
amounts = { eur = "1.00", usd = "1.10" }
"#;

struct Hall {
    shop: Shop,
    server: SimulatorServer,
    stripe: StripeApi,
}

/// A tenant that pays for a plan.
struct Payer<'a> {
    hall: &'a Hall,
    ctx: RequestContext,
    bought: Purchase,
}

impl Hall {
    async fn open() -> Self {
        let mut shop = Shop::open().await;
        let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
        let config = BillingConfig::new(PlanCatalog::from_toml(TEXT).unwrap(), secrets, Mode::Test);
        shop.billing = service(&shop.database, config);
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let hall = Self { stripe: StripeApi::new(adapter(&server)).unwrap(), shop, server };
        hall.apply(TEXT).await;
        hall
    }

    async fn apply(&self, text: &str) {
        let list = PriceList::from_toml(text, &PlanCatalog::from_toml(text).unwrap()).unwrap();
        let _ = self.shop.billing.apply_prices(&self.stripe, &list, OldPrices::Keep, &OPERATOR).await.unwrap();
    }

    async fn price(&self, name: &str) -> ObjectId {
        self.shop.billing.price(name, "eur".parse().unwrap()).await.unwrap()
    }

    async fn to(&self, name: &str) -> PlanChange {
        PlanChange::to_price(self.price(name).await)
    }

    /// Buys these, through the calls of an application.
    async fn payer(&self, slug: &str, items: &[(&str, Option<u64>)]) -> Payer<'_> {
        self.payer_by(&self.stripe, slug, ("eur", items)).await
    }

    async fn payer_by(
        &self,
        stripe: &StripeApi,
        slug: &str,
        (currency, items): (&str, &[(&str, Option<u64>)]),
    ) -> Payer<'_> {
        let ctx = self.shop.database.create_tenant(slug).await;
        let mut prices = Vec::new();
        for (name, quantity) in items {
            prices.push((self.shop.billing.price(name, currency.parse().unwrap()).await.unwrap(), *quantity));
        }
        let address = || "https://app.example.com/billing".parse().unwrap();
        let mut prices = prices.into_iter();
        let (price, quantity) = prices.next().unwrap();
        let mut page = CheckoutPage::new(price, quantity, address(), address());
        for (price, quantity) in prices {
            page = page.with_item(price, quantity);
        }
        let opened = self.shop.billing.checkout(stripe, &ctx, &page).await.unwrap();
        let Checkout::Open { session, .. } = opened else { panic!("{opened:?}") };
        let bought = self.shop.stripe.complete_checkout(&session).unwrap();
        let payer = Payer { hall: self, ctx, bought };
        payer.settle().await;
        payer
    }

    async fn pro(&self, slug: &str) -> Payer<'_> {
        self.payer(slug, &[("pro", Some(3)), ("pro-calls", None)]).await
    }
}

impl Payer<'_> {
    async fn settle(&self) {
        self.hall.shop.deliver_all().await;
        while self.hall.shop.billing.fetch_pending(&self.hall.stripe, 10).await.unwrap().done > 0 {}
    }

    async fn change(&self, change: &PlanChange, text: &str) -> Result<Change, BillingError> {
        self.hall.shop.billing.change_plan(&self.hall.stripe, &self.ctx, change, &key(text)).await
    }

    async fn uses(&self, meter: &str, value: u64, identifier: &str) {
        let reading = MeterReading {
            event_name: meter.to_owned(),
            customer: self.bought.customer.clone(),
            value,
            at: self.hall.shop.stripe.now(),
            identifier: format!("{}-{identifier}", self.bought.customer),
        };
        let name = key(&reading.identifier);
        let _ = self.hall.stripe.execute(&Command::ReportUsage(reading), &name).await.unwrap();
        self.pass(TimeDelta::seconds(1));
    }

    fn pass(&self, time: TimeDelta) {
        self.hall.shop.stripe.advance(time);
    }

    fn subscription(&self) -> Value {
        self.hall.shop.stripe.object(ObjectKind::Subscription, &self.bought.subscription).unwrap()
    }

    fn has(&self, price: &ObjectId) -> bool {
        let items = self.subscription()["items"]["data"].clone();
        items.as_array().unwrap().iter().any(|item| item["price"]["id"] == price.as_str())
    }

    /// What its items are sold as, in the order of these words.
    async fn items(&self) -> Vec<String> {
        let subscription = self.subscription();
        let mut items = Vec::new();
        for item in subscription["items"]["data"].as_array().unwrap() {
            items.push(self.name(&text(&item["price"]["id"])).await);
        }
        items.sort();
        items
    }

    async fn name(&self, price: &str) -> String {
        let mut owner = self.hall.shop.owner.lock().await;
        sqlx::query_scalar("select name from saas.billing_price where price_id = $1")
            .bind(price)
            .fetch_one(&mut *owner)
            .await
            .unwrap()
    }

    /// The lines of its latest invoice: what, how many, minor units.
    async fn billed(&self) -> Vec<(String, Option<u64>, i64)> {
        let latest = id(&text(&self.subscription()["latest_invoice"]));
        let invoice = self.hall.shop.stripe.object(ObjectKind::Invoice, &latest).unwrap();
        let mut lines = Vec::new();
        for line in invoice["lines"]["data"].as_array().unwrap() {
            let name = self.name(&text(&line["pricing"]["price_details"]["price"])).await;
            lines.push((name, line["quantity"].as_u64(), line["amount"].as_i64().unwrap()));
        }
        lines.sort();
        lines
    }

    async fn plan(&self) -> (String, Vec<Alert>) {
        let billing = &self.hall.shop.billing;
        let plan = billing.plan_of(&self.ctx, self.hall.shop.stripe.now()).await.unwrap().plan.to_string();
        (plan, billing.derived(&self.ctx).await.unwrap().alerts.into_iter().collect())
    }
}

fn line(name: &str, quantity: u64, amount: i64) -> (String, Option<u64>, i64) {
    (name.to_owned(), Some(quantity), amount)
}

fn on(plan: &str) -> (String, Vec<Alert>) {
    (plan.to_owned(), Vec::new())
}

// f-B8, f-B9
#[tokio::test]
async fn an_upgrade_brings_its_usage_price_and_charges_what_was_used_at_the_one_before() {
    let hall = Hall::open().await;
    let payer = hall.pro("acme").await;
    assert_eq!(payer.subscription()["billing_mode"]["type"], "flexible", "as the checkout asked");
    payer.pass(TimeDelta::days(10));
    payer.uses("calls", 100, "before").await;
    let wish = hall.to("team").await;
    let preview = hall.shop.billing.preview_change(&hall.stripe, &payer.ctx, &wish, None).await.unwrap();
    let used: Vec<_> = preview.lines.iter().filter(|line| !line.proration).collect();
    let [used] = used.as_slice() else { panic!("{used:?}") };
    assert_eq!((used.quantity, used.amount.minor()), (Some(100), 1_000), "what was used, at the price of then");
    assert_eq!((preview.when, preview.usage.len()), (When::Now, 0), "it is among the lines");

    let wish = wish.as_previewed(&preview);
    assert_eq!(payer.change(&wish, "up").await.unwrap(), Change::Made);
    assert_eq!(payer.items().await, ["team", "team-calls", "team-stored"]);
    assert_eq!(payer.plan().await, on("team"));
    let billed = payer.billed().await;
    assert_eq!(billed[1], line("pro-calls", 100, 1_000));
    assert_eq!(billed.iter().map(|line| line.2).sum::<i64>(), preview.total.minor());
    let calls = hall.shop.stripe.calls();
    assert_eq!(payer.change(&wish, "up").await.unwrap(), Change::Made);
    assert_eq!(hall.shop.stripe.calls(), calls, "a repeat asks nobody");

    // From then on by the new prices, and by those alone.
    payer.pass(TimeDelta::days(1));
    payer.uses("calls", 50, "after").await;
    payer.uses("stored", 7, "level").await;
    payer.pass(TimeDelta::days(21));
    payer.settle().await;
    let renewal = [line("team", 3, 15_000), line("team-calls", 50, 200), line("team-stored", 7, 700)];
    assert_eq!(payer.billed().await, renewal);
    assert_eq!(payer.plan().await, on("team"));
}

// f-B8
#[tokio::test]
async fn a_downgrade_charges_the_whole_period_at_the_old_usage_price_and_the_next_at_the_new_one() {
    let hall = Hall::open().await;
    let team = [("team", Some(2)), ("team-calls", None), ("team-stored", None)];
    let payer = hall.payer("acme", &team).await;
    payer.uses("calls", 30, "early").await;
    let wish = hall.to("pro").await;
    let preview = hall.shop.billing.preview_change(&hall.stripe, &payer.ctx, &wish, None).await.unwrap();
    assert_eq!((preview.when, preview.total.minor()), (When::AtPeriodEnd, 4_000));
    let going = vec![hall.price("team-calls").await, hall.price("team-stored").await];
    assert_eq!(preview.usage, going, "what comes on top is told");
    let Change::Scheduled { .. } = payer.change(&wish.as_previewed(&preview), "down").await.unwrap() else { panic!() };
    payer.pass(TimeDelta::days(20));
    payer.uses("calls", 20, "late").await;
    payer.uses("stored", 4, "level").await;
    payer.pass(TimeDelta::days(11));
    payer.settle().await;
    assert_eq!((payer.items().await, payer.plan().await), (vec!["pro".into(), "pro-calls".into()], on("pro")));
    let renewal = [line("pro", 2, 4_000), line("team-calls", 50, 200), line("team-stored", 4, 400)];
    assert_eq!(payer.billed().await, renewal);
    payer.uses("calls", 9, "next").await;
    payer.pass(TimeDelta::days(31));
    assert_eq!(payer.billed().await, [line("pro", 2, 4_000), line("pro-calls", 9, 90)]);

    // Called off before it comes, everything stays.
    let payer = hall.payer("other", &team).await;
    let Change::Scheduled { .. } = payer.change(&hall.to("pro").await, "down").await.unwrap() else { panic!() };
    let withdrawn = hall.shop.billing.withdraw_change(&hall.stripe, &payer.ctx, &key("no")).await.unwrap();
    assert_eq!(withdrawn, Change::Made);
    payer.uses("calls", 10, "stays").await;
    payer.pass(TimeDelta::days(32));
    assert_eq!(payer.items().await, ["team", "team-calls", "team-stored"]);
    assert_eq!(payer.billed().await[1], line("team-calls", 10, 40));
}

#[tokio::test]
async fn plans_of_a_fee_of_usage_and_of_both_lead_to_each_other() {
    let hall = Hall::open().await;
    let payer = hall.payer("acme", &[("payg-calls", None)]).await;
    assert_eq!((payer.bought.invoice.as_ref(), payer.plan().await), (None, on("payg")), "nothing is due yet");
    let now = |change: PlanChange| change.with_when(When::Now);
    for (n, (name, items)) in [
        ("team", vec!["team", "team-calls", "team-stored"]),
        ("flat", vec!["flat"]),
        ("pro", vec!["pro", "pro-calls"]),
        ("payg-calls", vec!["payg-calls"]),
        ("flat", vec!["flat"]),
    ]
    .into_iter()
    .enumerate()
    {
        let used = 10 + n as u64;
        payer.pass(TimeDelta::days(2));
        payer.uses("calls", used, &format!("{n}")).await;
        let before = payer.items().await;
        let made = payer.change(&now(hall.to(name).await), &format!("to-{n}")).await.unwrap();
        assert_eq!(made, Change::Made, "{before:?} to {name}");
        assert_eq!(payer.items().await, items, "{before:?} to {name}");
        payer.settle().await;
        assert_eq!(payer.plan().await.1, [], "{before:?} to {name}");
        let usage = before.iter().find(|item| item.ends_with("calls"));
        let billed = payer.billed().await;
        let charged: Vec<_> = billed.iter().filter(|line| line.0.ends_with("calls")).collect();
        match usage {
            Some(usage) => assert_eq!((&charged[0].0, charged[0].1, charged.len()), (usage, Some(used), 1)),
            None => assert!(charged.is_empty(), "{charged:?}"),
        }
    }
    assert_eq!(payer.plan().await, on("flat"));
}

#[tokio::test]
async fn what_was_used_until_the_end_is_charged_after_it() {
    let hall = Hall::open().await;
    let payer = hall.pro("acme").await;
    payer.uses("calls", 10, "some").await;
    let cancelled = hall.shop.billing.cancel(&hall.stripe, &payer.ctx, Cancellation::AtPeriodEnd, &key("end")).await;
    let Ok(Change::Scheduled { .. }) = cancelled else { panic!("{cancelled:?}") };
    payer.pass(TimeDelta::days(32));
    payer.settle().await;
    assert_eq!((payer.billed().await, payer.plan().await), (vec![line("pro-calls", 10, 100)], on("free")));
    let latest = id(&text(&payer.subscription()["latest_invoice"]));
    let invoices = hall.shop.billing.list_invoices(&hall.stripe, &payer.ctx, None, PageLimit::MAX).await.unwrap();
    assert_eq!(invoices.invoices[0].id, latest);
    let owed = "select coalesce(sum(amount), 0)::bigint from saas.ledger_entry where account = 'receivable'";
    assert_eq!(hall.shop.scalar(owed).await, 0, "and paid");
    let earned = "select -sum(amount)::bigint from saas.ledger_entry where account = 'revenue'";
    assert_eq!(hall.shop.scalar(earned).await, 6_100);
}

#[tokio::test]
async fn the_usage_price_is_the_one_of_the_currency_that_is_paid_in() {
    let hall = Hall::open().await;
    let items = [("pro", Some(1)), ("pro-calls", None)];
    let payer = hall.payer_by(&hall.stripe, "acme", ("usd", &items)).await;
    let price = |name: &'static str| hall.shop.billing.price(name, "usd".parse().unwrap());
    let wish = PlanChange::to_price(price("team").await.unwrap());
    assert_eq!(payer.change(&wish, "up").await.unwrap(), Change::Made);
    let items = payer.subscription()["items"]["data"].clone();
    let items: Vec<String> = items.as_array().unwrap().iter().map(|item| text(&item["price"]["id"])).collect();
    assert!(items.contains(&price("team-calls").await.unwrap().to_string()), "{items:?}");
}

#[tokio::test]
async fn nothing_that_was_used_is_lost_by_a_change_that_stripe_would_not_charge_for_it() {
    let hall = Hall::open().await;
    // Before the flexible mode there was.
    let old = StripeApi::new(adapter(&hall.server).with_version("2025-04-30.basil")).unwrap();
    let payer = hall.payer_by(&old, "acme", ("eur", &[("pro", Some(1)), ("pro-calls", None)])).await;
    assert_eq!(payer.subscription()["billing_mode"]["type"], "classic");
    let refused = |why: BillingError| match why {
        BillingError::StateForbids { why, remedy, .. } => (why, remedy),
        other => panic!("{other:?}"),
    };
    payer.pass(TimeDelta::days(3));
    for when in [When::Now, When::AtPeriodEnd] {
        let wish = hall.to("team").await.with_when(when);
        let (why, remedy) = refused(payer.change(&wish, "classic").await.unwrap_err());
        assert!(why.contains("classic") && remedy.contains("migrate"), "{why}; {remedy}");
        let preview = hall.shop.billing.preview_change(&hall.stripe, &payer.ctx, &wish, None).await.unwrap_err();
        assert_eq!(refused(preview).0, why);
    }
    assert_eq!(payer.items().await, ["pro", "pro-calls"]);
    // What takes nothing away can be had.
    let seats = PlanChange::to_quantity(4);
    assert_eq!(payer.change(&seats, "seats").await.unwrap(), Change::Made);

    let payer = hall.pro("flexible").await;
    payer.pass(TimeDelta::days(3));
    let unprorated = hall.to("team").await.with_proration(Proration::None);
    let (why, remedy) = refused(payer.change(&unprorated, "free").await.unwrap_err());
    assert!(why.contains("without proration") && remedy.contains("prorated"), "{why}; {remedy}");
    assert_eq!(payer.items().await, ["pro", "pro-calls"]);
    let known = hall.shop.billing.derived(&payer.ctx).await.unwrap();
    assert_eq!(known.plan.unwrap().to_string(), "pro@1");
    let scheduled = unprorated.with_when(When::AtPeriodEnd);
    let Change::Scheduled { .. } = payer.change(&scheduled, "later").await.unwrap() else { panic!() };
    assert_eq!(BillingMode::from("flexible".to_owned()), BillingMode::Flexible);
}

#[tokio::test]
async fn a_plan_whose_usage_is_not_charged_as_often_is_refused_before_anything_is_asked() {
    let hall = Hall::open().await;
    let payer = hall.pro("acme").await;
    let wish = hall.to("pro-yearly").await;
    let calls = hall.shop.stripe.calls();
    let why = payer.change(&wish, "year").await.unwrap_err();
    let BillingError::Invalid(why) = why else { panic!("{why:?}") };
    assert!(why.to_string().contains("pro-calls"), "{why}");
    assert_eq!(hall.shop.stripe.calls(), calls);
}

// Q9: what is sold by the time of a repeat changes nothing about what was asked
#[tokio::test]
async fn a_repeat_is_the_same_change_whatever_is_sold_by_then() {
    let hall = Hall::open().await;
    let payer = hall.pro("acme").await;
    let former = hall.price("team-calls").await;
    payer.pass(TimeDelta::days(3));
    let wish = hall.to("team").await;
    // Taken on, and given up after the look that comes before the write.
    let wish = wish.with_when(When::Now);
    hall.shop.stripe.inject_after(1, [Fault::Unavailable; 8]);
    let why = payer.change(&wish, "up").await.unwrap_err();
    assert!(why.is_retryable(), "{why:?}");
    hall.shop.stripe.heal();
    hall.apply(&TEXT.replace("eur = \"0.04\"", "eur = \"0.03\"")).await;
    assert_ne!(hall.price("team-calls").await, former);
    assert_eq!(payer.change(&wish, "up").await.unwrap(), Change::Made);
    assert_eq!(payer.items().await, ["team", "team-calls", "team-stored"]);
    assert!(payer.has(&former), "what was asked for");
    // Whoever pays it goes on paying it, whatever else changes.
    assert_eq!(payer.change(&wish, "again").await.unwrap(), Change::Already);
    assert_eq!(payer.change(&wish.clone().with_quantity(5), "seats").await.unwrap(), Change::Made);
    assert!(payer.has(&former));
    // Whoever comes gets what is sold now.
    let payer = hall.pro("other").await;
    assert_eq!(payer.change(&wish, "up").await.unwrap(), Change::Made);
    assert!(!payer.has(&former) && payer.has(&hall.price("team-calls").await));
}

#[tokio::test]
async fn a_version_that_is_sold_no_more_keeps_its_usage_price() {
    let hall = Hall::open().await;
    let payer = hall.pro("acme").await;
    let (fee, calls) = (hall.price("pro").await, hall.price("pro-calls").await);
    let second = "[[plans.pro.versions]]\nversion = 1\nstate = \"archived\"\nprices = [\"pro\", \"pro-yearly\", \"pro-calls\"]\n\
                  [[plans.pro.versions]]\nversion = 2\nprices = [\"pro-2\"]\n";
    let first = "[[plans.pro.versions]]\nversion = 1\nprices = [\"pro\", \"pro-yearly\", \"pro-calls\"]\n";
    let text = TEXT.replace(first, second)
        + "[prices.pro-2]\nproduct = \"all\"\nper = \"flat\"\ninterval = \"month\"\namounts = { eur = \"25.00\" }\n";
    let catalog = PlanCatalog::from_toml(&text).unwrap();
    let secrets = SigningSecrets::new(vec![hall.shop.stripe.secret()]).unwrap();
    let present = service(&hall.shop.database, BillingConfig::new(catalog.clone(), secrets, Mode::Test));
    let list = PriceList::from_toml(&text, &catalog).unwrap();
    let _ = present.apply_prices(&hall.stripe, &list, OldPrices::Keep, &OPERATOR).await.unwrap();
    payer.pass(TimeDelta::days(2));
    let wish = PlanChange::to_price(fee).with_quantity(5);
    let made = present.change_plan(&hall.stripe, &payer.ctx, &wish, &key("seats")).await.unwrap();
    assert_eq!((made, payer.has(&calls)), (Change::Made, true));
}

#[tokio::test]
async fn usage_that_is_not_sold_as_the_plan_is_is_refused_and_so_is_a_plan_without_its_fee() {
    let hall = Hall::open().await;
    // In dollars there is no price for one of the meters.
    hall.apply(&TEXT.replace("eur = \"1.00\", usd = \"1.10\"", "eur = \"1.00\"")).await;
    let items = [("pro", Some(1)), ("pro-calls", None)];
    let payer = hall.payer_by(&hall.stripe, "acme", ("usd", &items)).await;
    sqlx::query("delete from saas.billing_price where name = 'team-stored' and currency = 'usd'")
        .execute(&mut *hall.shop.owner.lock().await)
        .await
        .unwrap();
    let team = hall.shop.billing.price("team", "usd".parse().unwrap()).await.unwrap();
    let invalid = |why: BillingError| match why {
        BillingError::Invalid(why) => why.to_string(),
        other => panic!("{other:?}"),
    };
    let why = invalid(payer.change(&PlanChange::to_price(team), "up").await.unwrap_err());
    assert!(why.contains("team-stored"), "{why}");

    let payer = hall.pro("other").await;
    let why = invalid(payer.change(&hall.to("pro-calls").await, "free").await.unwrap_err());
    assert!(why.contains("fee"), "{why}");
    assert_eq!(payer.items().await, ["pro", "pro-calls"]);
}

// f-B11: what takes an item away is made at once or not at all
#[tokio::test]
async fn a_change_that_takes_a_usage_price_away_does_not_wait_for_a_payment_that_fails() {
    let hall = Hall::open().await;
    let payer = hall.pro("acme").await;
    payer.pass(TimeDelta::days(3));
    payer.uses("calls", 900, "many").await;
    let wish = hall.to("flat").await.with_when(When::Now);
    hall.shop.stripe.fail_next_payment(&payer.bought.customer);
    let why = payer.change(&wish, "flat").await.unwrap_err();
    assert!(matches!(why, BillingError::Provider(ProviderError::Declined { .. })), "{why:?}");
    assert_eq!(payer.items().await, ["pro", "pro-calls"]);
    hall.shop.stripe.pay(&payer.bought.customer);
    assert_eq!(payer.change(&wish, "again").await.unwrap(), Change::Made);
    assert_eq!(payer.items().await, ["flat"]);
    assert!(payer.billed().await.contains(&line("pro-calls", 900, 9_000)));
}

// FAULTS D14
#[tokio::test]
async fn whatever_stripe_does_at_whichever_call_the_usage_is_charged_once() {
    for fault in [Fault::Unavailable, Fault::BrokenAfterwards, Fault::CutBefore, Fault::CutAfter, Fault::Garbled] {
        let hall = Hall::open().await;
        let (mut calls, mut met) = (0, true);
        while met {
            let payer = hall.pro(&format!("tenant-{calls}")).await;
            payer.pass(TimeDelta::days(3));
            payer.uses("calls", 100, "before").await;
            let (provider, change) = (hall.shop.stripe.as_ref(), hall.to("team").await);
            hall.shop.stripe.inject_after(calls, [fault]);
            let first = hall.shop.billing.change_plan(provider, &payer.ctx, &change, &key("k")).await;
            met = hall.shop.stripe.heal() == 0;
            while !hall.shop.worker().await.is_idle() {}
            let last = hall.shop.billing.change_plan(provider, &payer.ctx, &change, &key("k")).await;
            let place = format!("{fault:?} at call {calls}: {first:?}, {last:?}");
            assert_eq!(last.ok(), Some(Change::Made), "{place}");
            assert_eq!(payer.items().await, ["team", "team-calls", "team-stored"], "{place}");
            let query = Query::Invoices { customer: Some(payer.bought.customer.clone()), status: None };
            let invoices = provider.list(&query, None, PageLimit::MAX).await.unwrap().objects;
            assert_eq!(invoices.len(), 2, "{place}");
            assert!(payer.billed().await.contains(&line("pro-calls", 100, 1_000)), "{place}");
            calls += usize::from(met);
        }
        assert!(calls >= 3, "{fault:?} met only {calls} calls");
    }
}
