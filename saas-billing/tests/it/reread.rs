//! What an operator does about what a forger has told.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_billing::{
    FetchPass, Fetched, ObjectId, ObjectSource, ProviderError, ledger::Account, object::ObjectKind,
    testing::StripeSimulator,
};
use saas_core::{ErrorKind, RequestContext, TenantContext};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::shop::{OPERATOR, Shop, id};

async fn plan(shop: &Shop, ctx: &RequestContext) -> Option<String> {
    shop.billing.derived(ctx).await.unwrap().plan.map(|plan| plan.to_string())
}

/// An event with a right signature that Stripe never sent.
async fn forge(shop: &Shop, name: &str, event_type: &str, object: &Value) {
    let created = shop.stripe.now().timestamp() + 3_600;
    let body = json!({"id": format!("evt_forged_{name}"), "object": "event", "type": event_type, "created": created,
        "livemode": false, "api_version": "2026-09-30.dahlia", "data": {"object": object}});
    let _ = shop.receive_body(body.to_string().as_bytes()).await;
    assert_eq!(shop.apply().await.applied, 1);
}

async fn reread(shop: &Shop, object: &ObjectId) -> FetchPass {
    shop.billing.reread(&OPERATOR, object).await.unwrap();
    shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap()
}

async fn balances(shop: &Shop, ctx: &RequestContext) -> Vec<(Account, i64)> {
    let all = shop.billing.balances(ctx, None).await.unwrap();
    all.iter().map(|balance| (balance.account, balance.amount.minor())).filter(|(_, minor)| *minor != 0).collect()
}

#[tokio::test]
async fn a_forged_end_of_a_subscription_is_undone() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let mut forged = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    forged["status"] = "canceled".into();
    forged["ended_at"] = shop.stripe.now().timestamp().into();
    forge(&shop, "end", "customer.subscription.deleted", &forged).await;
    assert_eq!(plan(&shop, &ctx).await, None);

    assert_eq!(reread(&shop, &purchase.subscription).await.done, 1);
    assert_eq!(plan(&shop, &ctx).await.as_deref(), Some("pro@1"));
    let on_record = "select count(*) from saas.audit where action = 'billing.reread' and actor = 'system:test'";
    assert_eq!(shop.scalar(on_record).await, 1);
    // What really happens next counts.
    shop.database.clock().advance(TimeDelta::seconds(10));
    shop.stripe.update_quantity(&purchase.subscription, 7);
    shop.deliver_all().await;
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(7));
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap(), FetchPass::default());
    // So does its real end, which is a fact of its own.
    let ended = "select count(*) from saas.billing_effect where fact = 'subscription.ended'";
    assert_eq!(shop.scalar(ended).await, 0);
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    assert_eq!((plan(&shop, &ctx).await, shop.scalar(ended).await), (None, 1));
}

/// A Stripe whose answers are on their way while something happens.
#[derive(Debug)]
struct Meanwhile {
    stripe: Arc<StripeSimulator>,
    asked: Notify,
    answer: Notify,
}

#[async_trait]
impl ObjectSource for Meanwhile {
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, ProviderError> {
        let read = self.stripe.fetch(kind, id).await;
        self.asked.notify_one();
        self.answer.notified().await;
        read
    }
}

#[tokio::test]
async fn what_is_heard_while_an_object_is_reread_is_not_forgotten() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let slow = Meanwhile { stripe: Arc::clone(&shop.stripe), asked: Notify::new(), answer: Notify::new() };
    shop.billing.reread(&OPERATOR, &purchase.subscription).await.unwrap();
    let meanwhile = async {
        slow.asked.notified().await;
        shop.stripe.cancel(&purchase.subscription);
        shop.deliver_all().await;
        slow.answer.notify_one();
    };
    let (pass, ()) = tokio::join!(shop.billing.fetch_pending(&slow, 10), meanwhile);
    assert_eq!(pass.unwrap().retried, 1);
    assert_eq!(plan(&shop, &ctx).await, None);
    shop.database.clock().advance(TimeDelta::minutes(5));
    assert_eq!(shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap().done, 1);
    assert_eq!(plan(&shop, &ctx).await, None);
}

#[tokio::test]
async fn a_forged_payment_is_owed_again_and_the_ledger_takes_it_back_by_entries() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.stripe.fail_next_payment(&purchase.customer);
    shop.stripe.advance(TimeDelta::days(32));
    shop.deliver_all().await;
    let subscription = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    let invoice = id(subscription["latest_invoice"].as_str().unwrap());
    let (since, before) = (shop.billing.derived(&ctx).await.unwrap().unpaid_since, balances(&shop, &ctx).await);
    assert!(since.is_some());
    let mut forged = shop.stripe.object(ObjectKind::Invoice, &invoice).unwrap();
    (forged["status"], forged["amount_paid"], forged["amount_remaining"]) = ("paid".into(), 2_000.into(), 0.into());
    forge(&shop, "paid", "invoice.paid", &forged).await;
    assert_ne!(balances(&shop, &ctx).await, before);

    assert_eq!(reread(&shop, &invoice).await.done, 2, "it, and the subscription that is behind without a debt");
    assert_eq!(balances(&shop, &ctx).await, before);
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().unpaid_since, since);
    let report = shop.billing.verify_ledger(&OPERATOR, ctx.tenant(), None).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[tokio::test]
async fn what_stripe_never_had_gives_no_access_and_moves_no_money() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    assert_eq!(plan(&shop, &ctx).await, None);
    let before = balances(&shop, &ctx).await;
    let mut forged = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    (forged["id"], forged["status"], forged["ended_at"]) = ("sub_forged".into(), "active".into(), Value::Null);
    forge(&shop, "subscription", "customer.subscription.updated", &forged).await;
    let charge = json!({"id": "ch_forged", "object": "charge", "customer": purchase.customer, "payment_intent": "pi_forged",
        "status": "succeeded", "amount": 900, "amount_captured": 900, "captured": true, "currency": "eur",
        "created": shop.stripe.now().timestamp()});
    forge(&shop, "charge", "charge.succeeded", &charge).await;
    assert_eq!(plan(&shop, &ctx).await.as_deref(), Some("pro@1"));

    assert_eq!(reread(&shop, &id("sub_forged")).await.done, 1);
    assert_eq!(plan(&shop, &ctx).await, None);
    assert_eq!(reread(&shop, &id("ch_forged")).await.done, 1);
    assert_eq!(balances(&shop, &ctx).await, before);
    // To the key of another account everything is missing: that proves nothing.
    let elsewhere = StripeSimulator::new("whsec_test_0123456789abcdef", shop.database.clock().clone()).unwrap();
    let lost = json!({"id": "re_1", "object": "refund", "charge": "ch_forged", "payment_intent": "pi_forged", "amount": 100,
        "status": "succeeded", "currency": "eur", "created": shop.stripe.now().timestamp()});
    forge(&shop, "refund", "refund.updated", &lost).await;
    let before = balances(&shop, &ctx).await;
    for object in [&purchase.subscription, &id("re_1"), &id("ch_forged")] {
        shop.billing.reread(&OPERATOR, object).await.unwrap();
        let pass = shop.billing.fetch_pending(&elsewhere, 10).await.unwrap();
        assert_eq!((pass.done, pass.retried), (0, 1), "{object}");
    }
    assert_eq!(balances(&shop, &ctx).await, before);
    let given_up = "select count(*) from saas.billing_fetch where state = 'dead' and not afresh";
    assert_eq!(shop.scalar(given_up).await, 3, "and the next read is one like any other");
    let nobody = shop.billing.reread(&OPERATOR, &id("sub_unheard_of")).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NotFound);
}
