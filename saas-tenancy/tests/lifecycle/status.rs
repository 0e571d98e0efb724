//! Suspended, in maintenance, read-only: who is refused, by whom, and what it leaves in the log.

use std::sync::Arc;

use async_trait::async_trait;
use saas_core::{
    Actor, CoreError, ErrorKind, SessionBinding, TenantContext, TenantPool, TenantTx, UserId,
    db::{Generation, Place},
    revision,
};
use saas_tenancy::{
    Role,
    lifecycle::{Lifecycle, State},
};

use crate::{stage::Stage, targets::Memory};

fn operator() -> Actor {
    Actor::Operator { id: UserId::mint(&saas_core::SystemClock) }
}

fn lifecycle(stage: &Stage) -> Lifecycle {
    Lifecycle::new(stage.db.system().clone(), Arc::new(stage.db.clock().clone()))
}

/// Knows that nobody has moved, and so asks at the door.
#[derive(Debug)]
struct AtTheDoor(TenantPool);

#[async_trait]
impl SessionBinding for AtTheDoor {
    async fn place(&self, _: &dyn TenantContext) -> Result<Place, CoreError> {
        Ok(Place::pooled(&self.0).at_generation(Generation::FIRST))
    }
}

/// The code that a member gets who comes in; and, for someone who was in before, whether the database lets them look and
/// write.
async fn outcome(stage: &Stage) -> (Option<&'static str>, bool, bool) {
    let entered = stage.tenancy.enter(stage.acme.tenant, stage.acme.owner).await;
    let door = AtTheDoor(stage.db.tenants().clone());
    let (mut looks, mut writes) = (false, false);
    if let Ok(mut tx) = TenantTx::begin(&door, &stage.a).await {
        let tenant = stage.acme.tenant.as_uuid();
        let looked =
            sqlx::query("select from public.project where tenant_id = $1").bind(tenant).execute(&mut *tx).await;
        looks = looked.is_ok();
        let write = "insert into public.project (tenant_id, name) values ($1, 'x')";
        writes = sqlx::query(write).bind(tenant).execute(&mut *tx).await.is_ok();
    }
    (entered.err().map(|error| error.code()), looks, writes)
}

#[tokio::test]
async fn each_status_refuses_what_it_should_and_ends() {
    let stage = Stage::start().await;
    let (lifecycle, tenant, who) = (lifecycle(&stage), stage.acme.tenant, operator());
    assert_eq!(outcome(&stage).await, (None, true, true));
    assert_eq!(lifecycle.status(tenant).await.unwrap(), None);

    lifecycle.suspend(tenant, &who, "unpaid since March").await.unwrap();
    assert_eq!(outcome(&stage).await, (Some("tenant_suspended"), true, false));
    let status = lifecycle.status(tenant).await.unwrap().unwrap();
    assert_eq!((status.state, status.reason.as_str()), (State::Suspended, "unpaid since March"));
    assert_eq!((status.changed_by, status.since), (who.to_string(), saas_core::Clock::now(stage.db.clock())));
    // An operator can still give the customer their data.
    let support =
        stage.tenancy.enter_as_support(tenant, UserId::mint(stage.db.clock()), stage.acme.owner).await.unwrap();
    assert_eq!(support.role().unwrap().as_str(), "owner");
    let ctx = saas_core::RequestContext::new(tenant, who.clone(), stage.db.clock());
    stage.exports.run(&ctx, &Memory::default(), &mut |_| ()).await.unwrap();
    let refused =
        stage.tenancy.add_member(&stage.a, &"x@example.com".parse().unwrap(), Role::Member).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("tenant_suspended", ErrorKind::Forbidden));
    lifecycle.resume(tenant, &who).await.unwrap();
    assert_eq!(outcome(&stage).await, (None, true, true));

    lifecycle.start_maintenance(tenant, &who, "moving").await.unwrap();
    assert_eq!(outcome(&stage).await, (Some("tenant_in_maintenance"), false, false));
    assert_eq!(lifecycle.resume(tenant, &who).await.unwrap_err().code(), "tenant_status", "it is not suspended");
    assert_eq!(lifecycle.make_read_only(tenant, &who, "why").await.unwrap_err().code(), "tenant_status");
    lifecycle.end_maintenance(tenant, &who).await.unwrap();

    lifecycle.make_read_only(tenant, &who, "archived").await.unwrap();
    assert_eq!(outcome(&stage).await, (None, true, false));
    let refused =
        stage.tenancy.add_member(&stage.a, &"x@example.com".parse().unwrap(), Role::Member).await.unwrap_err();
    assert_eq!(refused.code(), "tenant_read_only");
    lifecycle.end_read_only(tenant, &who).await.unwrap();
    assert_eq!(outcome(&stage).await, (None, true, true));

    let log = stage.audited(tenant).await;
    let about: Vec<&str> = log.iter().map(String::as_str).filter(|it| !it.contains("member")).collect();
    assert_eq!(
        about[1..],
        [
            "tenant.suspended",
            "support.entered",
            "tenant.export_started",
            "tenant.exported",
            "tenant.resumed",
            "tenant.maintenance_started",
            "tenant.maintenance_ended",
            "tenant.made_read_only",
            "tenant.read_only_ended",
        ]
    );
    // The other tenant was served all the time.
    let mut tx = TenantTx::begin(&AtTheDoor(stage.db.tenants().clone()), &stage.b).await.unwrap();
    sqlx::query("update public.project set name = 'x' where tenant_id = $1")
        .bind(stage.b.tenant().as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_change_raises_the_revision_and_a_repeat_changes_nothing() {
    let stage = Stage::start().await;
    let (lifecycle, tenant, who) = (lifecycle(&stage), stage.acme.tenant, operator());
    let state = async || {
        let mut tx = stage.begin_system().await;
        let revision = revision::current_in(&mut tx, tenant).await.unwrap();
        drop(tx);
        (revision, stage.audited(tenant).await.len())
    };
    let before = state().await;
    lifecycle.suspend(tenant, &who, "why").await.unwrap();
    let suspended = state().await;
    assert!(suspended.0 > before.0 && suspended.1 == before.1 + 1);
    lifecycle.suspend(tenant, &who, "why").await.unwrap();
    assert_eq!(state().await, suspended);
    lifecycle.resume(tenant, &who).await.unwrap();
    let resumed = state().await;
    assert!(resumed.0 > suspended.0);
    lifecycle.resume(tenant, &who).await.unwrap();
    assert_eq!(state().await, resumed);
}

#[tokio::test]
async fn a_tenant_cannot_lift_its_own_suspension() {
    let stage = Stage::start().await;
    let (lifecycle, tenant) = (lifecycle(&stage), stage.acme.tenant);
    lifecycle.suspend(tenant, &operator(), "why").await.unwrap();
    let error = lifecycle.resume(tenant, &Actor::user(stage.acme.owner)).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("not_an_operator", ErrorKind::Forbidden));
    for statement in [
        "delete from saas.tenant_status where tenant_id = $1",
        "update saas.tenant_status set state = 'read_only' where tenant_id = $1",
        "delete from saas.resident where tenant_id = $1",
        "update saas.resident set state = 'open' where tenant_id = $1",
    ] {
        let mut tx = stage.begin(&stage.a).await;
        let refused = sqlx::query(statement).bind(tenant.as_uuid()).execute(&mut *tx).await.unwrap_err();
        assert_eq!(refused.into_database_error().unwrap().code().unwrap(), "42501", "{statement}");
    }
    let mut tx = stage.begin(&stage.b).await;
    let seen: i64 = sqlx::query_scalar("select count(*) from saas.tenant_status").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(seen, 0, "nor does another tenant see it");
}

/// The door of a tenant that is being moved belongs to the move.
#[tokio::test]
async fn a_door_that_a_move_has_closed_stays_closed() {
    let stage = Stage::start().await;
    let (lifecycle, tenant) = (lifecycle(&stage), stage.acme.tenant);
    let mut owner = stage.db.owner().await;
    for statement in [
        "insert into saas.placement (tenant_id, mode, cluster, generation, state, changed_at)
         values ($1, 'pooled', 'control', 1, 'moving', now())",
        "insert into saas.resident values ($1, 1, 'closed', 'it is being moved')",
    ] {
        sqlx::query(statement).bind(tenant.as_uuid()).execute(&mut owner).await.unwrap();
    }
    lifecycle.suspend(tenant, &operator(), "why").await.unwrap();
    lifecycle.resume(tenant, &operator()).await.unwrap();
    let door: (i64, String) = sqlx::query_as("select generation, state from saas.resident where tenant_id = $1")
        .bind(tenant.as_uuid())
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(door, (1, "closed".to_owned()));
}

#[tokio::test]
async fn maintenance_begins_when_everyone_has_left() {
    let stage = Stage::start().await;
    let (lifecycle, tenant) = (lifecycle(&stage), stage.acme.tenant);
    let inside = TenantTx::begin(&AtTheDoor(stage.db.tenants().clone()), &stage.a).await.unwrap();
    let who = operator();
    let mut starting = Box::pin(lifecycle.start_maintenance(tenant, &who, "why"));
    // Until it is seen to wait for the door; it must not be ready before.
    let mut owner = stage.db.owner().await;
    loop {
        assert!(futures_util::poll!(starting.as_mut()).is_pending(), "someone is still inside");
        let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted
                                    and database = (select oid from pg_database where datname = current_database()))";
        if sqlx::query_scalar(waits).fetch_one(&mut owner).await.unwrap() {
            break;
        }
    }
    let refused = stage.tenancy.enter(tenant, stage.acme.owner).await.unwrap_err();
    assert_eq!(refused.code(), "tenant_in_maintenance", "whoever comes now is refused already");
    inside.rollback().await.unwrap();
    starting.await.unwrap();
}
