//! After an outage: events that were never delivered, and objects that no event tells of any more.

use std::sync::Arc;

use chrono::TimeDelta;
use saas_billing::{
    Accepted, BackFilled, Drift, ReconcileRun, WebhookAlarm,
    ledger::Account,
    object::{ObjectId, ObjectKind},
    stripe::StripeApi,
    testing::{Fault, NoteOutcome, SimulatorServer, cut_after},
};
use saas_core::{Clock as _, ErrorKind, PageSize, RequestContext};

use crate::{
    provider::adapter,
    shop::{OPERATOR, Shop, config, id, service},
};

/// A shop whose Stripe is reached over HTTP.
struct Line {
    shop: Shop,
    stripe: StripeApi,
    _server: SimulatorServer,
}

impl Line {
    async fn open() -> Self {
        let shop = Shop::open().await;
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let stripe = StripeApi::new(adapter(&server)).unwrap();
        Self { shop, stripe, _server: server }
    }

    async fn back_fill(&self) -> BackFilled {
        let since = self.shop.database.clock().now() - TimeDelta::days(1);
        let mut sum = BackFilled::default();
        loop {
            let page = self.shop.billing.back_fill(&self.stripe, &OPERATOR, since, sum.next.as_ref()).await.unwrap();
            (sum.listed, sum.stored, sum.next) = (sum.listed + page.listed, sum.stored + page.stored, page.next);
            if sum.next.is_none() {
                return sum;
            }
        }
    }

    /// A whole run.
    async fn reconcile(&self, repairs: u32) -> (ReconcileRun, Vec<Drift>) {
        let run = self.shop.billing.start_reconcile(&OPERATOR, repairs).await.unwrap();
        self.finish(run).await
    }

    /// A run over what was made within these hours.
    async fn reconcile_since(&self, hours: i64, repairs: u32) -> (ReconcileRun, Vec<Drift>) {
        let since = self.shop.stripe.now() - TimeDelta::hours(hours);
        let run = self.shop.billing.start_reconcile_since(&OPERATOR, repairs, since).await.unwrap();
        self.finish(run).await
    }

    async fn finish(&self, run: ReconcileRun) -> (ReconcileRun, Vec<Drift>) {
        let mut last = run;
        while last.finished_at.is_none() {
            last = self.shop.billing.reconcile_step(&self.stripe).await.unwrap().unwrap();
        }
        let report = self.report(&last).await;
        (last, report)
    }

    async fn report(&self, run: &ReconcileRun) -> Vec<Drift> {
        let size = PageSize::new(2).unwrap();
        let mut drifts: Vec<Drift> = Vec::new();
        loop {
            let after = drifts.last().map(|drift| drift.object.clone());
            let page = self.shop.billing.reconcile_report(&OPERATOR, run.id, after.as_ref(), size).await.unwrap();
            drifts.extend(page.items);
            if page.next.is_none() {
                return drifts;
            }
        }
    }

    async fn fetch_all(&self) {
        while self.shop.billing.fetch_pending(&self.stripe, 100).await.unwrap().done > 0 {}
    }

    async fn plan(&self, ctx: &RequestContext) -> Option<String> {
        self.shop.billing.derived(ctx).await.unwrap().plan.map(|plan| plan.to_string())
    }
}

// W20, W26
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_were_never_delivered_are_stored_from_stripes_list_and_applied_once() {
    let line = Line::open().await;
    let shop = &line.shop;
    let mut tenants = Vec::new();
    for n in 0..40 {
        tenants.push(shop.buyer(&format!("tenant-{n}")).await.0);
    }
    let lost = shop.stripe.deliveries();
    assert!(lost.len() > 100, "more than one page: {}", lost.len());
    let mut delivered = 0;
    for delivery in lost.iter().step_by(7) {
        delivered += usize::from(shop.receive(delivery).await == Accepted::Stored);
    }
    let filled = line.back_fill().await;
    assert_eq!(filled.listed, lost.len());
    assert_eq!(line.back_fill().await.stored, 0, "all are there");
    shop.apply().await;
    line.fetch_all().await;
    for ctx in &tenants {
        assert_eq!(line.plan(ctx).await.as_deref(), Some("pro@1"));
    }
    // The delivery that comes after all prints the event in other words, and is no contradiction.
    for delivery in &lost {
        assert_eq!(shop.receive(delivery).await, Accepted::Duplicate);
    }
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().conflicts, 0);
    let digest = shop.digest(&tenants[0]).await;
    shop.apply().await;
    assert_eq!(shop.digest(&tenants[0]).await, digest);
    let receipts = shop.scalar("select count(*) from saas.billing_receipt").await;
    assert_eq!(receipts, i64::try_from(lost.len()).unwrap(), "{delivered} delivered, {} filled in", filled.stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stripe_does_not_list_any_more_is_refused_with_the_remedy() {
    let line = Line::open().await;
    let since = line.shop.database.clock().now() - TimeDelta::days(31);
    let error = line.shop.billing.back_fill(&line.stripe, &OPERATOR, since, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("start_reconcile"), "{error}");
}

// W26, D9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_may_not_repair_reports_each_field_and_changes_nothing() {
    let line = Line::open().await;
    let (acme, purchase) = line.shop.buyer("acme").await;
    let (globex, _) = line.shop.buyer("globex").await;
    line.shop.deliver_all().await;
    line.fetch_all().await;
    let (run, drifts) = line.reconcile(0).await;
    assert_eq!(
        (run.looked_at, run.drifted, drifts.len()),
        (8, 0, 0),
        "two customers, subscriptions, invoices, charges: {drifts:?}"
    );
    // A change whose event is lost.
    line.shop.database.clock().advance(TimeDelta::days(40));
    line.shop.stripe.update_quantity(&purchase.subscription, 7);
    drop(line.shop.stripe.deliveries());
    let before = (line.shop.digest(&acme).await, line.shop.digest(&globex).await);
    let (run, drifts) = line.reconcile(0).await;
    assert_eq!((run.repaired, run.repairs), (0, 0));
    let subscription = drifts.iter().find(|drift| drift.object == purchase.subscription).unwrap();
    assert_eq!((subscription.kind, subscription.repaired), (ObjectKind::Subscription, false));
    let items = &subscription.fields["items"];
    assert_eq!((&items.ours[0]["quantity"], &items.theirs[0]["quantity"]), (&1.into(), &7.into()));
    assert!(!subscription.fields.contains_key("status"), "what is equal is not in the report");
    assert_eq!(line.shop.scalar("select count(*) from saas.billing_fetch where state = 'pending'").await, 0);
    assert_eq!((line.shop.digest(&acme).await, line.shop.digest(&globex).await), before);
}

// W20, W26: an event that is lost for good does not stay lost
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_mends_what_no_event_told_and_no_more_than_it_may() {
    let line = Line::open().await;
    let mut shops = Vec::new();
    for n in 0..6 {
        shops.push(line.shop.buyer(&format!("tenant-{n}")).await);
    }
    line.shop.deliver_all().await;
    line.fetch_all().await;
    line.shop.database.clock().advance(TimeDelta::hours(1));
    for (_, purchase) in &shops {
        line.shop.stripe.cancel(&purchase.subscription);
    }
    drop(line.shop.stripe.deliveries());
    let (run, drifts) = line.reconcile(2).await;
    assert!(run.drifted >= 6, "{run:?}");
    assert_eq!(run.repaired, 2);
    assert_eq!(drifts.iter().filter(|drift| drift.repaired).count(), 2);
    line.fetch_all().await;
    let (run, _) = line.reconcile(1_000).await;
    assert_eq!(run.drifted, run.repaired);
    line.fetch_all().await;
    let (run, drifts) = line.reconcile(0).await;
    assert_eq!((run.drifted, drifts), (0, Vec::new()));
    for (ctx, _) in &shops {
        assert_eq!(line.plan(ctx).await, None, "canceled");
    }
}

// What is stored and Stripe does not list, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_one_side_does_not_have_is_found() {
    let line = Line::open().await;
    let (acme, purchase) = line.shop.buyer("acme").await;
    line.shop.deliver_all().await;
    line.fetch_all().await;
    let stranger = line.shop.stripe.create_customer("stranger@example.com");
    // A subscription that Stripe never had, as after a restore of the wrong backup.
    let sql =
        "insert into saas.billing_object (tenant_id, livemode, object_id, kind, status, is_current, is_past, merged, updated_at)
               select tenant_id, livemode, 'sub_ghost', kind, status, is_current, is_past, merged, updated_at
               from saas.billing_object where kind = 'subscription'";
    sqlx::query(sql).execute(&mut *line.shop.owner.lock().await).await.unwrap();
    let gone = purchase.subscription.to_string();
    sqlx::query("delete from saas.billing_object where object_id = $1")
        .bind(&gone)
        .execute(&mut *line.shop.owner.lock().await)
        .await
        .unwrap();
    let (run, drifts) = line.reconcile(10).await;
    assert_eq!(run.unlinked, 1, "{stranger} is nobody's here");
    let whole = |object: &str| {
        let drift = drifts.iter().find(|drift| drift.object == id(object)).unwrap();
        (drift.fields["whole"].ours.clone(), drift.fields["whole"].theirs.clone())
    };
    assert_eq!(whole(&gone), ("missing".into(), "there".into()));
    assert_eq!(whole("sub_ghost"), ("there".into(), "missing".into()));
    line.fetch_all().await;
    let subscriptions = format!("{:?}", line.shop.billing.derived(&acme).await.unwrap());
    assert!(subscriptions.contains("pro"), "{subscriptions}");
}

// W20, W41: Stripe lists no customer that was deleted
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_no_event_told_of_is_found_once_and_is_no_difference_any_more() {
    let line = Line::open().await;
    let (acme, purchase) = line.shop.buyer("acme").await;
    line.shop.deliver_all().await;
    line.fetch_all().await;
    line.shop.database.clock().advance(TimeDelta::hours(1));
    line.shop.stripe.delete_customer(&purchase.customer);
    drop(line.shop.stripe.deliveries());
    let (run, drifts) = line.reconcile(10).await;
    assert_eq!((run.drifted, run.repaired), (2, 2), "the customer and its subscription: {drifts:?}");
    line.fetch_all().await;
    assert_eq!(line.plan(&acme).await, None);
    let (run, drifts) = line.reconcile(0).await;
    assert_eq!((run.drifted, drifts), (0, Vec::new()));
}

// W20: what happened to money is compared as well; a refund is its charge's, whose customer is the tenant's
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_a_refund_a_dispute_and_a_credit_note_that_no_event_told_of_are_booked() {
    let line = Line::open().await;
    let (acme, purchase) = line.shop.buyer("acme").await;
    let stripe = &line.shop.stripe;
    let refunded = stripe.charge_of(purchase.invoice.as_ref().unwrap()).unwrap();
    stripe.refund(&refunded, Some(300)).unwrap();
    stripe.credit_note(purchase.invoice.as_ref().unwrap(), 100, NoteOutcome::Refund).unwrap();
    stripe.dispute(&refunded).unwrap();
    let mut events = stripe.deliveries();
    let money = ["charge.", "refund.", "credit_note."];
    events.retain(|event| !money.iter().any(|prefix| event.event_type.starts_with(prefix)));
    line.shop.deliver(&events).await;
    line.fetch_all().await;
    for _ in 0..2 {
        let (_, _) = line.reconcile(100).await;
        line.fetch_all().await;
        line.shop.apply().await;
    }
    let (run, drifts) = line.reconcile(0).await;
    assert_eq!((run.drifted, run.unlinked, drifts), (0, 0, Vec::new()));
    let balances = line.shop.billing.balances(&acme, None).await.unwrap();
    let of = |account| balances.iter().find(|balance| balance.account == account).map_or(0, |one| one.amount.minor());
    assert_eq!([Account::Cash, Account::Refunds, Account::Disputes].map(of), [0, 300, 1_600]);
}

// Killed between any two pages, or half-way through one: the next caller goes on, and nothing is counted twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_where_it_stood_whoever_calls() {
    let line = Line::open().await;
    for n in 0..3 {
        let _ = line.shop.buyer(&format!("tenant-{n}")).await;
    }
    line.shop.deliver_all().await;
    line.fetch_all().await;
    let billing = &line.shop.billing;
    assert_eq!(billing.reconcile_step(&line.stripe).await.unwrap(), None, "nobody asked for a run");
    let run = billing.start_reconcile(&OPERATOR, 0).await.unwrap();
    assert_eq!(billing.start_reconcile(&OPERATOR, 9).await.unwrap(), run, "the open one");
    // Two workers get the same page, and one of them counts it.
    let (one, two) = tokio::join!(billing.reconcile_step(&line.stripe), billing.reconcile_step(&line.stripe));
    let reached = one.unwrap().unwrap().looked_at.max(two.unwrap().unwrap().looked_at);
    assert!(reached == 3 || reached == 6, "{reached}");
    // Stripe is away for a while.
    line.shop.stripe.inject([Fault::Unavailable; 3]);
    let error = billing.reconcile_step(&line.stripe).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // Dropped at each await in turn.
    let mut dropped = 0;
    loop {
        let step = billing.reconcile_step(&line.stripe);
        let Some(done) = cut_after(dropped, step).await else {
            dropped += 1;
            continue;
        };
        // `None`: a step that was dropped had finished the run.
        if done.unwrap().is_none_or(|run| run.finished_at.is_some()) {
            break;
        }
        dropped = 0;
    }
    let ended =
        "select looked_at from saas.billing_reconcile where finished_at is not null and list = 'usage' and drifted = 0";
    assert_eq!(line.shop.scalar(ended).await, 12, "each object once");
    assert_eq!(
        line.shop.scalar("select count(*) from saas.billing_reconcile_object").await,
        0,
        "what is equal is not kept"
    );
}

/// An invoice of the buyer's that is not paid, of which everything was heard.
async fn unpaid(line: &Line) -> (RequestContext, ObjectId, ObjectId) {
    let shop = &line.shop;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(32));
    shop.deliver_all().await;
    let subscription = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    (ctx, purchase.customer, id(subscription["latest_invoice"].as_str().unwrap()))
}

async fn open_balances(shop: &Shop, ctx: &RequestContext) -> Vec<(Account, i64)> {
    let all = shop.billing.balances(ctx, None).await.unwrap();
    all.iter().map(|balance| (balance.account, balance.amount.minor())).filter(|(_, minor)| *minor != 0).collect()
}

// Events do not say it; whatever comes after the read that does, keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_paid_by_other_means_is_booked_so_by_the_next_reconcile_and_stays_so() {
    let line = Line::open().await;
    let shop = &line.shop;
    let (ctx, customer, invoice) = unpaid(&line).await;
    shop.stripe.pay_invoice_elsewhere(&invoice).unwrap();
    let events = shop.stripe.deliveries();
    shop.deliver(&events).await;
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().unpaid_since, None);
    let told = open_balances(shop, &ctx).await;
    assert_eq!(told, [(Account::Cash, 2_000), (Account::Payments, 2_000), (Account::Revenue, -4_000)]);

    let (run, report) = line.reconcile_since(72, 0).await;
    assert_eq!(run.drifted, 1, "of what is new: {report:?}");
    let (run, report) = line.reconcile(10).await;
    assert_eq!(run.drifted, 1, "{report:?}");
    assert_eq!(report[0].fields.keys().collect::<Vec<_>>(), ["paid_elsewhere"]);
    line.fetch_all().await;
    let known = [(Account::Cash, 2_000), (Account::OutOfBand, 2_000), (Account::Revenue, -4_000)];
    assert_eq!(open_balances(shop, &ctx).await, known);
    assert_eq!(line.reconcile(10).await.0.drifted, 0);
    let line =
        Line { stripe: StripeApi::new(adapter(&line._server).with_version("2026-01-28.clover")).unwrap(), ..line };
    let shop = &line.shop;
    assert_eq!(line.reconcile(10).await.0.drifted, 0, "an API version that does not say it");

    shop.forget().await;
    shop.billing.link_customer(&ctx, &customer).await.unwrap();
    shop.deliver(&shop.stripe.all_events()).await;
    let line = Line { stripe: StripeApi::new(adapter(&line._server)).unwrap(), ..line };
    let shop = &line.shop;
    let _ = line.reconcile(10).await;
    line.fetch_all().await;
    shop.deliver(&shop.stripe.all_events()).await;
    assert_eq!(open_balances(shop, &ctx).await, known, "from the beginning, and told once more");
}

// W20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_that_was_deleted_unheard_is_deleted_by_the_next_reconcile() {
    let line = Line::open().await;
    let shop = &line.shop;
    let (_, purchase) = shop.buyer("acme").await;
    let subscription = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    let end = subscription["items"]["data"][0]["current_period_end"].as_i64().unwrap();
    shop.stripe.advance(TimeDelta::seconds(end - shop.stripe.now().timestamp()) + TimeDelta::minutes(5));
    shop.deliver_all().await;
    let subscription = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    let invoice = id(subscription["latest_invoice"].as_str().unwrap());
    shop.stripe.delete_draft(&invoice).unwrap();
    drop(shop.stripe.deliveries());
    let (run, report) = line.reconcile(10).await;
    assert_eq!(run.drifted, 1, "{report:?}");
    line.fetch_all().await;
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().dead_fetches, 0);
    assert_eq!(line.reconcile(10).await.0.drifted, 0);
}

// W20: hourly over what is new, daily over everything
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_over_what_is_new_lists_less_finds_what_was_lost_and_leaves_older_changes_to_a_whole_run() {
    let line = Line::open().await;
    let stripe = &line.shop.stripe;
    let (acme, renewed) = line.shop.buyer("acme").await;
    let (globex, cancelled) = line.shop.buyer("globex").await;
    for n in 0..220 {
        stripe.create_customer(&format!("stranger-{n}@example.com"));
    }
    line.shop.deliver_all().await;
    line.fetch_all().await;
    // Past the renewal, and the hour for which its invoices are drafts.
    stripe.advance(TimeDelta::days(31) + TimeDelta::hours(5));
    line.shop.deliver_all().await;
    line.fetch_all().await;
    let calls = async |whole: bool| {
        let before = stripe.calls();
        let (run, drifts) = if whole { line.reconcile(0).await } else { line.reconcile_since(1, 0).await };
        assert_eq!((run.drifted, drifts), (0, vec![]));
        (stripe.calls() - before, run.looked_at)
    };
    let (whole, all) = calls(true).await;
    let (delta, live) = calls(false).await;
    assert!(delta < whole && live < all, "{delta} calls of {whole}, {live} objects of {all}");
    assert_eq!(live, 2, "the subscriptions: nothing is new");

    // All of this is told by events that are lost.
    let old = stripe.charge_of(renewed.invoice.as_ref().unwrap()).unwrap();
    let refund = stripe.refund(&old, Some(300)).unwrap();
    stripe.cancel(&cancelled.subscription);
    drop(stripe.deliveries());
    let (run, drifts) = line.reconcile_since(1, 100).await;
    assert!(run.created_from.is_some());
    let of = |object: &saas_billing::ObjectId| drifts.iter().find(|drift| drift.object == *object);
    assert_eq!(of(&refund).unwrap().fields["whole"].ours, "missing");
    let ended = &of(&cancelled.subscription).unwrap().fields["status"];
    assert_eq!((&ended.ours, &ended.theirs), (&"active".into(), &"ended".into()));
    assert_eq!((drifts.len(), run.drifted, run.repaired), (2, 2, 2), "{drifts:?}");
    let health = line.shop.billing.webhook_health(&line.stripe, &OPERATOR).await.unwrap();
    let alarm = WebhookAlarm::Drift { run: run.id, objects: 2, repaired: 2 };
    assert!(health.alarms.contains(&alarm), "{health:?}");
    line.fetch_all().await;
    assert_eq!((line.plan(&acme).await.as_deref(), line.plan(&globex).await), (Some("pro@1"), None));
    // What becomes later of an object that is not new: the refund is sent back.
    stripe.advance(TimeDelta::hours(2));
    stripe.fail_refund(&refund).unwrap();
    drop(stripe.deliveries());
    assert_eq!(line.reconcile_since(1, 100).await.1, vec![]);
    let (_, drifts) = line.reconcile(100).await;
    assert!(drifts.iter().any(|drift| drift.object == refund), "{drifts:?}");
    line.fetch_all().await;
    line.shop.database.clock().advance(TimeDelta::hours(25));
    let health = line.shop.billing.webhook_health(&line.stripe, &OPERATOR).await.unwrap();
    assert!(!health.alarms.iter().any(|alarm| matches!(alarm, WebhookAlarm::Drift { .. })), "{health:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_over_what_is_new_finds_a_new_object_and_an_old_invoice_that_was_paid_and_goes_on_after_a_kill() {
    let line = Line::open().await;
    let stripe = &line.shop.stripe;
    let (_, bought) = line.shop.buyer("acme").await;
    let (_, behind) = line.shop.buyer("globex").await;
    line.shop.deliver_all().await;
    stripe.fail_next_payment(&behind.customer);
    stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    line.shop.deliver_all().await;
    line.fetch_all().await;
    let owed: saas_billing::ObjectId = {
        let subscription = stripe.object(ObjectKind::Subscription, &behind.subscription).unwrap();
        id(subscription["latest_invoice"].as_str().unwrap())
    };
    stripe.advance(TimeDelta::hours(3));
    line.shop.deliver_all().await;
    line.fetch_all().await;
    stripe.pay_invoice(&owed).unwrap();
    stripe.update_quantity(&bought.subscription, 7);
    drop(stripe.deliveries());

    let since = stripe.now() - TimeDelta::hours(1);
    let run = line.shop.billing.start_reconcile_since(&OPERATOR, 0, since).await.unwrap();
    let other = service(&line.shop.database, config(stripe));
    let mut dropped = 0;
    loop {
        let Some(done) = cut_after(dropped, other.reconcile_step(&line.stripe)).await else {
            dropped += 1;
            continue;
        };
        match done.unwrap() {
            Some(step) if step.finished_at.is_none() => assert_eq!(step.created_from, run.created_from),
            _ => break,
        }
        dropped = 0;
    }
    let drifts = line.report(&run).await;
    let of = |object: &saas_billing::ObjectId| drifts.iter().find(|drift| drift.object == *object).unwrap();
    assert_eq!(of(&owed).fields["status"].theirs, "not open");
    assert!(of(&bought.subscription).fields.contains_key("items"));
    let charge = stripe.charge_of(&owed).unwrap();
    assert_eq!(of(&charge).fields["whole"].ours, "missing");
    let counted = "select drifted from saas.billing_reconcile where finished_at is not null";
    assert_eq!(line.shop.scalar(counted).await, i64::try_from(drifts.len()).unwrap(), "each once: {drifts:?}");
}
