//! One trial for ever: per tenant, and per whatever else tells that two tenants are one.

use std::sync::Arc;

use chrono::TimeDelta;
use saas_billing::{
    BillingError,
    command::{Checkout, CheckoutPage},
    object::ObjectKind,
    provider::TrialPayment,
};
use saas_core::RequestContext;

use crate::shop::{Shop, id};

fn page() -> CheckoutPage {
    let (success, cancel) = ("https://app.example.com/done", "https://app.example.com/billing");
    CheckoutPage::new(id("price_pro"), Some(1), success.parse().unwrap(), cancel.parse().unwrap())
}

fn trial() -> CheckoutPage {
    page().with_trial(14, TrialPayment::Required)
}

impl Shop {
    async fn try_out(&self, ctx: &RequestContext, page: &CheckoutPage) -> Result<saas_billing::ObjectId, BillingError> {
        match self.billing.checkout(self.stripe.as_ref(), ctx, page).await? {
            Checkout::Open { session, .. } => Ok(session),
            Checkout::Subscribed { subscription } => panic!("{subscription} is there"),
        }
    }
}

// f-B7, lesson 30
#[tokio::test]
async fn a_tenant_has_one_trial_for_ever_and_can_always_buy() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let session = shop.try_out(&ctx, &trial()).await.unwrap();
    assert_eq!(shop.try_out(&ctx, &trial()).await.unwrap(), session, "a page that was only looked at consumes nothing");
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver_all().await;
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    let why = shop.try_out(&ctx, &trial()).await.unwrap_err();
    assert_eq!(why.code(), "trial_used");
    assert_eq!(shop.scalar("select count(*) from saas.audit where action = 'billing.trial_consumed'").await, 1);
    let _ = shop.try_out(&ctx, &page()).await.unwrap();
    let delete = "delete from saas.billing_trial where tenant_id is not null";
    let refused = sqlx::query(delete).execute(shop.database.tenants().pool()).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "42501");
}

// f-B7, lesson 30: another organisation, the same card
#[tokio::test]
async fn a_fingerprint_has_one_trial_whichever_tenant_brings_it() {
    let shop = Shop::open().await;
    let (first, second) = (shop.database.create_tenant("first").await, shop.database.create_tenant("second").await);
    let (card, domain) = ("card:Xt5EWLLDS7FJjR1c", "domain:acme.example");
    let session = shop.try_out(&first, &trial().with_trial_fingerprint(card)).await.unwrap();
    let both = trial().with_trial_fingerprint(domain).with_trial_fingerprint(card);
    let why = shop.try_out(&second, &both).await.unwrap_err();
    assert!(matches!(why, BillingError::TrialUsed), "claimed by a page that is open: {why:?}");
    let third = shop.database.create_tenant("third").await;
    let domain_only = trial().with_trial_fingerprint(domain);
    let _ = shop.try_out(&third, &domain_only).await.unwrap();

    shop.stripe.complete_checkout(&session).unwrap();
    shop.deliver_all().await;
    shop.database.clock().advance(TimeDelta::days(400));
    let why = shop.try_out(&second, &both).await.unwrap_err();
    assert!(matches!(why, BillingError::TrialUsed), "had by another tenant: {why:?}");
    // Nobody completed the third's page: its claim has ended.
    let _ = shop.try_out(&second, &domain_only).await.unwrap();
    let text = "select count(*) from saas.billing_trial_mark where encode(mark, 'escape') ~ 'acme|card'";
    assert_eq!(shop.scalar(text).await, 0, "only hashes are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_tenants_with_one_card_that_ask_at_once_one_gets_the_trial() {
    let shop = Arc::new(Shop::open().await);
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..10 {
        let ctx = shop.database.create_tenant(&format!("tenant-{n}")).await;
        let shop = Arc::clone(&shop);
        asking.spawn(async move {
            // Two marks, in one order and the other.
            let marks = if n % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            let page = marks.into_iter().fold(trial(), |page, mark| page.with_trial_fingerprint(mark));
            shop.try_out(&ctx, &page).await
        });
    }
    let answers = asking.join_all().await;
    let opened = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(opened, 1, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(BillingError::TrialUsed))), "{answers:?}");
    assert_eq!(shop.stripe.living(ObjectKind::CheckoutSession).len(), 1);
}
