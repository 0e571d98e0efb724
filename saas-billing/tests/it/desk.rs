//! A tenant whose payments fail, the workers that dun it, and the letters that leave; Stripe over HTTP.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_billing::{
    Billing, BillingConfig, ObjectId,
    dunning::{DUNNING, DunningHandler, DunningMessages, DunningNotice, MessageCause},
    object::ObjectKind,
    stripe::StripeApi,
    testing::{CheckoutRequest, Purchase, SimulatorServer},
};
use saas_core::{
    Clock as _, CoreError, RequestContext, SystemPool,
    mail::{self, Mail, MailHandler, Mailbox},
    outbox::Worker,
    subscription::{AccessLevel, PlanSource as _},
};
use serde_json::Value;

use crate::{
    provider::adapter,
    shop::{Shop, id},
};

/// Writes one letter whose subject is the kind of message and whose text is where to pay.
#[derive(Debug)]
pub(crate) struct Letters;

#[async_trait]
impl DunningMessages for Letters {
    async fn compose(&self, notice: &DunningNotice) -> Result<Vec<Mail>, CoreError> {
        let link = notice.pay_link.as_ref().filter(|_| notice.cause != MessageCause::Recovery);
        let text = format!(
            "{} {} {} open {:?} {}",
            notice.invoice,
            notice.amount,
            notice.open,
            notice.access,
            link.map_or("", |link| link.as_str())
        );
        Ok(vec![Mail::new("owner@acme.example".parse()?, notice.message.as_str(), text)?])
    }
}

pub(crate) struct Desk {
    pub(crate) shop: Shop,
    pub(crate) stripe: Arc<StripeApi>,
    pub(crate) ctx: RequestContext,
    pub(crate) purchase: Purchase,
    pub(crate) server: SimulatorServer,
    pub(crate) mailbox: Mailbox,
}

impl Desk {
    /// A tenant on a plan with five seats, paid.
    pub(crate) async fn open(config: impl FnOnce(BillingConfig) -> BillingConfig) -> Self {
        let shop = Shop::open_with(|stripe| stripe, config).await;
        let (ctx, purchase) = shop.buyer_of("acme", CheckoutRequest::new("price_pro").with_quantity(5)).await;
        shop.deliver_all().await;
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let stripe = Arc::new(StripeApi::new(adapter(&server)).unwrap());
        Self { shop, stripe, ctx, purchase, server, mailbox: Mailbox::default() }
    }

    /// As [`open`](Self::open), a moment after its card was declined for the second month; that is delivered.
    pub(crate) async fn unpaid(config: impl FnOnce(BillingConfig) -> BillingConfig) -> Self {
        let desk = Self::open(config).await;
        desk.shop.stripe.fail_next_payment(&desk.purchase.customer);
        desk.to_renewal();
        desk.shop.deliver_all().await;
        desk
    }

    /// To the instant at which Stripe charges the next month.
    pub(crate) fn to_renewal(&self) {
        self.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(1));
    }

    pub(crate) fn worker_of(&self, billing: &Billing, system: SystemPool) -> Worker {
        let handler = DunningHandler::new(billing.clone(), self.stripe.clone(), Arc::new(Letters));
        Worker::new(system, Arc::new(self.shop.database.clock().clone()))
            .with_handler(DUNNING, Arc::new(handler))
            .with_handler(mail::TOPIC, Arc::new(MailHandler(Arc::new(self.mailbox.clone()))))
    }

    /// Lets the workers do what is due.
    pub(crate) async fn work(&self) {
        let worker = self.worker_of(&self.shop.billing, self.shop.database.system().clone());
        while !worker.run_once().await.unwrap().is_idle() {}
    }

    /// Lets time pass, whatever Stripe tells meanwhile be told, and the workers do what is due.
    pub(crate) async fn pass(&self, time: TimeDelta) {
        self.shop.stripe.advance(time);
        self.shop.deliver_all().await;
        self.work().await;
    }

    /// What was sent, in its order.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.mailbox.messages().iter().map(|mail| mail.subject().to_owned()).collect()
    }

    pub(crate) async fn access(&self) -> AccessLevel {
        let now = self.shop.database.clock().now();
        self.shop.billing.plan_of(&self.ctx, now).await.unwrap().standing.access(now)
    }

    pub(crate) fn subscription(&self) -> Value {
        self.shop.stripe.object(ObjectKind::Subscription, &self.purchase.subscription).unwrap()
    }

    pub(crate) fn latest_invoice(&self) -> ObjectId {
        id(self.subscription()["latest_invoice"].as_str().unwrap())
    }

    /// How many jobs of dunning wait.
    pub(crate) async fn waiting(&self) -> i64 {
        self.shop.scalar("select count(*) from saas.outbox where topic = 'billing.dunning' and state = 'pending'").await
    }

    /// Whether nothing is left of a dunning but what was sent.
    pub(crate) async fn is_over(&self) -> bool {
        let rows = "select (select count(*) from saas.dunning) + (select count(*) from saas.dunning_invoice)";
        self.shop.scalar(rows).await == 0 && self.waiting().await == 0
    }
}
