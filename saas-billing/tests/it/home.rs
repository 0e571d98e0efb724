//! Services of several accounts and modes over one database.

use saas_billing::{
    BillingConfig, BillingError, Mode, SigningSecrets, WebhookProcessor as _, catalog::PriceList,
    command::CustomerDetails, object::ObjectKind, usage::UsagePolicy,
};
use saas_core::{ErrorKind, PlanCatalog};
use serde_json::json;

use crate::shop::{CATALOG, Shop, config, id, service};

// W19
#[tokio::test]
async fn one_account_in_one_mode_is_written_to_and_shown_and_the_others_are_read() {
    let shop = Shop::open().await;
    let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    let test = service(&shop.database, BillingConfig::new(catalog, secrets, Mode::Test));
    let connected = service(&shop.database, config(&shop.stripe).with_account(id("acct_1")));
    let secrets = SigningSecrets::new(vec![shop.stripe.secret()]).unwrap();
    let live = BillingConfig::new(PlanCatalog::from_toml(CATALOG).unwrap(), secrets, Mode::Live);
    let live = service(&shop.database, live);
    let (ctx, purchase) = shop.buyer("acme").await;
    shop.deliver_all().await;
    let other = shop.database.create_tenant("other").await;
    let ensure = async |billing: &saas_billing::Billing| {
        billing.ensure_customer(shop.stripe.as_ref(), &other, &CustomerDetails::default()).await
    };
    // A worker with nothing to send takes nothing.
    let policy = || UsagePolicy::of(&PriceList::from_toml(CATALOG, &PlanCatalog::from_toml(CATALOG).unwrap()).unwrap());
    let _ = live.send_usage(shop.stripe.as_ref(), &policy(), 10).await.unwrap();
    let customer = ensure(&test).await.unwrap();
    for stranger in [&connected, &live] {
        let why = ensure(stranger).await.unwrap_err();
        assert_eq!(why.kind(), ErrorKind::Misconfigured, "{why:?}");
        assert!(why.to_string().contains("the platform's own account in test mode"), "{why}");
        let why = stranger.send_usage(shop.stripe.as_ref(), &policy(), 10).await.unwrap_err();
        assert!(matches!(why, BillingError::Misconfigured { .. }), "{why:?}");
    }
    assert_eq!(shop.stripe.living(ObjectKind::Customer), [purchase.customer, customer]);

    // What another mode tells counts there, and does not show in the list of this one.
    live.link_customer(&ctx, &id("cus_live")).await.unwrap();
    let mut subscription = shop.stripe.object(ObjectKind::Subscription, &purchase.subscription).unwrap();
    (subscription["id"], subscription["customer"]) = ("sub_live".into(), "cus_live".into());
    subscription["items"]["data"][0]["quantity"] = 50.into();
    let body = json!({"id": "evt_live", "object": "event", "type": "customer.subscription.created", "livemode": true,
        "created": shop.stripe.now().timestamp(), "api_version": "2026-09-30.dahlia", "data": {"object": subscription}});
    let body = body.to_string().into_bytes();
    let _ = live.process(&body, &shop.stripe.sign(&body)).await.unwrap();
    assert_eq!(live.apply_pending(10).await.unwrap().applied, 1);
    assert_eq!(live.derived(&ctx).await.unwrap().seats, Some(50));
    assert_eq!(shop.billing.derived(&ctx).await.unwrap().seats, Some(1));
    assert_eq!(shop.scalar("select max(mrr_minor) from saas.tenant_overview").await, 2_000);
}
