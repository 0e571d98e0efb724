//! Crashes: the connection dies in place of every single answer of the database, and the work is taken up again.

use std::{collections::BTreeSet, sync::Arc};

use chrono::TimeDelta;
use saas_billing::{Billing, BillingError, WebhookProcessor, testing::Delivery};
use saas_core::{SystemPool, db::pool_options, testing::Proxy};

use crate::{
    orders::history,
    shop::{Shop, config},
};

/// The service with a single system connection through a proxy.
async fn behind(proxy: &Proxy, shop: &Shop) -> Result<Billing, saas_core::CoreError> {
    let address = proxy.address();
    let options = shop.database.options("saas_system").host(&address.ip().to_string()).port(address.port());
    let pool =
        pool_options().max_connections(1).acquire_timeout(std::time::Duration::from_secs(5)).connect_lazy_with(options);
    let system = SystemPool::open(pool, &[&saas_core::SCHEMA, &saas_billing::SCHEMA]).await?;
    let tenants = Arc::new(shop.database.tenants().clone());
    Ok(Billing::new(config(&shop.stripe), tenants, system, Arc::new(shop.database.clock().clone())))
}

/// Receives and applies the history as an endpoint and its worker do; the first failure ends the process.
async fn work(billing: &Billing, shop: &Shop, events: &[Delivery]) -> Result<(), BillingError> {
    for event in events {
        let _ = billing.process(&event.body, &shop.stripe.sign(&event.body)).await?;
        billing.apply_pending(10).await?;
    }
    Ok(())
}

// W3, W4
#[tokio::test]
async fn a_run_cut_at_every_answer_and_resumed_ends_in_the_state_of_an_undisturbed_one() {
    let shop = Shop::open().await;
    let (ctx, session, mut events) = history(&shop).await;
    // The subscription comes before its customer is known: parking, linking and setting free are cut as well.
    events.reverse();
    let proxy = Proxy::start(shop.database.address()).unwrap();
    let mut digests = BTreeSet::new();
    let mut cuts = 0;
    loop {
        shop.forget().await;
        shop.billing.record_checkout(&ctx, &session).await.unwrap();
        let billing = behind(&proxy, &shop).await.unwrap();
        let before = proxy.flights();
        proxy.cut_instead_of_answer(cuts);
        let outcome = work(&billing, &shop, &events).await;
        // Failures of single receipts are recorded, not returned: the number of answers says whether the cut was reached.
        let finished = outcome.is_ok() && proxy.flights() - before <= cuts;
        drop(billing);
        // The machine comes back: Stripe repeats what was not answered, leases end, the worker goes on.
        shop.database.clock().advance(TimeDelta::seconds(61));
        work(&shop.billing, &shop, &events).await.unwrap();
        shop.apply().await;
        digests.insert(shop.digest(&ctx).await);
        assert_eq!(digests.len(), 1, "after a cut in place of answer {cuts}: {digests:#?}");
        let open = "select count(*) from saas.billing_receipt where state <> 'applied'";
        assert_eq!(shop.scalar(open).await, 0, "after a cut in place of answer {cuts}");
        let twice = "select count(*) from (select 1 from saas.audit group by detail ->> 'event', subject having count(*) > 1) as twice";
        assert_eq!(shop.scalar(twice).await, 0, "an event had its effect twice after a cut in place of answer {cuts}");
        if finished {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 60, "only {cuts} answers were cut: the proxy is not in the way");
}
