//! A customer who is still charged is not forgotten.

use chrono::TimeDelta;
use saas_billing::LiveBilling;
use saas_core::{SystemTx, TenantContext, dependents::Dependents};

use crate::shop::{OPERATOR, Shop};

#[tokio::test]
async fn a_live_subscription_forbids_the_erasure_and_an_ended_one_does_not() {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    let other = shop.database.create_tenant("other").await;
    shop.deliver_all().await;
    let find = async |ctx: &dyn TenantContext| {
        let mut tx = SystemTx::begin(shop.database.system(), OPERATOR, "look at a test").await.unwrap();
        LiveBilling.find(&mut tx, ctx.tenant()).await.unwrap()
    };
    let found = find(&ctx).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].what, format!("the subscription {} is active", purchase.subscription));
    assert_eq!(find(&other).await, []);

    shop.stripe.cancel(&purchase.subscription);
    shop.stripe.advance(TimeDelta::seconds(1));
    shop.deliver_all().await;
    assert_eq!(find(&ctx).await, []);
    // What law and money need is declared as kept.
    let kept = shop.scalar("select count(*) from saas.retained_table where name like 'saas.billing\\_%'").await;
    assert_eq!(kept, 3);
}
