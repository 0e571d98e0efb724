//! Ends, pauses, and taking them back: each in every order, twice, and with answers that are lost.

use chrono::TimeDelta;
use saas_billing::{
    BillingError, ProviderError,
    object::PauseBehavior,
    provider::Cancellation,
    subscription::{Change, PlanChange},
    testing::{CheckoutRequest, Fault},
};
use saas_core::{ErrorKind, subscription::PlanSource as _};

use crate::{
    shop::{Shop, id},
    till::{Till, key},
};

impl Till {
    async fn cancel(&self, when: Cancellation, text: &str) -> Result<Change, BillingError> {
        self.shop.billing.cancel(&self.stripe, &self.ctx, when, &key(text)).await
    }

    async fn pause(&self, behavior: PauseBehavior, text: &str) -> Result<Change, BillingError> {
        self.shop.billing.pause(&self.stripe, &self.ctx, behavior, None, &key(text)).await
    }

    async fn resume(&self, text: &str) -> Result<Change, BillingError> {
        self.shop.billing.resume(&self.stripe, &self.ctx, &key(text)).await
    }
}

// D8
#[tokio::test]
async fn an_end_with_the_period_can_be_taken_back_until_it_comes() {
    let till = Till::open("price_pro", 1).await;
    let Change::Scheduled { at } = till.cancel(Cancellation::AtPeriodEnd, "end").await.unwrap() else {
        panic!("it is not scheduled")
    };
    let assignment = till.shop.billing.plan_of(&till.ctx, till.shop.stripe.now()).await.unwrap();
    assert_eq!((assignment.plan.as_str(), assignment.ends_at), ("pro", Some(at)));
    assert_eq!(till.cancel(Cancellation::AtPeriodEnd, "end").await.unwrap(), Change::Scheduled { at });
    assert_eq!(till.cancel(Cancellation::AtPeriodEnd, "again").await.unwrap(), Change::Scheduled { at });
    assert_eq!(till.cancel(Cancellation::Never, "stay").await.unwrap(), Change::Made);
    assert_eq!(till.cancel(Cancellation::Never, "stay-2").await.unwrap(), Change::Already);
    let assignment = till.shop.billing.plan_of(&till.ctx, till.shop.stripe.now()).await.unwrap();
    assert_eq!(assignment.ends_at, None);

    let _ = till.cancel(Cancellation::AtPeriodEnd, "after-all").await.unwrap();
    till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    let why = till.cancel(Cancellation::Never, "too-late").await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { why: "it has ended for good", .. }), "{why:?}");
    till.settle().await;
    assert_eq!(till.plan().await, "free");
    assert!(matches!(till.cancel(Cancellation::Now, "gone").await, Err(BillingError::NoSubscription)));
}

#[tokio::test]
async fn an_end_now_is_one_end_also_when_its_answer_is_lost() {
    for (when, fault) in [
        (Cancellation::Now, Fault::CutAfter),
        (Cancellation::NowProrated, Fault::BrokenAfterwards),
        (Cancellation::Now, Fault::Garbled),
        (Cancellation::NowProrated, Fault::CutBefore),
    ] {
        let shop = Shop::open().await;
        let (ctx, _) = shop.buyer_of("acme", CheckoutRequest::new("price_pro")).await;
        shop.deliver_all().await;
        shop.stripe.advance(TimeDelta::days(10));
        // The second call: the first is the look.
        shop.stripe.inject_after(1, [fault]);
        let first = shop.billing.cancel(shop.stripe.as_ref(), &ctx, when, &key("end")).await;
        shop.stripe.heal();
        while !shop.worker().await.is_idle() {}
        let again = shop.billing.cancel(shop.stripe.as_ref(), &ctx, when, &key("end")).await.unwrap();
        assert_eq!(again, Change::Made, "{when:?} {fault:?} {first:?}");
        shop.deliver_all().await;
        assert_eq!(shop.billing.plan_of(&ctx, shop.stripe.now()).await.unwrap().plan.as_str(), "free");
        let expected = if when == Cancellation::NowProrated { 2 } else { 1 };
        assert_eq!(shop.stripe.living(saas_billing::object::ObjectKind::Invoice).len(), expected, "{when:?} {fault:?}");
    }
}

#[tokio::test]
async fn an_end_lets_go_of_what_was_scheduled_after_it() {
    for when in [Cancellation::AtPeriodEnd, Cancellation::Now] {
        let till = Till::open("price_team", 1).await;
        let _ = till.change(&PlanChange::to_price(id("price_pro")), "down").await.unwrap();
        let _ = till.cancel(when, "end").await.unwrap();
        let why = till.change(&PlanChange::to_price(id("price_pro")), "down-again").await.unwrap_err();
        let (forbidden, gone) = (matches!(why, BillingError::StateForbids { .. }), why.kind() == ErrorKind::NotFound);
        assert!(if when == Cancellation::Now { gone } else { forbidden }, "{when:?}: {why:?}");
        till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
        till.settle().await;
        assert_eq!((till.plan().await.as_str(), till.subscription()["status"].as_str()), ("free", Some("canceled")));
    }
}

// f-B4, f-B14
#[tokio::test]
async fn collection_is_paused_in_three_ways_and_resumed() {
    let all = [
        (PauseBehavior::KeepAsDraft, "draft"),
        (PauseBehavior::MarkUncollectible, "uncollectible"),
        (PauseBehavior::Void, "void"),
    ];
    for (behavior, status) in all {
        let till = Till::open("price_pro", 1).await;
        assert_eq!(till.resume("nothing-to-resume").await.unwrap(), Change::Already);
        assert_eq!(till.pause(behavior.clone(), "pause").await.unwrap(), Change::Made);
        assert_eq!(till.pause(behavior.clone(), "pause").await.unwrap(), Change::Made, "the same request");
        assert_eq!(till.pause(behavior.clone(), "pause-2").await.unwrap(), Change::Already, "the same wish");
        let derived = till.shop.billing.derived(&till.ctx).await.unwrap();
        assert_eq!(derived.alerts.len(), 1, "no money comes in");
        let why = till.change(&PlanChange::to_price(id("price_team")), "up").await.unwrap_err();
        assert!(matches!(why, BillingError::StateForbids { remedy: "resume it first", .. }), "{why:?}");
        till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
        assert_eq!(till.latest_invoice()["status"], status);
        assert_eq!(till.resume("go-on").await.unwrap(), Change::Made);
        till.settle().await;
        assert_eq!(till.plan().await, "pro");
        assert!(till.shop.billing.derived(&till.ctx).await.unwrap().alerts.is_empty());
    }
}

#[tokio::test]
async fn a_pause_that_ends_by_itself_ends_in_the_future() {
    let till = Till::open("price_pro", 1).await;
    let now = till.shop.stripe.now();
    let pause = |at, text| {
        let (billing, stripe, ctx) = (till.shop.billing.clone(), till.stripe.clone(), till.ctx.clone());
        async move { billing.pause(&stripe, &ctx, PauseBehavior::Void, Some(at), &key(text)).await }
    };
    let why = pause(now, "now").await.unwrap_err();
    assert_eq!(why.kind(), ErrorKind::Invalid, "{why}");
    let until = now + TimeDelta::days(7) + TimeDelta::milliseconds(300);
    assert_eq!(pause(until, "week").await.unwrap(), Change::Made);
    till.shop.stripe.advance(TimeDelta::days(8));
    assert_eq!(pause(until, "week").await.unwrap(), Change::Made, "a repeat is not a new wish");
    till.settle().await;
    assert!(till.subscription()["pause_collection"].is_null());
    let unknown = till.pause(PauseBehavior::from("for_ever".to_owned()), "x").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_trial_that_ended_without_a_card_is_resumed_when_there_is_one() {
    let till = Till::open_with(CheckoutRequest::new("price_pro").with_trial_days(14), |config| config).await;
    till.shop.stripe.remove_payment_method(&till.purchase.customer);
    till.shop.stripe.advance(TimeDelta::days(14) + TimeDelta::hours(2));
    till.settle().await;
    assert_eq!(till.subscription()["status"], "paused");
    let why = till.change(&PlanChange::to_price(id("price_team")), "up").await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { .. }), "{why:?}");
    till.shop.stripe.pay(&till.purchase.customer);
    assert_eq!(till.resume("go").await.unwrap(), Change::Made);
    assert_eq!(till.subscription()["status"], "active");
}

// W32: a provider that never answers: nothing was sent, nothing is left behind
#[tokio::test]
async fn what_never_reached_stripe_is_forgotten_and_its_key_is_free() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    shop.stripe.set_reachable(&purchase.subscription, false);
    let end = key("end");
    let cancel = || shop.billing.cancel(shop.stripe.as_ref(), &ctx, Cancellation::AtPeriodEnd, &end);
    let why = cancel().await.unwrap_err();
    assert!(matches!(why, BillingError::Provider(ProviderError::RateLimited { .. })), "{why:?}");
    assert_eq!(shop.scalar("select count(*) from saas.billing_request").await, 0);
    assert_eq!(shop.scalar("select count(*) from saas.audit where action = 'billing.request_withdrawn'").await, 1);
    shop.stripe.set_reachable(&purchase.subscription, true);
    while !shop.worker().await.is_idle() {}
    assert_eq!(shop.scalar("select count(*) from saas.billing_command").await, 0, "nobody goes on with it");
    assert!(matches!(cancel().await.unwrap(), Change::Scheduled { .. }));
}
