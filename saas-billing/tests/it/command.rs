//! Writes to Stripe through commands: one customer and one live subscription per tenant, whatever happens at once or on the
//! way.

use std::{collections::BTreeSet, sync::Arc};

use chrono::TimeDelta;
use saas_billing::{
    Billing, BillingError, ObjectId, PaymentProvider, ProviderError, WebhookProcessor as _,
    command::{COMMANDS, Checkout, CheckoutPage, CommandHandler, CustomerDetails, Returned},
    object::{Interval, ObjectKind},
    provider::{Command, NewCheckout, NewSubscription, OnFailedPayment, TrialPayment},
    stripe::StripeApi,
    testing::{Fault, SimulatorServer},
};
use saas_core::{
    ErrorKind, RequestContext, SharedClock, TenantContext as _, outbox::Worker, subscription::PlanSource as _,
};

use crate::{
    provider::adapter,
    shop::{Shop, config, id, service},
};

fn page() -> CheckoutPage {
    let (success, cancel) = ("https://app.example.com/done", "https://app.example.com/billing");
    CheckoutPage::new(id("price_pro"), Some(1), success.parse().unwrap(), cancel.parse().unwrap())
}

fn opened(checkout: Checkout) -> ObjectId {
    match checkout {
        Checkout::Open { session, .. } => session,
        Checkout::Subscribed { subscription } => panic!("{subscription} is there"),
    }
}

impl Shop {
    async fn customer(&self, ctx: &RequestContext) -> Result<ObjectId, BillingError> {
        self.billing.ensure_customer(self.stripe.as_ref(), ctx, &CustomerDetails::default()).await
    }

    async fn checkout(&self, ctx: &RequestContext) -> Result<Checkout, BillingError> {
        self.billing.checkout(self.stripe.as_ref(), ctx, &page()).await
    }

    /// The outbox, some time later.
    pub(crate) async fn worker(&self) -> saas_core::outbox::Pass {
        self.database.clock().advance(TimeDelta::seconds(31));
        let clock: SharedClock = Arc::new(self.database.clock().clone());
        let provider: Arc<dyn PaymentProvider> = Arc::clone(&self.stripe) as _;
        let handler = Arc::new(CommandHandler::new(self.billing.clone(), provider));
        Worker::new(self.database.system().clone(), clock).with_handler(COMMANDS, handler).run_once().await.unwrap()
    }
}

// f-B2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_customer_is_made_however_many_ask_at_once() {
    let shop = Arc::new(Shop::open().await);
    let ctx = shop.database.create_tenant("acme").await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (shop, ctx) = (Arc::clone(&shop), ctx.clone());
        asking.spawn(async move { shop.customer(&ctx).await.unwrap() });
    }
    let customers: BTreeSet<ObjectId> = asking.join_all().await.into_iter().collect();
    assert_eq!(customers.len(), 1);
    assert_eq!(shop.stripe.living(ObjectKind::Customer).len(), 1);
    // If the one whose answer was a saved one was quicker, the object is still to be read.
    let _ = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
    assert_eq!(shop.scalar("select count(*) from saas.billing_object where kind = 'customer'").await, 1);
    assert!(shop.worker().await.done >= 1, "the job finds that it is done");
    assert_eq!(shop.stripe.living(ObjectKind::Customer).len(), 1);
    let left = "select count(*) from saas.billing_command where command is not null";
    assert_eq!(shop.scalar(left).await, 0, "what may hold an address is gone when it is done");
}

// f-B2: the answer is lost in every way; the outbox sees it through
#[tokio::test]
async fn a_customer_whose_answer_was_lost_is_found_and_not_made_again() {
    for fault in
        [Fault::CutBefore, Fault::CutAfter, Fault::Unavailable, Fault::Garbled, Fault::BrokenAfterwards, Fault::Broken]
    {
        let shop = Shop::open().await;
        let ctx = shop.database.create_tenant("acme").await;
        shop.stripe.inject([fault]);
        assert!(shop.customer(&ctx).await.is_err(), "{fault:?}");
        assert_eq!(shop.worker().await.done, 1, "{fault:?}");
        assert_eq!(shop.stripe.living(ObjectKind::Customer).len(), 1, "{fault:?}");
        let customer = shop.customer(&ctx).await.unwrap();
        assert_eq!(shop.stripe.living(ObjectKind::Customer), [customer], "{fault:?}");
    }
}

// D14: keys are forgotten after a day
#[tokio::test]
async fn after_a_day_without_an_answer_stripe_is_asked_before_the_next_key_is_used() {
    for (fault, calls) in [(Fault::CutAfter, 2), (Fault::CutBefore, 3)] {
        let shop = Shop::open().await;
        let ctx = shop.database.create_tenant("acme").await;
        shop.stripe.inject([fault]);
        let _ = shop.customer(&ctx).await.unwrap_err();
        shop.database.clock().advance(TimeDelta::hours(25));
        shop.stripe.forget_keys();
        let customer = shop.customer(&ctx).await.unwrap();
        assert_eq!(shop.stripe.living(ObjectKind::Customer), [customer], "{fault:?}");
        assert_eq!(shop.stripe.calls(), calls, "{fault:?}: one that was lost, a look, and at most one more");
    }
}

#[tokio::test]
async fn what_stripe_refuses_is_told_recorded_and_does_not_block_the_next_try() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    shop.stripe.inject([Fault::Unauthorized]);
    assert!(matches!(shop.customer(&ctx).await, Err(BillingError::Provider(ProviderError::Authentication))));
    assert_eq!(shop.scalar("select count(*) from saas.billing_command where state = 'pending'").await, 1);
    let _ = shop.customer(&ctx).await.unwrap();
    // A price that the catalogue has and Stripe does not.
    let foreign = CheckoutPage::new(
        id("price_unknown"),
        None,
        "https://a.example".parse().unwrap(),
        "https://a.example".parse().unwrap(),
    );
    let why = shop.billing.checkout(shop.stripe.as_ref(), &ctx, &foreign).await.unwrap_err();
    assert!(matches!(why, BillingError::Invalid(_)), "{why:?}");
    shop.stripe.forget_price("price_pro");
    let why = shop.checkout(&ctx).await.unwrap_err();
    assert!(matches!(why, BillingError::Provider(ProviderError::Missing { .. })), "{why:?}");
    assert_eq!(shop.scalar("select count(*) from saas.audit where action = 'billing.command_refused'").await, 1);
    shop.stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
    let _ = opened(shop.checkout(&ctx).await.unwrap());
}

// f-B3, W27, lesson 17
#[tokio::test]
async fn equal_wishes_share_a_page_another_wish_closes_it_and_a_subscription_ends_it() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let first = opened(shop.checkout(&ctx).await.unwrap());
    assert_eq!(opened(shop.checkout(&ctx).await.unwrap()), first);
    let other = page().with_trial(14, TrialPayment::IfDue);
    let second = opened(shop.billing.checkout(shop.stripe.as_ref(), &ctx, &other).await.unwrap());
    assert_ne!(first, second);
    assert!(shop.stripe.complete_checkout(&first).is_err(), "the first page can no longer be paid on");
    let purchase = shop.stripe.complete_checkout(&second).unwrap();

    // No event has come yet, and the buyer goes back to the first wish.
    let again = shop.checkout(&ctx).await.unwrap();
    assert_eq!(again, Checkout::Subscribed { subscription: purchase.subscription.clone() });
    assert_eq!(shop.billing.plan_of(&ctx, shop.stripe.now()).await.unwrap().plan.as_str(), "pro");
    let digest = shop.digest(&ctx).await;
    assert_eq!(shop.stripe.living(ObjectKind::Subscription), std::slice::from_ref(&purchase.subscription));
    shop.deliver_all().await;
    shop.deliver(&shop.stripe.all_events()).await;
    assert_eq!(
        shop.checkout(&ctx).await.unwrap(),
        Checkout::Subscribed { subscription: purchase.subscription.clone() }
    );
    assert!(shop.digest(&ctx).await.contains("pro"), "{digest}");

    // After its end there is room for another one.
    shop.stripe.cancel(&purchase.subscription);
    shop.deliver_all().await;
    let third = opened(shop.checkout(&ctx).await.unwrap());
    assert!(shop.stripe.complete_checkout(&third).is_ok());
    assert_eq!(shop.stripe.living(ObjectKind::Subscription).len(), 1);
}

// f-B3
#[tokio::test]
async fn pages_and_subscriptions_that_others_made_are_found_before_a_page_is_opened() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let customer = shop.customer(&ctx).await.unwrap();
    let foreign = Command::OpenCheckout(NewCheckout {
        customer: customer.clone(),
        items: vec![(id("price_pro"), Some(1))],
        success: "https://app.example.com".parse().unwrap(),
        cancel: "https://app.example.com".parse().unwrap(),
        trial_days: None,
        trial_payment: TrialPayment::Required,
        promotion_codes: false,
        discount: None,
        automatic_tax: false,
        tax_ids: false,
        metadata: Default::default(),
    });
    let foreign = shop.stripe.execute(&foreign, &"foreign".parse().unwrap()).await.unwrap().id().unwrap();
    let ours = opened(shop.checkout(&ctx).await.unwrap());
    assert!(shop.stripe.complete_checkout(&foreign).is_err(), "closed");
    assert!(shop.stripe.complete_checkout(&ours).is_ok());

    let other = shop.database.create_tenant("other").await;
    let customer = shop.customer(&other).await.unwrap();
    let new = NewSubscription {
        customer,
        items: vec![(id("price_pro"), Some(1))],
        trial_days: Some(14),
        discount: None,
        on_failed_payment: OnFailedPayment::Owe,
        metadata: Default::default(),
    };
    let key = "by hand".replace(' ', "-").parse().unwrap();
    let made = shop.stripe.execute(&Command::CreateSubscription(new), &key).await.unwrap().id().unwrap();
    assert_eq!(shop.checkout(&other).await.unwrap(), Checkout::Subscribed { subscription: made });
}

#[tokio::test]
async fn a_page_that_is_over_by_time_makes_room_for_another() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let first = opened(shop.checkout(&ctx).await.unwrap());
    shop.database.clock().advance(TimeDelta::hours(25));
    let second = opened(shop.checkout(&ctx).await.unwrap());
    assert_ne!(first, second);
}

// W41
#[tokio::test]
async fn a_deleted_customer_makes_room_for_another() {
    let shop = Shop::open().await;
    let ctx = shop.database.create_tenant("acme").await;
    let first = shop.customer(&ctx).await.unwrap();
    shop.stripe.delete_customer(&first);
    assert_eq!(shop.customer(&ctx).await.unwrap(), first, "nobody has told yet");
    shop.deliver_all().await;
    let second = shop.customer(&ctx).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(shop.customer(&ctx).await.unwrap(), second);
}

#[tokio::test]
async fn the_answer_and_the_events_of_one_write_end_in_one_state_in_either_order() {
    let shop = Shop::open().await;
    let before = shop.database.create_tenant("before").await;
    let customer = shop.customer(&before).await.unwrap();
    let answered = shop.digest(&before).await;
    shop.deliver_all().await;
    assert!(shop.digest(&before).await.contains(customer.as_str()));
    assert!(answered.contains(customer.as_str()));

    // The event is quicker than the answer: it waits for the link.
    let after = shop.database.create_tenant("after").await;
    shop.stripe.inject([Fault::CutAfter]);
    let _ = shop.customer(&after).await.unwrap_err();
    let applied = shop.deliver_all().await;
    assert_eq!((applied.parked, applied.applied), (1, 0));
    let customer = shop.customer(&after).await.unwrap();
    shop.apply().await;
    let _ = shop.billing.fetch_pending(shop.stripe.as_ref(), 10).await.unwrap();
    let kept = "select count(*) from saas.billing_object where kind = 'customer'";
    assert_eq!(shop.scalar(kept).await, 2);
    assert!(shop.digest(&after).await.contains(customer.as_str()));
}

// Show 4 in miniature: two clients, each clicks twice at once, over HTTP; some answers are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_double_clicks_make_a_hundred_customers_and_subscriptions() {
    const TENANTS: usize = 100;
    let shop = Shop::open().await;
    let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
    let mut tenants = Vec::new();
    for n in 0..TENANTS {
        tenants.push(shop.database.create_tenant(&format!("tenant-{n}")).await);
    }
    let tenants = Arc::new(tenants);
    // Two services that share nothing but the database and Stripe, as two processes do.
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let billing = service(&shop.database, config(&shop.stripe));
        let stripe = StripeApi::new(adapter(&server)).unwrap();
        let tenants = Arc::clone(&tenants);
        clients.spawn(async move {
            for ctx in tenants.iter() {
                let (one, two) = tokio::join!(click(&billing, &stripe, ctx), click(&billing, &stripe, ctx));
                assert_eq!(one, two);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(shop.stripe.living(ObjectKind::Customer).len(), TENANTS);
    // Buyers pay on every page that is open, twice.
    for session in shop.stripe.living(ObjectKind::CheckoutSession) {
        let _ = shop.stripe.complete_checkout(&session);
        let _ = shop.stripe.complete_checkout(&session);
    }
    assert_eq!(shop.stripe.living(ObjectKind::Subscription).len(), TENANTS);
    for delivery in shop.stripe.deliveries_through(saas_billing::testing::Chaos::shuffled(7).duplicating(10)) {
        let _ = shop.billing.process(&delivery.body, &delivery.signature).await.unwrap();
    }
    shop.apply().await;
    while shop.billing.fetch_pending(shop.stripe.as_ref(), 100).await.unwrap().done > 0 {}
    let subscribed = "select count(*) from saas.billing_state where plan = 'pro' and not has_alerts";
    assert_eq!(shop.scalar(subscribed).await, TENANTS as i64);
    let stripe = StripeApi::new(adapter(&server)).unwrap();
    for ctx in tenants.iter().take(20) {
        assert!(matches!(click(&shop.billing, &stripe, ctx).await, Checkout::Subscribed { .. }), "{:?}", ctx.tenant());
    }
}

/// A buyer who clicks until there is an answer.
async fn click(billing: &Billing, stripe: &StripeApi, ctx: &RequestContext) -> Checkout {
    for _ in 0..20 {
        match billing.checkout(stripe, ctx, &page()).await {
            Ok(checkout) => return checkout,
            Err(why) => assert!(why.is_retryable(), "{why:?}"),
        }
    }
    panic!("no answer in twenty clicks");
}

// Q9, C16: the caller goes away, after every number of polls that there is
#[tokio::test]
async fn a_caller_that_goes_away_at_any_step_leaves_one_customer_and_one_page() {
    let shop = Shop::open().await;
    let mut callers = Callers::default();
    while let Some(polls) = callers.next() {
        let ctx = shop.database.create_tenant(&format!("tenant-{}", callers.all)).await;
        let answer = ends_within(polls, Box::pin(shop.checkout(&ctx))).await;
        callers.note(answer.map(Result::unwrap).is_some());
        let session = opened(shop.checkout(&ctx).await.unwrap());
        assert_eq!(opened(shop.checkout(&ctx).await.unwrap()), session, "after {polls} polls");
        assert_eq!(shop.stripe.living(ObjectKind::Customer).len(), callers.all);
        let _ = shop.stripe.complete_checkout(&session).unwrap();
        assert_eq!(shop.stripe.living(ObjectKind::Subscription).len(), callers.all, "after {polls} polls");
    }
    while !shop.worker().await.is_idle() {}
    assert_eq!(shop.stripe.living(ObjectKind::CheckoutSession).len(), callers.all, "no page that nobody asked for");
}

/// Callers that go away after one poll, after two, and so on, until a call ends by itself. An answer that is there before it is
/// asked for costs no poll: so that must be five times in a row, and if five callers have not gone away by then, it begins anew.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    /// So far.
    pub(crate) all: usize,
    polls: usize,
    gone: usize,
    through: usize,
}

impl Callers {
    const ENOUGH: usize = 5;

    /// After how many polls the next one goes away.
    pub(crate) fn next(&mut self) -> Option<usize> {
        if self.through >= Self::ENOUGH {
            if self.gone >= Self::ENOUGH {
                return None;
            }
            (self.polls, self.through) = (0, 0);
        }
        assert!(self.all < 500, "{self:?}");
        (self.all, self.polls) = (self.all + 1, self.polls + 1);
        Some(self.polls)
    }

    /// Whether the call ended by itself.
    pub(crate) fn note(&mut self, ended: bool) {
        (self.gone, self.through) = if ended { (self.gone, self.through + 1) } else { (self.gone + 1, 0) };
    }
}

/// Polls so many times and drops the future then, unless it ended by itself.
pub(crate) async fn ends_within<T>(
    polls: usize,
    mut future: std::pin::Pin<Box<dyn Future<Output = T> + Send + '_>>,
) -> Option<T> {
    let mut left = polls;
    std::future::poll_fn(move |context| {
        left -= 1;
        match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}

// W26: the buyer is back before the event
#[tokio::test]
async fn who_comes_back_from_the_page_has_what_was_bought_before_any_event() {
    let shop = Shop::open().await;
    let (ctx, other) = (shop.database.create_tenant("acme").await, shop.database.create_tenant("other").await);
    let session = opened(shop.checkout(&ctx).await.unwrap());
    let returned = async |ctx| shop.billing.checkout_returned(shop.stripe.as_ref(), ctx, &session).await;
    assert_eq!(returned(&ctx).await.unwrap(), Returned::Open);
    assert_eq!(returned(&other).await.unwrap_err().kind(), ErrorKind::NotFound, "the id is the visitor's own word");

    let purchase = shop.stripe.complete_checkout(&session).unwrap();
    shop.stripe.inject([Fault::Unavailable]);
    assert!(returned(&ctx).await.unwrap_err().is_retryable());
    let bought = Returned::Bought { subscription: Some(purchase.subscription.clone()) };
    assert_eq!(returned(&ctx).await.unwrap(), bought);
    let now = shop.stripe.now();
    assert_eq!(shop.billing.plan_of(&ctx, now).await.unwrap().plan.as_str(), "pro");
    assert_eq!(shop.billing.plan_of(&other, now).await.unwrap().plan.as_str(), "free");
    let calls = shop.stripe.calls();
    assert_eq!(returned(&ctx).await.unwrap(), bought);
    assert_eq!(shop.stripe.calls(), calls, "loaded again, the page asks nobody");

    let derived = shop.billing.derived(&ctx).await.unwrap();
    shop.deliver_all().await;
    assert_eq!(shop.billing.derived(&ctx).await.unwrap(), derived, "the events tell nothing new");

    let closed = opened(shop.checkout(&other).await.unwrap());
    let (success, cancel) = ("https://app.example.com/done", "https://app.example.com/billing");
    let another = CheckoutPage::new(id("price_pro"), Some(2), success.parse().unwrap(), cancel.parse().unwrap());
    let _ = opened(shop.billing.checkout(shop.stripe.as_ref(), &other, &another).await.unwrap());
    let returned = shop.billing.checkout_returned(shop.stripe.as_ref(), &other, &closed).await.unwrap();
    assert_eq!(returned, Returned::Expired);
    let unheard = shop.billing.checkout_returned(shop.stripe.as_ref(), &other, &id("cs_unheard_of")).await.unwrap_err();
    assert_eq!(unheard.kind(), ErrorKind::NotFound);
}
