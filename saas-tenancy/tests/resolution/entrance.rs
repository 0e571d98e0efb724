//! Who gets in, by which way, and what a refusal costs and says.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use saas_core::{
    ErrorKind, SCHEMA as CORE, SystemClock, SystemPool, TenantContext, TenantId, TenantPool, UserId, db, revision,
    testing::Proxy,
};
use saas_tenancy::{
    Created, Role, SCHEMA, Tenancy,
    resolve::{Claims, Entrance, Memory, RequestView, ResolveError, Resolver, SignedIn},
};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::Setup;

fn everything() -> Resolver {
    Resolver::subdomain("example.com")
        .or(Resolver::custom_domain())
        .or(Resolver::path("/t/{tenant}"))
        .or(Resolver::header("x-tenant"))
        .or(Resolver::claim("tenant"))
}

fn claims(tenant: TenantId) -> Claims {
    let Value::Object(claims) = json!({ "tenant": tenant.to_string() }) else { unreachable!("an object") };
    Claims(Arc::new(claims))
}

/// A request to our own host, with a tenant in a header or in the path.
async fn ask(
    entrance: &Entrance,
    host: &str,
    path: &str,
    tenant: Option<&str>,
    user: UserId,
) -> Result<TenantId, ResolveError> {
    let mut headers = vec![("host", host)];
    headers.extend(tenant.map(|tenant| ("x-tenant", tenant)));
    let headers = headers.as_slice();
    let resolved = entrance.resolve(&RequestView::new(path, &headers), Some(SignedIn(user))).await?;
    Ok(resolved.ctx.tenant())
}

/// Waits for something that the listener's task brings about.
async fn until(mut done: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done().await {
        assert!(tokio::time::Instant::now() < deadline, "nothing happened for ten seconds");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_member_gets_in_by_every_way_with_their_role() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let Created { tenant, owner } = setup.acme;
    let id = tenant.to_string();
    for (host, path, header) in [
        ("acme.example.com", "/", None),
        ("ACME.example.com:8443", "/", None),
        ("app.acme.net", "/projects", None),
        ("App.Acme.Net.", "/", None),
        ("example.com", "/t/acme/projects", None),
        ("example.com", &format!("/t/{id}"), None),
        ("example.com", "/", Some("acme")),
        ("example.com", "/", Some(id.as_str())),
        ("app.acme.net", "/t/acme", Some(id.as_str())),
    ] {
        assert_eq!(ask(&entrance, host, path, header, owner).await.unwrap(), tenant, "{host} {path} {header:?}");
    }
    let viewer = setup.add(setup.acme, "viewer", Role::Viewer).await;
    let headers: &[(&str, &str)] = &[("host", "example.com")];
    let by_claim = RequestView::new("/", &headers);
    let by_claim_of = claims(tenant);
    let resolved = entrance.resolve(&by_claim.with_claims(Some(&by_claim_of)), Some(SignedIn(viewer))).await.unwrap();
    assert_eq!(resolved.ctx.role().unwrap().as_str(), "viewer");
    assert_eq!(resolved.ctx.actor().to_string(), format!("user:{viewer}"));
}

#[tokio::test]
async fn a_request_is_refused_for_its_host_then_for_its_person_then_for_its_tenant() {
    let setup = Setup::start().await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let headers: &[(&str, &str)] = &[("host", "no host"), ("x-tenant", "nobody")];
    let error = entrance.resolve(&RequestView::new("/", &headers), None).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("bad_host", ErrorKind::Invalid));
    for tenant in ["acme", "nobody", "No slug"] {
        let headers: &[(&str, &str)] = &[("host", "example.com"), ("x-tenant", tenant)];
        let error = entrance.resolve(&RequestView::new("/", &headers), None).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("not_signed_in", ErrorKind::Unauthenticated), "{tenant}");
    }
    for tenant in [None, Some("nobody"), Some("globex"), Some("No slug")] {
        let error = ask(&entrance, "example.com", "/", tenant, setup.acme.owner).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("unknown_tenant", ErrorKind::NotFound), "{tenant:?}");
    }
}

/// Pools of one connection each, behind proxies that count.
struct Counted {
    entrance: Entrance,
    tenants: TenantPool,
    system: SystemPool,
    networks: [Proxy; 2],
}

impl Counted {
    async fn start(setup: &Setup) -> Self {
        let networks = [(); 2].map(|()| Proxy::start(setup.db.address()).unwrap());
        let pool = async |role, network: &Proxy| {
            let options = setup.db.options(role).host("127.0.0.1").port(network.address().port());
            db::pool_options().max_connections(1).connect_with(options).await.unwrap()
        };
        let tenants = TenantPool::open(pool("saas_app", &networks[0]).await, &[&CORE, &SCHEMA]).await.unwrap();
        let system = SystemPool::open(pool("saas_system", &networks[1]).await, &[&CORE, &SCHEMA]).await.unwrap();
        let tenancy = Tenancy::new(tenants.clone(), system.clone(), Arc::new(setup.db.clock().clone()));
        Self { entrance: Entrance::new(tenancy, everything()).unwrap(), tenants, system, networks }
    }

    /// Round trips in each pool, once the connections are back.
    async fn flights(&self) -> [u64; 2] {
        until(async || self.tenants.pool().num_idle() == 1 && self.system.pool().num_idle() == 1).await;
        [&self.networks[0], &self.networks[1]].map(Proxy::flights)
    }

    /// What a refused request said, and the round trips that it took in each pool.
    async fn refused(&self, host: &str, path: &str, claimed: Option<TenantId>, user: UserId) -> (String, [u64; 2]) {
        let before = self.flights().await;
        let headers: &[(&str, &str)] = &[("host", host)];
        let claims = claimed.map(claims);
        let view = RequestView::new(path, &headers).with_claims(claims.as_ref());
        let error = self.entrance.resolve(&view, Some(SignedIn(user))).await.unwrap_err();
        let after = self.flights().await;
        (format!("{error:?} {error}"), [after[0] - before[0], after[1] - before[1]])
    }
}

// T45
#[tokio::test]
async fn unknown_forbidden_and_contradicting_tenants_say_the_same_after_the_same_work() {
    let setup = Setup::start().await;
    setup.activate(setup.globex, "app.globex.net").await;
    let counted = Counted::start(&setup).await;
    let (acme, globex) = (setup.acme, setup.globex);
    // Statements are prepared, and globex is remembered under each of its names: the best case for telling it apart.
    for (host, path) in [("globex.example.com", "/"), ("app.globex.net", "/"), ("example.com", "/t/globex")] {
        assert_eq!(ask(&counted.entrance, host, path, None, globex.owner).await.unwrap(), globex.tenant);
    }
    ask(&counted.entrance, "acme.example.com", "/", None, acme.owner).await.unwrap();
    ask(&counted.entrance, "nobody.example.com", "/", None, acme.owner).await.unwrap_err();

    let random = TenantId::mint(&SystemClock);
    let by_id = |tenant: TenantId| format!("/t/{tenant}");
    for (what, pairs) in [
        ("sub-domain", [("unknown.example.com", "/".to_owned(), None), ("globex.example.com", "/".to_owned(), None)]),
        ("domain", [("app.unknown.net", "/".to_owned(), None), ("app.globex.net", "/".to_owned(), None)]),
        ("slug", [("example.com", "/t/unknown".to_owned(), None), ("example.com", "/t/globex".to_owned(), None)]),
        ("id", [("example.com", by_id(random), None), ("example.com", by_id(globex.tenant), None)]),
        (
            "token of another tenant than the path's slug",
            [
                ("example.com", "/t/unknown".to_owned(), Some(acme.tenant)),
                ("example.com", "/t/globex".to_owned(), Some(acme.tenant)),
            ],
        ),
        (
            "token of another tenant than the path's id",
            [
                ("example.com", by_id(random), Some(acme.tenant)),
                ("example.com", by_id(globex.tenant), Some(acme.tenant)),
            ],
        ),
        (
            "token of the tenant one is not in",
            [
                ("example.com", "/t/unknown".to_owned(), Some(globex.tenant)),
                ("example.com", "/t/globex".to_owned(), Some(globex.tenant)),
            ],
        ),
    ] {
        setup.db.clock().advance(Memory::default().refused_for);
        let [unknown, forbidden] = pairs;
        let (host, path, claimed) = unknown;
        let unknown = counted.refused(host, &path, claimed, acme.owner).await;
        let (host, path, claimed) = forbidden;
        let refused = counted.refused(host, &path, claimed, acme.owner).await;
        assert_eq!(unknown, refused, "{what}");
        assert_eq!(unknown.0, "Unknown no such tenant", "{what}");
        // An id needs no look-up; everything else one, however well it is remembered.
        assert_eq!(unknown.1.map(|flights| flights > 0), [true, !what.ends_with("id")], "{what}");
        // Once more: from memory, for both.
        assert_eq!(counted.refused(host, &path, claimed, acme.owner).await.1, [0, 0], "{what}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_a_membership_every_time() {
    let setup = Setup::start().await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let bob = setup.add(setup.acme, "bob", Role::Member).await;
    for _ in 0..3 {
        for user in [bob, setup.acme.owner] {
            ask(&entrance, "acme.example.com", "/", None, user).await.unwrap();
        }
    }
    assert_eq!((entrance.stats().look_ups, entrance.stats().names), (1, 1));
    // An id needs no look-up and no memory.
    ask(&entrance, "example.com", "/", Some(&setup.acme.tenant.to_string()), bob).await.unwrap();
    assert_eq!((entrance.stats().look_ups, entrance.stats().names), (1, 1));
    setup.tenancy.remove_member(&setup.owner(setup.acme).await, bob).await.unwrap();
    ask(&entrance, "acme.example.com", "/", None, bob).await.unwrap_err();
    setup.db.clock().advance(Memory::default().found_for);
    let before = entrance.stats().look_ups;
    ask(&entrance, "acme.example.com", "/", None, setup.acme.owner).await.unwrap();
    assert_eq!(entrance.stats().look_ups, before + 1, "memory ends");
}

#[tokio::test]
async fn a_refusal_is_remembered_for_one_person_and_briefly() {
    let setup = Setup::start().await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let enter = async |user| ask(&entrance, "globex.example.com", "/", None, user).await;
    let bob = setup.acme.owner;
    enter(bob).await.unwrap_err();
    enter(setup.globex.owner).await.unwrap();
    let address = "acme@example.com".parse().unwrap();
    setup.tenancy.add_member(&setup.owner(setup.globex).await, &address, Role::Member).await.unwrap();
    enter(bob).await.unwrap_err();
    setup.db.clock().advance(Memory::default().refused_for);
    enter(bob).await.unwrap();
}

#[tokio::test]
async fn random_names_fill_no_memory_and_without_a_person_ask_nothing() {
    let setup = Setup::start().await;
    let memory = Memory { entries: 10, ..Memory::default() };
    let entrance = Entrance::with_memory(setup.tenancy.clone(), everything(), memory).unwrap();
    for n in 0..1_000 {
        let host = format!("random-{n}.example.com");
        let headers: &[(&str, &str)] = &[("host", &host)];
        let error = entrance.resolve(&RequestView::new("/", &headers), None).await.unwrap_err();
        assert_eq!(error.code(), "not_signed_in");
    }
    let stats = entrance.stats();
    assert_eq!((stats.look_ups, stats.names, stats.refusals), (0, 0, 0));
    ask(&entrance, "acme.example.com", "/", None, setup.acme.owner).await.unwrap();
    for n in 0..100 {
        ask(&entrance, &format!("random-{n}.net"), "/", None, setup.acme.owner).await.unwrap_err();
    }
    let stats = entrance.stats();
    assert_eq!((stats.look_ups, stats.names), (101, 1), "what is in use is not pushed out");
    assert!(stats.refusals <= 10, "{stats:?}");
}

#[tokio::test]
async fn a_domain_that_leads_elsewhere_is_forgotten_by_its_notification() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    // Both in both, so that membership does not hide where the name leads.
    setup.add(setup.globex, "acme", Role::Viewer).await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let _listener = entrance.listen(setup.db.options("saas_app"));
    until(async || entrance.stats().flushes == 1).await;
    let leads_to = async || ask(&entrance, "app.acme.net", "/", None, setup.acme.owner).await.unwrap();
    // A notification that comes in between keeps the name from being remembered.
    until(async || leads_to().await == setup.acme.tenant && entrance.stats().names == 1).await;
    setup.db.clock().advance(TimeDelta::seconds(1));
    setup.activate(setup.globex, "app.acme.net").await;
    until(async || leads_to().await == setup.globex.tenant).await;
}

#[tokio::test]
async fn a_look_up_that_was_overtaken_by_an_announcement_is_not_remembered() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let _listener = entrance.listen(setup.db.options("saas_app"));
    until(async || entrance.stats().flushes == 1).await;
    let mut owner = setup.db.owner().await;
    let mut locked = owner.begin().await.unwrap();
    sqlx::query("lock table saas.active_domain in access exclusive mode").execute(&mut *locked).await.unwrap();
    let entering = {
        let (entrance, user) = (entrance.clone(), setup.acme.owner);
        tokio::spawn(async move { ask(&entrance, "app.acme.net", "/", None, user).await })
    };
    let mut watcher = setup.db.owner().await;
    until(async || {
        let waiting = "select exists (
            select from pg_locks l join pg_database d on d.oid = l.database
            where not l.granted and d.datname = current_database() and l.relation = 'saas.active_domain'::regclass)";
        sqlx::query_scalar(waiting).fetch_one(&mut watcher).await.unwrap()
    })
    .await;
    // The second message is heard after the first.
    for payload in [format!("{}:99", setup.globex.tenant), "x".to_owned()] {
        let notify = sqlx::query("select pg_notify($1, $2)").bind(revision::CHANNEL).bind(payload);
        notify.execute(&mut watcher).await.unwrap();
    }
    until(async || entrance.stats().unreadable_announcements == 1).await;
    locked.rollback().await.unwrap();
    assert_eq!(entering.await.unwrap().unwrap(), setup.acme.tenant);
    assert_eq!(entrance.stats().names, 0);
    ask(&entrance, "app.acme.net", "/", None, setup.acme.owner).await.unwrap();
    assert_eq!(entrance.stats().names, 1);
}

#[tokio::test]
async fn without_a_listener_a_name_leads_to_its_last_tenant_for_as_long_as_it_is_remembered() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let enter = async |user| ask(&entrance, "app.acme.net", "/", None, user).await;
    assert_eq!(enter(setup.acme.owner).await.unwrap(), setup.acme.tenant);
    setup.db.clock().advance(TimeDelta::seconds(1));
    setup.activate(setup.globex, "app.acme.net").await;
    assert_eq!(enter(setup.acme.owner).await.unwrap(), setup.acme.tenant, "their own tenant still");
    // Memory never keeps anyone out.
    assert_eq!(enter(setup.globex.owner).await.unwrap(), setup.globex.tenant);
    setup.db.clock().advance(Memory::default().found_for);
    enter(setup.acme.owner).await.unwrap_err();
}

#[tokio::test]
async fn a_message_that_is_no_announcement_makes_nothing_forgotten() {
    let setup = Setup::start().await;
    let entrance = Entrance::new(setup.tenancy.clone(), everything()).unwrap();
    let _listener = entrance.listen(setup.db.options("saas_app"));
    until(async || entrance.stats().flushes == 1).await;
    ask(&entrance, "acme.example.com", "/", None, setup.acme.owner).await.unwrap();
    let mut owner = setup.db.owner().await;
    sqlx::query("select pg_notify($1, 'x')").bind(revision::CHANNEL).execute(&mut owner).await.unwrap();
    until(async || entrance.stats().unreadable_announcements == 1).await;
    assert_eq!((entrance.stats().names, entrance.stats().flushes), (1, 1));
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_no_unknown_tenant() {
    let setup = Setup::start().await;
    let counted = Counted::start(&setup).await;
    for network in &counted.networks {
        network.refuse_connections();
        network.cut(saas_core::testing::Cut::Reset);
    }
    let error = ask(&counted.entrance, "acme.example.com", "/", None, setup.acme.owner).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    for network in &counted.networks {
        network.accept_connections();
    }
    // Nothing of it was remembered as a refusal.
    until(async || ask(&counted.entrance, "acme.example.com", "/", None, setup.acme.owner).await.is_ok()).await;
    assert_eq!(counted.entrance.stats().refusals, 0);
}
