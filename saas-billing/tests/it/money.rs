//! Money from end to end: what is done at Stripe over HTTP comes back as events, and ends in balances and credits.

use std::sync::Arc;

use chrono::TimeDelta;
use saas_billing::{
    ledger::{Account, Burn, CreditGrant},
    money::Money,
    object::ObjectKind,
    testing::{CheckoutRequest, Coupon, Lasts, PayloadShape, Purchase, SimulatorServer},
};
use saas_core::{RequestContext, TenantContext};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    shop::{OPERATOR, Shop, id},
    till::key,
};

/// Whoever pushes the buttons of Stripe's dashboard, over HTTP.
struct Dashboard {
    shop: Shop,
    server: SimulatorServer,
    ctx: RequestContext,
    bought: Purchase,
}

impl Dashboard {
    async fn open(shape: PayloadShape, request: CheckoutRequest) -> Self {
        let shop = Shop::open_with(|stripe| stripe.with_shape(shape), |config| config).await;
        shop.stripe.set_tax_rate(1_900);
        shop.stripe.create_coupon("half", Coupon::percent(5_000, Lasts::Once));
        shop.stripe.create_promotion_code("FALL", "half").unwrap();
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let (ctx, bought) = shop.buyer_of("acme", request).await;
        shop.deliver_all().await;
        while shop.billing.fetch_pending(&*shop.stripe, 10).await.unwrap().done > 0 {}
        Self { shop, server, ctx, bought }
    }

    /// A call; everything that it causes is delivered and applied.
    async fn call(&self, path: &str, form: &str) -> Value {
        let authority = self.server.address().as_str().trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(&authority).await.unwrap();
        let head = format!(
            "POST /v1/{path} HTTP/1.1\r\nhost: {authority}\r\nauthorization: Bearer sk_test_x\r\nconnection: close\r\n"
        );
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{form}", form.len()).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        self.shop.deliver_all().await;
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    fn charge(&self) -> String {
        self.shop.stripe.charge_of(self.bought.invoice.as_ref().unwrap()).unwrap().to_string()
    }

    async fn balance(&self, account: Account) -> i64 {
        let all = self.shop.billing.balances(&self.ctx, None).await.unwrap();
        all.iter().filter(|balance| balance.account == account).map(|balance| balance.amount.minor()).sum()
    }

    async fn credits(&self) -> i64 {
        -self.balance(Account::Credits).await
    }

    async fn grant(&self, minor: i64) {
        let charge = self.shop.stripe.object(ObjectKind::Charge, &id(&self.charge())).unwrap();
        let payment = Some(id(charge["payment_intent"].as_str().unwrap()));
        let grant = CreditGrant { key: key("pack-1"), amount: Money::new(minor, "eur".parse().unwrap()), payment };
        let _ = self.shop.billing.grant_credits(&self.ctx, &grant).await.unwrap();
    }

    async fn is_sound(&self) {
        let report = self.shop.billing.verify_ledger(&OPERATOR, self.ctx.tenant(), None).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        let totals = self.shop.billing.ledger_totals(&OPERATOR).await.unwrap();
        assert_eq!(totals.iter().map(|total| total.amount.minor()).sum::<i64>(), 0);
    }
}

const SHAPES: [PayloadShape; 2] = [PayloadShape::Current, PayloadShape::Legacy];

// Lesson 33
#[tokio::test]
async fn credits_go_with_refunds_and_disputes_of_their_payment_and_come_back_with_the_money() {
    for shape in SHAPES {
        let desk = Dashboard::open(shape, CheckoutRequest::new("price_pro")).await;
        desk.grant(1_000).await;
        assert_eq!((desk.balance(Account::Cash).await, desk.credits().await), (2_000, 1_000));
        // A quarter of the payment goes back, and a quarter of the credits with it.
        let refund = desk.call("refunds", &format!("charge={}&amount=500", desk.charge())).await;
        assert_eq!((desk.balance(Account::Cash).await, desk.credits().await), (1_500, 750), "{refund}");
        let (use_it, amount) = (key("use"), Money::new(700, "eur".parse().unwrap()));
        let burn = desk.shop.billing.burn_credits(&desk.ctx, &use_it, amount).await.unwrap();
        assert!(matches!(burn, Burn::Burnt { .. }));
        // The bank takes the rest: what is burnt already is missing.
        let dispute = desk.shop.stripe.dispute(&id(&desk.charge())).unwrap();
        desk.shop.deliver_all().await;
        assert_eq!((desk.balance(Account::Cash).await, desk.balance(Account::Disputes).await), (0, 1_500));
        assert_eq!(desk.credits().await, -700);
        let refused = desk.call("refunds", &format!("charge={}", desk.charge())).await;
        assert_eq!(refused["error"]["code"], "charge_disputed");
        let answered = desk.call(&format!("disputes/{dispute}"), "evidence[uncategorized_text]=paid").await;
        assert_eq!(answered["status"], "under_review");
        desk.shop.stripe.close_dispute(&dispute, true).unwrap();
        desk.shop.deliver_all().await;
        assert_eq!((desk.balance(Account::Cash).await, desk.credits().await), (1_500, 50));
        // The refund came back as well.
        desk.shop.stripe.fail_refund(&id(refund["id"].as_str().unwrap())).unwrap();
        desk.shop.deliver_all().await;
        assert_eq!((desk.balance(Account::Cash).await, desk.credits().await), (2_000, 300), "{shape:?}");
        desk.is_sound().await;
    }
}

#[tokio::test]
async fn an_inquiry_moves_nothing_and_a_dispute_that_is_given_up_is_lost() {
    let desk = Dashboard::open(PayloadShape::Current, CheckoutRequest::new("price_pro")).await;
    let inquiry = desk.shop.stripe.inquire(&id(&desk.charge())).unwrap();
    desk.shop.deliver_all().await;
    assert_eq!((desk.balance(Account::Cash).await, desk.balance(Account::Disputes).await), (2_000, 0));
    desk.shop.stripe.close_dispute(&inquiry, true).unwrap();
    let dispute = desk.shop.stripe.dispute(&id(&desk.charge())).unwrap();
    let closed = desk.call(&format!("disputes/{dispute}/close"), "").await;
    assert_eq!(closed["status"], "lost");
    assert_eq!((desk.balance(Account::Cash).await, desk.balance(Account::DisputesLost).await), (0, 2_000));
    desk.is_sound().await;
}

// D12, L5
#[tokio::test]
async fn a_coupon_tax_and_credit_notes_end_in_balances_that_say_what_is_left() {
    for shape in SHAPES {
        let request = CheckoutRequest::new("price_pro").with_coupon("half").with_automatic_tax();
        let desk = Dashboard::open(shape, request).await;
        let accounts = [Account::Revenue, Account::Tax, Account::Cash, Account::Payments];
        let mut booked = Vec::new();
        for account in accounts {
            booked.push(desk.balance(account).await);
        }
        assert_eq!(booked, [-1_000, -190, 1_190, 0], "half of 2,000, and 19 % on that: {shape:?}");
        // Once is over: the next period is at full price, and cannot be paid.
        desk.shop.stripe.fail_next_payment(&desk.bought.customer);
        desk.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
        desk.shop.deliver_all().await;
        assert_eq!(desk.balance(Account::Receivable).await, 2_380);
        let latest = desk.shop.stripe.object(ObjectKind::Subscription, &desk.bought.subscription).unwrap();
        let invoice = latest["latest_invoice"].as_str().unwrap().to_owned();
        let note = desk.call("credit_notes", &format!("invoice={invoice}&amount=1190")).await;
        assert_eq!((desk.balance(Account::Receivable).await, desk.balance(Account::Tax).await), (1_190, -190 - 190));
        desk.call(&format!("credit_notes/{}/void", note["id"].as_str().unwrap()), "").await;
        assert_eq!((desk.balance(Account::Receivable).await, desk.balance(Account::Tax).await), (2_380, -190 - 380));
        desk.call(&format!("invoices/{invoice}/mark_uncollectible"), "").await;
        assert_eq!((desk.balance(Account::Receivable).await, desk.balance(Account::BadDebt).await), (0, 2_380));
        desk.shop.stripe.pay_invoice(&id(&invoice)).unwrap();
        desk.shop.deliver_all().await;
        assert_eq!((desk.balance(Account::BadDebt).await, desk.balance(Account::Payments).await), (0, 0));
        // Of what is paid, a part becomes the customer's credit, and the next invoice takes it.
        desk.call("credit_notes", &format!("invoice={invoice}&amount=300&credit_amount=300")).await;
        assert_eq!(desk.balance(Account::CustomerCredit).await, -300);
        desk.shop.stripe.pay(&desk.bought.customer);
        desk.shop.stripe.advance(TimeDelta::days(31));
        desk.shop.deliver_all().await;
        let left = (desk.balance(Account::CustomerCredit).await, desk.balance(Account::CreditClearing).await);
        assert_eq!(left, (0, 0), "{shape:?}");
        assert_eq!(desk.balance(Account::Receivable).await, 0);
        desk.is_sound().await;
    }
}

#[tokio::test]
async fn a_buyer_enters_a_promotion_code_and_what_recurs_is_known_once_its_terms_are_read() {
    let shop = Shop::open().await;
    shop.stripe.create_coupon("half", Coupon::percent(5_000, Lasts::Forever));
    shop.stripe.create_promotion_code("FALL", "half").unwrap();
    let ctx = shop.database.create_tenant("acme").await;
    let session = shop.stripe.checkout(CheckoutRequest::new("price_pro"));
    shop.billing.record_checkout(&ctx, &session).await.unwrap();
    assert!(shop.stripe.enter_promotion_code(&session, "SPRING").is_err());
    shop.stripe.enter_promotion_code(&session, "fall").unwrap();
    let bought = shop.stripe.complete_checkout(&session).unwrap();
    let invoice = shop.stripe.object(ObjectKind::Invoice, bought.invoice.as_ref().unwrap()).unwrap();
    assert_eq!((&invoice["subtotal"], &invoice["total"]), (&2_000.into(), &1_000.into()));
    shop.deliver_all().await;
    while shop.billing.fetch_pending(&*shop.stripe, 10).await.unwrap().done > 0 {}
    let mrr = "select mrr_minor from saas.tenant_overview";
    assert_eq!(shop.scalar(mrr).await, 1_000);
}
