//! The application over real HTTP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc};

use axum_minimal::{App, resolver, router};
use chrono::TimeDelta;
use saas_billing::{
    Billing, BillingConfig, Mode, SigningSecrets,
    object::Interval,
    testing::{Chaos, CheckoutRequest, StripeSimulator},
};
use saas_core::{PlanCatalog, SharedClock, TenantContext, TenantTx, testing::TestDatabase};
use saas_entitlements::{Entitlements, Meter, PostgresCounters, PostgresSource};
use saas_tenancy::{Created, NewTenant, Tenancy, VerifiedEmail, resolve::Entrance};
use sqlx::Executor;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

struct Served {
    db: TestDatabase,
    app: App,
    billing: Billing,
    stripe: StripeSimulator,
    address: SocketAddr,
}

impl Served {
    async fn start() -> Self {
        let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
        let db = TestDatabase::start(&schemas).await;
        db.owner().await.execute(include_str!("../project.sql")).await.unwrap();
        let (tenants, system) = (Arc::new(db.tenants().clone()), db.system().clone());
        let clock: SharedClock = Arc::new(db.clock().clone());
        let catalog = PlanCatalog::from_toml(include_str!("../plans.toml")).unwrap();
        let stripe = StripeSimulator::new("whsec_test_0123456789", db.clock().clone()).unwrap();
        stripe.create_price("price_pro_monthly", 2_900, "eur", &Interval::Month);
        let secrets = SigningSecrets::new(vec![stripe.secret()]).unwrap();
        let config = BillingConfig::new(catalog.clone(), secrets, Mode::Test);
        let billing = Billing::new(config, tenants.clone(), system.clone(), clock.clone());
        let source = PostgresSource::new(tenants.clone(), Arc::new(billing.clone()));
        let entitlements = Entitlements::new(catalog, Arc::new(source), clock.clone());
        let tenancy = Tenancy::new((*tenants).clone(), system, clock);
        let app = App {
            tenants: (*tenants).clone(),
            entrance: Entrance::new(tenancy.clone(), resolver()).unwrap(),
            tenancy,
            webhooks: Arc::new(billing.clone()),
            meter: Meter::new(entitlements.clone(), Arc::new(PostgresCounters::new(tenants))),
            entitlements,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, router(app.clone())).into_future());
        Self { db, app, billing, stripe, address }
    }

    async fn sign_up(&self, slug: &str) -> Created {
        let owner = VerifiedEmail::vouched(format!("{slug}@example.com").parse().unwrap());
        let created = self
            .app
            .tenancy
            .create_tenant(&NewTenant::new(slug.parse().unwrap(), slug).unwrap(), &owner)
            .await
            .unwrap();
        let ctx = self.app.tenancy.enter(created.tenant, created.owner).await.unwrap();
        let mut tx = TenantTx::begin(&self.app.tenants, &ctx).await.unwrap();
        let insert =
            sqlx::query("insert into project values ($1, $2)").bind(ctx.tenant().as_uuid()).bind(format!("of {slug}"));
        insert.execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        created
    }

    /// One request on a connection of its own: status and body.
    async fn send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut request =
            format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        stream.write_all((request + "\r\n").as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str, by: Created) -> (u16, String) {
        let (tenant, user) = (by.tenant.to_string(), by.owner.to_string());
        self.send(&format!("GET {path}"), &[("x-tenant", &tenant), ("x-user", &user)], b"").await
    }

    /// All that Stripe has to tell, over a bad network, applied and heard.
    async fn told(&self) {
        for delivery in self.stripe.deliveries_through(Chaos::shuffled(3).duplicating(50)) {
            let headers = [(saas_billing::SIGNATURE_HEADER, delivery.signature.as_str())];
            assert_eq!(self.send("POST /webhooks/stripe", &headers, &delivery.body).await.0, 200);
        }
        while self.billing.apply_pending(100).await.unwrap().total() > 0 {}
        self.app.entitlements.flush();
    }

    async fn call(&self, by: Created, key: &str) -> (u16, String) {
        let (tenant, user) = (by.tenant.to_string(), by.owner.to_string());
        let headers = [("x-tenant", tenant.as_str()), ("x-user", user.as_str()), ("idempotency-key", key)];
        self.send("POST /calls", &headers, b"").await
    }
}

#[tokio::test]
async fn a_member_sees_their_tenants_rows_and_a_stranger_sees_no_tenant() {
    let served = Served::start().await;
    let (acme, globex) = (served.sign_up("acme").await, served.sign_up("globex").await);
    assert_eq!(served.get("/projects", acme).await, (200, r#"["of acme"]"#.to_owned()));
    assert_eq!(served.get("/projects", globex).await, (200, r#"["of globex"]"#.to_owned()));
    // T45: a tenant one is not in and a tenant that does not exist look the same.
    let foreign = served.get("/projects", Created { tenant: globex.tenant, owner: acme.owner }).await;
    let random = saas_core::TenantId::mint(&saas_core::SystemClock);
    let unknown = served.get("/projects", Created { tenant: random, owner: acme.owner }).await;
    assert_eq!(foreign.0, 404);
    assert_eq!(foreign, unknown);
    assert_eq!(served.send("GET /projects", &[], b"").await.0, 401);
}

#[tokio::test]
async fn a_purchase_turns_a_feature_on_and_lifts_a_limit() {
    let served = Served::start().await;
    let acme = served.sign_up("acme").await;
    let (status, why) = served.get("/export", acme).await;
    assert_eq!(status, 402);
    assert!(why.contains("`pro` is the first plan that does"), "{why}");
    for n in 0..3 {
        assert_eq!(served.call(acme, &format!("key-{n}")).await.0, 200);
    }
    let (status, hint) = served.call(acme, "key-3").await;
    assert_eq!(status, 429);
    assert!(hint.contains("`pro@1` has more"), "{hint}");
    assert_eq!(served.call(acme, "key-0").await, (200, "already counted".to_owned()));
    assert_eq!(served.call(acme, "").await.0, 400);

    let ctx = served.app.tenancy.enter(acme.tenant, acme.owner).await.unwrap();
    let session = served.stripe.checkout(CheckoutRequest::new("price_pro_monthly"));
    served.billing.record_checkout(&ctx, &session).await.unwrap();
    served.stripe.complete_checkout(&session).unwrap();
    served.told().await;
    assert_eq!(served.get("/export", acme).await.0, 200);
    assert_eq!(served.call(acme, "key-3").await.0, 200);
}

// D3, D6, f-E14
#[tokio::test]
async fn who_does_not_pay_may_read_then_nothing_and_all_again_when_it_is_paid() {
    let served = Served::start().await;
    let acme = served.sign_up("acme").await;
    let ctx = served.app.tenancy.enter(acme.tenant, acme.owner).await.unwrap();
    let session = served.stripe.checkout(CheckoutRequest::new("price_pro_monthly"));
    served.billing.record_checkout(&ctx, &session).await.unwrap();
    let purchase = served.stripe.complete_checkout(&session).unwrap();
    served.stripe.fail_next_payment(&purchase.customer);
    served.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(1));
    served.told().await;
    served.app.entitlements.tick();
    // Nothing is told from here on: the gate knows when its answer ends.
    for (days, read, write) in [(0, 200, 200), (14, 200, 402), (14, 402, 402)] {
        served.db.clock().advance(TimeDelta::days(days));
        served.app.entitlements.tick();
        let answered =
            (served.get("/projects", acme).await.0, served.call(acme, &format!("after-{days}-{read}")).await.0);
        assert_eq!(answered, (read, write), "{days} days later");
    }
    served.stripe.pay(&purchase.customer);
    served.told().await;
    assert_eq!(served.call(acme, "paid").await.0, 200);
}

#[tokio::test]
async fn a_delivery_that_is_not_stripes_is_refused() {
    let served = Served::start().await;
    assert_eq!(served.send("POST /webhooks/stripe", &[], b"{}").await.0, 400);
    let forged = [(saas_billing::SIGNATURE_HEADER, "t=1,v1=00")];
    assert_eq!(served.send("POST /webhooks/stripe", &forged, b"{}").await.0, 400);
}
