//! The law: any order of deliveries, with any repetition, ends in one state.
//!
//! The history has six events: a customer, a completed checkout, a subscription created and updated twice, an invoice
//! paid; all of them of one second, which is the hardest case. All 720 orders go through the real database, one delivery
//! applied before the next comes. All 30,240 orders with one repetition go through the same merging and deriving in memory.

use std::collections::BTreeSet;

use saas_billing::{
    derive::{TenantObjects, derive},
    event::{AnySnapshot, Envelope, read_snapshot},
    testing::{CheckoutRequest, Delivery},
};
use saas_core::{PlanCatalog, RequestContext};

use crate::shop::{CATALOG, Shop};

/// The six events, and the checkout session that was made for the tenant.
pub(crate) async fn history(shop: &Shop) -> (RequestContext, saas_billing::ObjectId, Vec<Delivery>) {
    let ctx = shop.database.create_tenant("acme").await;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    shop.stripe.update_quantity(&purchase.subscription, 5);
    let wanted = [
        "customer.created",
        "checkout.session.completed",
        "customer.subscription.created",
        "customer.subscription.updated",
        "invoice.paid",
    ];
    let mut events = shop.stripe.deliveries();
    events.retain(|delivery| wanted.contains(&delivery.event_type.as_str()));
    assert_eq!(events.len(), 6);
    (ctx, session, events)
}

/// Every order of `0..n`.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let insert = |order: Vec<usize>| {
        (0..n).map(move |place| {
            let mut order = order.clone();
            order.insert(place, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(insert).collect()
}

#[tokio::test]
async fn all_720_orders_end_in_one_state() {
    let shop = Shop::open().await;
    let (ctx, session, events) = history(&shop).await;
    let mut digests = BTreeSet::new();
    for order in orders(events.len()) {
        shop.forget().await;
        shop.billing.record_checkout(&ctx, &session).await.unwrap();
        for index in order {
            let _ = shop.receive(&events[index]).await;
            shop.billing.apply_pending(10).await.unwrap();
        }
        shop.apply().await;
        digests.insert(shop.digest(&ctx).await);
    }
    assert_eq!(digests.len(), 1, "{digests:#?}");
    let digest = digests.first().unwrap();
    for part in ["pro 10000 eur", "subscription.started", "invoice.paid", "checkout.completed", "\"seats\": 5"] {
        assert!(digest.contains(part), "{part} is not in {digest}");
    }
    let stuck = "select count(*) from saas.billing_receipt where state <> 'applied'";
    assert_eq!(shop.scalar(stuck).await, 0);
}

#[tokio::test]
async fn all_30240_orders_with_one_repetition_end_in_one_state() {
    let shop = Shop::open().await;
    let (_, _, events) = history(&shop).await;
    let snapshots: Vec<AnySnapshot> =
        events.iter().map(|event| read_snapshot(&Envelope::read(&event.body).unwrap()).unwrap().unwrap()).collect();
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    let mut states: Vec<(TenantObjects, usize)> = Vec::new();
    for order in orders(snapshots.len()) {
        for repeated in 0..snapshots.len() {
            for place in 0..=order.len() {
                let mut objects = TenantObjects::default();
                for index in order[..place].iter().chain([&repeated]).chain(&order[place..]) {
                    objects.merge(snapshots[*index].clone());
                }
                match states.iter_mut().find(|(known, _)| *known == objects) {
                    Some((_, count)) => *count += 1,
                    None => states.push((objects, 1)),
                }
            }
        }
    }
    assert_eq!(states.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [30_240]);
    let derived = derive(&states[0].0, &catalog);
    assert_eq!((derived.seats, derived.fetches.len()), (Some(5), 0), "two updates of one second need no fetch");
}
