//! What a tenant is shown before a change and what it is charged after it: random changes, through the calls of an
//! application, equal to the minor unit.
//!
//! Plans by the unit, by volume and in tiers, with usage of their own or without, by month and by year, in currencies of none, two and
//! three decimals; seats, add-ons, usage,
//! coupons, taxes, credit; in trials, within periods and at their bounds; payments that fail. One tenant in ten is served over HTTP.
//!
//! `BILLS_CHANGES` says how many: 300 in the usual run, 1,000 in `./dev year`. `BILLS_SEED` draws others. A failure names the seed, the tenant and the step.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use saas_billing::{
    BillingConfig, BillingError, Mode, ObjectId, PaymentProvider, ProviderError, SigningSecrets,
    catalog::{OldPrices, PriceList},
    command::{Checkout, CheckoutPage},
    object::ObjectKind,
    provider::{Command, MeterReading, OnFailedPayment, Proration, TrialPayment},
    stripe::StripeApi,
    subscription::{Change, PlanChange, Preview, PreviewLine, When},
    testing::{Coupon, Lasts, Purchase, SimulatorServer},
};
use saas_core::{PlanCatalog, RequestContext, subscription::PlanSource as _};
use serde_json::{Value, json};

use crate::{
    provider::adapter,
    shop::{OPERATOR, Shop, id, service},
    till::{key, text},
};

const CHANGES: u64 = 300;
/// With so many, every course is drawn.
const MANY: u64 = 1_000;
const PER_TENANT: usize = 12;
const CURRENCIES: [&str; 4] = ["eur", "usd", "jpy", "kwd"];
const PLANS: [&str; 4] = ["small", "large", "huge", "team"];
/// Those that charge for usage by a price of their own.
const OWN_USAGE: [&str; 2] = ["large", "huge"];
const INTERVALS: [&str; 2] = ["month", "year"];
/// The longest wait between two changes.
const DAYS: i64 = 40;

const TEXT: &str = r#"
default_plan = "free"
[meters.calls]
aggregation = "sum"
[meters.tasks]
aggregation = "sum"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.small]
rank = 10
[[plans.small.versions]]
version = 1
prices = ["small-month", "small-year"]
[plans.large]
rank = 20
[[plans.large.versions]]
version = 1
prices = ["large-month", "large-year", "large-tasks-month", "large-tasks-year"]
[plans.team]
rank = 25
[[plans.team.versions]]
version = 1
prices = ["team-month", "team-year"]
[plans.huge]
rank = 30
[[plans.huge.versions]]
version = 1
prices = ["huge-month", "huge-year", "huge-tasks-month", "huge-tasks-year"]
[addons.more]
mode = "stack"
max_quantity = 50
prices = ["more-month", "more-year"]
[addons.calls]
mode = "stack"
prices = ["calls"]

[products.plans]
name = "Plans"
[prices.small-month]
product = "plans"
per = "flat"
interval = "month"
amounts = { eur = "9.99", usd = "10.99", jpy = "1499", kwd = "3.330" }
[prices.small-year]
product = "plans"
per = "flat"
interval = "year"
amounts = { eur = "99.90", usd = "109.90", jpy = "14990", kwd = "33.300" }
[prices.large-month]
product = "plans"
per = "flat"
interval = "month"
amounts = { eur = "29.99", usd = "33.33", jpy = "4567", kwd = "9.990" }
[prices.large-year]
product = "plans"
per = "flat"
interval = "year"
amounts = { eur = "299.99", usd = "333.31", jpy = "45671", kwd = "99.910" }
[prices.huge-month]
product = "plans"
per = "flat"
interval = "month"
amounts = { eur = "333.33", usd = "366.67", jpy = "50021", kwd = "111.110" }
[prices.huge-year]
product = "plans"
per = "flat"
interval = "year"
amounts = { eur = "3333.31", usd = "3666.69", jpy = "500213", kwd = "1111.130" }
[prices.team-month]
product = "plans"
per = "seat"
interval = "month"
tiers = "volume"
steps = [
    { up_to = 10, unit = { eur = "7.77", usd = "8.88", jpy = "1111", kwd = "2.220" } },
    { unit = { eur = "5.55", usd = "6.66", jpy = "777", kwd = "1.110" }, flat = { eur = "4.99", usd = "5.99", jpy = "599", kwd = "1.990" } },
]
[prices.team-year]
product = "plans"
per = "seat"
interval = "year"
tiers = "graduated"
steps = [
    { up_to = 10, unit = { eur = "77.77", usd = "88.88", jpy = "11111", kwd = "22.220" } },
    { unit = { eur = "55.55", usd = "66.66", jpy = "7777", kwd = "11.110" } },
]
[prices.more-month]
product = "plans"
per = "seat"
interval = "month"
amounts = { eur = "3.33", usd = "3.67", jpy = "499", kwd = "1.110" }
[prices.more-year]
product = "plans"
per = "seat"
interval = "year"
amounts = { eur = "33.33", usd = "36.67", jpy = "4999", kwd = "11.110" }
[prices.large-tasks-month]
product = "plans"
per = "usage"
meter = "tasks"
interval = "month"
amounts = { eur = "0.05", usd = "0.05", jpy = "7", kwd = "0.020" }
[prices.large-tasks-year]
product = "plans"
per = "usage"
meter = "tasks"
interval = "year"
amounts = { eur = "0.05", usd = "0.05", jpy = "7", kwd = "0.020" }
[prices.huge-tasks-month]
product = "plans"
per = "usage"
meter = "tasks"
interval = "month"
tiers = "graduated"
steps = [{ up_to = 500, unit = { eur = "0", usd = "0", jpy = "0", kwd = "0" } }, { unit = { eur = "0.02", usd = "0.02", jpy = "3", kwd = "0.010" } }]
[prices.huge-tasks-year]
product = "plans"
per = "usage"
meter = "tasks"
interval = "year"
tiers = "graduated"
steps = [{ up_to = 500, unit = { eur = "0", usd = "0", jpy = "0", kwd = "0" } }, { unit = { eur = "0.02", usd = "0.02", jpy = "3", kwd = "0.010" } }]
[prices.calls]
product = "plans"
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.03", usd = "0.03", jpy = "5", kwd = "0.010" }
"#;

/// Coupons that a buyer may enter.
const CODES: [&str; 4] = ["THIRD", "FIVE", "FIRST", "ALWAYS"];

/// What must be equal between a preview and the invoice that follows.
#[derive(Debug, PartialEq, Eq)]
struct Bill {
    total: i64,
    due: i64,
    /// In an order of their own: a schedule's items come in another one than a subscription's.
    lines: Vec<Line>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    amount: i64,
    price: String,
    quantity: Option<u64>,
    proration: bool,
    period: Option<(i64, i64)>,
}

impl Bill {
    fn shown(preview: &Preview) -> Self {
        assert!(preview.all_lines);
        let line = |line: &PreviewLine| Line {
            amount: line.amount.minor(),
            price: line.price.as_ref().unwrap().to_string(),
            quantity: line.quantity,
            proration: line.proration,
            period: line.period.map(|period| (period.start.timestamp(), period.end.timestamp())),
        };
        let mut lines: Vec<Line> = preview.lines.iter().map(line).collect();
        lines.sort();
        Self { total: preview.total.minor(), due: preview.due.minor(), lines }
    }

    fn sent(invoice: &Value) -> Self {
        let line = |line: &Value| Line {
            amount: line["amount"].as_i64().unwrap(),
            price: text(&line["pricing"]["price_details"]["price"]),
            quantity: line["quantity"].as_u64(),
            proration: line["parent"]["subscription_item_details"]["proration"].as_bool().unwrap(),
            period: Some((line["period"]["start"].as_i64().unwrap(), line["period"]["end"].as_i64().unwrap())),
        };
        let mut lines: Vec<Line> = invoice["lines"]["data"].as_array().unwrap().iter().map(line).collect();
        lines.sort();
        Self { total: invoice["total"].as_i64().unwrap(), due: invoice["amount_due"].as_i64().unwrap(), lines }
    }
}

/// Says where it was, if it ends by a panic.
struct Place(String);

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// The prices of one currency, by name.
type Prices = BTreeMap<String, ObjectId>;

struct Counter {
    shop: Shop,
    http: StripeApi,
    _server: SimulatorServer,
    prices: BTreeMap<&'static str, Prices>,
}

impl Counter {
    async fn open() -> Self {
        let plans = PlanCatalog::from_toml(TEXT).unwrap();
        let list = PriceList::from_toml(TEXT, &plans).unwrap();
        let mut shop = Shop::open().await;
        let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
        shop.billing = service(&shop.database, BillingConfig::new(plans, secrets, Mode::Test));
        let _ = shop.billing.apply_prices(shop.stripe.as_ref(), &list, OldPrices::Keep, &OPERATOR).await.unwrap();
        let coupons = [
            Coupon::percent(3_333, Lasts::Months(3)),
            Coupon::amount(500, "eur", Lasts::Forever),
            Coupon::percent(5_000, Lasts::Once),
            Coupon::percent(1_250, Lasts::Forever),
        ];
        for (code, coupon) in CODES.into_iter().zip(coupons) {
            shop.stripe.create_coupon(code, coupon);
            let _ = shop.stripe.create_promotion_code(code, code).unwrap();
        }
        shop.stripe.set_tax_rate(1_900);
        let mut prices = BTreeMap::new();
        for currency in CURRENCIES {
            let mut known = Prices::new();
            let names = PLANS.iter().chain(&["more"]).flat_map(|of| INTERVALS.map(|every| format!("{of}-{every}")));
            let usage = OWN_USAGE.iter().flat_map(|of| INTERVALS.map(|every| format!("{of}-tasks-{every}")));
            for name in names.chain(usage).chain(["calls".to_owned()]) {
                let price = shop.billing.price(&name, currency.parse().unwrap()).await.unwrap();
                known.insert(name, price);
            }
            prices.insert(currency, known);
        }
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let http = StripeApi::new(adapter(&server)).unwrap();
        Self { shop, http, _server: server, prices }
    }

    /// A tenant that buys what it draws.
    async fn payer(&self, n: u64, rng: &mut Rng) -> Payer<'_> {
        let shop = &self.shop;
        let provider: &dyn PaymentProvider = if n.is_multiple_of(10) { &self.http } else { shop.stripe.as_ref() };
        let prices = &self.prices[CURRENCIES[rng.usize(..CURRENCIES.len())]];
        let ctx = shop.database.create_tenant(&format!("tenant-{n}")).await;
        let every = INTERVALS[usize::from(rng.u32(..4) == 0)];
        let of = PLANS[rng.usize(..PLANS.len())];
        let plan = format!("{of}-{every}");
        let address = || "https://app.example.com/billing".parse().unwrap();
        let mut page = CheckoutPage::new(prices[&plan].clone(), Some(rng.u64(1..30)), address(), address());
        page = page.with_promotion_codes();
        if OWN_USAGE.contains(&of) {
            page = page.with_item(prices[&format!("{of}-tasks-{every}")].clone(), None);
        }
        if rng.bool() {
            page = page.with_item(prices[&format!("more-{every}")].clone(), Some(rng.u64(1..9)));
        }
        if every == "month" && rng.bool() {
            page = page.with_item(prices["calls"].clone(), None);
        }
        if rng.u32(..4) == 0 {
            page = page.with_trial(rng.u32(1..30), TrialPayment::Required);
        }
        if rng.u32(..3) == 0 {
            page = page.with_automatic_tax();
        }
        let Checkout::Open { session, .. } = shop.billing.checkout(provider, &ctx, &page).await.unwrap() else {
            panic!("nothing was bought before")
        };
        if rng.bool() {
            shop.stripe.enter_promotion_code(&session, CODES[rng.usize(..CODES.len())]).unwrap();
        }
        let purchase = shop.stripe.complete_checkout(&session).unwrap();
        shop.deliver_all().await;
        Payer { shop, provider, prices, ctx, purchase, keys: 0 }
    }
}

struct Payer<'a> {
    shop: &'a Shop,
    provider: &'a dyn PaymentProvider,
    prices: &'a Prices,
    ctx: RequestContext,
    purchase: Purchase,
    keys: u32,
}

/// How a preview and its invoice came together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Course {
    AtOnce,
    NextInvoice,
    Scheduled,
    InTrial,
    PaidLate,
    Withdrawn,
    Refused,
    /// Would have let a usage price go without charging what was used at it.
    Uncharged,
    /// Renewed between the look and the click.
    Stale,
    /// What was drawn was so already.
    Nothing,
}

fn is_usage(name: &str) -> bool {
    name == "calls" || name.contains("-tasks-")
}

impl Payer<'_> {
    fn subscription(&self) -> Value {
        self.shop.stripe.object(ObjectKind::Subscription, &self.purchase.subscription).unwrap()
    }

    fn latest_invoice(&self) -> Value {
        let latest = id(&text(&self.subscription()["latest_invoice"]));
        self.shop.stripe.object(ObjectKind::Invoice, &latest).unwrap()
    }

    /// The name of what a subscription's items are sold as.
    fn names(&self, subscription: &Value) -> Vec<String> {
        let items = subscription["items"]["data"].as_array().unwrap();
        let name = |item: &Value| {
            let price = text(&item["price"]["id"]);
            self.prices.iter().find(|(_, id)| id.as_str() == price).unwrap().0.clone()
        };
        items.iter().map(name).collect()
    }

    fn period_end(&self) -> DateTime<Utc> {
        let end = self.subscription()["items"]["data"][0]["current_period_end"].as_i64().unwrap();
        DateTime::from_timestamp(end, 0).unwrap()
    }

    /// Lets time pass, often to a bound of the period.
    fn wait(&self, rng: &mut Rng) {
        let stripe = &self.shop.stripe;
        let by = match rng.u32(..8) {
            0 => TimeDelta::zero(),
            1..5 => TimeDelta::seconds(rng.i64(0..DAYS * 86_400)),
            _ => {
                let beside = [-1, 0, 1, 1_800, 3_599, 3_600, 3_601];
                let by = self.period_end() - stripe.now() + TimeDelta::seconds(beside[rng.usize(..beside.len())]);
                by.max(TimeDelta::zero())
            }
        };
        stripe.advance(by);
    }

    async fn use_some(&mut self, meter: &str, rng: &mut Rng) {
        self.keys += 1;
        let reading = MeterReading {
            event_name: meter.to_owned(),
            customer: self.purchase.customer.clone(),
            value: rng.u64(1..2_000),
            at: self.shop.stripe.now(),
            identifier: format!("{}-{}", self.purchase.customer, self.keys),
        };
        let name = key(&reading.identifier);
        let _ = self.provider.execute(&Command::ReportUsage(reading), &name).await.unwrap();
        // What is used in the second of a change belongs to what it changes to.
        self.shop.stripe.advance(TimeDelta::seconds(1));
    }

    /// What is wished for, with what must go with it: all items share one interval.
    fn wish(&self, rng: &mut Rng, names: &[String], discounted: bool) -> PlanChange {
        let mut may_wait = true;
        let yearly = names[0].ends_with("-year");
        let every = INTERVALS[usize::from(yearly)];
        let more = self.prices[&format!("more-{every}")].clone();
        let mut wish = match rng.u32(..8) {
            0..2 => PlanChange::to_quantity(rng.u64(1..40)),
            2 => PlanChange::to_addon(more, rng.u64(..12)),
            3..7 => {
                let price = &self.prices[&format!("{}-{every}", PLANS[rng.usize(..PLANS.len())])];
                let mut wish = PlanChange::to_price(price.clone());
                if rng.bool() {
                    wish = wish.with_quantity(rng.u64(1..40));
                }
                if rng.u32(..3) == 0 { wish.with_addon(more, rng.u64(..12)) } else { wish }
            }
            _ => {
                // Stripe previews another interval as if it began now: a discount that ends before it begins is counted.
                may_wait = !discounted;
                let other = INTERVALS[usize::from(!yearly)];
                let price = &self.prices[&format!("{}-{other}", PLANS[rng.usize(..PLANS.len())])];
                let mut wish = PlanChange::to_price(price.clone());
                if names.iter().any(|name| name.starts_with("more-")) {
                    wish = wish.with_addon(more, 0).with_addon(self.prices[&format!("more-{other}")].clone(), 2);
                }
                if names.iter().any(|name| name == "calls") {
                    wish = wish.with_addon(self.prices["calls"].clone(), 0);
                }
                wish
            }
        };
        wish = match rng.u32(..4) {
            0 => wish.with_when(When::Now),
            _ if !may_wait => wish.with_when(When::Now),
            1 => wish.with_when(When::AtPeriodEnd),
            _ => wish,
        };
        wish = match rng.u32(..4) {
            0 => wish.with_proration(Proration::NextInvoice),
            1 if rng.bool() => wish.with_proration(Proration::None),
            _ => wish,
        };
        match rng.u32(..4) {
            0 => wish.with_on_failed_payment(OnFailedPayment::Refuse),
            1 => wish.with_on_failed_payment(OnFailedPayment::Owe),
            _ => wish,
        }
    }

    async fn ask(&mut self, wish: &PlanChange, new: bool) -> Result<Change, BillingError> {
        self.keys += u32::from(new);
        self.shop.billing.change_plan(self.provider, &self.ctx, wish, &key(&format!("change-{}", self.keys))).await
    }

    /// One change: looked at, wished for, paid, and compared.
    async fn change(&mut self, rng: &mut Rng, place: &mut Place) -> Course {
        let stripe = &self.shop.stripe;
        self.wait(rng);
        let names = self.names(&self.subscription());
        for meter in ["calls", "tasks"] {
            if names.iter().any(|name| name.contains(meter)) && rng.bool() {
                self.use_some(meter, rng).await;
            }
        }
        let before = self.subscription();
        let trial = before["status"] == "trialing";
        // A renewal is a draft for an hour, and credit may still go into it.
        let begun = before["items"]["data"][0]["current_period_start"].as_i64().unwrap();
        let draft = stripe.now().timestamp() - begun < 3_600;
        let wish = self.wish(rng, &names, before["discounts"] != json!([]));
        place.0.push_str(&format!("\n{} {} {names:?}: {wish:?}", stripe.now(), before["status"]));
        let preview = match self.shop.billing.preview_change(self.provider, &self.ctx, &wish, None).await {
            Ok(preview) => preview,
            Err(BillingError::Invalid(why)) if why.to_string().contains("changes nothing") => return Course::Nothing,
            Err(BillingError::StateForbids { why, .. }) if why.contains("without proration") => {
                assert!(!trial && format!("{wish:?}").contains("proration: None"));
                assert!(names.iter().any(|name| is_usage(name)), "there was no usage to lose");
                return Course::Uncharged;
            }
            Err(why) => panic!("{why:?}"),
        };
        assert_eq!(self.subscription(), before, "a preview changes nothing");
        let wish = wish.as_previewed(&preview);

        // The tenant thinks about it.
        stripe.advance(TimeDelta::seconds(if rng.bool() { rng.i64(0..900) } else { 0 }));
        let (clicked, clicked_at) = (self.subscription(), stripe.now());
        if clicked["items"] != before["items"] || clicked["status"] != before["status"] {
            let why = self.ask(&wish, true).await.unwrap_err();
            assert!(matches!(why, BillingError::StateForbids { .. }), "{why:?}");
            assert_eq!(self.subscription(), clicked, "refused whole");
            return Course::Stale;
        }
        let declines = !trial && rng.u32(..6) == 0;
        if declines {
            stripe.fail_next_payment(&self.purchase.customer);
        }
        let mut answer = self.ask(&wish, true).await;
        let refused = matches!(answer, Err(BillingError::Provider(ProviderError::Declined { .. })));
        if refused {
            assert!(declines);
            // A schedule that is over was let go on the way.
            let left = self.subscription();
            assert_eq!((&left["items"], &left["latest_invoice"]), (&clicked["items"], &clicked["latest_invoice"]));
            stripe.pay(&self.purchase.customer);
            // What was looked at still holds.
            answer = self.ask(&wish, true).await;
        }
        let answer = answer.unwrap();

        let at_once = self.subscription()["latest_invoice"] != before["latest_invoice"];
        if !at_once {
            stripe.advance(self.period_end() - stripe.now() + TimeDelta::seconds(3_601));
        }
        let (mut sent, mut shown) = (Bill::sent(&self.latest_invoice()), Bill::shown(&preview));
        if draft {
            (sent.due, shown.due) = (0, 0);
        }
        // What is used until a usage price goes with the period is not in the lines that were shown.
        let goes = |line: &Line| preview.usage.iter().any(|price| price.as_str() == line.price);
        if sent.lines.iter().any(goes) {
            sent.lines.retain(|line| !goes(line));
            (sent.total, sent.due, shown.total, shown.due) = (0, 0, 0, 0);
        }
        assert_eq!(sent.lines.len(), shown.lines.len(), "{sent:?} {shown:?}");
        // Usage counts up to the click.
        let of_usage = |line: &Line| self.prices.iter().any(|(name, id)| is_usage(name) && id.as_str() == line.price);
        for (sent, shown) in sent.lines.iter_mut().zip(&mut shown.lines).filter(|(sent, _)| of_usage(sent)) {
            assert!(!sent.proration);
            let (sent_for, shown_for) = (sent.period.take(), shown.period.take());
            let begins = |period: Option<(i64, i64)>| period.map(|period| period.0);
            assert_eq!(begins(sent_for), begins(shown_for.or(sent_for)), "{sent:?} {shown:?}");
        }
        // A period of another interval begins when it is clicked, or with the present one's end.
        let from = preview.from.map_or_else(|| clicked_at.timestamp(), |from| from.timestamp());
        let restarts = at_once || preview.when == When::AtPeriodEnd;
        for (sent, shown) in sent
            .lines
            .iter_mut()
            .zip(&mut shown.lines)
            .filter(|(sent, _)| restarts && !sent.proration && sent.period.is_some())
        {
            assert_eq!(sent.period.take().map(|period| period.0), Some(from), "{shown:?}");
            assert!(shown.period.take().is_none_or(|period| period.0 <= from), "shown for later");
        }
        assert_eq!(sent, shown, "sent and shown, {answer:?}");
        assert_ne!(self.subscription()["latest_invoice"], before["latest_invoice"], "an invoice of its own");

        let mut course = match (trial, at_once, preview.when) {
            (true, _, _) => Course::InTrial,
            (false, true, _) => Course::AtOnce,
            (false, false, When::Now) => Course::NextInvoice,
            (false, false, When::AtPeriodEnd) => Course::Scheduled,
        };
        assert!(!at_once || !(trial || preview.when == When::AtPeriodEnd), "{course:?} {answer:?}");
        if refused {
            course = Course::Refused;
        }
        if let Change::AwaitingPayment { .. } = answer {
            assert!(declines && !refused && at_once);
            assert_eq!(self.subscription()["items"], before["items"], "it waits");
            if rng.bool() {
                stripe.pay(&self.purchase.customer);
                assert_eq!(self.ask(&wish, false).await.unwrap(), Change::Made);
                course = Course::PaidLate;
            } else {
                let back = key(&format!("back-{}", self.keys));
                let withdrawn = self.shop.billing.withdraw_change(self.provider, &self.ctx, &back).await.unwrap();
                assert_eq!(withdrawn, Change::Made);
                assert_eq!(self.subscription()["items"], before["items"], "as if nothing had been");
                course = Course::Withdrawn;
            }
        }
        stripe.pay(&self.purchase.customer);
        course
    }
}

// f-B9, show 5
#[tokio::test]
async fn random_changes_cost_what_their_previews_said_to_the_minor_unit() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (wanted, seed) = (number("BILLS_CHANGES", CHANGES), number("BILLS_SEED", 7));
    let counter = Counter::open().await;
    let mut courses: BTreeMap<Course, u64> = BTreeMap::new();
    let mut compared = 0;
    for n in 0.. {
        if compared >= wanted {
            break;
        }
        let mut rng = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(n));
        let mut place = Place(format!("BILLS_SEED={seed} BILLS_CHANGES={wanted}, tenant {n}"));
        let mut payer = counter.payer(n, &mut rng).await;
        for _ in 0..PER_TENANT {
            let course = payer.change(&mut rng, &mut place).await;
            *courses.entry(course).or_default() += 1;
            compared += u64::from(!matches!(course, Course::Stale | Course::Nothing | Course::Uncharged));
        }
        if n % 10 == 0 {
            counter.shop.deliver_all().await;
            while counter.shop.billing.fetch_pending(payer.provider, 10).await.unwrap().done > 0 {}
            let plan = counter.shop.billing.plan_of(&payer.ctx, counter.shop.stripe.now()).await.unwrap().plan;
            let names = payer.names(&payer.subscription());
            assert!(names.iter().any(|name| name.starts_with(plan.as_str())), "{plan} {names:?}");
        } else {
            // Nobody tells: every change was made on what Stripe itself says.
            drop(counter.shop.stripe.deliveries());
        }
        payer.shop.stripe.cancel(&payer.purchase.subscription);
    }
    println!("{compared} changes with seed {seed}: {courses:?}");
    assert!(wanted < MANY || courses.len() == 10, "some course was never drawn: {courses:?}");
}
