//! A shop with one endpoint: a database of its own, a simulated Stripe, the service between them.

use std::{sync::Arc, time::Duration};

use saas_billing::{
    Accepted, Applied, Billing, BillingConfig, Mode, ObjectId, SigningSecrets, WebhookProcessor,
    object::Interval,
    testing::{CheckoutRequest, Delivery, Purchase, StripeSimulator},
};
use saas_core::{
    Actor, PlanCatalog, RequestContext, TenantContext,
    testing::{TestDatabase, leaks},
};
use sqlx::PgConnection;
use tokio::sync::Mutex;

use crate::redaction::SECRETS;

pub(crate) const CATALOG: &str = r#"
default_plan = "free"
[features.export]
kind = "boolean"
fail = "closed"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = ["price_pro", "price_pro_usd"]
grants = { export = true }
[plans.team]
rank = 20
[[plans.team.versions]]
version = 1
prices = ["price_team", "price_team_year", "price_team_usd"]
grants = { export = true }
[plans.old]
rank = 5
[[plans.old.versions]]
version = 1
state = "archived"
prices = ["price_old"]
[[plans.old.versions]]
version = 2
prices = ["price_old_2"]
[addons.more]
mode = "stack"
max_quantity = 3
prices = ["price_more"]
grants = { export = true }
"#;

pub(crate) const OPERATOR: Actor = Actor::system("test");

#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) database: TestDatabase,
    pub(crate) stripe: Arc<StripeSimulator>,
    pub(crate) billing: Billing,
    /// A superuser's connection, for looking behind the policies.
    pub(crate) owner: Mutex<PgConnection>,
}

pub(crate) fn config(stripe: &StripeSimulator) -> BillingConfig {
    let secrets = SigningSecrets::new(vec![stripe.secret()]).unwrap();
    // A machine that stands still for seconds is not a database that does not answer.
    let patience = Duration::from_secs(60);
    BillingConfig::new(PlanCatalog::from_toml(CATALOG).unwrap(), secrets, Mode::Test).with_intake_deadline(patience)
}

pub(crate) fn stripe(database: &TestDatabase) -> StripeSimulator {
    let stripe = StripeSimulator::new("whsec_test_0123456789abcdef", database.clock().clone()).unwrap();
    stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
    stripe.create_price("price_team", 5000, "eur", &Interval::Month);
    stripe.create_price("price_team_year", 50_000, "eur", &Interval::Year);
    stripe.create_price("price_pro_usd", 2200, "usd", &Interval::Month);
    stripe.create_price("price_team_usd", 5500, "usd", &Interval::Month);
    stripe.create_price("price_more", 300, "eur", &Interval::Month);
    stripe
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(|stripe| stripe, |config| config).await
    }

    pub(crate) async fn open_with(
        stripe_with: impl FnOnce(StripeSimulator) -> StripeSimulator,
        config_with: impl FnOnce(BillingConfig) -> BillingConfig,
    ) -> Self {
        leaks::listen(&SECRETS);
        let database = TestDatabase::builder()
            .max_system_connections(10)
            .start(&[&saas_core::SCHEMA, &saas_billing::SCHEMA])
            .await;
        let stripe = Arc::new(stripe_with(stripe(&database)));
        let billing = service(&database, config_with(config(&stripe)));
        let owner = Mutex::new(database.owner().await);
        Self { database, stripe, billing, owner }
    }

    /// A tenant that has opened a checkout and paid; its events wait to be delivered.
    pub(crate) async fn buyer(&self, slug: &str) -> (RequestContext, Purchase) {
        self.buyer_of(slug, CheckoutRequest::new("price_pro")).await
    }

    pub(crate) async fn buyer_of(&self, slug: &str, request: CheckoutRequest) -> (RequestContext, Purchase) {
        let ctx = self.database.create_tenant(slug).await;
        let session = self.stripe.checkout(request);
        self.billing.record_checkout(&ctx, &session).await.unwrap();
        (ctx, self.stripe.complete_checkout(&session).unwrap())
    }

    pub(crate) async fn receive(&self, delivery: &Delivery) -> Accepted {
        self.billing.process(&delivery.body, &delivery.signature).await.unwrap()
    }

    /// Any body, rightly signed.
    pub(crate) async fn receive_body(&self, body: &[u8]) -> Accepted {
        self.billing.process(body, &self.stripe.sign(body)).await.unwrap()
    }

    /// Delivers in this order and applies until nothing is due.
    pub(crate) async fn deliver(&self, deliveries: &[Delivery]) -> Applied {
        for delivery in deliveries {
            let _ = self.receive(delivery).await;
        }
        self.apply().await
    }

    /// Delivers everything there is to deliver.
    pub(crate) async fn deliver_all(&self) -> Applied {
        self.deliver(&self.stripe.deliveries()).await
    }

    pub(crate) async fn apply(&self) -> Applied {
        let mut sum = Applied::default();
        loop {
            let step = self.billing.apply_pending(100).await.unwrap();
            if step.total() == 0 {
                return sum;
            }
            sum.applied += step.applied;
            sum.ignored += step.ignored;
            sum.parked += step.parked;
            sum.quarantined += step.quarantined;
            sum.retried += step.retried;
            sum.dead += step.dead;
            sum.lost += step.lost;
        }
    }

    /// Everything that must not depend on the order of events: objects, what follows from them, what was done about it,
    /// and the operators' list.
    pub(crate) async fn digest(&self, ctx: &RequestContext) -> String {
        let sql = "
        select concat_ws(E'\\n',
            (select string_agg(concat_ws(' ', kind, object_id, status, is_current, merged), E'\\n' order by object_id)
             from saas.billing_object where tenant_id = $1),
            (select concat_ws(' ', derived, plan, unpaid_since, has_alerts) from saas.billing_state where tenant_id = $1),
            (select string_agg(concat_ws(' ', object_id, fact), E'\\n' order by object_id, fact)
             from saas.billing_effect where tenant_id = $1),
            (select concat_ws(' ', plan, grace_until, suspended_from, mrr_minor, currency) from saas.tenant_overview where tenant_id = $1),
            (select string_agg(object_id, ' ' order by object_id) from saas.billing_directory where tenant = $1),
            (select string_agg(concat_ws(' ', currency, account, sum), E'\\n' order by currency, account)
             from (select currency, account, sum(amount) from saas.ledger_entry where tenant_id = $1
                   group by currency, account having sum(amount) <> 0) as balance),
            (select string_agg(concat_ws(' ', currency, mrr_minor), E'\\n' order by currency)
             from saas.revenue_state where tenant_id = $1),
            (select string_agg(concat_ws(' ', access, next_at), E'\\n') from saas.dunning where tenant_id = $1),
            (select string_agg(concat_ws(' ', invoice, since, currency, amount_minor, paid_at), E'\\n' order by invoice)
             from saas.dunning_invoice where tenant_id = $1),
            (select string_agg(concat_ws(' ', invoice, message), E'\\n' order by invoice, message)
             from saas.dunning_message where tenant_id = $1))";
        let mut owner = self.owner.lock().await;
        sqlx::query_scalar(sql).bind(ctx.tenant().as_uuid()).fetch_one(&mut *owner).await.unwrap()
    }

    /// Puts the database back to before the first delivery.
    pub(crate) async fn forget(&self) {
        let sql = "
            delete from saas.billing_receipt_conflict; delete from saas.billing_receipt; delete from saas.billing_directory;
            delete from saas.billing_fetch; delete from saas.billing_object; delete from saas.billing_state;
            delete from saas.billing_effect; delete from saas.audit; delete from saas.outbox;
            delete from saas.revenue_state; delete from saas.revenue_change; delete from saas.revenue_subscription;
            delete from saas.revenue_arrears;
            delete from saas.dunning; delete from saas.dunning_invoice; delete from saas.dunning_message;
            begin; set local session_replication_role = replica;
            delete from saas.ledger_entry; delete from saas.ledger_transaction; delete from saas.ledger_head; commit;
            update saas.tenant_overview set plan = null, grace_until = null, suspended_from = null, mrr_minor = 0, currency = null;";
        sqlx::raw_sql(sql).execute(&mut *self.owner.lock().await).await.unwrap();
    }

    pub(crate) async fn scalar(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut *self.owner.lock().await).await.unwrap()
    }
}

pub(crate) fn service(database: &TestDatabase, config: BillingConfig) -> Billing {
    Billing::new(
        config,
        Arc::new(database.tenants().clone()),
        database.system().clone(),
        Arc::new(database.clock().clone()),
    )
}

pub(crate) fn id(text: &str) -> ObjectId {
    text.parse().unwrap()
}
