//! A tenant with a subscription, and the application's calls about it: over HTTP, as they are made.

use std::sync::Arc;

use saas_billing::{
    BillingConfig, BillingError, ObjectId,
    object::ObjectKind,
    stripe::StripeApi,
    subscription::{Change, PlanChange, Preview},
    testing::{CheckoutRequest, Purchase, SimulatorServer},
};
use saas_core::{IdempotencyKey, RequestContext, TenantContext as _, subscription::PlanSource as _};
use serde_json::Value;

use crate::{
    provider::adapter,
    shop::{Shop, id},
};

pub(crate) struct Till {
    pub(crate) shop: Shop,
    pub(crate) stripe: StripeApi,
    pub(crate) ctx: RequestContext,
    pub(crate) purchase: Purchase,
    pub(crate) server: SimulatorServer,
}

pub(crate) fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

impl Till {
    /// A tenant on a plan, which it has paid; everything is delivered.
    pub(crate) async fn open(price: &str, quantity: u64) -> Self {
        Self::open_with(CheckoutRequest::new(price).with_quantity(quantity), |config| config).await
    }

    pub(crate) async fn open_with(
        request: CheckoutRequest,
        config: impl FnOnce(BillingConfig) -> BillingConfig,
    ) -> Self {
        let shop = Shop::open_with(|stripe| stripe, config).await;
        let (ctx, purchase) = shop.buyer_of("acme", request).await;
        shop.deliver_all().await;
        let server = SimulatorServer::start(Arc::clone(&shop.stripe)).await.unwrap();
        let stripe = StripeApi::new(adapter(&server)).unwrap();
        Self { shop, stripe, ctx, purchase, server }
    }

    pub(crate) async fn change(&self, change: &PlanChange, text: &str) -> Result<Change, BillingError> {
        self.shop.billing.change_plan(&self.stripe, &self.ctx, change, &key(text)).await
    }

    pub(crate) async fn preview(&self, change: &PlanChange) -> Preview {
        self.shop.billing.preview_change(&self.stripe, &self.ctx, change, None).await.unwrap()
    }

    /// What the entitlements are told.
    pub(crate) async fn plan(&self) -> String {
        self.shop.billing.plan_of(&self.ctx, self.shop.stripe.now()).await.unwrap().plan.to_string()
    }

    /// Everything that Stripe has to tell, told, and what it does not tell read.
    pub(crate) async fn settle(&self) {
        self.shop.deliver_all().await;
        while self.shop.billing.fetch_pending(&self.stripe, 10).await.unwrap().done > 0 {}
    }

    /// Prices and quantities at Stripe.
    pub(crate) fn items(&self) -> Vec<(String, u64)> {
        let subscription = self.subscription();
        let items = subscription["items"]["data"].as_array().unwrap();
        let item = |item: &Value| (text(&item["price"]["id"]), item["quantity"].as_u64().unwrap());
        items.iter().map(item).collect()
    }

    pub(crate) fn subscription(&self) -> Value {
        self.shop.stripe.object(ObjectKind::Subscription, &self.purchase.subscription).unwrap()
    }

    pub(crate) fn latest_invoice(&self) -> Value {
        let latest: ObjectId = id(&text(&self.subscription()["latest_invoice"]));
        self.shop.stripe.object(ObjectKind::Invoice, &latest).unwrap()
    }

    pub(crate) async fn audited(&self, action: &'static str) -> i64 {
        let mut owner = self.shop.owner.lock().await;
        sqlx::query_scalar("select count(*) from saas.audit where tenant_id = $1 and action = $2")
            .bind(self.ctx.tenant().as_uuid())
            .bind(action)
            .fetch_one(&mut *owner)
            .await
            .unwrap()
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
