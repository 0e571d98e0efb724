//! Reading Stripe where no event tells for certain.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_billing::{
    FetchPass, Fetched, ObjectId, ObjectSource, ProviderError,
    object::ObjectKind,
    testing::{CheckoutRequest, Delivery, StripeSimulator},
};
use tokio::sync::Notify;

use crate::shop::{OPERATOR, Shop};

/// A subscription event without its evidence: as a `trial_will_end` of the same second would show it.
fn without_evidence(delivery: &Delivery, event_id: &str) -> Vec<u8> {
    let mut body: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
    body["data"].as_object_mut().unwrap().remove("previous_attributes");
    body["id"] = event_id.into();
    serde_json::to_vec_pretty(&body).unwrap()
}

/// Two snapshots of one second that nothing orders; Stripe has the second.
async fn ambiguous(shop: &Shop) -> (saas_core::RequestContext, ObjectId) {
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.database.clock().advance(TimeDelta::seconds(10));
    for seats in [9, 3] {
        shop.stripe.update_quantity(&purchase.subscription, seats);
    }
    for (n, delivery) in shop.stripe.deliveries().iter().enumerate() {
        let body = without_evidence(delivery, &format!("evt_blind_{n}"));
        let _ = shop.receive_body(&body).await;
    }
    shop.apply().await;
    (ctx, purchase.subscription)
}

// W6
#[tokio::test]
async fn two_snapshots_of_one_second_without_evidence_are_settled_by_a_fetch() {
    let shop = Shop::open().await;
    let (ctx, _) = ambiguous(&shop).await;
    assert_eq!(shop.scalar("select count(*) from saas.billing_fetch where state = 'pending'").await, 1);
    let pass = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
    assert_eq!(pass.done, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(3));
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap(), FetchPass::default());
    // The same history once more ends where it was.
    shop.deliver(&shop.stripe.all_events()).await;
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(3));
}

// W17
#[tokio::test]
async fn an_event_without_content_is_fetched() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.database.clock().advance(TimeDelta::seconds(10));
    shop.stripe.update_quantity(&purchase.subscription, 8);
    drop(shop.stripe.deliveries());
    shop.stripe.notify_thin("v2.example.subscription.changed", "subscription", &purchase.subscription);
    shop.stripe.notify_thin("v2.core.account.updated", "v2.core.account", &purchase.subscription);
    let applied = shop.deliver_all().await;
    assert_eq!(applied.applied, 1, "a notification about nothing of ours is ignored at the door");
    let _ = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(8));
}

// W32
#[tokio::test]
async fn while_stripe_does_not_answer_the_snapshots_count_and_the_fetch_comes_again() {
    let shop = Shop::open().await;
    let (ctx, subscription) = ambiguous(&shop).await;
    shop.stripe.set_reachable(&subscription, false);
    for _ in 0..4 {
        assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().retried, 1);
        assert_eq!(
            shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap(),
            FetchPass::default(),
            "not at once"
        );
        shop.database.clock().advance(TimeDelta::minutes(2));
    }
    assert!(shop.billing.derived(&ctx).await.unwrap().plan.is_some());
    shop.stripe.set_reachable(&subscription, true);
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().done, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(3));

    shop.stripe.set_reachable(&subscription, false);
    let mut dead = 0;
    shop.database.clock().advance(TimeDelta::hours(1));
    shop.stripe.notify_thin("v2.example.subscription.changed", "subscription", &subscription);
    shop.deliver_all().await;
    for _ in 0..8 {
        dead += shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().dead;
        shop.database.clock().advance(TimeDelta::hours(2));
    }
    assert_eq!(dead, 1, "tried eight times, then given up");
}

/// Answers the first question only when told to, with what was true when it was asked.
#[derive(Debug)]
struct Slow {
    stripe: Arc<StripeSimulator>,
    first: AtomicBool,
    asked: Notify,
    answer: Notify,
}

impl Slow {
    fn of(shop: &Shop) -> Arc<Self> {
        let (asked, answer) = (Notify::new(), Notify::new());
        Arc::new(Self { stripe: Arc::clone(&shop.stripe), first: AtomicBool::new(true), asked, answer })
    }
}

#[async_trait]
impl ObjectSource for Slow {
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError> {
        let read = self.stripe.fetch(kind, id).await;
        if self.first.swap(false, Ordering::SeqCst) {
            self.asked.notify_one();
            self.answer.notified().await;
        }
        read
    }
}

// W31
#[tokio::test]
async fn an_old_answer_that_comes_late_does_not_win() {
    let shop = Shop::open().await;
    let (ctx, subscription) = ambiguous(&shop).await;
    let slow = Slow::of(&shop);
    let (billing, source) = (shop.billing.clone(), Arc::clone(&slow));
    let mut first = tokio::spawn(async move { billing.fetch_pending(source.as_ref(), 1).await.unwrap() });
    tokio::select! {
        () = slow.asked.notified() => {}
        pass = &mut first => panic!("the first worker did not read: {pass:?}"),
    }
    // The first worker hangs in its read. Nobody else may read the object until its lease ends.
    assert_eq!(shop.billing.fetch_pending(slow.as_ref(), 1).await.unwrap(), FetchPass::default());
    shop.database.clock().advance(TimeDelta::seconds(61));
    shop.stripe.update_quantity(&subscription, 12);
    drop(shop.stripe.deliveries());
    assert_eq!(shop.billing.fetch_pending(slow.as_ref(), 1).await.unwrap().done, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(12));
    slow.answer.notify_one();
    assert_eq!(first.await.unwrap().lost, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(12));
}

// W17, W31
#[tokio::test]
async fn what_is_told_while_an_object_is_read_is_read_after_it() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let changed = async |seats| {
        shop.database.clock().advance(TimeDelta::seconds(10));
        shop.stripe.update_quantity(&purchase.subscription, seats);
        drop(shop.stripe.deliveries());
        shop.stripe.notify_thin("v2.example.subscription.changed", "subscription", &purchase.subscription);
        shop.deliver_all().await;
    };
    changed(8).await;
    let slow = Slow::of(&shop);
    let (billing, source) = (shop.billing.clone(), Arc::clone(&slow));
    let reading = tokio::spawn(async move { billing.fetch_pending(source.as_ref(), 1).await.unwrap() });
    slow.asked.notified().await;
    changed(12).await;
    slow.answer.notify_one();
    assert_eq!(reading.await.unwrap().done, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(8), "as it was when it was read");
    assert_eq!(shop.billing.fetch_pending(slow.as_ref(), 1).await.unwrap().done, 1);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(12));
    assert_eq!(
        shop.billing.fetch_pending(slow.as_ref(), 1).await.unwrap(),
        FetchPass::default(),
        "once more, and no oftener"
    );
}

// W20
#[tokio::test]
async fn an_unpaid_invoice_that_no_event_told_about_is_found() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(32));
    let mut deliveries = shop.stripe.deliveries();
    let failed_at = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    deliveries.retain(|delivery| delivery.event_type.starts_with("customer.subscription"));
    shop.deliver(&deliveries).await;
    let unsure = shop.billing.derived(&ctx).await.unwrap().unpaid_since.unwrap();
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().done, 1);
    let sure = shop.billing.derived(&ctx).await.unwrap().unpaid_since.unwrap();
    assert!(sure <= unsure, "the debt can only be older than it looked");
    assert_eq!(failed_at["status"], "past_due");
}

// W17
#[tokio::test]
async fn an_event_without_content_waits_for_its_customer_like_any_other() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    drop(shop.stripe.deliveries());
    shop.stripe.notify_thin("v2.example.subscription.changed", "subscription", &purchase.subscription);
    shop.deliver_all().await;
    for _ in 0..12 {
        let _ = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
        shop.database.clock().advance(TimeDelta::hours(2));
    }
    assert_eq!(shop.scalar("select count(*) from saas.billing_fetch where state = 'parked'").await, 1);
    shop.billing.link_customer(&ctx, &purchase.customer).await.unwrap();
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().done, 1);
    assert!(shop.billing.derived(&ctx).await.unwrap().plan.is_some());
}

// W32
#[tokio::test]
async fn a_fetch_that_was_given_up_is_counted_and_replayed() {
    let shop = Shop::open().await;
    let (ctx, subscription) = ambiguous(&shop).await;
    shop.stripe.set_reachable(&subscription, false);
    for _ in 0..8 {
        let _ = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
        shop.database.clock().advance(TimeDelta::hours(2));
    }
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().dead_fetches, 1);
    shop.stripe.set_reachable(&subscription, true);
    assert_eq!(shop.billing.replay_all(&OPERATOR).await.unwrap(), 1);
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().done, 1);
    assert_eq!(shop.billing.inbox_health(&OPERATOR).await.unwrap().dead_fetches, 0);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(3));
}
