//! Usage to Stripe, over HTTP, through what goes wrong on the way: each use counts once, and what does not count is told.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Timelike as _, Utc};
use saas_billing::{
    BillingError, Fetched, Mode, ObjectId, ObjectSource, PaymentProvider, ProviderError,
    catalog::{OldPrices, PriceList},
    object::ObjectKind,
    provider::{Command, Listed, MeterReading, PageLimit, Query, Reply, SubscriptionChange},
    stripe::StripeApi,
    testing::{CheckoutRequest, Fault, SimulatorServer, cut_after},
    usage::{Corrections, UsageItem, UsagePolicy, UsageSent},
};
use saas_core::{
    Clock as _, IdempotencyKey, MeterKey, PageSize, PlanCatalog, RequestContext, TenantContext as _, UsageEventId,
};
use tokio::sync::Notify;

use crate::{
    provider::adapter,
    shop::{OPERATOR, Shop},
};

const TEXT: &str = r#"
default_plan = "free"
[meters.calls]
aggregation = "sum"
[meters.stored]
aggregation = "latest"
[meters.free-of-charge]
aggregation = "sum"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = ["calls", "stored"]
[products.pro]
name = "Pro"
[prices.calls]
per = "usage"
meter = "calls"
interval = "month"
amounts = { eur = "0.01" }
[prices.stored]
per = "usage"
meter = "stored"
interval = "month"
amounts = { eur = "0.10" }
"#;

fn all() -> PageSize {
    PageSize::new(PageSize::MAX).unwrap()
}

const CALLS: MeterKey = MeterKey::from_static("calls");

struct Counter {
    shop: Shop,
    server: SimulatorServer,
    stripe: StripeApi,
    policy: UsagePolicy,
    acme: RequestContext,
    customer: ObjectId,
}

impl Counter {
    async fn open() -> Self {
        let shop = Shop::open().await;
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let stripe = StripeApi::new(adapter(&server).with_breaker(u32::MAX, std::time::Duration::ZERO)).unwrap();
        let list = PriceList::from_toml(TEXT, &PlanCatalog::from_toml(TEXT).unwrap()).unwrap();
        shop.billing.apply_prices(&stripe, &list, OldPrices::Keep, &OPERATOR).await.unwrap();
        let acme = shop.database.create_tenant("acme").await;
        let customer = shop.billing.ensure_customer(&stripe, &acme, &Default::default()).await.unwrap();
        Self { policy: UsagePolicy::of(&list), shop, server, stripe, acme, customer }
    }

    fn now(&self) -> DateTime<Utc> {
        self.shop.database.clock().now()
    }

    fn pass(&self, time: TimeDelta) {
        self.shop.stripe.advance(time);
    }

    fn item_of(&self, ctx: &RequestContext, meter: &MeterKey, units: i64, at: DateTime<Utc>) -> UsageItem {
        UsageItem {
            id: UsageEventId::mint_at(self.now()),
            tenant: ctx.tenant(),
            meter: meter.clone(),
            amount: units,
            units,
            at,
            window_start: DateTime::from_timestamp(0, 0).unwrap(),
        }
    }

    fn item(&self, units: i64) -> UsageItem {
        self.item_of(&self.acme, &CALLS, units, self.now())
    }

    async fn accept(&self, items: &[UsageItem]) {
        self.shop.billing.accept_usage(&self.policy, items).await.unwrap();
    }

    async fn send(&self) -> UsageSent {
        self.shop.billing.send_usage(&self.stripe, &self.policy, 1_000).await.unwrap()
    }

    /// Sends until nothing is due, with the pauses between.
    async fn send_all(&self) -> usize {
        let mut sent = 0;
        for _ in 0..20 {
            let step = self.send().await;
            sent += step.sent;
            if step.put_off == 0 && step.total() == 0 {
                break;
            }
            self.pass(TimeDelta::minutes(2));
        }
        sent
    }

    /// What Stripe has counted.
    async fn counted(&self, meter: &str, customer: &ObjectId) -> u64 {
        let meters = self.stripe.list(&Query::Meters, None, PageLimit::MAX).await.unwrap();
        let meters = meters.objects.iter().map(|one| serde_json::from_str::<serde_json::Value>(one.get()).unwrap());
        let id = meters.into_iter().find(|one| one["event_name"] == meter).unwrap()["id"].as_str().unwrap().to_owned();
        let query = Query::MeterTotals {
            meter: id.parse().unwrap(),
            customer: customer.clone(),
            from: DateTime::from_timestamp(0, 0).unwrap(),
            to: self.now() + TimeDelta::days(400),
            daily: false,
        };
        let page = self.stripe.list(&query, None, PageLimit::MAX).await.unwrap();
        let summary: serde_json::Value = serde_json::from_str(page.objects[0].get()).unwrap();
        summary["aggregated_value"].as_u64().unwrap()
    }

    async fn calls(&self) -> u64 {
        self.counted("calls", &self.customer).await
    }

    async fn problems(&self) -> Vec<(i64, bool, String)> {
        let page = self.shop.billing.usage_problems(&OPERATOR, None, all()).await.unwrap();
        page.items.into_iter().map(|problem| (problem.amount, problem.was_taken, problem.reason)).collect()
    }
}

/// A process that is killed after Stripe has done what it asked, and before it could write that down.
#[derive(Debug)]
struct Dies {
    stripe: StripeApi,
    done: Arc<Notify>,
}

impl Dies {
    async fn die(&self) -> ! {
        self.done.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl ObjectSource for Dies {
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError> {
        self.stripe.fetch(kind, id).await
    }
}

#[async_trait]
impl PaymentProvider for Dies {
    fn mode(&self) -> Mode {
        Mode::Test
    }

    async fn execute(&self, command: &Command, key: &IdempotencyKey) -> Result<Reply, ProviderError> {
        self.stripe.execute(command, key).await?;
        self.die().await
    }

    async fn preview(&self, change: &SubscriptionChange) -> Result<Reply, ProviderError> {
        self.stripe.preview(change).await
    }

    async fn list(&self, query: &Query, after: Option<&ObjectId>, limit: PageLimit) -> Result<Listed, ProviderError> {
        self.stripe.list(query, after, limit).await
    }

    async fn stream(&self, readings: &[MeterReading]) -> Result<(), ProviderError> {
        self.stripe.stream(readings).await?;
        self.die().await
    }

    async fn event(&self, id: &ObjectId) -> Result<Fetched, ProviderError> {
        self.stripe.event(id).await
    }
}

/// Killed between sending and marking: sent again under the same identifier, counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_between_send_and_mark_leaves_rows_that_count_once() {
    for streamed in [false, true] {
        let mut counter = Counter::open().await;
        if streamed {
            counter.policy = counter.policy.clone().with_stream();
        }
        let items: Vec<UsageItem> = (1..=5).map(|units| counter.item(units)).collect();
        counter.accept(&items).await;
        let dies = Dies { stripe: counter.stripe.clone(), done: Arc::default() };
        tokio::select! {
            sent = counter.shop.billing.send_usage(&dies, &counter.policy, 100) => panic!("{sent:?}"),
            () = dies.done.notified() => {}
        }
        assert!(counter.calls().await > 0, "Stripe has something, and nothing says so here");
        assert_eq!(counter.send().await.total(), 0, "they are the dead worker's until its lease ends");
        counter.pass(TimeDelta::minutes(2));
        assert_eq!(counter.send().await.sent, 5);
        assert_eq!(counter.calls().await, 15, "streamed: {streamed}");
        counter.accept(&items).await;
        counter.pass(TimeDelta::days(2));
        assert_eq!(counter.send().await.total(), 0, "a batch that comes again is known for good");
        assert_eq!(counter.calls().await, 15);
    }
}

/// C7, D14: whatever the network and Stripe do, in single calls and by the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_counts_once_through_every_fault() {
    let faults = [
        Fault::RateLimited(1),
        Fault::Unavailable,
        Fault::KeyInUse,
        Fault::Broken,
        Fault::BrokenAfterwards,
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Garbled,
        Fault::Unauthorized,
    ];
    for streamed in [false, true] {
        let mut counter = Counter::open().await;
        if streamed {
            counter.policy = counter.policy.clone().with_stream();
        }
        let mut total = 0;
        for (n, fault) in faults.into_iter().enumerate() {
            for at in 0..3 {
                let units = i64::try_from(n).unwrap() * 10 + at + 1;
                total += 3 * units.unsigned_abs();
                counter.accept(&[counter.item(units), counter.item(units), counter.item(units)]).await;
                // As often as a call is tried, so that the caller hears of it.
                counter.shop.stripe.inject_after(usize::try_from(at).unwrap(), [fault; 3]);
                let _step = counter.send().await;
                counter.shop.stripe.heal();
                counter.pass(TimeDelta::minutes(2));
                counter.send_all().await;
                assert_eq!(counter.calls().await, total, "{fault:?} at {at}, streamed: {streamed}");
            }
        }
        assert!(counter.problems().await.is_empty(), "{:?}", counter.problems().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_at_once_send_each_row_once() {
    let counter = Counter::open().await;
    let items: Vec<UsageItem> = (0..60).map(|_| counter.item(1)).collect();
    counter.accept(&items).await;
    let before = counter.shop.stripe.calls();
    let send = || counter.shop.billing.send_usage(&counter.stripe, &counter.policy, 20);
    let (a, b, c) = tokio::join!(send(), send(), send());
    let sent: usize = [a, b, c].into_iter().map(|sent| sent.unwrap().sent).sum();
    assert_eq!((sent, counter.shop.stripe.calls() - before), (60, 60));
    assert_eq!(counter.calls().await, 60);
}

/// C7: a use that Stripe will not count any more is not lost without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_35_days_is_reported_and_what_lies_ahead_waits() {
    let counter = Counter::open().await;
    let at = |by: TimeDelta| counter.item_of(&counter.acme, &CALLS, 7, counter.now() + by);
    counter.accept(&[at(-TimeDelta::days(36)), at(-TimeDelta::days(34)), at(TimeDelta::minutes(30))]).await;
    let step = counter.send().await;
    assert_eq!((step.sent, step.refused, step.put_off), (1, 1, 1));
    assert_eq!(counter.calls().await, 7);
    let problems = counter.problems().await;
    assert!(matches!(problems.as_slice(), [(7, false, why)] if why.contains("older than 35 days")), "{problems:?}");
    let health = counter.shop.billing.usage_health().await.unwrap();
    assert_eq!((health.pending, health.refused), (1, 1));
    counter.pass(TimeDelta::minutes(26));
    assert_eq!(counter.send().await.sent, 1);
    assert_eq!(counter.calls().await, 14);
}

/// C7: after a day Stripe does not know an identifier. What it has counted decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_an_answer_for_a_day_is_looked_up_before_it_is_sent_again() {
    let cases = [("not counted", Fault::CutBefore), ("counted", Fault::CutAfter)];
    for (what, fault) in cases {
        let counter = Counter::open().await;
        counter.accept(&[counter.item(5)]).await;
        counter.send_all().await;
        counter.accept(&[counter.item(7)]).await;
        counter.shop.stripe.inject([fault; 3]);
        let step = counter.send().await;
        assert_eq!((step.put_off, step.stopped), (1, Some("stripe_outcome_unknown")));
        counter.pass(TimeDelta::hours(25));
        counter.shop.stripe.forget_keys();
        assert_eq!(counter.send().await.sent, 1, "{what}");
        assert_eq!(counter.calls().await, 12, "{what}");
    }
    // Something else in the same minute: the total does not tell.
    let counter = Counter::open().await;
    counter.accept(&[counter.item(7)]).await;
    counter.shop.stripe.inject([Fault::CutAfter; 3]);
    assert_eq!(counter.send().await.put_off, 1);
    let foreign = MeterReading {
        event_name: "calls".to_owned(),
        customer: counter.customer.clone(),
        value: 1,
        at: counter.now(),
        identifier: "by-hand".to_owned(),
    };
    counter.stripe.execute(&Command::ReportUsage(foreign), &"by-hand".parse().unwrap()).await.unwrap();
    counter.pass(TimeDelta::hours(25));
    assert_eq!(counter.send().await.refused, 1);
    assert_eq!(counter.calls().await, 8);
    assert!(counter.problems().await[0].2.contains("compare it by hand"));
}

/// Stripe down for two days: nothing is lost, and nothing counts twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_two_days_ends_with_every_use_counted_once() {
    let counter = Counter::open().await;
    for hour in 0..48 {
        counter.accept(&[counter.item(hour + 1)]).await;
        counter.shop.stripe.inject([Fault::Unavailable, Fault::CutAfter, Fault::Broken].repeat(20));
        let _step = counter.send().await;
        counter.shop.stripe.heal();
        counter.pass(TimeDelta::hours(1));
    }
    counter.shop.stripe.forget_keys();
    counter.send_all().await;
    assert_eq!(counter.calls().await, 48 * 49 / 2);
    assert!(counter.problems().await.is_empty());
}

/// C15 at Stripe, which takes no negative readings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_takes_back_a_reading_of_the_last_day_or_is_reported() {
    let counter = Counter::open().await;
    counter.accept(&[counter.item(10), counter.item(4), counter.item(-4)]).await;
    counter.send_all().await;
    assert_eq!(counter.calls().await, 10, "the reading that fits was cancelled");
    // What remains of one that is larger is sent under the correction's own identifier, and a lost answer changes nothing.
    for fault in [Fault::CutAfter, Fault::CutBefore, Fault::Unavailable] {
        let before = counter.calls().await;
        counter.accept(&[counter.item(10)]).await;
        counter.send_all().await;
        counter.accept(&[counter.item(-3)]).await;
        counter.shop.stripe.inject([fault; 3]);
        let _step = counter.send().await;
        counter.shop.stripe.heal();
        counter.pass(TimeDelta::minutes(2));
        counter.send_all().await;
        assert_eq!(counter.calls().await, before + 7, "{fault:?}");
    }
    let before = counter.calls().await;
    counter.accept(&[counter.item(-500)]).await;
    assert_eq!(counter.send().await.refused, 1, "no reading is as large");
    counter.pass(TimeDelta::hours(30));
    counter.accept(&[counter.item(-1)]).await;
    assert_eq!(counter.send().await.refused, 1, "Stripe cancels within a day");
    let policy = counter.policy.clone().with_corrections(Corrections::Report);
    counter.accept(&[counter.item(5)]).await;
    counter.send_all().await;
    counter.accept(&[counter.item(-5)]).await;
    assert_eq!(counter.shop.billing.send_usage(&counter.stripe, &policy, 10).await.unwrap().refused, 1);
    assert_eq!(counter.calls().await, before + 5);
    let reported: Vec<i64> = counter.problems().await.into_iter().map(|(amount, ..)| amount).collect();
    assert_eq!(reported.iter().sum::<i64>(), -506);
}

/// C15: what was cancelled at Stripe is not counted here, whatever becomes of the rest of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_whose_rest_stripe_refuses_says_what_is_not_counted_any_more() {
    let counter = Counter::open().await;
    // Stripe takes readings of 35 days.
    let at = counter.now() - TimeDelta::days(35) + TimeDelta::hours(1);
    counter.accept(&[counter.item_of(&counter.acme, &CALLS, 10, at)]).await;
    counter.send_all().await;
    counter.accept(&[counter.item(-3)]).await;
    counter.shop.stripe.inject([Fault::CutAfter; 3]);
    assert_eq!(counter.send().await.put_off, 1, "it may be cancelled");
    counter.shop.stripe.heal();
    counter.pass(TimeDelta::hours(2));
    let step = counter.send().await;
    assert_eq!((step.refused, step.taken_back), (1, 1));
    assert_eq!(counter.calls().await, 0);
    let problems = counter.problems().await;
    assert!(problems[0].2.contains("7 that should stay"), "{problems:?}");
    let totals =
        counter.shop.billing.compare_usage(&counter.stripe, &OPERATOR, at.date_naive(), None, all()).await.unwrap();
    assert!(totals.items.iter().all(|day| (day.ours, day.theirs) == (0, Some(0))), "{totals:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_of_a_tenant_without_a_customer_waits_for_one_and_what_is_not_charged_is_left_out() {
    let counter = Counter::open().await;
    let globex = counter.shop.database.create_tenant("globex").await;
    let other = MeterKey::from_static("free-of-charge");
    let of = |meter: &MeterKey, units| counter.item_of(&globex, meter, units, counter.now());
    counter.accept(&[of(&CALLS, 3), of(&other, 8)]).await;
    let step = counter.send().await;
    assert_eq!((step.waiting, step.total()), (1, 1));
    assert_eq!(counter.send().await.total(), 0, "and is not looked at again");
    let customer = counter.shop.billing.ensure_customer(&counter.stripe, &globex, &Default::default()).await.unwrap();
    assert_eq!(counter.send().await.sent, 1);
    assert_eq!((counter.counted("calls", &customer).await, counter.calls().await), (3, 0));
    // So is one that a completed checkout brings.
    let umbrella = counter.shop.database.create_tenant("umbrella").await;
    counter.accept(&[counter.item_of(&umbrella, &CALLS, 4, counter.now())]).await;
    assert_eq!(counter.send().await.waiting, 1);
    let session = counter.shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    counter.shop.billing.record_checkout(&umbrella, &session).await.unwrap();
    let purchase = counter.shop.stripe.complete_checkout(&session).unwrap();
    counter.shop.deliver_all().await;
    assert_eq!(counter.send().await.sent, 1);
    assert_eq!(counter.counted("calls", &purchase.customer).await, 4);
    // Who never becomes a customer has nothing to be charged for.
    let initech = counter.shop.database.create_tenant("initech").await;
    counter.accept(&[counter.item_of(&initech, &CALLS, 1, counter.now())]).await;
    assert_eq!(counter.send().await.waiting, 1);
    counter.pass(TimeDelta::days(46));
    let forgotten = counter.shop.billing.forget_usage(100).await.unwrap();
    assert_eq!((forgotten.sent, forgotten.uncharged), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_is_told_as_the_last_of_its_period() {
    let counter = Counter::open().await;
    let stored = MeterKey::from_static("stored");
    for level in [40, 90, 0] {
        let mut item = counter.item_of(&counter.acme, &stored, 0, counter.now());
        item.amount = level;
        counter.accept(&[item]).await;
        counter.send_all().await;
        assert_eq!(counter.counted("stored", &counter.customer).await, level.unsigned_abs());
    }
}

/// The events of tier D: Stripe took it, and says later that it does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stripe_took_and_does_not_count_is_told_row_by_row() {
    let counter = Counter::open().await;
    counter.accept(&[counter.item(2)]).await;
    counter.send_all().await;
    counter.shop.deliver_all().await;
    let items: Vec<UsageItem> = (0..12).map(|_| counter.item(5)).collect();
    counter.accept(&items).await;
    counter.shop.stripe.delete_customer(&counter.customer);
    counter.send_all().await;
    counter.shop.stripe.report_misread();
    let told = counter.shop.stripe.deliveries();
    assert!(told.iter().any(|one| one.event_type == "v1.billing.meter.error_report_triggered"));
    // The report is not to be had at first; deliveries come twice, as they do.
    counter.shop.deliver(&told).await;
    counter.shop.deliver(&told).await;
    counter.shop.stripe.inject([Fault::Unavailable; 3]);
    let read = counter.shop.billing.read_usage_reports(&counter.stripe, 10).await.unwrap();
    assert_eq!((read.read, read.failed), (0, 1));
    counter.pass(TimeDelta::minutes(5));
    let read = counter.shop.billing.read_usage_reports(&counter.stripe, 10).await.unwrap();
    assert_eq!((read.read, read.rejected), (1, 10), "Stripe names ten of them");
    let problems = counter.problems().await;
    assert_eq!(problems.len(), 10);
    assert!(
        problems.iter().all(|(amount, taken, why)| *amount == 5 && *taken && why == "meter_event_customer_not_found")
    );
    let troubles = counter.shop.billing.usage_troubles(&OPERATOR, None, all()).await.unwrap().items;
    assert_eq!(troubles.len(), 1);
    assert_eq!((troubles[0].errors, troubles[0].matched, troubles[0].is_read), (12, 10, true));
    assert_eq!(troubles[0].codes, BTreeMap::from([("meter_event_customer_not_found".to_owned(), 12)]));
    // The two that it did not name show in the comparison of the day.
    let day = counter.now().date_naive();
    let totals = counter.shop.billing.compare_usage(&counter.stripe, &OPERATOR, day, None, all()).await.unwrap();
    assert_eq!((totals.items[0].ours, totals.items[0].unsent), (12, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_of_a_meter_that_is_not_there_is_told_too() {
    let counter = Counter::open().await;
    let meters = counter.stripe.list(&Query::Meters, None, PageLimit::MAX).await.unwrap().objects;
    let calls = meters.iter().map(|one| serde_json::from_str::<serde_json::Value>(one.get()).unwrap());
    let calls = calls.into_iter().find(|one| one["event_name"] == "calls").unwrap();
    counter.shop.stripe.forget_meter(calls["id"].as_str().unwrap());
    counter.accept(&[counter.item(5)]).await;
    counter.send_all().await;
    counter.shop.stripe.report_misread();
    counter.shop.deliver_all().await;
    let read = counter.shop.billing.read_usage_reports(&counter.stripe, 10).await.unwrap();
    assert_eq!((read.read, read.rejected), (1, 1));
    assert_eq!(counter.problems().await[0].2, "no_meter");
}

/// A dry run by nature: it reads both sides and changes neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_totals_of_a_day_are_compared_for_each_customer() {
    let counter = Counter::open().await;
    let globex = counter.shop.database.create_tenant("globex").await;
    let customer = counter.shop.billing.ensure_customer(&counter.stripe, &globex, &Default::default()).await.unwrap();
    counter.accept(&[counter.item(3), counter.item_of(&globex, &CALLS, 4, counter.now())]).await;
    counter.send_all().await;
    let day = counter.now().date_naive();
    let compare = async || {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let size = PageSize::new(1).unwrap();
            let billing = &counter.shop.billing;
            let page = billing.compare_usage(&counter.stripe, &OPERATOR, day, after, size).await.unwrap();
            found.extend(page.items);
            after = page.next;
            if after.is_none() {
                return found;
            }
        }
    };
    let totals = compare().await;
    assert_eq!(totals.len(), 2);
    assert!(totals.iter().all(saas_billing::usage::UsageTotal::agrees), "{totals:?}");
    let foreign = MeterReading {
        event_name: "calls".to_owned(),
        customer: customer.clone(),
        value: 90,
        at: counter.now(),
        identifier: "by-hand".to_owned(),
    };
    counter.stripe.execute(&Command::ReportUsage(foreign), &"by-hand".parse().unwrap()).await.unwrap();
    let wrong: Vec<_> = compare().await.into_iter().filter(|total| !total.agrees()).collect();
    assert_eq!(wrong.len(), 1);
    assert_eq!(
        (wrong[0].tenant, &wrong[0].customer, wrong[0].ours, wrong[0].theirs),
        (globex.tenant(), &customer, 4, Some(94))
    );
    // Of levels, the last of the day.
    let stored = MeterKey::from_static("stored");
    for level in [7, 9, 2] {
        counter.accept(&[counter.item_of(&counter.acme, &stored, level, counter.now())]).await;
        counter.send_all().await;
        counter.pass(TimeDelta::minutes(1));
    }
    let levels = compare().await.into_iter().find(|total| total.meter == "stored").unwrap();
    assert_eq!((levels.ours, levels.theirs), (2, Some(2)));
    counter.shop.stripe.inject([Fault::Unavailable; 3]);
    let failed = counter.shop.billing.compare_usage(&counter.stripe, &OPERATOR, day, None, all()).await;
    assert!(matches!(failed, Err(BillingError::Provider(why)) if why.is_retryable()));
}

/// A reconciliation compares what customers used on each day that is over, reports it beside the customer's other fields, and
/// repairs nothing of it; killed at any await it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_compares_what_customers_used_day_by_day() {
    let counter = Counter::open().await;
    let billing = &counter.shop.billing;
    let stored = MeterKey::from_static("stored");
    counter.pass(TimeDelta::hours(36) - TimeDelta::seconds(i64::from(counter.now().num_seconds_from_midnight())));
    let noon = counter.now();
    for day in 0..3 {
        counter.accept(&[counter.item(10 + day)]).await;
        for level in [5 + day, 3] {
            counter.accept(&[counter.item_of(&counter.acme, &stored, level, counter.now())]).await;
            counter.send_all().await;
            counter.pass(TimeDelta::minutes(1));
        }
        counter.pass(TimeDelta::days(1) - TimeDelta::minutes(2));
    }
    let reconcile = async || {
        let mut run = billing.start_reconcile(&OPERATOR, 100).await.unwrap();
        while run.finished_at.is_none() {
            run = billing.reconcile_step(&counter.stripe).await.unwrap().unwrap();
        }
        let report = billing.reconcile_report(&OPERATOR, run.id, None, all()).await.unwrap().items;
        (run, report)
    };
    let (run, report) = reconcile().await;
    assert_eq!((run.looked_at, run.drifted), (3, 0), "the customer, and two meters: {report:?}");

    // Somebody counts by hand on the second day and today, and takes something back of the third.
    let foreign = MeterReading {
        event_name: "calls".to_owned(),
        customer: counter.customer.clone(),
        value: 90,
        at: noon + TimeDelta::days(1),
        identifier: "by-hand".to_owned(),
    };
    counter.stripe.execute(&Command::ReportUsage(foreign), &"by-hand".parse().unwrap()).await.unwrap();
    let last = "select id from saas.billing_usage where meter = 'stored' order by at desc limit 1";
    let last: uuid::Uuid = sqlx::query_scalar(last).fetch_one(&mut *counter.shop.owner.lock().await).await.unwrap();
    let taken = Command::CancelReading { event_name: "stored".to_owned(), identifier: last.to_string() };
    counter.pass(-TimeDelta::hours(1));
    counter.stripe.execute(&taken, &"taken-back".parse().unwrap()).await.unwrap();
    let today = MeterReading {
        event_name: "calls".to_owned(),
        customer: counter.customer.clone(),
        value: 7,
        at: counter.now(),
        identifier: "today".to_owned(),
    };
    counter.stripe.execute(&Command::ReportUsage(today), &"today".parse().unwrap()).await.unwrap();
    let mut dropped = 0;
    let run = billing.start_reconcile(&OPERATOR, 100).await.unwrap();
    loop {
        match cut_after(dropped, billing.reconcile_step(&counter.stripe)).await {
            None => dropped += 1,
            Some(done) if done.as_ref().unwrap().as_ref().is_none_or(|run| run.finished_at.is_some()) => break,
            Some(_) => dropped = 0,
        }
    }
    let report = billing.reconcile_report(&OPERATOR, run.id, None, all()).await.unwrap().items;
    assert_eq!(report.len(), 1, "{report:?}");
    let (drift, day) = (&report[0], |days| (noon + TimeDelta::days(days)).date_naive());
    let field = |name: String| drift.fields.get(&name).map(|field| (field.ours.as_u64(), field.theirs.as_u64()));
    assert_eq!((&drift.object, drift.repaired), (&counter.customer, false));
    assert_eq!(field(format!("usage.calls.{}", day(1))), Some((Some(11), Some(101))));
    assert_eq!(field(format!("usage.stored.{}", day(2))), Some((Some(3), Some(7))));
    assert_eq!(drift.fields.len(), 2, "no day that is not over: {drift:?}");
    let (again, _) = reconcile().await;
    assert_eq!((again.looked_at, again.drifted, again.repaired), (3, 2, 0), "it was counted once each");
    counter.shop.stripe.delete_customer(&counter.customer);
    let (_, report) = reconcile().await;
    let fields: Vec<&str> = report.iter().flat_map(|drift| drift.fields.keys()).map(String::as_str).collect();
    assert_eq!(
        (report.len(), fields.len(), fields.contains(&"whole")),
        (1, 3, true),
        "beside its other fields: {fields:?}"
    );
}

/// A hundred in a call, over sessions that end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_takes_hundreds_in_a_few_calls_and_outlives_its_session() {
    let mut counter = Counter::open().await;
    counter.policy = counter.policy.clone().with_stream();
    for round in 1..=3 {
        let items: Vec<UsageItem> = (0..250).map(|_| counter.item(1)).collect();
        counter.accept(&items).await;
        let before = counter.shop.stripe.calls();
        assert_eq!(counter.send().await.sent, 250);
        assert!(counter.shop.stripe.calls() - before <= 6, "three batches, a session, and the one that had ended");
        assert_eq!(counter.calls().await, round * 250);
        // By Stripe's clock the session is over; by ours it is not.
        counter.pass(TimeDelta::minutes(20));
    }
    drop(counter.server);
}
