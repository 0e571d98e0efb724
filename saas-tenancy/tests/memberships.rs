//! Creating tenants and changing who is in them, on a real PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use saas_core::{
    Actor, EmailAddress, ErrorKind, PageSize, RequestContext, SCHEMA as CORE, SystemTx, TenantContext, TenantTx,
    UserId,
    mail::{MailHandler, Mailbox, TOPIC},
    outbox::Worker,
    testing::TestDatabase,
    timeline,
};
use saas_tenancy::{Created, NewTenant, Role, SCHEMA, Tenancy, TenancyError, VerifiedEmail};

struct Setup {
    db: TestDatabase,
    tenancy: Tenancy,
    acme: Created,
    owner: RequestContext,
}

fn email(name: &str) -> EmailAddress {
    format!("{name}@example.com").parse().unwrap()
}

fn verified(name: &str) -> VerifiedEmail {
    VerifiedEmail::vouched(email(name))
}

fn new(slug: &str) -> NewTenant {
    NewTenant::new(slug.parse().unwrap(), "Acme Inc.").unwrap()
}

impl Setup {
    async fn start() -> Self {
        let db = TestDatabase::start(&[&CORE, &SCHEMA]).await;
        let tenancy = Tenancy::new(db.tenants().clone(), db.system().clone(), Arc::new(db.clock().clone()));
        let acme = tenancy.create_tenant(&new("acme"), &verified("ada")).await.unwrap();
        let owner = tenancy.enter(acme.tenant, acme.owner).await.unwrap();
        Self { db, tenancy, acme, owner }
    }

    async fn add(&self, name: &str, role: Role) -> RequestContext {
        self.db.clock().advance(chrono::TimeDelta::seconds(1));
        let user = self.tenancy.add_member(&self.owner, &email(name), role).await.unwrap();
        self.tenancy.enter(self.acme.tenant, user).await.unwrap()
    }

    async fn members(&self) -> Vec<(UserId, Role)> {
        let page = self.tenancy.list_members(&self.owner, None, PageSize::default()).await.unwrap();
        page.items.into_iter().map(|member| (member.user, member.role)).collect()
    }
}

fn id(ctx: &RequestContext) -> UserId {
    match ctx.actor() {
        Actor::User { id } => *id,
        other => unreachable!("a request of a person, not of {other}"),
    }
}

#[tokio::test]
async fn a_tenant_comes_with_its_owner_its_record_and_its_welcome() {
    let setup = Setup::start().await;
    assert_eq!(setup.members().await, [(setup.acme.owner, Role::Owner)]);
    assert_eq!(setup.owner.role().unwrap().as_str(), "owner");
    let mut tx = TenantTx::begin(setup.db.tenants(), &setup.owner).await.unwrap();
    let page = timeline::list(&mut tx, None, PageSize::default()).await.unwrap();
    let mut actions: Vec<String> = page.items.into_iter().map(|event| event.action).collect();
    actions.sort();
    assert_eq!(actions, ["mail.pending", "membership.added", "tenant.created"]);
    let seats: i32 = sqlx::query_scalar("select seats from saas.tenant_overview").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(seats, 1);
    drop(tx);

    let mailbox = Mailbox::default();
    let worker = Worker::new(setup.db.system().clone(), Arc::new(setup.db.clock().clone()))
        .with_handler(TOPIC, Arc::new(MailHandler(Arc::new(mailbox.clone()))));
    assert_eq!(worker.run_once().await.unwrap().done, 1);
    assert_eq!(*mailbox.messages()[0].to(), email("ada"));
}

// O1
#[tokio::test]
async fn a_taken_slug_leaves_nothing_behind() {
    let setup = Setup::start().await;
    let error = setup.tenancy.create_tenant(&new("acme"), &verified("mallory")).await.unwrap_err();
    assert!(matches!(&error, TenancyError::SlugTaken(slug) if slug == "acme"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let mut tx = SystemTx::begin(setup.db.system(), Actor::system("test"), "count").await.unwrap();
    let (tenants, users): (i64, i64) =
        sqlx::query_as("select (select count(*) from saas.tenant), (select count(*) from saas.user_account)")
            .fetch_one(&mut *tx)
            .await
            .unwrap();
    assert_eq!((tenants, users), (1, 1));
}

#[tokio::test]
async fn the_same_slug_at_once_is_given_to_one() {
    let setup = Setup::start().await;
    let attempts = ["one", "two", "three", "four"].map(|name| {
        let (tenancy, slug, address) = (setup.tenancy.clone(), new("globex"), verified(name));
        tokio::spawn(async move { tenancy.create_tenant(&slug, &address).await })
    });
    let mut created = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(_) => created += 1,
            Err(error) => assert_eq!(error.code(), "slug_taken"),
        }
    }
    assert_eq!(created, 1);
}

#[tokio::test]
async fn one_person_has_one_account_in_many_tenants_and_a_role_in_each() {
    let setup = Setup::start().await;
    let globex = setup.tenancy.create_tenant(&new("globex"), &verified("ADA")).await.unwrap();
    assert_eq!(globex.owner, setup.acme.owner);
    let stranger = setup.tenancy.add_member(&setup.owner, &email("bob"), Role::Member).await.unwrap();
    let outside = setup.tenancy.enter(globex.tenant, stranger).await.unwrap_err();
    assert_eq!((outside.code(), outside.kind()), ("not_a_member", ErrorKind::NotFound));
    // T45: a tenant that does not exist looks the same.
    assert_eq!(setup.tenancy.account(&verified("ada")).await.unwrap(), setup.acme.owner);
    let nowhere = saas_core::TenantId::mint(setup.db.clock());
    let unknown = setup.tenancy.enter(nowhere, stranger).await.unwrap_err();
    assert_eq!(unknown.to_string(), outside.to_string());
}

#[tokio::test]
async fn permission_and_rank_decide_who_changes_whom() {
    let setup = Setup::start().await;
    let admin = setup.add("admin", Role::Admin).await;
    let member = setup.add("member", Role::Member).await;
    let refused = setup.tenancy.add_member(&member, &email("x"), Role::Viewer).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("not_allowed", ErrorKind::Forbidden));
    let refused = setup.tenancy.add_member(&admin, &email("x"), Role::Owner).await.unwrap_err();
    assert_eq!(refused.code(), "rank_too_low");
    let refused = setup.tenancy.change_role(&admin, setup.acme.owner, Role::Viewer).await.unwrap_err();
    assert_eq!(refused.code(), "rank_too_low");
    let refused = setup.tenancy.remove_member(&admin, setup.acme.owner).await.unwrap_err();
    assert_eq!(refused.code(), "rank_too_low");
    let refused = setup.tenancy.add_member(&admin, &email("member"), Role::Viewer).await.unwrap_err();
    assert_eq!(refused.code(), "already_member");
    // Nobody gives a permission they lack, to others or to themselves.
    for target in [id(&member), id(&admin)] {
        let refused = setup.tenancy.change_role(&admin, target, Role::Billing).await.unwrap_err();
        assert_eq!(refused.code(), "rank_too_low");
    }
    setup.tenancy.change_role(&admin, id(&member), Role::Viewer).await.unwrap();
    setup.tenancy.remove_member(&admin, id(&member)).await.unwrap();
    assert_eq!(setup.members().await, [(setup.acme.owner, Role::Owner), (id(&admin), Role::Admin)]);
}

// The role in the context is the one that a session carried; what counts is the one in the database.
#[tokio::test]
async fn a_demotion_takes_effect_at_once_whatever_the_session_says() {
    let setup = Setup::start().await;
    let admin = setup.add("admin", Role::Admin).await;
    setup.tenancy.change_role(&setup.owner, id(&admin), Role::Viewer).await.unwrap();
    assert_eq!(admin.role().unwrap().as_str(), "admin");
    let refused = setup.tenancy.add_member(&admin, &email("x"), Role::Viewer).await.unwrap_err();
    assert_eq!(refused.code(), "not_allowed");
}

#[tokio::test]
async fn the_last_owner_cannot_leave() {
    let setup = Setup::start().await;
    for result in [
        setup.tenancy.remove_member(&setup.owner, setup.acme.owner).await,
        setup.tenancy.change_role(&setup.owner, setup.acme.owner, Role::Admin).await,
    ] {
        assert_eq!(result.unwrap_err().code(), "last_owner");
    }
    setup.tenancy.change_role(&setup.owner, setup.acme.owner, Role::Owner).await.unwrap();
    let second = setup.add("second", Role::Owner).await;
    setup.tenancy.remove_member(&setup.owner, setup.acme.owner).await.unwrap();
    let page = setup.tenancy.list_members(&second, None, PageSize::default()).await.unwrap();
    assert_eq!(page.items.len(), 1);
}

// O19
#[tokio::test]
async fn two_owners_who_demote_each_other_at_once_leave_one() {
    for _ in 0..10 {
        let setup = Setup::start().await;
        let second = setup.add("second", Role::Owner).await;
        let (one, two) = tokio::join!(
            setup.tenancy.change_role(&setup.owner, id(&second), Role::Viewer),
            setup.tenancy.change_role(&second, setup.acme.owner, Role::Viewer),
        );
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        let refused = one.err().or(two.err()).unwrap();
        assert_eq!(refused.code(), "not_allowed", "the other one lost the role first");
    }
}

#[tokio::test]
async fn only_people_under_their_own_name_change_memberships() {
    let setup = Setup::start().await;
    let user = setup.acme.owner;
    for actor in [Actor::system("import"), Actor::Operator { id: user }, Actor::Impersonation { operator: user, user }]
    {
        let ctx = RequestContext::new(setup.acme.tenant, actor, setup.db.clock());
        let refused = setup.tenancy.add_member(&ctx, &email("x"), Role::Viewer).await.unwrap_err();
        assert_eq!(refused.code(), "not_a_person");
    }
}

#[tokio::test]
async fn the_application_role_can_read_memberships_and_not_write_them() {
    let setup = Setup::start().await;
    for sql in [
        "update saas.membership set role = 'owner'",
        "delete from saas.membership",
        "select email from saas.user_account",
    ] {
        let mut tx = TenantTx::begin(setup.db.tenants(), &setup.owner).await.unwrap();
        let error = sqlx::query(sql).execute(&mut *tx).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}");
    }
}

#[tokio::test]
async fn members_are_listed_in_pages() {
    let setup = Setup::start().await;
    for n in 0..4 {
        setup.add(&format!("user{n}"), Role::Viewer).await;
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = setup.tenancy.list_members(&setup.owner, after, PageSize::new(2).unwrap()).await.unwrap();
        seen.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by_key(|member| member.since));
}
