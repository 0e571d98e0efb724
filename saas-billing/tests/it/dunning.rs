//! Dunning: access and messages follow the policy, the set of open invoices and the clock, and nothing else.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use saas_billing::{
    Billing, BillingConfig,
    dunning::{DunningPolicy, DunningPolicyError, DunningStep, NewDunningException},
};
use saas_core::{
    Actor, Clock as _, ErrorKind, MessageKey, PageSize, PlanKey, SystemPool, TenantContext as _, UserId,
    db::pool_options,
    subscription::AccessLevel::{self, Full, Restricted, Suspended},
    testing::Proxy,
};

use crate::{
    desk::Desk,
    shop::{OPERATOR, Shop, config, service},
};

const DAY: TimeDelta = TimeDelta::days(1);

fn usual(config: BillingConfig) -> BillingConfig {
    config
}

// D2, D3, D6, and that quantities stay
#[tokio::test]
async fn the_policy_is_followed_from_the_first_failure_to_suspension_whatever_stripe_retries() {
    let desk = Desk::unpaid(usual).await;
    let mut seen = Vec::new();
    let mut sent = 0;
    for day in 0..=30 {
        desk.work().await;
        let (now, access) = (desk.sent(), desk.access().await);
        seen.extend(now[sent..].iter().map(|message| (day, message.clone(), access)));
        sent = now.len();
        desk.pass(DAY).await;
    }
    let expected = [
        (0, "payment-failed", Full),
        (5, "reminder", Full),
        (11, "last-days-of-full-access", Full),
        (14, "access-restricted", Restricted),
        (25, "last-days-of-access", Restricted),
        (28, "access-suspended", Suspended),
    ];
    // The next month's invoice is due on day 27 (28 days of February less an hour), and has a first message of its own.
    let about: Vec<(i32, String, AccessLevel)> =
        seen.into_iter().filter(|(day, message, _)| !(*day >= 27 && message == "payment-failed")).collect();
    assert_eq!(about, expected.map(|(day, message, access)| (day, message.to_owned(), access)));
    assert_eq!(desk.subscription()["items"]["data"][0]["quantity"], 5, "dunning never changes quantities");
    let changes = "select count(*) from saas.audit where action = 'billing.access_changed'";
    assert_eq!(desk.shop.scalar(changes).await, 2, "what time does is on record");
    assert_eq!(desk.shop.scalar("select mrr_minor from saas.tenant_overview").await, 0, "and so is the revenue");
}

// D6
#[tokio::test]
async fn access_moves_at_the_second_of_the_policy_without_event_worker_or_query() {
    let desk = Desk::unpaid(usual).await;
    let clock = desk.shop.database.clock();
    for (step, expected) in [
        (TimeDelta::days(14) - TimeDelta::seconds(1), Full),
        (TimeDelta::seconds(1), Restricted),
        (TimeDelta::days(14) - TimeDelta::seconds(1), Restricted),
        (TimeDelta::seconds(1), Suspended),
    ] {
        clock.advance(step);
        assert_eq!(desk.access().await, expected);
    }
}

// D1, D12
#[tokio::test]
async fn paying_where_the_link_leads_gives_access_back_and_is_thanked_for_once() {
    let desk = Desk::unpaid(usual).await;
    desk.work().await;
    desk.pass(TimeDelta::days(15)).await;
    assert_eq!(desk.access().await, Restricted);
    let invoice = desk.latest_invoice();
    let mails = desk.mailbox.messages();
    let link = format!("{}/invoice/{invoice}", desk.server.address().as_str().trim_end_matches('/'));
    assert!(mails.iter().all(|mail| mail.text().ends_with(&link)), "{:?}", mails[0].text());
    assert_eq!(desk.sent(), ["payment-failed", "access-restricted"], "of what passed unseen only the last is said");

    desk.shop.stripe.advance(TimeDelta::minutes(1));
    desk.shop.stripe.pay(&desk.purchase.customer);
    let told = desk.shop.stripe.deliveries();
    desk.shop.deliver(&told).await;
    assert_eq!(desk.access().await, Full);
    desk.work().await;
    assert_eq!(desk.sent().last().map(String::as_str), Some("payment-received"));
    assert!(desk.is_over().await);
    // The history comes again, and late.
    desk.shop.stripe.advance(TimeDelta::days(3));
    for delivery in desk.shop.stripe.all_events().iter().rev() {
        let twin = String::from_utf8(delivery.body.clone()).unwrap();
        let twin = twin.replace(&delivery.event, &format!("{}_twin", delivery.event));
        let _ = desk.shop.receive_body(twin.as_bytes()).await;
    }
    desk.shop.apply().await;
    desk.work().await;
    assert_eq!((desk.sent().len(), desk.access().await), (3, Full));
    assert!(desk.is_over().await);
}

// D1
#[tokio::test]
async fn who_has_paid_before_the_worker_came_hears_nothing() {
    let desk = Desk::unpaid(usual).await;
    assert_eq!(desk.waiting().await, 1);
    desk.shop.stripe.advance(TimeDelta::minutes(1));
    desk.shop.stripe.pay(&desk.purchase.customer);
    desk.shop.deliver_all().await;
    assert_eq!(desk.waiting().await, 0, "the job went with its reason");
    desk.work().await;
    assert_eq!(desk.sent(), Vec::<String>::new());
    assert!(desk.is_over().await);
}

// D1, W20
#[tokio::test]
async fn nobody_is_dunned_for_an_invoice_that_stripe_says_is_paid_though_no_event_told() {
    let desk = Desk::unpaid(usual).await;
    desk.shop.stripe.advance(TimeDelta::minutes(1));
    desk.shop.stripe.pay(&desk.purchase.customer);
    drop(desk.shop.stripe.deliveries());
    desk.work().await;
    assert_eq!(desk.sent(), Vec::<String>::new());
    while desk.shop.billing.fetch_pending(desk.stripe.as_ref(), 10).await.unwrap().done > 0 {}
    let owed = desk.shop.billing.derived(&desk.ctx).await.unwrap().debts;
    assert!(owed.is_empty(), "the doubt had it read: {owed:?}");
}

// D7
#[tokio::test]
async fn of_two_unpaid_invoices_one_paid_leaves_the_other_with_its_own_clock() {
    for older_first in [true, false] {
        let desk = Desk::unpaid(usual).await;
        let (older, first_failed) = (desk.latest_invoice(), desk.shop.database.clock().now());
        desk.work().await;
        desk.pass(TimeDelta::days(28)).await;
        let newer = desk.latest_invoice();
        assert_ne!(older, newer);
        let owed = desk.shop.billing.derived(&desk.ctx).await.unwrap();
        assert_eq!((owed.debts.len(), owed.unpaid_since), (2, Some(first_failed)));
        assert_eq!(desk.access().await, Suspended);

        let (paid, left) = if older_first { (&older, &newer) } else { (&newer, &older) };
        desk.shop.stripe.pay_invoice(paid).unwrap();
        desk.shop.deliver_all().await;
        desk.work().await;
        let owed = desk.shop.billing.derived(&desk.ctx).await.unwrap();
        assert_eq!(owed.debts.keys().collect::<Vec<_>>(), [left]);
        assert_eq!(owed.unpaid_since, Some(owed.debts[left].since));
        assert_eq!(desk.access().await, if older_first { Full } else { Suspended });
        assert_eq!(desk.sent().iter().filter(|message| *message == "payment-received").count(), 1);
        assert!(desk.mailbox.messages().iter().any(|mail| mail.text().contains("1 open")), "one is left");

        desk.shop.stripe.pay_invoice(left).unwrap();
        desk.shop.deliver_all().await;
        desk.work().await;
        assert_eq!(desk.access().await, Full);
        assert!(desk.is_over().await);
    }
}

// D12
#[tokio::test]
async fn void_write_off_and_the_end_of_the_subscription_stop_the_messages() {
    for end in ["void", "uncollectible", "cancelled"] {
        let desk = Desk::unpaid(usual).await;
        desk.work().await;
        assert_eq!(desk.sent(), ["payment-failed"], "{end}");
        match end {
            "cancelled" => desk.shop.stripe.cancel(&desk.purchase.subscription),
            end => desk.shop.stripe.close_invoice(&desk.latest_invoice(), end == "uncollectible"),
        }
        desk.shop.deliver_all().await;
        assert!(desk.shop.billing.derived(&desk.ctx).await.unwrap().debts.is_empty(), "{end}");
        for _ in 0..26 {
            desk.shop.database.clock().advance(DAY);
            desk.work().await;
        }
        assert_eq!(desk.sent(), ["payment-failed"], "nobody has paid, so nobody is thanked: {end}");
        if end == "cancelled" {
            assert!(desk.is_over().await);
            assert_eq!(desk.access().await, Full, "of the default plan");
        } else {
            // Access goes by what Stripe calls the subscription: writing off alone pays nothing.
            assert_eq!((desk.subscription()["status"].as_str(), desk.access().await), (Some("past_due"), Restricted));
        }
    }
}

// f-B18
#[tokio::test]
async fn a_payment_that_the_bank_wants_confirmed_sends_the_link_at_once_and_is_no_decline() {
    let desk = Desk::open(usual).await;
    desk.shop.stripe.want_confirmation(&desk.purchase.customer);
    desk.to_renewal();
    desk.shop.deliver_all().await;
    let asked_at = desk.shop.database.clock().now();
    desk.work().await;
    assert_eq!(desk.sent(), ["confirm-payment"], "and not that a payment failed");
    let owed = desk.shop.billing.derived(&desk.ctx).await.unwrap();
    assert_eq!(owed.unpaid_since, Some(asked_at + TimeDelta::days(3)), "there are three days to confirm");
    let failed = desk.shop.billing.dunning_recovery(&OPERATOR, asked_at - DAY, asked_at + DAY).await.unwrap();
    assert_eq!(failed, [], "nor a failure in the numbers");
    let report = desk.shop.billing.explain_dunning(desk.stripe.as_ref(), &desk.ctx).await.unwrap().to_string();
    assert!(report.contains("waits to be confirmed by the buyer"), "{report}");
    // Stripe tries again, and the bank asks again: that is not said twice, and after three days the clock runs.
    for _ in 0..3 {
        desk.pass(DAY).await;
    }
    assert_eq!(desk.sent(), ["confirm-payment", "payment-failed"]);
    desk.pass(TimeDelta::days(14)).await;
    assert_eq!(desk.access().await, Restricted);
    desk.shop.stripe.advance(TimeDelta::minutes(1));
    desk.shop.stripe.pay(&desk.purchase.customer);
    desk.pass(TimeDelta::zero()).await;
    assert_eq!((desk.access().await, desk.is_over().await), (Full, true));
    assert_eq!(desk.sent().last().map(String::as_str), Some("payment-received"));
}

// W1, W9
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn doubled_webhooks_and_workers_at_once_send_each_message_once() {
    let desk = Desk::unpaid(usual).await;
    for delivery in desk.shop.stripe.all_events() {
        let twin = String::from_utf8(delivery.body.clone()).unwrap();
        let twin = twin.replace(&delivery.event, &format!("{}_twin", delivery.event));
        let _ = desk.shop.receive_body(twin.as_bytes()).await;
        let _ = desk.shop.receive(&delivery).await;
    }
    desk.shop.apply().await;
    // As if the lease had ended under a worker that goes on all the same: the job runs many times at once.
    let again = "insert into saas.outbox (tenant_id, id, topic, payload, due_at, created_at)
        select tenant_id, gen_random_uuid(), topic, payload, due_at, created_at
        from saas.outbox, generate_series(1, 7) where topic = 'billing.dunning'";
    sqlx::raw_sql(again).execute(&mut *desk.shop.owner.lock().await).await.unwrap();
    join_all((0..4).map(|_| desk.work())).await;
    assert_eq!(desk.sent(), ["payment-failed"]);
    assert_eq!(desk.shop.scalar("select count(*) from saas.dunning_message").await, 1);
    assert_eq!(desk.shop.scalar("select count(*) from saas.outbox where topic = 'mail'").await, 1);
}

// W3, W35
#[tokio::test]
async fn a_worker_cut_at_every_answer_between_merge_and_letter_sends_it_once() {
    let desk = Desk::unpaid(usual).await;
    let proxy = Proxy::start(desk.shop.database.address()).unwrap();
    let mut cuts = 0;
    loop {
        // Back to the moment after the merge.
        let back = "delete from saas.dunning_message; delete from saas.outbox where topic = 'mail';
            delete from saas.outbox where topic = 'billing.dunning'; delete from saas.dunning; delete from saas.dunning_invoice;";
        sqlx::raw_sql(back).execute(&mut *desk.shop.owner.lock().await).await.unwrap();
        desk.shop.billing.rederive(&desk.ctx).await.unwrap();
        assert_eq!(desk.waiting().await, 1);
        let address = proxy.address();
        let options = desk.shop.database.options("saas_system").host(&address.ip().to_string()).port(address.port());
        let options = options.application_name("cut");
        let pool = pool_options().max_connections(1).acquire_timeout(std::time::Duration::from_secs(5));
        let schemas = [&saas_core::SCHEMA, &saas_billing::SCHEMA];
        let system = SystemPool::open(pool.connect_lazy_with(options), &schemas).await.unwrap();
        let tenants = Arc::new(desk.shop.database.tenants().clone());
        let clock = Arc::new(desk.shop.database.clock().clone());
        let billing = Billing::new(config(&desk.shop.stripe), tenants, system.clone(), clock);
        let before = proxy.flights();
        proxy.cut_instead_of_answer(cuts);
        let outcome = desk.worker_of(&billing, system).run_once().await;
        let finished = outcome.is_ok_and(|pass| pass.done == 1) && proxy.flights() - before <= cuts;
        drop(billing);
        // Until the server has seen that nobody is there any more, the job is that connection's.
        let there =
            "select count(*) from pg_stat_activity where application_name = 'cut' and datname = current_database()";
        while desk.shop.scalar(there).await > 0 {}
        desk.shop.database.clock().advance(TimeDelta::seconds(61));
        desk.work().await;
        let sent = desk.shop.scalar("select count(*) from saas.outbox where topic = 'mail' and state = 'done'").await;
        assert_eq!(sent, 1, "after a cut in place of answer {cuts}");
        assert_eq!(desk.waiting().await, 1, "the next step waits, after a cut in place of answer {cuts}");
        if finished {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 20, "only {cuts} answers were cut: the proxy is not in the way");
}

fn step(days: u32, message: &'static str) -> DunningStep {
    DunningStep::after_days(days).with_message(MessageKey::from_static(message))
}

/// `payment-failed` at once, `reminder` later, the end after 20 days.
fn reminding(days: u32) -> DunningPolicy {
    let end = DunningStep::after_days(20).with_access(Suspended);
    DunningPolicy::new(vec![step(0, "payment-failed"), step(days, "reminder"), end]).unwrap()
}

async fn next_at(shop: &Shop) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
    let sql = "select d.next_at, o.due_at from saas.dunning d join saas.outbox o on o.id = d.job";
    sqlx::query_as(sql).fetch_all(&mut *shop.owner.lock().await).await.unwrap()
}

#[tokio::test]
async fn another_policy_puts_what_is_not_sent_to_its_new_time_and_sends_nothing_twice() {
    let desk = Desk::unpaid(|config| config.with_dunning(reminding(6))).await;
    let failed = desk.shop.database.clock().now();
    desk.work().await;
    assert_eq!(next_at(&desk.shop).await, [(failed + DAY * 6, failed + DAY * 6)]);
    for (days, sent) in [(9, 1), (3, 1), (1, 2)] {
        let billing = service(&desk.shop.database, config(&desk.shop.stripe).with_dunning(reminding(days)));
        let page = billing.rederive_all(&OPERATOR, None, PageSize::default()).await.unwrap();
        assert_eq!((page.tenants, page.changed), (1, 0), "access is what it was");
        let due = failed + DAY * i32::try_from(days).unwrap();
        assert_eq!(next_at(&desk.shop).await, [(due, due)]);
        desk.shop.database.clock().advance(if days == 3 { DAY } else { TimeDelta::zero() });
        let worker = desk.worker_of(&billing, desk.shop.database.system().clone());
        while !worker.run_once().await.unwrap().is_idle() {}
        assert_eq!(desk.sent().len(), sent, "{days} days");
    }
    let billing = service(&desk.shop.database, config(&desk.shop.stripe).with_dunning(reminding(4)));
    billing.rederive_all(&OPERATOR, None, PageSize::default()).await.unwrap();
    desk.shop.database.clock().advance(DAY * 4);
    let worker = desk.worker_of(&billing, desk.shop.database.system().clone());
    while !worker.run_once().await.unwrap().is_idle() {}
    assert_eq!(desk.sent(), ["payment-failed", "reminder"], "it was sent before it was moved");
}

// f-B5
#[tokio::test]
async fn a_plan_has_its_own_policy_and_a_plan_that_is_not_sold_is_refused() {
    let strict = DunningPolicy::without_messages(2, 2).unwrap();
    let plan = |name: &'static str| PlanKey::from_static(name);
    let desk = Desk::unpaid(|config| config.with_dunning_of(plan("pro"), strict.clone()).unwrap()).await;
    desk.pass(TimeDelta::days(2)).await;
    assert_eq!((desk.access().await, desk.sent().len()), (Restricted, 0));
    let refused = config(&desk.shop.stripe).with_dunning_of(plan("prro"), strict).unwrap_err();
    assert_eq!(refused, DunningPolicyError::UnknownPlan { plan: plan("prro") });
    let team = config(&desk.shop.stripe).with_dunning_of(plan("team"), DunningPolicy::without_messages(2, 2).unwrap());
    assert_eq!(
        access_by(&desk, &service(&desk.shop.database, team.unwrap())).await,
        Full,
        "the policy of another plan"
    );
}

async fn access_by(desk: &Desk, billing: &Billing) -> AccessLevel {
    use saas_core::subscription::PlanSource as _;
    let now = desk.shop.database.clock().now();
    billing.plan_of(&desk.ctx, now).await.unwrap().standing.access(now)
}

// D13
#[tokio::test]
async fn an_exception_outlasts_events_ends_by_itself_and_is_on_record_with_author_and_reason() {
    let desk = Desk::unpaid(usual).await;
    let clock = desk.shop.database.clock();
    let operator = Actor::user(UserId::mint_at(clock.now()));
    let tenant = desk.ctx.tenant();
    desk.work().await;
    desk.pass(TimeDelta::days(15)).await;
    assert_eq!(desk.access().await, Restricted);
    let revision = desk.shop.scalar("select revision from saas.tenant").await;
    let lenient = DunningPolicy::without_messages(60, 10).unwrap();
    let until = clock.now() + DAY * 10;
    let new = NewDunningException::new(lenient.clone(), "their bank is down", until).unwrap();
    let put = desk.shop.billing.put_dunning_exception(tenant, new, &operator).await.unwrap();
    assert_eq!((put.author.as_str(), put.expires_at), (operator.to_string().as_str(), until));
    assert_eq!(desk.access().await, Full);
    assert!(desk.shop.scalar("select revision from saas.tenant").await > revision, "the gate hears of it");
    // Three events of the kind that overwrites what people set by hand.
    for quantity in 6..9 {
        desk.shop.stripe.update_quantity(&desk.purchase.subscription, quantity);
        desk.shop.deliver_all().await;
        assert_eq!(desk.access().await, Full);
    }
    let report = desk.shop.billing.explain_dunning(desk.stripe.as_ref(), &desk.ctx).await.unwrap();
    assert!(report.to_string().contains("their bank is down"), "{report}");
    clock.set(until - TimeDelta::seconds(1));
    assert_eq!(desk.access().await, Full);
    clock.advance(TimeDelta::seconds(1));
    assert_eq!(desk.access().await, Restricted, "the plan's policy has restricted it for long");
    desk.work().await;
    assert_eq!(desk.sent().iter().filter(|message| *message == "access-restricted").count(), 1, "it was said before");

    assert!(desk.shop.billing.remove_dunning_exception(tenant, &operator).await.unwrap());
    assert!(!desk.shop.billing.remove_dunning_exception(tenant, &operator).await.unwrap());
    let by_hand = "select count(distinct action) from saas.audit
        where actor like 'user:%' and action in ('billing.dunning_exception_put', 'billing.dunning_exception_removed')";
    assert_eq!(desk.shop.scalar(by_hand).await, 2);
    let over = NewDunningException::new(lenient.clone(), "too late", clock.now()).unwrap();
    let refused = desk.shop.billing.put_dunning_exception(tenant, over, &operator).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(NewDunningException::new(lenient, " ", until).is_err(), "no exception without a reason");
}

// f-E14: which invoice, since when, what was said, what comes next and when, and where to pay.
#[tokio::test]
async fn a_debt_is_explained_to_its_tenant_and_to_operators_and_to_nobody_else() {
    let desk = Desk::unpaid(usual).await;
    let other = desk.shop.database.create_tenant("other").await;
    desk.work().await;
    let invoice = desk.latest_invoice();
    let report = desk.shop.billing.explain_dunning(desk.stripe.as_ref(), &desk.ctx).await.unwrap();
    let address = desk.server.address().as_str().trim_end_matches('/').to_owned();
    assert_eq!(
        report.to_string(),
        format!(
            "{invoice} over 100.00 EUR is unpaid since 2026-02-15 13:00 UTC, `payment-failed` was sent on \
             2026-02-15 13:00 UTC, next `reminder` on 2026-02-20 13:00 UTC, to be paid at {address}/invoice/{invoice}; \
             access is full, from 2026-03-01 13:00 UTC restricted"
        )
    );
    let others = desk.shop.billing.explain_dunning(desk.stripe.as_ref(), &other).await.unwrap();
    assert_eq!(others.to_string(), "nothing is owed; access is full");

    let page = desk.shop.billing.list_dunning(&OPERATOR, None, PageSize::default()).await.unwrap();
    let [one] = &page.items[..] else { panic!("{page:?}") };
    assert_eq!((one.tenant, one.report.unpaid_since), (desk.ctx.tenant(), report.unpaid_since));
    assert_eq!(one.owed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["100.00 EUR"]);
    let next = one.report.next_message().map(|(at, message)| (at.to_string(), message.as_str().to_owned()));
    assert_eq!(next, Some(("2026-02-20 13:00:00 UTC".to_owned(), "reminder".to_owned())));
    let owed = desk.shop.billing.dunning_outstanding(&OPERATOR).await.unwrap();
    assert_eq!((owed[0].amount.minor(), owed[0].tenants, owed[0].invoices, owed.len()), (10_000, 1, 1, 1));

    // Stripe's silence leaves the link out, and the message for later.
    desk.shop.stripe.set_reachable(&invoice, false);
    let report = desk.shop.billing.explain_dunning(desk.stripe.as_ref(), &desk.ctx).await.unwrap();
    assert_eq!(report.invoices[0].pay_link, None);
    desk.shop.database.clock().advance(DAY * 5);
    desk.work().await;
    assert_eq!(desk.sent(), ["payment-failed"]);
    let report = desk.shop.billing.explain_dunning(desk.stripe.as_ref(), &desk.ctx).await.unwrap();
    assert!(report.to_string().contains("`reminder` is being sent"), "{report}");
    desk.shop.stripe.set_reachable(&invoice, true);
    desk.shop.database.clock().advance(TimeDelta::minutes(5));
    desk.work().await;
    assert_eq!(desk.sent(), ["payment-failed", "reminder"]);
}

/// Every order of `0..n`.
fn orders(n: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for next in 0..n {
        let longer = |order: &Vec<usize>| {
            (0..=next).map(|place| [&order[..place], &[next], &order[place..]].concat()).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    orders
}

// D1, D2, W5, W6: the permutation law, with letters.
#[tokio::test]
async fn all_orders_of_a_failure_and_its_payment_end_in_one_state_and_the_same_letters() {
    for paid in [false, true] {
        let desk = Desk::open(usual).await;
        desk.shop.stripe.fail_next_payment(&desk.purchase.customer);
        desk.to_renewal();
        desk.shop.stripe.advance(TimeDelta::days(4));
        if paid {
            desk.shop.stripe.advance(TimeDelta::minutes(1));
            desk.shop.stripe.pay(&desk.purchase.customer);
        }
        let mut events = desk.shop.stripe.deliveries();
        let told = ["invoice.payment_failed", "customer.subscription.updated", "invoice.paid"];
        events.retain(|event| told.contains(&event.event_type.as_str()));
        // Without the renewal itself.
        events.remove(0);
        assert_eq!(events.len(), if paid { 5 } else { 3 }, "{events:?}");
        let mut digests = BTreeSet::new();
        for order in orders(events.len()) {
            desk.shop.forget().await;
            desk.shop.billing.link_customer(&desk.ctx, &desk.purchase.customer).await.unwrap();
            for index in order {
                let _ = desk.shop.receive(&events[index]).await;
                desk.shop.apply().await;
            }
            let before = desk.mailbox.messages().len();
            desk.work().await;
            let sent = desk.sent()[before..].join(" ");
            digests.insert(format!("{sent}\n{}", desk.shop.digest(&desk.ctx).await));
        }
        assert_eq!(digests.len(), 1, "{digests:#?}");
        let expected = if paid { "\n" } else { "payment-failed\n" };
        assert!(digests.first().unwrap().starts_with(expected), "{digests:#?}");
    }
}

#[tokio::test]
async fn a_letter_that_cannot_be_written_is_a_dead_letter_at_worst_and_the_next_step_comes() {
    let desk = Desk::unpaid(usual).await;
    desk.shop.stripe.set_reachable(&desk.latest_invoice(), false);
    // Tried until it is given up, over less than the five days to the next message.
    for _ in 0..40 {
        desk.work().await;
        desk.shop.database.clock().advance(TimeDelta::hours(2));
    }
    let dead = "select count(*) from saas.outbox where topic = 'billing.dunning' and state = 'dead'";
    assert_eq!((desk.shop.scalar(dead).await, desk.waiting().await), (1, 1));
    desk.shop.stripe.set_reachable(&desk.latest_invoice(), true);
    desk.shop.database.clock().advance(TimeDelta::days(3));
    desk.work().await;
    assert_eq!(desk.sent(), ["reminder"]);
}
