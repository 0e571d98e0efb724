//! What is deleted when its time is over, how much at once, and by which way.

use chrono::TimeDelta;
use saas_billing::{
    Accepted,
    command::CustomerDetails,
    subscription::{Change, PlanChange},
};
use serde_json::json;

use crate::{
    shop::{Shop, id},
    till::Till,
};

fn event(event: &str, account: Option<&str>) -> String {
    json!({"id": event, "object": "event", "type": "quantum.flux", "livemode": false, "created": 1_768_478_400,
        "account": account, "data": {"object": {"id": "q_1", "object": "quantum"}}})
    .to_string()
}

// f-W10, lesson 7: what was kept from another endpoint, what nobody mended, what contradicted
#[tokio::test]
async fn what_nobody_comes_for_is_kept_for_its_time_and_not_for_ever() {
    let shop = Shop::open().await;
    for body in [event("evt_1", None), event("evt_1", None).replace("q_1", "q_2"), event("evt_2", Some("acct_9"))] {
        let _ = shop.receive_body(body.as_bytes()).await;
    }
    assert_eq!(shop.receive_body(b"not json").await, Accepted::Unreadable);
    let receipts = "select count(*) from saas.billing_receipt";
    shop.database.clock().advance(TimeDelta::days(45) + TimeDelta::seconds(1));
    assert_eq!(shop.billing.purge_receipts(100).await.unwrap(), 1, "what was kept from another endpoint");
    assert_eq!(shop.scalar(receipts).await, 2, "what contradicts and what is dead wait for a person");
    shop.database.clock().advance(TimeDelta::days(320));
    assert_eq!(shop.billing.purge_receipts(100).await.unwrap(), 2, "the dead letter, the contradicting body");
    assert_eq!(shop.billing.purge_receipts(100).await.unwrap(), 1, "and then the receipt that it contradicted");
    assert_eq!((shop.billing.purge_receipts(100).await.unwrap(), shop.scalar(receipts).await), (0, 0));
}

// C: a purge reads what it deletes, however much is stored, and whoever else has left something
#[tokio::test]
async fn a_purge_goes_through_what_it_deletes_and_nothing_else() {
    let shop = Shop::open().await;
    let fill = "
        insert into saas.billing_receipt
            (account, livemode, event_id, event_type, body, state, due_at, received_at)
        select account, false, 'evt_' || n, 'invoice.paid', '\\x00', 'applied', at, at + n * interval '1 second'
        from generate_series(1, 20000) as n,
             (values ('', timestamptz '2020-01-01'), ('acct_other', timestamptz '2019-01-01')) as of (account, at);
        analyze saas.billing_receipt";
    sqlx::raw_sql(fill).execute(&mut *shop.owner.lock().await).await.unwrap();
    // The very statement.
    let source = include_str!("../../src/postgres/purge.rs");
    let sql = source.split_once("const IN_STATE: &str = \"").unwrap().1.split_once("\";").unwrap().0;
    let sql = [("$1", "''"), ("$2", "false"), ("$3", "'2025-01-01'"), ("$5", "'applied'")]
        .iter()
        .fold(sql.to_owned(), |sql, (place, value)| sql.replace(place, value));
    let buffers = async |limit: &str| -> i64 {
        let sql = format!("explain (analyze, buffers, format json, timing off) {}", sql.replace("$4", limit));
        let mut owner = shop.owner.lock().await;
        sqlx::raw_sql("begin").execute(&mut *owner).await.unwrap();
        // A statement of ours with values of ours.
        let plan: serde_json::Value =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *owner).await.unwrap();
        sqlx::raw_sql("rollback").execute(&mut *owner).await.unwrap();
        let plan = &plan[0]["Plan"];
        assert!(plan.to_string().contains("billing_receipt_ended"), "{plan}");
        plan["Shared Hit Blocks"].as_i64().unwrap() + plan["Shared Read Blocks"].as_i64().unwrap()
    };
    let (few, many) = (buffers("10").await, buffers("1000").await);
    assert!(few < 300 && many < 20_000, "{few} blocks for ten, {many} for a thousand, of 40,000 receipts");
    assert_eq!(shop.billing.purge_receipts(1000).await.unwrap(), 1000);
    assert_eq!(shop.scalar("select count(*) from saas.billing_receipt where account = ''").await, 19_000);
    assert_eq!(shop.scalar("select count(*) from saas.billing_receipt where account <> ''").await, 20_000, "not ours");
}

// Lesson 7: a resent event is recognised for longer than Stripe can send it, also while old ones are deleted
#[tokio::test]
async fn an_event_is_recognised_for_as_long_as_stripe_can_send_it_again() {
    let shop = Shop::open().await;
    assert_eq!(shop.receive_body(event("evt_1", None).as_bytes()).await, Accepted::Ignored);
    for _ in 0..30 {
        shop.database.clock().advance(TimeDelta::days(1));
        shop.billing.purge_receipts(100).await.unwrap();
        assert_eq!(shop.receive_body(event("evt_1", None).as_bytes()).await, Accepted::Duplicate);
    }
}

// f-B2: a slot outlives its retention; what is settled and holds none does not
#[tokio::test]
async fn settled_commands_and_requests_go_after_their_time_and_what_holds_a_slot_stays() {
    let till = Till::open("price_pro", 1).await;
    let (billing, stripe) = (&till.shop.billing, &till.stripe);
    let other = till.shop.database.create_tenant("other").await;
    let customer = billing.ensure_customer(stripe, &other, &CustomerDetails::default()).await.unwrap();
    let made = till.change(&PlanChange::to_price(id("price_team")), "more").await.unwrap();
    assert_eq!(made, Change::Made);
    till.settle().await;
    let commands = "select count(*) from saas.billing_command";
    let requests = "select count(*) from saas.billing_request";
    let before = (till.shop.scalar(commands).await, till.shop.scalar(requests).await);
    assert!(before.0 >= 2 && before.1 == 1, "{before:?}");
    till.shop.database.clock().advance(TimeDelta::days(90));
    assert_eq!(billing.purge_settled(100).await.unwrap(), 0, "not yet");
    till.shop.database.clock().advance(TimeDelta::days(1));
    assert!(billing.purge_settled(100).await.unwrap() >= 2);
    assert_eq!(billing.purge_settled(100).await.unwrap(), 0);
    assert_eq!(till.shop.scalar(requests).await, 0);
    let slots = "select count(*) from saas.billing_command where slot = 'customer' and state = 'done'";
    assert_eq!(till.shop.scalar(slots).await, till.shop.scalar(commands).await, "nothing but slots is left");
    assert_eq!(billing.ensure_customer(stripe, &other, &CustomerDetails::default()).await.unwrap(), customer);
}
