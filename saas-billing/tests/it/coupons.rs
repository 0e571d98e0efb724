//! Coupons and promotion codes: bought with, unknown, beside the field for codes, and kept by a change of plan.

use saas_billing::{
    BillingError, ProviderError,
    command::{Checkout, CheckoutPage, CustomerDetails},
    object::ObjectKind,
    provider::{Command, NewDiscount, NewSubscription, OnFailedPayment, PaymentProvider as _},
    subscription::{Change, PlanChange, When},
    testing::{CheckoutRequest, Coupon, Lasts},
};
use saas_core::{ErrorKind, RequestContext};

use crate::{
    shop::{OPERATOR, Shop, id},
    till::{Till, text},
};

fn page() -> CheckoutPage {
    let (success, cancel) = ("https://app.example.com/done", "https://app.example.com/billing");
    CheckoutPage::new(id("price_pro"), Some(1), success.parse().unwrap(), cancel.parse().unwrap())
}

fn coupon(name: &str) -> NewDiscount {
    NewDiscount::Coupon(id(name))
}

impl Shop {
    /// A shop with a quarter off for as long as the subscription lasts.
    async fn with_coupon() -> Self {
        let shop = Self::open().await;
        shop.stripe.create_coupon("quarter", Coupon::percent(2_500, Lasts::Forever));
        shop
    }

    async fn session(&self, ctx: &RequestContext, page: &CheckoutPage) -> Result<saas_billing::ObjectId, BillingError> {
        match self.billing.checkout(self.stripe.as_ref(), ctx, page).await? {
            Checkout::Open { session, .. } => Ok(session),
            Checkout::Subscribed { subscription } => panic!("{subscription} is there"),
        }
    }

    async fn monthly(&self) -> i64 {
        self.deliver_all().await;
        while self.billing.fetch_pending(self.stripe.as_ref(), 10).await.unwrap().done > 0 {}
        self.billing.mrr(&OPERATOR).await.unwrap().iter().map(|mrr| mrr.monthly.minor()).sum()
    }
}

#[tokio::test]
async fn a_checkout_takes_a_coupon_off_the_first_invoice_and_the_revenue() {
    let shop = Shop::with_coupon().await;
    let ctx = shop.database.create_tenant("acme").await;
    let session = shop.session(&ctx, &page().with_discount(coupon("quarter"))).await.unwrap();
    let bought = shop.stripe.complete_checkout(&session).unwrap();
    let invoice = shop.stripe.object(ObjectKind::Invoice, &bought.invoice.unwrap()).unwrap();
    assert_eq!((&invoice["subtotal"], &invoice["amount_paid"]), (&2_000.into(), &1_500.into()));
    assert_eq!(shop.monthly().await, 1_500);

    // By the code's id, and for one invoice: the first is less, and nothing of it recurs.
    shop.stripe.create_coupon("half", Coupon::percent(5_000, Lasts::Once));
    let code = shop.stripe.create_promotion_code("FALL", "half").unwrap();
    let other = shop.database.create_tenant("other").await;
    let page = page().with_discount(NewDiscount::PromotionCode(code));
    let bought = shop.stripe.complete_checkout(&shop.session(&other, &page).await.unwrap()).unwrap();
    let invoice = shop.stripe.object(ObjectKind::Invoice, &bought.invoice.unwrap()).unwrap();
    assert_eq!(invoice["amount_paid"], 1_000);
    assert_eq!(shop.monthly().await, 1_500 + 2_000);
}

#[tokio::test]
async fn a_subscription_without_a_page_takes_a_coupon_too() {
    let shop = Shop::with_coupon().await;
    let ctx = shop.database.create_tenant("acme").await;
    let customer = shop.billing.ensure_customer(shop.stripe.as_ref(), &ctx, &CustomerDetails::default()).await.unwrap();
    let new = |discount| {
        Command::CreateSubscription(NewSubscription {
            customer: customer.clone(),
            items: vec![(id("price_pro"), Some(1))],
            trial_days: None,
            discount: Some(discount),
            on_failed_payment: OnFailedPayment::Owe,
            metadata: Default::default(),
        })
    };
    let made = shop.stripe.execute(&new(coupon("quarter")), &"key".parse().unwrap()).await.unwrap().id().unwrap();
    let subscription = shop.stripe.object(ObjectKind::Subscription, &made).unwrap();
    let invoice = shop.stripe.object(ObjectKind::Invoice, &id(&text(&subscription["latest_invoice"]))).unwrap();
    assert_eq!(invoice["total"], 1_500);
    let why = shop.stripe.execute(&new(coupon("never")), &"other".parse().unwrap()).await.unwrap_err();
    assert!(matches!(&why, ProviderError::Missing { id: Some(missing) } if missing.as_str() == "never"), "{why:?}");
}

#[tokio::test]
async fn an_unknown_coupon_is_named_and_a_page_with_codes_and_a_discount_is_refused_before_anything_is_sent() {
    let shop = Shop::with_coupon().await;
    let ctx = shop.database.create_tenant("acme").await;
    let both = page().with_discount(coupon("quarter")).with_promotion_codes();
    let why = shop.session(&ctx, &both).await.unwrap_err();
    assert_eq!((why.kind(), shop.stripe.calls()), (ErrorKind::Invalid, 0));
    assert!(why.to_string().contains("promotion codes"), "{why}");

    for discount in [coupon("SPRING-26"), NewDiscount::PromotionCode(id("promo_SPRING-26"))] {
        let why = shop.session(&ctx, &page().with_discount(discount)).await.unwrap_err();
        assert_eq!(why.kind(), ErrorKind::NotFound);
        assert!(why.to_string().contains("SPRING-26"), "{why}");
    }
    // The customer has not been suspected, and another wish goes through.
    assert_eq!(shop.stripe.living(ObjectKind::Customer).len(), 1);
    let plain = shop.session(&ctx, &page()).await.unwrap();
    let reduced = shop.session(&ctx, &page().with_discount(coupon("quarter"))).await.unwrap();
    assert_ne!(plain, reduced, "another wish");
    assert_eq!(shop.session(&ctx, &page().with_discount(coupon("quarter"))).await.unwrap(), reduced);
    assert!(shop.stripe.complete_checkout(&plain).is_err(), "closed");
}

#[tokio::test]
async fn a_change_of_plan_keeps_the_discount_now_and_with_the_next_period() {
    let till = Till::open_with(CheckoutRequest::new("price_pro").with_quantity(1), |config| config).await;
    till.shop.stripe.create_coupon("quarter", Coupon::percent(2_500, Lasts::Forever));
    till.shop.stripe.apply_coupon(&till.purchase.subscription, "quarter").unwrap();
    till.settle().await;
    let discounts = || till.subscription()["discounts"].clone();
    let before = discounts();
    assert_eq!(before.as_array().unwrap().len(), 1);
    assert_eq!(till.change(&PlanChange::to_price(id("price_team")), "up").await.unwrap(), Change::Made);
    assert_eq!(discounts(), before);
    let down = PlanChange::to_price(id("price_pro")).with_when(When::AtPeriodEnd);
    assert!(matches!(till.change(&down, "down").await.unwrap(), Change::Scheduled { .. }));
    assert_eq!(discounts(), before, "while it waits");
    till.shop.stripe.advance(chrono::TimeDelta::days(32));
    till.settle().await;
    assert_eq!(till.items(), [("price_pro".to_owned(), 1)]);
    assert_eq!(discounts(), before);
    assert_eq!(till.latest_invoice()["total"], 1_500);
    assert_eq!(till.shop.monthly().await, 1_500);
}
