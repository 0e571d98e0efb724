//! The same requests, over real HTTP, under axum and under actix-web: the same answers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use actix_web::{HttpServer, dev::ServerHandle};
use async_trait::async_trait;
use saas_billing::{Billing, BillingConfig, Mode, SigningSecrets, StripeSecret};
use saas_core::{
    Actor, PlanCatalog, SharedClock, SystemClock, TenantContext, TenantId, TenantTx, testing::TestDatabase,
};
use saas_entitlements::{Entitlements, Meter, PostgresCounters, PostgresSource};
use saas_tenancy::{
    Created, NewTenant, Tenancy, VerifiedEmail,
    domain::{DomainName, DomainProof, Domains, ProofError, Verification, value_for},
    lifecycle::Lifecycle,
    resolve::Entrance,
};
use sqlx::Executor;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Both applications on one database.
struct Served {
    db: TestDatabase,
    axum: SocketAddr,
    actix: SocketAddr,
    actix_server: ServerHandle,
    acme: Created,
    globex: Created,
}

/// Publishes whatever the owner of acme was told.
#[derive(Debug)]
struct Published(String);

#[async_trait]
impl DomainProof for Published {
    async fn published(&self, _: &DomainName) -> Result<Vec<String>, ProofError> {
        Ok(vec![self.0.clone()])
    }
}

impl Served {
    async fn start() -> Self {
        let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];
        let db = TestDatabase::start(&schemas).await;
        db.owner().await.execute(include_str!("../../axum-minimal/project.sql")).await.unwrap();
        let (tenants, system) = (Arc::new(db.tenants().clone()), db.system().clone());
        let clock: SharedClock = Arc::new(db.clock().clone());
        let catalog = PlanCatalog::from_toml(include_str!("../../axum-minimal/plans.toml")).unwrap();
        let secrets = SigningSecrets::new(vec![StripeSecret::new("whsec_test_0123456789".into()).unwrap()]).unwrap();
        let config = BillingConfig::new(catalog.clone(), secrets, Mode::Test);
        let billing = Billing::new(config, tenants.clone(), system.clone(), clock.clone());
        let source = PostgresSource::new(tenants.clone(), Arc::new(billing.clone()));
        let entitlements = Entitlements::new(catalog, Arc::new(source), clock.clone());
        let meter = Meter::new(entitlements.clone(), Arc::new(PostgresCounters::new(tenants.clone())));
        let tenancy = Tenancy::new((*tenants).clone(), system, clock);
        let (acme, globex) = (sign_up(&tenancy, &db, "acme").await, sign_up(&tenancy, &db, "globex").await);
        claim(&tenancy, acme, "app.acme.net").await;

        let app = axum_minimal::App {
            tenants: (*tenants).clone(),
            entrance: Entrance::new(tenancy.clone(), axum_minimal::resolver()).unwrap(),
            tenancy: tenancy.clone(),
            webhooks: Arc::new(billing.clone()),
            meter: meter.clone(),
            entitlements: entitlements.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let axum = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, axum_minimal::router(app)).into_future());

        let app = actix_minimal::App {
            tenants: (*tenants).clone(),
            entrance: Entrance::new(tenancy, actix_minimal::resolver()).unwrap(),
            webhooks: Arc::new(billing),
            meter,
            entitlements,
        };
        let server =
            HttpServer::new(move || actix_web::App::new().configure(actix_minimal::routes(app.clone()))).workers(1);
        let server = server.disable_signals().bind("127.0.0.1:0").unwrap();
        let actix = server.addrs()[0];
        let server = server.run();
        let actix_server = server.handle();
        tokio::spawn(server);
        Self { db, axum, actix, actix_server, acme, globex }
    }

    /// What both answer, once it was seen that they answer the same.
    async fn answer(&self, request: &Request) -> Answer {
        let text = request.text();
        let (axum, actix) = (send(self.axum, &text).await, send(self.actix, &text).await);
        assert_eq!(axum, actix, "axum answers the one, actix the other, to:\n{text}");
        axum
    }
}

async fn sign_up(tenancy: &Tenancy, db: &TestDatabase, slug: &str) -> Created {
    let owner = VerifiedEmail::vouched(format!("{slug}@example.com").parse().unwrap());
    let new = NewTenant::new(slug.parse().unwrap(), slug).unwrap();
    let created = tenancy.create_tenant(&new, &owner).await.unwrap();
    let ctx = tenancy.enter(created.tenant, created.owner).await.unwrap();
    let mut tx = TenantTx::begin(db.tenants(), &ctx).await.unwrap();
    let insert = sqlx::query("insert into project values ($1, $2)").bind(ctx.tenant().as_uuid());
    insert.bind(format!("of {slug}")).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    created
}

async fn claim(tenancy: &Tenancy, of: Created, domain: &str) {
    let ctx = tenancy.enter(of.tenant, of.owner).await.unwrap();
    let domain = domain.parse().unwrap();
    let silent = Domains::new(tenancy.clone(), Arc::new(Published(String::new())), &["example.com"]).unwrap();
    let claim = silent.claim(&ctx, &domain).await.unwrap();
    let proof = Arc::new(Published(value_for(claim.token)));
    let domains = Domains::new(tenancy.clone(), proof, &["example.com"]).unwrap();
    assert_eq!(domains.verify(&ctx, &domain).await.unwrap(), Verification::Active);
}

/// One request, on a connection of its own.
#[derive(Clone)]
struct Request {
    line: String,
    headers: Vec<(&'static str, String)>,
}

fn request(line: &str, host: &str) -> Request {
    Request { line: line.to_owned(), headers: vec![("host", host.to_owned())] }
}

impl Request {
    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn by(self, user: Created) -> Self {
        self.with("x-user", user.owner)
    }

    fn without_host(mut self) -> Self {
        self.headers.retain(|(name, _)| *name != "host");
        self
    }

    fn text(&self) -> String {
        let mut text = format!("{} HTTP/1.1\r\nconnection: close\r\ncontent-length: 0\r\n", self.line);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text + "\r\n"
    }
}

/// What an answer says to a client and to the caches in between.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

const RELEVANT: &[&str] =
    &["content-type", "cache-control", "www-authenticate", "retry-after", "allow", "content-length"];

async fn send(to: SocketAddr, text: &str) -> Answer {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        // `allow` is a list, in any spacing.
        let value = value.split(',').map(str::trim).collect::<Vec<_>>().join(",");
        (name.to_ascii_lowercase(), value)
    });
    // axum says what is allowed whenever no method fitted, whatever the answer of the layers around came to.
    let counts = |name: &str| RELEVANT.contains(&name) && (name != "allow" || status == 405);
    let headers = headers.filter(|(name, _)| counts(name)).collect();
    Answer { status, headers, body: body.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_frameworks_answer_every_request_alike() {
    let served = Served::start().await;
    let (acme, globex) = (served.acme, served.globex);
    let random = TenantId::mint(&SystemClock);
    let get = |host: &str| request("GET /projects", host).by(acme);
    let own = |path: &str| request(&format!("GET {path}"), "localhost").by(acme);
    let projects = r#"["of acme"]"#;
    let unknown = r#"{"code":"unknown_tenant","message":"no such tenant"}"#;
    let not_signed_in = r#"{"code":"not_signed_in","message":"sign in first"}"#;
    let call = |key: &str| request("POST /calls", "acme.example.com").by(acme).with("idempotency-key", key);
    let matrix: Vec<(&str, Request, u16, &str)> = vec![
        // Members, by every way.
        ("sub-domain", get("acme.example.com"), 200, projects),
        ("sub-domain in capitals with port", get("ACME.Example.com:8443"), 200, projects),
        ("custom domain", get("app.acme.net"), 200, projects),
        ("custom domain with dot", get("app.acme.net."), 200, projects),
        ("path", own("/t/acme/projects"), 200, projects),
        ("path with a query", own("/t/acme/projects?tenant=globex"), 200, projects),
        ("id in the path", own(&format!("/t/{}/projects", acme.tenant)), 200, projects),
        ("header", own("/projects").with("x-tenant", "acme"), 200, projects),
        ("id in the header", own("/projects").with("x-tenant", acme.tenant), 200, projects),
        ("header at an address", get("127.0.0.1:80").with("x-tenant", "acme"), 200, projects),
        ("two that agree", get("acme.example.com").with("X-Tenant", acme.tenant), 200, projects),
        ("absolute form", request("GET http://acme.example.com/projects", "acme.example.com").by(acme), 200, projects),
        ("only the head", request("HEAD /projects", "acme.example.com").by(acme), 200, ""),
        // Tenants that do not exist, and tenants of others.
        ("unknown sub-domain", get("nobody.example.com"), 404, unknown),
        ("another's sub-domain", get("globex.example.com"), 404, unknown),
        ("unknown domain", get("app.nobody.net"), 404, unknown),
        ("another's domain", request("GET /projects", "app.acme.net").by(globex), 404, unknown),
        ("unknown slug in the path", own("/t/nobody/projects"), 404, unknown),
        ("another's slug in the path", own("/t/globex/projects"), 404, unknown),
        ("unknown id", own(&format!("/t/{random}/projects")), 404, unknown),
        ("another's id", own(&format!("/t/{}/projects", globex.tenant)), 404, unknown),
        ("unknown slug in the header", own("/projects").with("x-tenant", "nobody"), 404, unknown),
        ("another's slug in the header", own("/projects").with("x-tenant", "globex"), 404, unknown),
        ("two that differ", get("acme.example.com").with("x-tenant", "globex"), 404, unknown),
        ("two that differ, one unknown", get("acme.example.com").with("x-tenant", "nobody"), 404, unknown),
        ("a known header at an unknown domain", get("evil.net").with("x-tenant", "acme"), 404, unknown),
        // What can name no tenant.
        ("no tenant named", own("/projects"), 404, unknown),
        ("the vendor's own host", get("www.example.com"), 404, unknown),
        ("nested sub-domain", get("a.acme.example.com"), 404, unknown),
        ("a header twice", own("/projects").with("x-tenant", "acme").with("x-tenant", "acme"), 404, unknown),
        ("a header that is no slug", own("/projects").with("x-tenant", "Acme'; --"), 404, unknown),
        ("an encoded slug", own("/t/%61cme/projects"), 404, unknown),
        (
            "a forwarded host that nobody trusts",
            get("nobody.example.com").with("x-forwarded-host", "acme.example.com"),
            404,
            unknown,
        ),
        // Hosts that are none.
        ("a list of hosts", get("acme.example.com, globex.example.com"), 400, ""),
        ("a wildcard", get("*.example.com"), 400, ""),
        ("a user in the host", get("user@acme.example.com"), 400, ""),
        ("a port that is none", get("acme.example.com:http"), 400, ""),
        (
            "another host in the request line",
            request("GET http://globex.example.com/projects", "acme.example.com").by(acme),
            400,
            "",
        ),
        // Nobody signed in: the same whether the tenant exists.
        ("nobody signed in", request("GET /projects", "acme.example.com"), 401, not_signed_in),
        ("nobody signed in, nowhere", request("GET /projects", "nobody.example.com"), 401, not_signed_in),
        ("nobody signed in, no tenant named", request("GET /projects", "localhost"), 401, not_signed_in),
        ("a user that is none", request("GET /projects", "acme.example.com").with("x-user", "ada"), 401, not_signed_in),
        (
            "a user who does not exist",
            request("GET /projects", "acme.example.com").with("x-user", random),
            404,
            unknown,
        ),
        // Wrong methods and paths, and what the handlers themselves answer.
        ("wrong method", request("DELETE /projects", "acme.example.com").by(acme), 405, ""),
        ("wrong method, another's tenant", request("DELETE /projects", "globex.example.com").by(acme), 404, unknown),
        ("wrong method, nobody signed in", request("DELETE /projects", "acme.example.com"), 401, not_signed_in),
        ("a feature that the plan has not", request("GET /export", "acme.example.com").by(acme), 402, ""),
        ("a use", call("key-1"), 200, ""),
        ("a use without a key", request("POST /calls", "acme.example.com").by(acme), 400, ""),
        ("a delivery that nobody signed", request("POST /webhooks/stripe", "localhost"), 400, ""),
        ("a delivery by the wrong method", request("GET /webhooks/stripe", "localhost"), 405, ""),
        ("a path that no route has", request("GET /nowhere", "acme.example.com").by(acme), 404, ""),
        ("a path that no route has, nobody signed in", request("GET /", "localhost"), 404, ""),
    ];
    // The first use is granted, its repeat was counted already: both frameworks shall see the same of the two.
    send(served.axum, &call("key-1").text()).await;
    for (what, request, status, body) in &matrix {
        let answer = served.answer(request).await;
        assert_eq!(answer.status, *status, "{what}: {answer:?}");
        if !body.is_empty() {
            assert_eq!(answer.body, *body, "{what}");
        }
        if [400, 401, 404].contains(status) && request.line.contains("/projects") {
            assert_eq!(answer.headers["cache-control"], "no-store", "{what}");
            assert_eq!(answer.headers["content-type"], "application/json", "{what}");
            assert_eq!(answer.headers.contains_key("www-authenticate"), *status == 401, "{what}");
        }
        if *status == 400 && request.line.contains("/projects") {
            assert!(answer.body.starts_with(r#"{"code":"bad_host","message":"host "#), "{what}: {}", answer.body);
        }
    }
    served.actix_server.stop(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_are_told_that_their_tenant_is_suspended_or_in_maintenance() {
    let served = Served::start().await;
    let clock: SharedClock = Arc::new(served.db.clock().clone());
    let lifecycle = Lifecycle::new(served.db.system().clone(), clock);
    let actor = Actor::system("test");
    let get = |user: Created| request("GET /projects", "acme.example.com").by(user);
    lifecycle.suspend(served.acme.tenant, &actor, "unpaid").await.unwrap();
    let told = served.answer(&get(served.acme)).await;
    assert_eq!(told.status, 403);
    assert!(told.body.starts_with(r#"{"code":"tenant_suspended""#) && !told.body.contains("unpaid"), "{}", told.body);
    let stranger = served.answer(&get(served.globex)).await;
    assert_eq!((stranger.status, stranger.body.contains("unknown_tenant")), (404, true));

    lifecycle.resume(served.acme.tenant, &actor).await.unwrap();
    assert_eq!(served.answer(&get(served.acme)).await.status, 200);
    lifecycle.start_maintenance(served.acme.tenant, &actor, "moving").await.unwrap();
    let told = served.answer(&get(served.acme)).await;
    assert_eq!((told.status, told.headers["retry-after"].as_str()), (503, "1"));
    assert!(told.body.starts_with(r#"{"code":"tenant_in_maintenance""#), "{}", told.body);
    assert_eq!(served.answer(&get(served.globex)).await, stranger);
    served.actix_server.stop(false).await;
}

// A server may see to such a request before the application does, in words of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_two_hosts_or_none_is_bad_in_both() {
    let served = Served::start().await;
    let one = request("GET /projects", "acme.example.com").by(served.acme);
    let twice = |second: &str| one.clone().with("host", second);
    for bad in [twice("globex.example.com"), twice("acme.example.com"), one.clone().without_host()] {
        let text = bad.text();
        assert_eq!([send(served.axum, &text).await.status, send(served.actix, &text).await.status], [400, 400]);
    }
    served.actix_server.stop(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_asks_for_a_tenant_where_none_was_resolved_is_not_run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let axum = listener.local_addr().unwrap();
    let handler = axum::routing::get(async |_: saas_tenancy::web::axum::Tenant| "ran");
    tokio::spawn(axum::serve(listener, axum::Router::new().route("/", handler)).into_future());
    let server = HttpServer::new(|| {
        let handler = actix_web::web::get().to(async |_: saas_tenancy::web::actix::Tenant| "ran");
        actix_web::App::new().route("/", handler)
    });
    let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
    let actix = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    tokio::spawn(server);
    let text = request("GET /", "acme.example.com").text();
    let answer = send(axum, &text).await;
    assert_eq!(answer, send(actix, &text).await);
    assert_eq!((answer.status, answer.body.as_str()), (500, r#"{"code":"misconfigured","message":"try again later"}"#));
    handle.stop(false).await;
}
