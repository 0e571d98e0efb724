//! Receiving: stored before anything else, once, whatever is in it.

use futures_util::future::join_all;
use saas_billing::{
    Accepted, Billing, BillingConfig, BillingError, Mode, SigningSecrets, Stuck, WebhookProcessor,
    testing::{PayloadShape, cut_after},
};
use saas_core::{ErrorKind, PageSize, PlanCatalog};

use crate::shop::{CATALOG, OPERATOR, Shop, id, service};

const RECEIPTS: &str = "select count(*) from saas.billing_receipt";

/// An event that nothing is wrong with, with these two ids.
fn event(event_id: &str, customer: &str) -> String {
    format!(
        "{{\n  \"id\": \"{event_id}\",\n  \"object\": \"event\",\n  \"created\": 1768478400,\n  \"livemode\": false,\n  \
         \"type\": \"customer.updated\",\n  \"data\": {{\n    \"object\": {{\n      \"id\": \"{customer}\",\n      \
         \"object\": \"customer\"\n    }}\n  }}\n}}"
    )
}

// W1
#[tokio::test(flavor = "multi_thread")]
async fn fifty_deliveries_of_one_event_at_once_have_one_receipt_and_one_effect() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.update_quantity(&purchase.subscription, 7);
    let delivery = shop.stripe.deliveries().remove(0);
    let before = shop.scalar("select revision from saas.tenant").await;
    let receipts = shop.scalar(RECEIPTS).await;

    let answers = join_all((0..50).map(|_| shop.receive(&delivery))).await;
    assert_eq!(answers.iter().filter(|answer| **answer == Accepted::Stored).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Accepted::Duplicate).count(), 49);
    assert_eq!(shop.scalar(RECEIPTS).await, receipts + 1);
    join_all((0..8).map(|_| shop.billing.apply_pending(10))).await.into_iter().for_each(|step| assert!(step.is_ok()));
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(7));
    let audited = "select count(*) from saas.audit where detail ->> 'type' = 'customer.subscription.updated' and action = 'billing.changed'";
    assert_eq!(shop.scalar(audited).await, 1);
    assert_eq!(shop.scalar("select revision from saas.tenant").await, before, "seats are no entitlement");
}

/// Stripe hangs up whenever it likes: what is on its way is stored all the same, and the connection answers whoever comes next
/// about that one's own delivery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_whose_caller_goes_away_is_stored_and_takes_nobodys_answer() {
    let shop = Shop::open().await;
    let process = async |name: &str| {
        let body = event(name, "cus_1");
        shop.billing.process(body.as_bytes(), &shop.stripe.sign(body.as_bytes())).await.unwrap()
    };
    // An answer that lies there already costs no wait, so how many get away is not the same each time.
    let (mut gone, mut number) = (0, 0);
    while gone < 10 {
        assert!(number < 1_000, "only {gone} went away");
        number += 1;
        let (left, next) = (format!("evt_left_{number}"), format!("evt_next_{number}"));
        match cut_after(number % 4, process(&left)).await {
            Some(answer) => assert_eq!(answer, Accepted::Stored),
            None => gone += 1,
        }
        assert_eq!(process(&next).await, Accepted::Stored);
        assert_eq!(process(&next).await, Accepted::Duplicate);
        assert!(matches!(process(&left).await, Accepted::Stored | Accepted::Duplicate));
    }
    assert_eq!(shop.scalar(RECEIPTS).await, i64::from(2 * number), "each once");
}

// W2
#[tokio::test]
async fn a_redelivery_after_success_changes_nothing() {
    let shop = Shop::open().await;
    let (ctx, _) = shop.buyer("acme").await;
    let deliveries = shop.stripe.deliveries();
    shop.deliver(&deliveries).await;
    let (digest, audits) = (shop.digest(&ctx).await, shop.scalar("select count(*) from saas.audit").await);
    let again = shop.deliver(&deliveries).await;
    assert_eq!(again.total(), 0, "nothing was put back on the list");
    assert_eq!((shop.digest(&ctx).await, shop.scalar("select count(*) from saas.audit").await), (digest, audits));
}

// W10, W12
#[tokio::test]
async fn what_is_not_signed_leaves_no_trace() {
    let shop = Shop::open().await;
    let body = event("evt_1", "cus_1");
    let signature = shop.stripe.sign(body.as_bytes());
    for changed in [body.replace('\n', ""), format!("\u{feff}{body}"), body.replace("cus_1", "cus_2"), String::new()] {
        let error = shop.billing.process(changed.as_bytes(), &signature).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Invalid, "signature_mismatch"));
    }
    shop.database.clock().advance(chrono::TimeDelta::seconds(301));
    let error = shop.billing.process(body.as_bytes(), &signature).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Invalid, "signature_stale"));
    assert_eq!(shop.scalar(RECEIPTS).await, 0);
}

// W13
#[tokio::test]
async fn a_body_above_the_limit_is_refused_and_a_deep_one_is_no_danger() {
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_body_limit(1024 * 1024)).await;
    let huge = vec![b' '; 1024 * 1024 + 1];
    let error = shop.billing.process(&huge, &shop.stripe.sign(&huge)).await.unwrap_err();
    assert!(matches!(error, BillingError::TooLarge { bytes: 1_048_577, limit: 1_048_576 }));
    assert_eq!(shop.scalar(RECEIPTS).await, 0);

    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let deep = event("evt_deep", "cus_1")
        .replace("\"object\": \"customer\"", &format!("\"object\": \"customer\", \"x\": {open}{close}"));
    assert_eq!(shop.receive_body(deep.as_bytes()).await, Accepted::Stored);
    let nothing_but_deep = open + &close;
    assert_eq!(shop.receive_body(nothing_but_deep.as_bytes()).await, Accepted::Unreadable);
    assert_eq!(shop.apply().await.parked, 1);
}

// W14, I13
#[tokio::test]
async fn what_jsonb_cannot_hold_is_stored_and_shown_among_the_dead() {
    let shop = Shop::open().await;
    let bodies = [
        event("evt_nul", "cus_\\u0000"),
        event("evt_surrogate", "cus_\\ud800"),
        event("evt_number", "cus_1").replace("1768478400", "1e400000"),
        event("evt_early", "cus_1").replace("}\n}", ""),
        "not json".to_owned(),
        String::new(),
        event("evt_bom", "cus_1").replace('{', "\u{feff}{"),
    ];
    for body in &bodies {
        let accepted = shop.receive_body(body.as_bytes()).await;
        assert!(matches!(accepted, Accepted::Stored | Accepted::Unreadable), "{body:?}: {accepted:?}");
    }
    let latin1 = [b'{', b'"', 0xe4, b'"', b'}'];
    assert_eq!(shop.receive_body(&latin1).await, Accepted::Unreadable);
    assert_eq!(shop.receive_body(&latin1).await, Accepted::Duplicate);
    shop.apply().await;
    let dead = shop.billing.list_stuck(&OPERATOR, Stuck::Dead, None, PageSize::default()).await.unwrap();
    assert_eq!(dead.items.len(), bodies.len() + 1);
    for receipt in &dead.items {
        assert!(!receipt.reason.is_empty() && !receipt.reason.contains("cus_"), "{}", receipt.reason);
    }
    let stored = "select count(*) from saas.billing_receipt where octet_length(body) > 0 and event_id = 'evt_nul'";
    assert_eq!(shop.scalar(stored).await, 1);

    // In a field that nobody reads, the same characters do no harm.
    let harmless = event("evt_harmless", "cus_9")
        .replace("\"object\": \"customer\"", "\"object\": \"customer\", \"name\": \"\\u0000\"");
    assert_eq!(shop.receive_body(harmless.as_bytes()).await, Accepted::Stored);
    assert_eq!(shop.apply().await.parked, 1);
}

// W15
#[tokio::test]
async fn an_unknown_type_is_stored_and_ignored() {
    let shop = Shop::open().await;
    let unknown = event("evt_1", "cus_1").replace("customer.updated", "quantum.flux.updated");
    assert_eq!(shop.receive_body(unknown.as_bytes()).await, Accepted::Ignored);
    let clock = event("evt_2", "cus_1").replace("customer.updated", "test_helpers.test_clock.ready");
    assert_eq!(shop.receive_body(clock.as_bytes()).await, Accepted::Ignored);
    let another_object = event("evt_3", "cus_1").replace("\"object\": \"customer\"", "\"object\": \"gift_card\"");
    assert_eq!(shop.receive_body(another_object.as_bytes()).await, Accepted::Stored);
    assert_eq!(shop.apply().await.ignored, 1);
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().ignored, 3);
}

// W18, W19
#[tokio::test]
async fn another_mode_and_another_account_are_kept_without_effect() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    shop.billing.link_customer(&ctx, &id("cus_1")).await.unwrap();
    let live = event("evt_1", "cus_1").replace("\"livemode\": false", "\"livemode\": true");
    let connect =
        event("evt_2", "cus_1").replace("\"object\": \"event\"", "\"object\": \"event\", \"account\": \"acct_9\"");
    for body in [live, connect] {
        assert_eq!(shop.receive_body(body.as_bytes()).await, Accepted::Quarantined);
        assert_eq!(shop.receive_body(body.as_bytes()).await, Accepted::Duplicate);
    }
    assert_eq!(shop.apply().await.total(), 0);
    assert_eq!(shop.scalar("select count(*) from saas.billing_object").await, 0);
    // The same event id in another mode or account is another event.
    assert_eq!(shop.receive_body(event("evt_1", "cus_1").as_bytes()).await, Accepted::Stored);
}

// W25
#[tokio::test]
async fn one_id_with_another_body_is_an_alarm_and_never_applied() {
    let shop = Shop::open().await;
    let first = event("evt_fixture", "cus_0");
    assert_eq!(shop.receive_body(first.as_bytes()).await, Accepted::Stored);
    for n in 1..15 {
        let other = event("evt_fixture", &format!("cus_{n}"));
        assert_eq!(shop.receive_body(other.as_bytes()).await, Accepted::Conflict);
        assert_eq!(shop.receive_body(other.as_bytes()).await, Accepted::Conflict);
    }
    assert_eq!(shop.receive_body(first.as_bytes()).await, Accepted::Duplicate);
    let health = shop.billing.inbox_health(&OPERATOR).await.unwrap();
    assert_eq!((health.pending, health.conflicts), (1, 14));
}

// W25
#[tokio::test(flavor = "multi_thread")]
async fn of_two_bodies_in_one_burst_the_one_that_was_accepted_is_kept_and_the_other_an_alarm() {
    let shop = Shop::open().await;
    let bodies: Vec<String> = (0..60).map(|n| event("evt_fixture", &format!("cus_{}", n % 2))).collect();
    let answers = join_all(bodies.iter().map(|body| shop.receive_body(body.as_bytes()))).await;
    let of = |wanted: Accepted| answers.iter().zip(&bodies).filter(move |(answer, _)| **answer == wanted);
    let stored: Vec<&String> = of(Accepted::Stored).map(|(_, body)| body).collect();
    assert_eq!(stored.len(), 1);
    assert_eq!(shop.billing.receipt_body(&OPERATOR, "evt_fixture").await.unwrap(), stored[0].as_bytes());
    assert!(of(Accepted::Duplicate).all(|(_, body)| body == stored[0]));
    assert!(of(Accepted::Conflict).all(|(_, body)| body != stored[0]));
    assert_eq!((of(Accepted::Duplicate).count(), of(Accepted::Conflict).count()), (29, 30));
}

// W21
#[tokio::test]
async fn a_poison_event_is_answered_well_every_time() {
    let shop = Shop::open().await;
    let poison = event("evt_poison", "cus_1").replace("\"id\": \"cus_1\"", "\"id\": 5");
    for n in 0..100 {
        let accepted = shop.receive_body(poison.as_bytes()).await;
        assert_eq!(accepted, if n == 0 { Accepted::Stored } else { Accepted::Duplicate });
        shop.apply().await;
    }
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().dead, 1);
}

// W16
#[tokio::test]
async fn payloads_of_two_api_versions_come_to_the_same() {
    let mut found = Vec::new();
    for shape in [PayloadShape::Current, PayloadShape::Legacy] {
        let shop =
            Shop::open_with(|stripe| stripe.with_shape(shape), |config| config.with_api_version("2026-09-30.endive"))
                .await;
        let (ctx, _) = shop.buyer("acme").await;
        shop.deliver_all().await;
        found.push(shop.billing.derived(&ctx).await.unwrap());
    }
    assert!(found[0].period.is_some() && found[0].fetches.is_empty());
    assert_eq!(found[0], found[1]);
}

#[tokio::test]
async fn a_body_can_be_read_as_it_was_sent() {
    let shop = Shop::open().await;
    let long = event("evt_long", "cus_1").replace(
        "\"object\": \"customer\"",
        &format!("\"object\": \"customer\", \"name\": \"{}\"", "\u{1f9fe}x".repeat(9000)),
    );
    let elsewhere = event("evt_live", "cus_1").replace("\"livemode\": false", "\"livemode\": true");
    for (event_id, body) in [("evt_1", event("evt_1", "cus_1")), ("evt_long", long), ("evt_live", elsewhere)] {
        let quarantined = event_id == "evt_live";
        let accepted = if quarantined { Accepted::Quarantined } else { Accepted::Stored };
        assert_eq!(shop.receive_body(body.as_bytes()).await, accepted);
        assert_eq!(shop.billing.receipt_body(&OPERATOR, event_id).await.unwrap(), body.as_bytes());
    }
    let missing = shop.billing.receipt_body(&OPERATOR, "evt_2").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    // What no version has written is an operator's case, not an endless loop.
    let damage = "update saas.billing_receipt set body = '\\x07' where event_id = 'evt_1'";
    sqlx::query(damage).execute(&mut *shop.owner.lock().await).await.unwrap();
    assert_eq!(shop.billing.receipt_body(&OPERATOR, "evt_1").await.unwrap_err().code(), "corrupt");
    assert_eq!(shop.apply().await.dead, 1);
}

// W22
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_into_a_database_that_does_not_answer_holds_up_nobody_afterwards() {
    // Long enough for what comes afterwards, whatever else the machine does.
    let deadline = std::time::Duration::from_secs(4);
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_intake_deadline(deadline)).await;
    let mut owner = shop.database.owner().await;
    sqlx::query("begin").execute(&mut owner).await.unwrap();
    sqlx::query("lock table saas.billing_receipt in exclusive mode").execute(&mut owner).await.unwrap();
    let bodies: Vec<String> = (0..40).map(|n| event(&format!("evt_{n}"), "cus_1")).collect();
    let send = |body: &String| {
        let (billing, body, signature) = (shop.billing.clone(), body.clone(), shop.stripe.sign(body.as_bytes()));
        async move { billing.process(body.as_bytes(), &signature).await }
    };
    for answer in join_all(bodies.iter().map(send)).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    sqlx::query("rollback").execute(&mut owner).await.unwrap();
    for answer in join_all(bodies.iter().map(send)).await {
        assert!(answer.is_ok(), "{answer:?}");
    }
    assert_eq!(shop.scalar(RECEIPTS).await, 40);
}

// W22
#[tokio::test]
async fn a_database_that_does_not_answer_is_a_503_and_not_a_hang() {
    let deadline = std::time::Duration::from_secs(2);
    let shop = Shop::open_with(|stripe| stripe, |config| config.with_intake_deadline(deadline)).await;
    let mut owner = shop.database.owner().await;
    sqlx::query("begin").execute(&mut owner).await.unwrap();
    sqlx::query("lock table saas.billing_receipt in exclusive mode").execute(&mut owner).await.unwrap();
    let body = event("evt_1", "cus_1");
    let error = shop.billing.process(body.as_bytes(), &shop.stripe.sign(body.as_bytes())).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, "too_slow"));
    sqlx::query("rollback").execute(&mut owner).await.unwrap();
    // It may or may not have been stored after all; delivered again it is there once.
    let accepted = shop.receive_body(body.as_bytes()).await;
    assert!(matches!(accepted, Accepted::Stored | Accepted::Duplicate), "{accepted:?}");
    assert_eq!(shop.scalar(RECEIPTS).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_the_database_refuses_fails_alone() {
    let shop = Shop::open().await;
    sqlx::raw_sql(
        "create function public.poison() returns trigger language plpgsql as $$
         begin
             if new.event_id = 'evt_poison' then raise exception 'poison'; end if;
             return new;
         end $$;
         create trigger poison before insert on saas.billing_receipt for each row execute function public.poison();",
    )
    .execute(&mut *shop.owner.lock().await)
    .await
    .unwrap();
    // Many at once, so that they share inserts.
    let bodies: Vec<String> = (0..200)
        .map(|n| if n == 100 { event("evt_poison", "cus_1") } else { event(&format!("evt_{}", n / 2 * 2), "cus_1") })
        .collect();
    let answers = join_all(bodies.iter().map(|body| async {
        let signature = shop.stripe.sign(body.as_bytes());
        shop.billing.process(body.as_bytes(), &signature).await
    }))
    .await;
    let count =
        |wanted: Accepted| answers.iter().filter(|answer| matches!(answer, Ok(found) if *found == wanted)).count();
    assert_eq!((count(Accepted::Stored), count(Accepted::Duplicate)), (100, 99));
    assert_eq!(answers[100].as_ref().unwrap_err().code(), "statement");
    assert_eq!(shop.scalar(RECEIPTS).await, 100);
}

// W18
#[tokio::test]
async fn what_the_wrong_endpoint_saw_first_is_applied_when_the_right_one_receives_it() {
    let shop = Shop::open().await;
    let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    let live = service(&shop.database, BillingConfig::new(catalog, secrets, Mode::Live));
    let (ctx, _) = shop.buyer("acme").await;
    let deliveries = shop.stripe.deliveries();
    for delivery in &deliveries {
        let seen = live.process(&delivery.body, &delivery.signature).await.unwrap();
        assert_eq!(seen, Accepted::Quarantined);
    }
    let quarantined = async |billing: &Billing| {
        let page = PageSize::default();
        let listed = billing.list_stuck(&OPERATOR, Stuck::Quarantined, None, page).await.unwrap();
        (listed.items.len(), billing.inbox_health(&OPERATOR).await.unwrap().quarantined)
    };
    let all = deliveries.len();
    assert_eq!(quarantined(&live).await, (all, all as u64), "whoever received it sees it");
    assert_eq!(live.apply_pending(50).await.unwrap().total(), 0);
    for delivery in &deliveries {
        assert_eq!(shop.receive(delivery).await, Accepted::Stored);
        assert_eq!(shop.receive(delivery).await, Accepted::Duplicate);
        let again = live.process(&delivery.body, &delivery.signature).await.unwrap();
        assert_eq!(again, Accepted::Duplicate, "the wrong one takes nothing back");
    }
    assert_eq!(shop.apply().await.applied, all);
    assert!(shop.billing.derived(&ctx).await.unwrap().plan.is_some());
    assert_eq!(quarantined(&live).await, (0, 0));
}
