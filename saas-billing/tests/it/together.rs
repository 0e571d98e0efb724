//! Steps: receipts of one customer share a transaction, and what has just come in does not wait for a backlog.

use chrono::{DateTime, TimeDelta, Utc};
use saas_billing::{object::ObjectKind, testing::Delivery};

use crate::shop::{OPERATOR, Shop};

/// How many transactions ended the receipts that were applied.
const TRANSACTIONS: &str = "select count(distinct xmin::text) from saas.billing_receipt where state = 'applied'";

/// A purchase, a renewal, seats, a failed payment and its recovery: delivered, not applied.
async fn life(shop: &Shop, slug: &str) -> (saas_core::RequestContext, saas_billing::ObjectId, Vec<Delivery>) {
    let ctx = shop.database.create_tenant(slug).await;
    let session = shop.stripe.checkout(saas_billing::testing::CheckoutRequest::new("price_pro"));
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    for seats in 2..6 {
        shop.stripe.advance(TimeDelta::hours(1));
        shop.stripe.update_quantity(&purchase.subscription, seats);
    }
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(32));
    shop.stripe.pay(&purchase.customer);
    shop.stripe.update_price(&purchase.subscription, "price_team");
    (ctx, session, shop.stripe.deliveries())
}

#[tokio::test]
async fn a_customers_receipts_share_a_transaction_and_come_to_the_same_as_one_by_one() {
    let shop = Shop::open().await;
    let (ctx, session, events) = life(&shop, "acme").await;
    let mut digests = Vec::new();
    for limit in [1, 100] {
        shop.billing.record_checkout(&ctx, &session).await.unwrap();
        for event in &events {
            let _ = shop.receive(event).await;
        }
        while shop.billing.apply_pending(limit).await.unwrap().total() > 0 {}
        let health = shop.billing.inbox_health(&OPERATOR).await.unwrap();
        assert_eq!((health.pending, health.parked, health.dead), (0, 0, 0), "in steps of {limit}");
        digests.push((shop.digest(&ctx).await, shop.scalar(TRANSACTIONS).await));
        shop.forget().await;
    }
    assert_eq!(digests[0].0, digests[1].0);
    assert_eq!(digests[0].1, i64::try_from(events.len()).unwrap());
    assert!(digests[1].1 <= 3, "what brings the link goes first, and the others with it: {}", digests[1].1);
}

#[tokio::test]
async fn a_change_is_dated_by_its_own_event_and_not_by_what_was_heard_with_it() {
    let shop = Shop::open().await;
    let (_, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.advance(TimeDelta::days(1));
    let upgraded = shop.stripe.now();
    shop.stripe.update_quantity(&purchase.subscription, 3);
    shop.stripe.advance(TimeDelta::days(2));
    let charge = shop.stripe.charge_of(&shop.stripe.living(ObjectKind::Invoice)[0]).unwrap();
    let _ = shop.stripe.refund(&charge, Some(100)).unwrap();
    assert!(shop.deliver_all().await.applied >= 2);
    let at: DateTime<Utc> = sqlx::query_scalar("select at from saas.revenue_change order by number desc limit 1")
        .fetch_one(&mut *shop.owner.lock().await)
        .await
        .unwrap();
    assert_eq!(at, upgraded);
}

#[tokio::test]
async fn each_event_that_says_something_new_is_in_the_audit_log_and_one_says_what_all_came_to() {
    let shop = Shop::open().await;
    let _ = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.advance(TimeDelta::days(32));
    shop.deliver_all().await;
    let renewal = "select max(kinds) from (select count(distinct detail->>'kind') as kinds from saas.audit
                                           where detail ? 'event' group by xmin::text) as of_one_transaction";
    assert!(shop.scalar(renewal).await >= 3, "subscription, invoice and charge");
    let unclosed = "select count(*) from (select from saas.audit where detail ? 'event' group by xmin::text
                    having count(*) filter (where detail ? 'previous_plan') <> 1) as without_an_end";
    assert_eq!(shop.scalar(unclosed).await, 0);
}

// W24
#[tokio::test]
async fn one_that_spoils_its_company_is_put_off_alone_and_the_others_are_applied() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    for seats in 2..12 {
        shop.stripe.advance(TimeDelta::seconds(10));
        shop.stripe.update_quantity(&purchase.subscription, seats);
    }
    shop.stripe.advance(TimeDelta::days(32));
    for event in shop.stripe.deliveries() {
        let _ = shop.receive(&event).await;
    }
    // The database refuses what one of them says: the renewal was charged.
    sqlx::raw_sql(
        "create function public.poison() returns trigger language plpgsql as $$
         begin
             if new.kind = 'charge' then raise exception 'poison'; end if;
             return new;
         end $$;
         create trigger poison before insert or update on saas.billing_object
             for each row execute function public.poison();",
    )
    .execute(&mut *shop.owner.lock().await)
    .await
    .unwrap();
    let step = shop.billing.apply_pending(100).await.unwrap();
    assert!(step.retried == 1 && step.applied >= 12, "{step:?}");
    assert_eq!(shop.scalar("select max(attempts)::bigint from saas.billing_receipt where state = 'pending'").await, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(11));
    sqlx::raw_sql("drop trigger poison on saas.billing_object").execute(&mut *shop.owner.lock().await).await.unwrap();
    shop.database.clock().advance(TimeDelta::minutes(1));
    assert_eq!(shop.apply().await.applied, 1);
    let charges = "select count(*) from saas.billing_object where kind = 'charge'";
    assert_eq!(shop.scalar(charges).await, 2, "of the purchase and of the renewal");
}

// W23
#[tokio::test]
async fn what_a_worker_never_came_back_from_is_tried_alone() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    for seats in 2..12 {
        shop.stripe.advance(TimeDelta::seconds(10));
        shop.stripe.update_quantity(&purchase.subscription, seats);
    }
    for event in shop.stripe.deliveries() {
        let _ = shop.receive(&event).await;
    }
    // As a worker leaves them that dies with all of them in its hands.
    sqlx::raw_sql("update saas.billing_receipt set lease = gen_random_uuid() where state = 'pending'")
        .execute(&mut *shop.owner.lock().await)
        .await
        .unwrap();
    assert_eq!(shop.apply().await.applied, 10);
    let alone = "select count(distinct xmin::text) from saas.billing_receipt where attempts = 1";
    assert_eq!(shop.scalar(alone).await, 10, "each was counted, and had a transaction of its own");
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(11));
}

#[tokio::test]
async fn what_has_just_come_in_does_not_wait_behind_a_flood_and_the_flood_goes_on() {
    let shop = Shop::open().await;
    let (_, flooding) = shop.buyer("flooding").await;
    let (quiet, purchase) = shop.buyer("quiet").await;
    shop.deliver_all().await;
    for seats in 2..82 {
        shop.stripe.advance(TimeDelta::seconds(10));
        shop.stripe.update_quantity(&flooding.subscription, seats);
    }
    shop.stripe.update_quantity(&purchase.subscription, 9);
    for event in shop.stripe.deliveries() {
        shop.database.clock().advance(TimeDelta::milliseconds(1));
        let _ = shop.receive(&event).await;
    }
    let step = shop.billing.apply_pending(8).await.unwrap();
    assert_eq!(step.applied, 8, "{step:?}");
    assert_eq!(shop.billing.derived(&quiet).await.unwrap().seats, Some(9));
    let oldest = "select count(*) from (select state from saas.billing_receipt where event_type = 'customer.subscription.updated'
                                       order by received_at limit 6) as first where state = 'applied'";
    assert_eq!(shop.scalar(oldest).await, 6, "the longest due are not passed over");
}

#[tokio::test]
async fn a_step_takes_what_else_is_due_of_the_same_customers() {
    let shop = Shop::open().await;
    let mut shops = Vec::new();
    for slug in ["one", "other"] {
        shops.push(shop.buyer(slug).await);
    }
    shop.deliver_all().await;
    for seats in 2..12 {
        for (_, purchase) in &shops {
            shop.stripe.advance(TimeDelta::seconds(10));
            shop.stripe.update_quantity(&purchase.subscription, seats);
        }
    }
    for event in shop.stripe.deliveries() {
        shop.database.clock().advance(TimeDelta::milliseconds(1));
        let _ = shop.receive(&event).await;
    }
    // One that is due longest, one of the latest, and two more of one of their customers: the two take turns.
    let most = "select max(count) from (select count(*) from saas.billing_receipt
                where state = 'applied' and event_type = 'customer.subscription.updated' group by tenant) as of_tenant";
    let before = shop.scalar(most).await;
    let step = shop.billing.apply_pending(4).await.unwrap();
    assert_eq!((step.applied, shop.scalar(most).await - before), (4, 3), "{step:?}");
    let step = shop.billing.apply_pending(40).await.unwrap();
    assert_eq!(step.applied, 16, "the rest, each once: {step:?}");
    for (ctx, _) in &shops {
        assert_eq!(shop.billing.derived(ctx).await.unwrap().seats, Some(11));
    }
}

#[tokio::test]
async fn a_step_reads_what_it_takes_and_nothing_else_also_before_the_table_has_been_analyzed() {
    let shop = Shop::open().await;
    // A backlog of 40,000 receipts of 4,000 customers, of each one in every tenth of it.
    let fill = "
        insert into saas.billing_receipt
            (account, livemode, event_id, event_type, customer, body, state, due_at, received_at)
        select '', false, 'evt_' || n, 'invoice.paid', 'cus_' || n % 4000, '\\x00', 'pending', at, at
        from (select n, timestamptz '2025-01-01' + n * interval '1 second' as at from generate_series(1, 40000) as n) as each";
    sqlx::raw_sql(fill).execute(&mut *shop.owner.lock().await).await.unwrap();
    // The very statement.
    let source = include_str!("../../src/postgres/receipt.rs");
    let sql = source.split_once("\"with oldest as (").unwrap().1.split_once("\",").unwrap().0;
    let values = ["''", "false", "now()", "25", "gen_random_uuid()", "now()", "25", "50", "64"];
    let sql = (1..)
        .zip(values)
        .fold(format!("with oldest as ({sql}"), |sql, (place, value)| sql.replace(&format!("${place}"), value));
    let mut owner = shop.owner.lock().await;
    sqlx::raw_sql("begin").execute(&mut *owner).await.unwrap();
    let explain = format!("explain (analyze, buffers, format json, timing off) {sql}");
    // A statement of ours with values of ours.
    let plan: serde_json::Value =
        sqlx::query_scalar(sqlx::AssertSqlSafe(explain)).fetch_one(&mut *owner).await.unwrap();
    sqlx::raw_sql("rollback").execute(&mut *owner).await.unwrap();
    let plan = &plan[0]["Plan"];
    let blocks = plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap();
    assert_eq!(plan["Actual Rows"], 100, "{plan}");
    assert!(plan.to_string().contains("billing_receipt_customer"), "{plan}");
    assert!(blocks < 5_000, "{blocks} blocks for a hundred of 40,000 receipts");
}
