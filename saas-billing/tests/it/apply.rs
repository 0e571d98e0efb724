//! Applying: parked until linked, effects once, poison aside, replay without harm.

use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::future::join_all;
use saas_billing::{
    BillingConfig, BillingError, Mode, ObjectId, SigningSecrets, Stuck,
    derive::Alert,
    object::Interval,
    testing::{Chaos, CheckoutRequest, Delivery},
};
use saas_core::{ErrorKind, PageSize, PlanCatalog, TenantContext, Topic};
use serde_json::Value;

use crate::shop::{CATALOG, OPERATOR, Shop, id, service};

async fn stuck(shop: &Shop, stuck: Stuck) -> Vec<saas_billing::Receipt> {
    shop.billing.list_stuck(&OPERATOR, stuck, None, PageSize::default()).await.unwrap().items
}

// W8
#[tokio::test]
async fn what_comes_before_its_customer_is_linked_waits_and_is_applied_then() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    let (checkout, rest): (Vec<Delivery>, Vec<Delivery>) =
        shop.stripe.deliveries().into_iter().partition(|delivery| delivery.event_type.starts_with("checkout."));
    assert_eq!(shop.deliver(&rest).await.parked, rest.len());
    let parked = stuck(&shop, Stuck::Parked).await;
    assert!(parked.iter().all(|receipt| receipt.waits_for.as_deref() == Some(purchase.customer.as_str())));
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().plan, None);

    let applied = shop.deliver(&checkout).await;
    assert_eq!(applied.applied, 1 + rest.len());
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().plan.unwrap().to_string(), "pro@1");
}

// W8
#[tokio::test]
async fn nobody_links_a_customer_for_a_month() {
    let shop = Shop::open().await;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver_all().await;
    let waiting = stuck(&shop, Stuck::Parked).await.len();
    shop.database.clock().advance(TimeDelta::days(30));
    assert_eq!(shop.billing.expire_parked().await.unwrap(), 0);
    shop.database.clock().advance(TimeDelta::seconds(1));
    assert_eq!(shop.billing.expire_parked().await.unwrap(), u64::try_from(waiting).unwrap());
    // Too late is not never: link it, replay, and all is as it should be.
    let ctx = shop.database.create_tenant("acme").await;
    shop.billing.link_customer(&ctx, &purchase.customer).await.unwrap();
    assert_eq!(shop.billing.replay_all(&OPERATOR).await.unwrap(), u64::try_from(waiting).unwrap());
    shop.apply().await;
    assert!(shop.billing.derived(&ctx).await.unwrap().plan.is_some());
}

// W8
#[tokio::test(flavor = "multi_thread")]
async fn parking_and_linking_at_the_same_moment_do_not_miss_each_other() {
    for round in 0..20 {
        let shop = Shop::open().await;
        let (ctx, _) = shop.buyer("acme").await;
        for delivery in shop.stripe.deliveries_through(Chaos::shuffled(round)) {
            let _ = shop.receive(&delivery).await;
        }
        join_all((0..8).map(|_| shop.billing.apply_pending(1)))
            .await
            .into_iter()
            .for_each(|step| assert!(step.is_ok()));
        settle(&shop).await;
        assert_eq!(stuck(&shop, Stuck::Parked).await, [], "round {round}");
        assert!(shop.billing.derived(&ctx).await.unwrap().plan.is_some(), "round {round}");
    }
}

/// Applies until nothing is left that could still come.
async fn settle(shop: &Shop) {
    for _ in 0..12 {
        shop.apply().await;
        shop.database.clock().advance(TimeDelta::minutes(10));
    }
}

// W9
#[tokio::test]
async fn two_event_ids_for_one_change_have_one_effect() {
    let topic: Topic = "billing".parse().unwrap();
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_notices(topic)).await;
    let (_, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(32));
    let deliveries = shop.stripe.deliveries();
    shop.deliver(&deliveries).await;
    let jobs = "select count(*) from saas.outbox where topic = 'billing'";
    let before = shop.scalar(jobs).await;
    assert_eq!(before, 5, "checkout completed, subscription started, payment received, invoice paid, payment failed");
    for delivery in &deliveries {
        let twin = String::from_utf8(delivery.body.clone())
            .unwrap()
            .replace(&delivery.event, &format!("{}_twin", delivery.event));
        assert_eq!(shop.receive_body(twin.as_bytes()).await, saas_billing::Accepted::Stored);
    }
    let twins = shop.apply().await;
    assert_eq!(twins.applied, deliveries.len());
    assert_eq!(shop.scalar(jobs).await, before);
}

// W23, W33
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_poison_event_among_a_thousand_stops_nobody_and_can_be_replayed() {
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_attempts(3)).await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let poison = shop.stripe.create_customer("poison@example.com");
    shop.billing.link_customer(&ctx, &poison).await.unwrap();
    for n in 0..999 {
        shop.database.clock().advance(TimeDelta::milliseconds(100));
        shop.stripe.update_quantity(&purchase.subscription, n + 2);
    }
    // The poison works below us: the database refuses this one object.
    let poison_trigger = format!(
        "create function public.poison() returns trigger language plpgsql as $$
         begin
             if new.object_id = '{poison}' then raise exception 'poison'; end if;
             return new;
         end $$;
         create trigger poison before insert on saas.billing_object for each row execute function public.poison();"
    );
    // Around an id that the simulator made.
    let poison_trigger = sqlx::AssertSqlSafe(poison_trigger);
    sqlx::raw_sql(poison_trigger).execute(&mut *shop.owner.lock().await).await.unwrap();

    let deliveries = shop.stripe.deliveries_through(Chaos::shuffled(7).duplicating(5));
    for delivery in &deliveries {
        let _ = shop.receive(delivery).await;
    }
    let shop = Arc::new(shop);
    for _ in 0..5 {
        let workers = (0..8).map(|_| {
            let shop = Arc::clone(&shop);
            tokio::spawn(async move { while shop.billing.apply_pending(25).await.unwrap().total() > 0 {} })
        });
        join_all(workers).await.into_iter().for_each(|worker| worker.unwrap());
        shop.database.clock().advance(TimeDelta::minutes(2));
    }
    let health = shop.billing.inbox_health(&OPERATOR).await.unwrap();
    assert_eq!((health.pending, health.dead), (0, 1));
    assert_eq!(health.applied, shop_events(&shop).await - 1);
    let dead = stuck(&shop, Stuck::Dead).await.remove(0);
    assert_eq!((dead.attempts, dead.reason.starts_with("statement: ")), (3, true), "{}", dead.reason);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(1000));

    sqlx::raw_sql("drop trigger poison on saas.billing_object").execute(&mut *shop.owner.lock().await).await.unwrap();
    shop.billing.replay(&OPERATOR, &id(&dead.event_id)).await.unwrap();
    assert_eq!(shop.apply().await.applied, 1);
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().dead, 0);
}

async fn shop_events(shop: &Shop) -> u64 {
    u64::try_from(shop.scalar("select count(*) from saas.billing_receipt").await).unwrap()
}

/// Waits until a worker waits for a lock.
async fn blocked(shop: &Shop) {
    let waiting = "select count(*) from pg_stat_activity where usename = 'saas_system' and wait_event_type = 'Lock'
                   and datname = current_database()";
    while shop.scalar(waiting).await == 0 {
        tokio::task::yield_now().await;
    }
}

// W23
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_does_not_spend_the_tries_of_what_it_never_touched() {
    let shop = Arc::new(Shop::open_with(|stripe| stripe, |config| config.with_attempts(3)).await);
    let (_, _) = shop.buyer("acme").await;
    let deliveries = shop.stripe.deliveries();
    for delivery in &deliveries {
        let _ = shop.receive(delivery).await;
    }
    let mut blocker = shop.database.owner().await;
    for _ in 0..8 {
        sqlx::raw_sql("begin; lock table saas.billing_directory in access exclusive mode")
            .execute(&mut blocker)
            .await
            .unwrap();
        let billing = shop.billing.clone();
        let worker = tokio::spawn(async move { billing.apply_pending(50).await });
        blocked(&shop).await;
        worker.abort();
        assert!(worker.await.unwrap_err().is_cancelled());
        sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
        shop.database.clock().advance(TimeDelta::seconds(61));
    }
    shop.apply().await;
    let health = shop.billing.inbox_health(&OPERATOR).await.unwrap();
    assert!(health.dead <= 2, "only what a worker died of is given up, after three tries each: {health:?}");
    assert_eq!(health.pending, 0);
    shop.billing.replay_all(&OPERATOR).await.unwrap();
    shop.apply().await;
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().dead, 0);
}

// W23
#[tokio::test]
async fn a_locked_tenant_holds_up_nobody_else_and_spends_no_tries() {
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_attempts(1)).await;
    let (locked, purchase) = shop.buyer("locked").await;
    shop.deliver_all().await;
    for seats in 2..22 {
        shop.database.clock().advance(TimeDelta::seconds(2));
        shop.stripe.update_quantity(&purchase.subscription, seats);
    }
    let (free, _) = shop.buyer("free").await;
    for delivery in shop.stripe.deliveries() {
        shop.database.clock().advance(TimeDelta::milliseconds(10));
        let _ = shop.receive(&delivery).await;
    }
    let mut blocker = shop.database.owner().await;
    sqlx::raw_sql("begin").execute(&mut blocker).await.unwrap();
    let hold = sqlx::query("update saas.tenant set name = name where id = $1").bind(locked.tenant().as_uuid());
    hold.execute(&mut blocker).await.unwrap();
    let begun = std::time::Instant::now();
    let step = shop.billing.apply_pending(100).await.unwrap();
    assert_eq!(step.retried, 20, "{step:?}");
    // Each would wait for half a second.
    assert!(begun.elapsed() < std::time::Duration::from_secs(9), "one wait, not one for each of its receipts");
    shop.database.clock().advance(TimeDelta::seconds(1));
    assert_eq!(shop.apply().await.retried, 0, "what was put off is not taken before its time");
    assert_eq!(shop.billing.derived(&free).await.unwrap().seats, Some(1));
    sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
    shop.database.clock().advance(TimeDelta::seconds(5));
    assert_eq!(shop.apply().await.applied, 20, "a single try is allowed, and none was spent");
    assert_eq!(shop.billing.derived(&locked).await.unwrap().seats, Some(21));
}

// W24
#[tokio::test]
async fn replaying_a_finished_history_changes_nothing() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.stripe.advance(TimeDelta::days(40));
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(30));
    shop.stripe.pay(&purchase.customer);
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    let digest = shop.digest(&ctx).await;
    let (audits, revision) =
        (shop.scalar("select count(*) from saas.audit").await, shop.scalar("select revision from saas.tenant").await);
    let mut events = shop.stripe.all_events();
    events.reverse();
    for event in &events {
        shop.billing.replay(&OPERATOR, &id(&event.event)).await.unwrap();
        shop.apply().await;
    }
    assert_eq!(shop.digest(&ctx).await, digest);
    assert_eq!(shop.scalar("select count(*) from saas.audit").await, audits);
    assert_eq!(shop.scalar("select revision from saas.tenant").await, revision);
    let unknown = shop.billing.replay(&OPERATOR, &id("evt_never")).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}

// W30
#[tokio::test]
async fn what_a_buyer_writes_into_an_address_links_nothing() {
    let shop = Shop::open().await;
    let victim = shop.database.create_tenant("victim").await;
    let request = CheckoutRequest::new("price_pro")
        .with_client_reference_id(&saas_core::TenantContext::tenant(&victim).to_string());
    let session = shop.stripe.checkout(request);
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.billing.derived(&victim).await.unwrap().plan, None);
    let quarantined = stuck(&shop, Stuck::Quarantined).await;
    assert_eq!(quarantined.len(), 1);
    assert_eq!(quarantined[0].waits_for.as_deref(), Some(session.as_str()));

    // A session can be recorded late (a crash after Stripe had answered): then all of it is applied.
    let buyer = shop.database.create_tenant("buyer").await;
    shop.billing.record_checkout(&buyer, &session).await.unwrap();
    shop.apply().await;
    assert!(shop.billing.derived(&buyer).await.unwrap().plan.is_some());
    // And nobody else can have either.
    for stolen in [
        shop.billing.record_checkout(&victim, &session).await,
        shop.billing.link_customer(&victim, &purchase.customer).await,
    ] {
        assert!(matches!(stolen, Err(BillingError::AlreadyLinked { .. })), "{stolen:?}");
    }
}

// W27, W28
#[tokio::test]
async fn two_subscriptions_of_one_tenant_are_both_recorded_and_the_end_of_one_leaves_the_other() {
    let shop = Shop::open().await;
    let (ctx, first) = shop.buyer("acme").await;
    shop.database.clock().advance(TimeDelta::days(1));
    let session =
        shop.stripe.checkout(CheckoutRequest::new("price_pro").with_customer(first.customer.as_str()).with_quantity(4));
    shop.billing.record_checkout(&ctx, &session).await.unwrap();
    let second = shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver_all().await;
    let derived = shop.billing.derived(&ctx).await.unwrap();
    assert_eq!(derived.subscription.as_ref(), Some(&second.subscription));
    assert!(derived.alerts.iter().any(|alert| matches!(alert, Alert::SeveralSubscriptions { .. })));
    shop.stripe.cancel(&first.subscription);
    shop.deliver_all().await;
    let derived = shop.billing.derived(&ctx).await.unwrap();
    assert_eq!((derived.seats, derived.alerts.len(), derived.plan.is_some()), (Some(4), 0, true));
}

// W29
#[tokio::test]
async fn an_unknown_price_keeps_the_plan_whatever_arrives_first() {
    let shop = Shop::open().await;
    shop.stripe.create_price("price_by_hand", 900, "eur", &Interval::Year);
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.database.clock().advance(TimeDelta::seconds(5));
    shop.stripe.update_price(&purchase.subscription, "price_by_hand");
    let mut deliveries = shop.stripe.deliveries();
    deliveries.reverse();
    shop.deliver(&deliveries).await;
    let derived = shop.billing.derived(&ctx).await.unwrap();
    assert_eq!(derived.plan.unwrap().to_string(), "pro@1");
    assert!(matches!(derived.alerts.first(), Some(Alert::UnknownPrice { .. })));
    assert_eq!(shop.scalar("select count(*) from saas.billing_state where has_alerts").await, 1);
}

// W41
#[tokio::test]
async fn a_deleted_customer_keeps_its_tenant() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.stripe.cancel(&purchase.subscription);
    shop.stripe.delete_customer(&purchase.customer);
    let mut deliveries = shop.stripe.deliveries();
    deliveries.reverse();
    shop.deliver(&deliveries).await;
    let derived = shop.billing.derived(&ctx).await.unwrap();
    assert_eq!(derived.plan, None);
    assert!(derived.alerts.contains(&Alert::CustomerDeleted { customer: purchase.customer.clone() }));
    assert_eq!(
        shop.scalar("select count(*) from saas.billing_directory where tenant is not null and kind = 'customer'").await,
        1
    );
}

// W5, W7, D8
#[tokio::test]
async fn whole_lives_converge_under_shuffling_duplication_and_delay() {
    let mut ends: Vec<(Value, Option<ObjectId>)> = Vec::new();
    for seed in 0..6 {
        let shop = Shop::open().await;
        let (ctx, purchase) = shop.buyer("acme").await;
        shop.stripe.cancel_at_period_end(&purchase.subscription, true);
        shop.stripe.advance(TimeDelta::days(3));
        shop.stripe.cancel_at_period_end(&purchase.subscription, false);
        shop.stripe.advance(TimeDelta::days(40));
        shop.stripe.fail_next_payment(&purchase.customer);
        shop.stripe.advance(TimeDelta::days(27));
        shop.stripe.pay(&purchase.customer);
        for round in 0..4 {
            let chaos = Chaos::shuffled(seed * 10 + round).duplicating(20).delaying(30);
            shop.deliver(&shop.stripe.deliveries_through(chaos)).await;
        }
        shop.deliver_all().await;
        let derived = shop.billing.derived(&ctx).await.unwrap();
        let subscription = derived.subscription.clone();
        ends.push((serde_json::to_value(derived).unwrap(), subscription));
    }
    assert_eq!(ends[0].0["status"], "active");
    assert_eq!(ends[0].0["ends_at"], Value::Null);
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:#?}");
}

// W29
#[tokio::test]
async fn a_price_that_is_added_to_the_catalogue_takes_effect() {
    let shop = Shop::open().await;
    shop.stripe.create_price("price_new", 900, "eur", &Interval::Month);
    let (ctx, _) = shop.buyer_of("acme", CheckoutRequest::new("price_new")).await;
    let (other, _) = shop.buyer_of("other", CheckoutRequest::new("price_new")).await;
    let deliveries = shop.stripe.deliveries();
    shop.deliver(&deliveries).await;
    let plan = async |ctx| shop.billing.derived(ctx).await.unwrap().plan.map(|plan| plan.to_string());
    assert_eq!(plan(&ctx).await, None, "nobody knows the price yet");
    let catalog = CATALOG.replace("\"price_pro\",", "\"price_pro\", \"price_new\",");
    assert_ne!(catalog, CATALOG);
    let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
    let config = BillingConfig::new(PlanCatalog::from_toml(&catalog).unwrap(), secrets, Mode::Test);
    let knowing = service(&shop.database, config);
    let revisions = "select sum(revision)::bigint from saas.tenant";
    let before = shop.scalar(revisions).await;
    assert!(knowing.rederive(&ctx).await.unwrap());
    assert!(!knowing.rederive(&ctx).await.unwrap(), "once");
    assert_eq!((plan(&ctx).await.as_deref(), plan(&other).await), (Some("pro@1"), None));
    assert_eq!(shop.scalar(revisions).await, before + 1);
    // An event that says nothing new has the same effect.
    let event = deliveries.iter().rfind(|delivery| delivery.event_type.starts_with("customer.subscription")).unwrap();
    knowing.replay(&OPERATOR, &id(&event.event)).await.unwrap();
    assert_eq!(knowing.apply_pending(50).await.unwrap().applied, 1);
    assert_eq!(plan(&other).await.as_deref(), Some("pro@1"));
    // And all at once, page by page.
    let (mut cursor, mut seen, mut changed) = (None, 0, 0);
    loop {
        let page = shop.billing.rederive_all(&OPERATOR, cursor, PageSize::new(1).unwrap()).await.unwrap();
        (seen, changed, cursor) = (seen + page.tenants, changed + page.changed, page.next);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((seen, changed), (2, 2), "the old catalogue again");
    assert_eq!((plan(&ctx).await, plan(&other).await), (None, None));
    assert_eq!(shop.scalar("select count(*) from saas.audit where action = 'billing.rederived'").await, 3);
}

// W8
#[tokio::test]
async fn a_checkout_of_a_known_customer_that_is_recorded_late_is_applied() {
    let shop = Shop::open().await;
    let (ctx, first) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro").with_customer(first.customer.as_str()));
    shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver_all().await;
    let effects = "select count(*) from saas.billing_effect where fact = 'checkout.completed'";
    assert_eq!(shop.scalar(effects).await, 1);
    shop.billing.record_checkout(&ctx, &session).await.unwrap();
    assert_eq!(shop.apply().await.applied, 1);
    assert_eq!(shop.scalar(effects).await, 2);
}

#[tokio::test]
async fn what_is_over_is_deleted_after_the_retention_and_nothing_else_is() {
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_retention(TimeDelta::days(1))).await;
    let (ctx, _) = shop.buyer("acme").await;
    let all = shop.deliver_all().await.applied;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    shop.stripe.complete_checkout(&session).unwrap();
    let kept = shop.deliver_all().await.total();
    shop.database.clock().advance(TimeDelta::days(45));
    assert_eq!(shop.billing.purge_receipts(100).await.unwrap(), 0, "45 days at least");
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().applied, 0, "a day's worth is counted");
    shop.database.clock().advance(TimeDelta::seconds(1));
    assert_eq!(shop.billing.purge_receipts(1).await.unwrap(), 1);
    assert_eq!(shop.billing.purge_receipts(100).await.unwrap(), u64::try_from(all).unwrap() - 1);
    assert_eq!(shop_events(&shop).await, u64::try_from(kept).unwrap());
    // Delivered once more, it is merged once more and changes nothing.
    let digest = shop.digest(&ctx).await;
    shop.deliver(&shop.stripe.all_events()).await;
    assert_eq!(shop.digest(&ctx).await, digest);
}
