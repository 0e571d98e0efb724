//! A simulated year of a shop over a bad network: events lost, doubled and shuffled, Stripe away, processes killed. After a
//! reconciliation, what is stored is what Stripe has, to the last field of every object and the last unit of usage; the money
//! adds up, and every change of access has a cause on record.
//!
//! `YEAR_CUSTOMERS` says how many customers: a few in the usual run, 2,000 in `./dev year`. `YEAR_SEED` draws another year.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta};
use fastrand::Rng;
use saas_billing::{
    Billing, BillingConfig, Drift, Mode, PaymentProvider as _, ReconcileRun, SigningSecrets, WebhookProcessor as _,
    catalog::{OldPrices, PriceList},
    ledger::Account,
    money::Currency,
    object::{ObjectId, ObjectKind},
    provider::{Command, ItemChange, OnFailedPayment, PageLimit, Proration, Query, SubscriptionChange},
    stripe::StripeApi,
    testing::{
        Chaos, CheckoutRequest, Coupon, Fault, Lasts, NoteOutcome, Purchase, SimulatorServer, StripeSimulator,
        cut_after,
    },
    usage::{UsageItem, UsagePolicy},
};
use saas_core::{
    Clock as _, IdempotencyKey, MeterKey, PageSize, PlanCatalog, RequestContext, TenantContext as _, UsageEventId,
};
use serde_json::Value;

use crate::{
    provider::adapter,
    shop::{CATALOG, OPERATOR, Shop, service},
};

/// What some pay for beside their plan.
const CALLS: &str = r#"
[meters.calls]
aggregation = "sum"
[addons.calls]
mode = "stack"
prices = ["calls"]
[products.calls]
name = "Calls"
[prices.calls]
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.10", usd = "0.11" }
"#;
const METER: MeterKey = MeterKey::from_static("calls");

const PRICES: [(&str, &str); 2] = [("price_pro", "price_team"), ("price_pro_usd", "price_team_usd")];
const EVENTS_LOST_PERCENT: u8 = 5;
const EVENTS_DOUBLED_PERCENT: u8 = 5;
/// Of the hours, those in which the worker is killed.
const KILLS_PERCENT: u32 = 3;
/// Reconciliations that may be needed: the first finds charges whose refunds only the next can place.
const RUNS: usize = 4;

struct Resident {
    ctx: RequestContext,
    joins: u32,
    prices: (&'static str, &'static str),
    purchase: Option<Purchase>,
    /// Whether it pays for calls.
    is_metered: bool,
}

struct Year {
    shop: Shop,
    stripe: StripeApi,
    _server: SimulatorServer,
    usage: UsagePolicy,
    residents: Vec<Resident>,
    rng: Rng,
    kills: usize,
    outages: usize,
    events: usize,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

impl Year {
    async fn begin(customers: u64, seed: u64) -> Self {
        let catalog = format!("{CATALOG}{CALLS}");
        let list = PriceList::from_toml(&catalog, &PlanCatalog::from_toml(&catalog).unwrap()).unwrap();
        let mut shop = Shop::open().await;
        let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
        let config = BillingConfig::new(PlanCatalog::from_toml(&catalog).unwrap(), secrets, Mode::Test);
        shop.billing = service(&shop.database, config);
        shop.stripe.create_coupon("quarter", Coupon::percent(2_500, Lasts::Months(3)));
        shop.stripe.create_coupon("five", Coupon::amount(500, "eur", Lasts::Once));
        shop.stripe.set_tax_rate(1_900);
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let stripe = StripeApi::new(adapter(&server)).unwrap();
        shop.billing.apply_prices(&stripe, &list, OldPrices::Keep, &OPERATOR).await.unwrap();
        let mut rng = Rng::with_seed(seed);
        let mut residents = Vec::new();
        for n in 0..customers {
            let ctx = shop.database.create_tenant(&format!("tenant-{n}")).await;
            let (joins, prices) = (rng.u32(..120), PRICES[rng.usize(..2)]);
            residents.push(Resident { ctx, joins, prices, purchase: None, is_metered: n % 3 == 0 });
        }
        let usage = UsagePolicy::of(&list);
        Self { shop, stripe, _server: server, usage, residents, rng, kills: 0, outages: 0, events: 0 }
    }

    fn billing(&self) -> &Billing {
        &self.shop.billing
    }

    /// A day: what customers, banks and the operator do, then hour by hour what Stripe does and tells.
    async fn day(&mut self, day: u32) {
        for at in 0..self.residents.len() {
            self.morning(at, day).await;
        }
        let outage = self.rng.u32(..100) < 4;
        if outage {
            // Stripe is away for a while: longer than the adapter tries.
            self.shop.stripe.inject([Fault::Unavailable, Fault::RateLimited(1), Fault::CutBefore].repeat(4));
            self.outages += 1;
        }
        for hour in 0..24 {
            self.shop.stripe.advance(TimeDelta::hours(1));
            if hour % 6 == 0 {
                self.send_usage().await;
            }
            self.hour().await;
        }
        let _ = self.billing().fetch_pending(&self.stripe, 100).await.unwrap();
        self.shop.stripe.heal();
        let _ = self.billing().roll_revenue(100).await.unwrap();
    }

    async fn hour(&mut self) {
        let chaos = Chaos::shuffled(self.rng.u64(..)).duplicating(EVENTS_DOUBLED_PERCENT).dropping(EVENTS_LOST_PERCENT);
        let deliveries = self.shop.stripe.deliveries_through(chaos);
        if deliveries.is_empty() {
            return;
        }
        self.events += deliveries.len();
        for delivery in &deliveries {
            let _ = self.billing().process(&delivery.body, &delivery.signature).await.unwrap();
        }
        if self.rng.u32(..100) < KILLS_PERCENT {
            self.kills += 1;
            let waits = self.rng.u32(..200);
            // Its leases end within the hour.
            let _ = cut_after(waits, self.billing().apply_pending(50)).await;
            return;
        }
        let _ = self.shop.apply().await;
    }

    /// The worker that tells Stripe of usage, which is killed as others are.
    async fn send_usage(&mut self) {
        let sending = self.shop.billing.send_usage(&self.stripe, &self.usage, 1_000);
        if self.rng.u32(..100) < KILLS_PERCENT {
            self.kills += 1;
            let _ = cut_after(self.rng.u32(..200), sending).await;
        } else {
            let _ = sending.await.unwrap();
        }
        self.shop.stripe.report_misread();
        let _ = self.shop.billing.read_usage_reports(&self.stripe, 10).await.unwrap();
    }

    /// A day's calls of a tenant; now and then, some of them are taken back, or some of days ago, which Stripe takes no more.
    async fn call(&mut self, at: usize) {
        let now = self.shop.database.clock().now();
        let tenant = self.residents[at].ctx.tenant();
        let called = now - TimeDelta::seconds(self.rng.i64(0..3_600));
        let item = |units| UsageItem {
            id: UsageEventId::mint_at(now),
            tenant,
            meter: METER,
            amount: units,
            units,
            at: called,
            window_start: DateTime::UNIX_EPOCH,
        };
        let units = self.rng.i64(5..50);
        let items = match self.rng.u32(..20) {
            0..3 => vec![item(units), item(-self.rng.i64(1..5))],
            3 => vec![item(-self.rng.i64(1..5))],
            _ => vec![item(units)],
        };
        self.billing().accept_usage(&self.usage, &items).await.unwrap();
    }

    /// What one customer does, if anything.
    async fn morning(&mut self, at: usize, day: u32) {
        let resident = &self.residents[at];
        let stripe = &*self.shop.stripe;
        let Some(bought) = resident.purchase.clone() else {
            if day >= resident.joins {
                self.buy(at, None).await;
            }
            return;
        };
        let live = stripe.object(ObjectKind::Subscription, &bought.subscription).unwrap();
        if live["ended_at"].is_i64() {
            // Some come back, with the customer that they are.
            if self.rng.u32(..60) == 0 && is_there(stripe, &bought.customer) {
                self.buy(at, Some(&bought.customer)).await;
            }
            return;
        }
        let wish = self.rng.u32(..1_200);
        act(&mut self.rng, stripe, resident.prices, &bought, &live, wish);
        if resident.is_metered && self.rng.u32(..8) == 0 {
            self.call(at).await;
        }
    }

    async fn buy(&mut self, at: usize, customer: Option<&ObjectId>) {
        let resident = &self.residents[at];
        let (small, large) = resident.prices;
        let price = if self.rng.bool() { small } else { large };
        let mut request = CheckoutRequest::new(price).with_quantity(self.rng.u64(1..6));
        if let Some(customer) = customer {
            request = request.with_customer(customer.as_str());
        } else if self.rng.bool() {
            request = request.with_trial_days(14);
        }
        if self.rng.bool() {
            request = request.with_automatic_tax();
        }
        if self.rng.u32(..5) == 0 {
            request = request.with_coupon(if self.rng.bool() { "quarter" } else { "five" });
        }
        let session = self.shop.stripe.checkout(request);
        self.billing().record_checkout(&resident.ctx, &session).await.unwrap();
        let purchase = self.shop.stripe.complete_checkout(&session).unwrap();
        // What the application's success page does: the link does not hang on one event.
        self.billing().link_customer(&resident.ctx, &purchase.customer).await.unwrap();
        if resident.is_metered {
            let currency: Currency = if small.ends_with("usd") { "usd" } else { "eur" }.parse().unwrap();
            let calls =
                ItemChange::Add { price: self.billing().price("calls", currency).await.unwrap(), quantity: None };
            let change = Command::ChangeSubscription(SubscriptionChange {
                subscription: purchase.subscription.clone(),
                items: vec![calls],
                proration: Proration::None,
                proration_date: None,
                on_failed_payment: OnFailedPayment::Wait,
            });
            let key = IdempotencyKey::try_from(format!("calls-of-{}", purchase.subscription)).unwrap();
            let _ = self.stripe.execute(&change, &key).await.unwrap();
        }
        self.residents[at].purchase = Some(purchase);
    }

    /// Runs until a run finds nothing; says how many objects the first found to differ.
    async fn reconcile(&mut self) -> u64 {
        let mut first = None;
        for _ in 0..RUNS {
            self.shop.database.clock().advance(TimeDelta::hours(2));
            let _ = self.billing().send_usage(&self.stripe, &self.usage, 10_000).await.unwrap();
            let _ = self.shop.apply().await;
            self.fetch_all().await;
            let mut run = self.billing().start_reconcile(&OPERATOR, 1_000_000).await.unwrap();
            while run.finished_at.is_none() {
                run = self.billing().reconcile_step(&self.stripe).await.unwrap().unwrap();
            }
            first = first.or(Some(run.drifted));
            if !self.report(&run).await.iter().any(|drift| self.must_not_differ(drift)) {
                assert_eq!(run.unlinked, 0, "every customer is somebody's");
                return first.unwrap_or(0);
            }
            self.fetch_all().await;
        }
        let run = self.billing().start_reconcile(&OPERATOR, 0).await.unwrap();
        let mut last = run.clone();
        while last.finished_at.is_none() {
            last = self.billing().reconcile_step(&self.stripe).await.unwrap().unwrap();
        }
        panic!("{} objects still differ: {:#?}", last.drifted, self.report(&run).await);
    }

    async fn report(&self, run: &ReconcileRun) -> Vec<Drift> {
        let (mut drifts, mut after) = (Vec::new(), None);
        loop {
            let page = self.billing().reconcile_report(&OPERATOR, run.id, after.as_ref(), PageSize::default()).await;
            let page = page.unwrap();
            drifts.extend(page.items);
            after = page.next;
            if after.is_none() {
                return drifts;
            }
        }
    }

    /// All but the usage of a customer that was deleted before it arrived, where the event that tells so was lost: that is for a
    /// person, and reported until then.
    fn must_not_differ(&self, drift: &Drift) -> bool {
        drift.fields.keys().any(|field| !field.starts_with("usage.")) || is_there(&self.shop.stripe, &drift.object)
    }

    async fn fetch_all(&self) {
        loop {
            let pass = self.billing().fetch_pending(&self.stripe, 200).await.unwrap();
            let _ = self.shop.apply().await;
            if pass.done == 0 {
                return;
            }
        }
    }
}

fn is_there(stripe: &StripeSimulator, customer: &ObjectId) -> bool {
    stripe.living(ObjectKind::Customer).contains(customer)
}

/// A customer's wish, by lot; most days there is none.
fn act(
    rng: &mut Rng,
    stripe: &StripeSimulator,
    (small, large): (&str, &str),
    bought: &Purchase,
    live: &Value,
    wish: u32,
) {
    let (customer, subscription) = (&bought.customer, &bought.subscription);
    let invoice = || -> Option<ObjectId> { live["latest_invoice"].as_str()?.parse().ok() };
    let charge = || stripe.charge_of(&invoice()?);
    match wish {
        0..6 => stripe.update_quantity(subscription, rng.u64(1..20)),
        6..10 => drop(stripe.change_price(subscription, if rng.bool() { small } else { large }, true)),
        10..12 => drop(stripe.schedule_price(subscription, small)),
        12..15 => drop(stripe.release_schedule(subscription)),
        15..18 => stripe.cancel_at_period_end(subscription, true),
        18..21 => stripe.cancel_at_period_end(subscription, false),
        21 => stripe.cancel(subscription),
        22..28 => stripe.fail_next_payment(customer),
        28..48 => stripe.pay(customer),
        48..50 => stripe.pause_collection(subscription, Some(["void", "mark_uncollectible"][rng.usize(..2)])),
        50..53 => stripe.pause_collection(subscription, None),
        53..56 => {
            if let Some(charge) = charge() {
                let _ = stripe.refund(&charge, Some(rng.i64(1..1_500)));
            }
        }
        56 => {
            let refunds = stripe.living(ObjectKind::Refund);
            if let Some(refund) = refunds.get(rng.usize(..refunds.len().max(1))) {
                let _ = stripe.fail_refund(refund);
            }
        }
        57..59 => {
            if let Some(charge) = charge() {
                let _ = if rng.bool() { stripe.dispute(&charge) } else { stripe.inquire(&charge) };
            }
        }
        59..65 => {
            let disputes = stripe.living(ObjectKind::Dispute);
            if let Some(dispute) = disputes.get(rng.usize(..disputes.len().max(1))) {
                let _ = stripe.answer_dispute(dispute);
                let _ = stripe.close_dispute(dispute, rng.bool());
            }
        }
        65..69 => {
            let outcome = [NoteOutcome::Refund, NoteOutcome::Balance, NoteOutcome::OutOfBand][rng.usize(..3)];
            if let Some(invoice) = invoice() {
                let _ = stripe.credit_note(&invoice, rng.i64(1..900), outcome);
            }
        }
        69 => {
            let notes = stripe.living(ObjectKind::CreditNote);
            if let Some(note) = notes.last() {
                let _ = stripe.void_credit_note(note);
            }
        }
        70..72 => {
            if let Some(invoice) = invoice() {
                let open = stripe.object(ObjectKind::Invoice, &invoice).unwrap();
                if open["status"] == "open" {
                    stripe.close_invoice(&invoice, rng.bool());
                }
            }
        }
        72..75 => drop(stripe.apply_coupon(subscription, if rng.bool() { "quarter" } else { "five" })),
        75 => stripe.delete_customer(customer),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_year_over_a_bad_network_what_is_stored_is_what_stripe_has() {
    let (customers, seed) = (number("YEAR_CUSTOMERS", 24), number("YEAR_SEED", 7));
    let mut year = Year::begin(customers, seed).await;
    for day in 0..365 {
        year.day(day).await;
        if day % 30 == 29 {
            let events = year.events;
            println!("day {}: {events} deliveries, {} kills, {} outages", day + 1, year.kills, year.outages);
        }
    }
    let drifted = year.reconcile().await;
    println!("{drifted} objects had drifted; seed {seed}");
    assert!(drifted > 0, "events were lost");
    every_object_is_stored_as_stripe_has_it(&year).await;
    every_tenant_has_what_its_subscription_says(&year).await;
    the_money_adds_up(&year).await;
    every_change_of_access_has_a_cause(&year).await;
    every_unit_is_counted_once(&year).await;
}

/// Over the whole year, to the unit: what Stripe has counted of each customer is what was sent, and nothing is under way.
async fn every_unit_is_counted_once(year: &Year) {
    let meters = year.stripe.list(&Query::Meters, None, PageLimit::MAX).await.unwrap();
    let meter: Value = serde_json::from_str(meters.objects[0].get()).unwrap();
    let meter: ObjectId = meter["id"].as_str().unwrap().parse().unwrap();
    let (from, to) = (DateTime::UNIX_EPOCH, year.shop.database.clock().now() + TimeDelta::days(1));
    let sent: Vec<(String, i64)> = sqlx::query_as(
        "select customer, coalesce(sum(value) filter (where state = 'sent'), 0)::bigint
         from saas.billing_usage
         where customer is not null
         group by customer",
    )
    .fetch_all(&mut *year.shop.owner.lock().await)
    .await
    .unwrap();
    let mut sum = 0;
    for (customer, ours) in sent {
        let customer: ObjectId = customer.parse().unwrap();
        if !is_there(&year.shop.stripe, &customer) {
            continue;
        }
        let query = Query::MeterTotals { meter: meter.clone(), customer, from, to, daily: false };
        let page = year.stripe.list(&query, None, PageLimit::MAX).await.unwrap();
        let theirs: Value = serde_json::from_str(page.objects[0].get()).unwrap();
        assert_eq!(theirs["aggregated_value"].as_i64(), Some(ours), "{query:?}");
        sum += ours;
    }
    let rows = year.shop.scalar("select count(*) from saas.billing_usage").await;
    let taken_back = "select count(*) from saas.billing_usage where state = 'cancelled'";
    let taken_back = year.shop.scalar(taken_back).await;
    let health = year.billing().usage_health().await.unwrap();
    println!("{sum} calls counted, of {rows} rows, {taken_back} taken back; {health:?}");
    assert!(taken_back > 0, "corrections met what they take back");
    assert!(sum > i64::try_from(year.residents.len()).unwrap());
    assert_eq!(health.pending, 0);
    // What was used right before the customer was deleted waits for another one; nothing else does.
    let waiting = "select count(*) from saas.billing_usage u
         where state = 'waiting' and exists (
             select from saas.billing_directory linked
             left join saas.billing_object known on known.tenant_id = linked.tenant and known.object_id = linked.object_id
             where linked.tenant = u.tenant_id and linked.kind = 'customer' and known.status is distinct from 'deleted')";
    assert_eq!(year.shop.scalar(waiting).await, 0);
}

async fn every_object_is_stored_as_stripe_has_it(year: &Year) {
    for (kind, name) in [
        (ObjectKind::Invoice, "invoice"),
        (ObjectKind::Charge, "charge"),
        (ObjectKind::Refund, "refund"),
        (ObjectKind::Dispute, "dispute"),
        (ObjectKind::CreditNote, "credit_note"),
    ] {
        let ours: Vec<(String, String)> =
            sqlx::query_as("select object_id, status from saas.billing_object where kind = $1")
                .bind(name)
                .fetch_all(&mut *year.shop.owner.lock().await)
                .await
                .unwrap();
        let ours: BTreeMap<String, String> = ours.into_iter().collect();
        let theirs = year.shop.stripe.living(kind).into_iter();
        let status = |id: &ObjectId| year.shop.stripe.object(kind, id).unwrap()["status"].as_str().unwrap().to_owned();
        let theirs: BTreeMap<String, String> = theirs.map(|id| (id.to_string(), status(&id))).collect();
        println!("{}: {name}", theirs.len());
        assert_eq!(ours, theirs, "{name}");
    }
}

async fn every_tenant_has_what_its_subscription_says(year: &Year) {
    for resident in &year.residents {
        let Some(bought) = &resident.purchase else { continue };
        let theirs = year.shop.stripe.object(ObjectKind::Subscription, &bought.subscription).unwrap();
        let derived = year.billing().derived(&resident.ctx).await.unwrap();
        if theirs["ended_at"].is_i64() {
            assert_eq!(derived.plan, None, "{}", bought.subscription);
            continue;
        }
        assert_eq!(derived.subscription.as_ref(), Some(&bought.subscription));
        assert_eq!(derived.status.as_ref().map(|status| status.as_str()), theirs["status"].as_str());
        let item = &theirs["items"]["data"][0];
        assert_eq!(derived.seats, item["quantity"].as_u64(), "{}", bought.subscription);
        let plan = if item["price"]["id"].as_str().unwrap().contains("team") { "team@1" } else { "pro@1" };
        assert_eq!(derived.plan.map(|plan| plan.to_string()).as_deref(), Some(plan));
    }
}

async fn the_money_adds_up(year: &Year) {
    let mut cursor = None;
    loop {
        let page = year.billing().verify_ledgers(&OPERATOR, cursor, PageSize::default()).await.unwrap();
        assert!(page.unsound.is_empty(), "{:?}", page.unsound);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let stripe = &year.shop.stripe;
    let all = |kind| stripe.living(kind).into_iter().map(move |id| stripe.object(kind, &id).unwrap());
    let totals = year.billing().ledger_totals(&OPERATOR).await.unwrap();
    for currency in ["eur", "usd"] {
        let of = |account: Account| -> i64 {
            let mine = totals.iter().filter(|total| total.account == account);
            mine.filter(|total| total.amount.currency().as_str() == currency).map(|total| total.amount.minor()).sum()
        };
        let sum = |kind, amount: fn(&Value) -> i64| -> i64 {
            all(kind).filter(|object| object["currency"] == currency).map(|object| amount(&object)).sum()
        };
        let charged = sum(ObjectKind::Charge, |charge| charge["amount_captured"].as_i64().unwrap());
        let refunded = sum(ObjectKind::Refund, |refund| {
            if refund["status"] == "succeeded" { refund["amount"].as_i64().unwrap() } else { 0 }
        });
        let taken = sum(ObjectKind::Dispute, |dispute| match dispute["status"].as_str().unwrap() {
            "needs_response" | "under_review" | "lost" => dispute["amount"].as_i64().unwrap(),
            _ => 0,
        });
        let owed = sum(ObjectKind::Invoice, |invoice| match invoice["status"].as_str().unwrap() {
            "open" => invoice["amount_remaining"].as_i64().unwrap(),
            _ => 0,
        });
        println!("{currency}: {charged} charged, {refunded} refunded, {taken} disputed, {owed} owed");
        assert_eq!(Account::ALL.iter().map(|account| of(*account)).sum::<i64>(), 0, "{currency}");
        assert_eq!(of(Account::Cash), charged - refunded - taken, "{currency}");
        assert_eq!(of(Account::Payments), 0, "every charge has its invoice: {currency}");
        assert_eq!(of(Account::Receivable), owed, "{currency}");
    }
}

/// Every interval of access begins with a record that was made together with an audit row: which object, told by what.
async fn every_change_of_access_has_a_cause(year: &Year) {
    let unexplained = "
        select count(*) from saas.plan_record r
        where not exists (
            select from saas.audit a
            where a.tenant_id = r.tenant_id and a.at = r.at and a.detail ? 'plan' and a.subject <> '')";
    assert_eq!(year.shop.scalar(unexplained).await, 0);
    let records = year.shop.scalar("select count(*) from saas.plan_record").await;
    assert!(records > i64::try_from(year.residents.len()).unwrap(), "{records}");
    println!("{records} intervals of access, each with its cause");
    let stuck = "select count(*) from saas.billing_receipt where state not in ('applied', 'ignored')";
    assert_eq!(year.shop.scalar(stuck).await, 0);
}
