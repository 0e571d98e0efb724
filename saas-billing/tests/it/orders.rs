//! The law: any order of deliveries, with any repetition, ends in one state.
//!
//! The history has six events: a customer, a completed checkout, a subscription created and updated twice, an invoice
//! paid; all of them of one second, which is the hardest case. All 720 orders go through the real database, each as it is
//! and again with repetitions and a kill. All 30,240 orders with one repetition go through the same merging and deriving in
//! memory.

use saas_billing::{
    object::ObjectKind,
    testing::{CheckoutRequest, Delivery, Permutations, Scenario},
};
use saas_core::RequestContext;

use crate::{
    counter::{Counter, Memory},
    shop::Shop,
};

const WANTED: [&str; 5] = [
    "customer.created",
    "checkout.session.completed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "invoice.paid",
];

fn scenario(shop: &Shop) -> Scenario {
    let six = Scenario::record(&shop.stripe, |stripe| {
        let session = stripe.checkout(CheckoutRequest::new("price_pro"));
        let purchase = stripe.complete_checkout(&session).unwrap();
        stripe.update_quantity(&purchase.subscription, 5);
    });
    let six = six.only(&WANTED);
    assert_eq!(six.events().len(), 6);
    six
}

/// The six events, and the checkout session that was made for the tenant.
pub(crate) async fn history(shop: &Shop) -> (RequestContext, saas_billing::ObjectId, Vec<Delivery>) {
    let ctx = shop.database.create_tenant("acme").await;
    let events = scenario(shop).events().to_vec();
    (ctx, shop.stripe.living(ObjectKind::CheckoutSession).remove(0), events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_720_orders_end_in_one_state() {
    let shop = Shop::open().await;
    let counter = Counter::new(scenario(&shop), shop);
    let agreed = Permutations::seeded(720).with_cuts(40).check(&counter).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(agreed.courses, 1 + 2 * 720);
    let digest = agreed.digest.to_string();
    for part in ["pro 10000 eur", "subscription.started", "invoice.paid", "checkout.completed", r#""seats":5"#] {
        assert!(digest.contains(part), "{part} is not in {digest}");
    }
    let stuck = "select count(*) from saas.billing_receipt where state <> 'applied'";
    assert_eq!(counter.shop.scalar(stuck).await, 0);
}

#[tokio::test]
async fn all_30240_orders_with_one_repetition_end_in_one_state() {
    let shop = Shop::open().await;
    let memory = Memory::new(&scenario(&shop));
    let every = Permutations::seeded(0).with_every_repetition();
    let agreed = every.check(&memory).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(agreed.courses, 1 + 720 + 30_240);
    assert_eq!(agreed.digest["derived"]["seats"], 5);
    assert_eq!(agreed.digest["fetches"], 0, "two updates of one second need no fetch");
}
