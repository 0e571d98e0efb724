//! Places made ahead: each is claimed once, none is lost, and a refill finishes what another began.

use std::collections::HashSet;

use futures_util::future::join_all;
use saas_core::{RequestContext, TenantContext};
use saas_tenancy::placement::{ClusterName, Mode, Readiness, Refill, Site, State, Stock, Target};
use sqlx::{Connection as _, Executor};

use crate::stage::{ARCHIVED, PROJECT, Stage, TASK, add_project, projects};

const FILES: [&str; 2] = [PROJECT, TASK];
const NEWER: [&str; 3] = [PROJECT, TASK, ARCHIVED];

fn schemas() -> Target {
    Target::Schema(ClusterName::control())
}

impl Stage {
    fn stock(&self, files: &[&'static str], target: Target, level: u16) -> Stock {
        Stock::new(self.provisioner(files), target, level).unwrap()
    }

    async fn tenants(&self, count: usize) -> Vec<RequestContext> {
        join_all((0..count).map(|n| async move { self.db.create_tenant(&format!("tenant-{n}")).await })).await
    }
}

async fn states(stock: &Stock) -> Vec<Readiness> {
    stock.list().await.unwrap().into_iter().map(|ready| ready.readiness).collect()
}

async fn sites(stock: &Stock) -> HashSet<Site> {
    stock.list().await.unwrap().into_iter().map(|ready| ready.site).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_at_the_same_time_get_different_places_and_none_is_lost() {
    let stage = Stage::start().await;
    let (stock, provisioner) = (stage.stock(&FILES, schemas(), 4), stage.provisioner(&FILES));
    assert_eq!(stock.refill().await.unwrap(), Refill { made: 4, ..Refill::default() });
    let kept = sites(&stock).await;
    assert_eq!(kept.len(), 4);
    // Two more than there are places: those are made for whoever comes too late.
    let tenants = stage.tenants(6).await;
    let given = join_all(tenants.iter().map(|ctx| {
        let (provisioner, tenant) = (provisioner.clone(), ctx.tenant());
        async move { provisioner.provision(tenant, &schemas()).await.unwrap() }
    }))
    .await;
    let given: HashSet<Site> = given.into_iter().map(|placement| placement.site).collect();
    assert_eq!(given.len(), 6, "none twice");
    assert_eq!(given.intersection(&kept).count(), 4, "none left over");
    assert_eq!(stock.list().await.unwrap(), []);
    let placements = stage.serving(&FILES);
    for ctx in &tenants {
        add_project(&placements, ctx, &ctx.tenant().to_string()).await.unwrap();
        assert_eq!(projects(&placements, ctx).await.unwrap(), [ctx.tenant().to_string()]);
        // Asked again, it has what it asked for.
        provisioner.provision(ctx.tenant(), &schemas()).await.unwrap();
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimer_that_is_killed_before_or_after_its_commit_loses_no_place() {
    let stage = Stage::start().await;
    let (stock, provisioner) = (stage.stock(&FILES, schemas(), 2), stage.provisioner(&FILES));
    let refilled = stock.refill().await.unwrap();
    assert_eq!(refilled.made, 2);
    let kept = sites(&stock).await;
    let tenants = stage.tenants(4).await;

    let mut killed = stage.system("claim and be killed").await;
    provisioner.request_in(&mut killed, tenants[0].tenant(), &schemas()).await.unwrap();
    // While it is open, another one gets the other place, and a third one none.
    let second = provisioner.provision(tenants[1].tenant(), &schemas()).await.unwrap();
    let mut tx = stage.system("claim too late").await;
    provisioner.request_in(&mut tx, tenants[2].tenant(), &schemas()).await.unwrap();
    tx.commit().await.unwrap();
    let third = stage.placement(tenants[2].tenant()).await.unwrap();
    assert!(kept.contains(&second.site) && !kept.contains(&third.site));
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *killed).await.unwrap();
    let mut owner = stage.db.owner().await;
    sqlx::query("select pg_terminate_backend($1, 10000)").bind(pid).execute(&mut owner).await.unwrap();
    killed.commit().await.unwrap_err();
    assert_eq!(stage.placement(tenants[0].tenant()).await, None);
    let left: Vec<Site> = sites(&stock).await.into_iter().collect();
    assert_eq!(states(&stock).await, [Readiness::Ready]);

    // Committed and then killed: the place is the tenant's, to be finished or abandoned.
    let mut tx = stage.system("claim").await;
    provisioner.request_in(&mut tx, tenants[3].tenant(), &schemas()).await.unwrap();
    tx.commit().await.unwrap();
    let claimed = stage.placement(tenants[3].tenant()).await.unwrap();
    assert_eq!((claimed.state, &claimed.site), (State::Provisioning, &left[0]));
    assert_eq!(stock.list().await.unwrap(), []);
    provisioner.abandon(tenants[3].tenant()).await.unwrap();
    let gone: bool = sqlx::query_scalar("select to_regnamespace($1) is null")
        .bind(left[0].schema.as_ref().unwrap().as_str())
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert!(gone);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_made_ahead_serves_and_the_rest_is_drained() {
    let stage = Stage::start().await;
    let target = Target::Database("eu".parse().unwrap());
    let stock = stage.stock(&FILES, target.clone(), 2);
    let refilled = stock.refill().await.unwrap();
    assert_eq!(refilled.made, 2);
    let kept = sites(&stock).await;
    let ctx = stage.db.create_tenant("acme").await;
    let placement = stage.provisioner(&FILES).provision(ctx.tenant(), &target).await.unwrap();
    assert_eq!((placement.mode, placement.schema_version), (Mode::Database, Some(2)));
    assert!(kept.contains(&placement.site));
    let placements = stage.serving(&FILES);
    add_project(&placements, &ctx, "at once").await.unwrap();
    assert_eq!(stock.drain().await.unwrap(), 1);
    assert_eq!(stock.list().await.unwrap(), []);
    for site in kept {
        assert_eq!(stage.owner_of(&site.database).await.is_ok(), site == placement.site, "{site}");
    }
    assert_eq!(projects(&placements, &ctx).await.unwrap(), ["at once"]);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refill_finishes_what_another_began_and_removes_what_could_not_be_made() {
    let stage = Stage::start().await;
    let sound = stage.stock(&FILES, schemas(), 2);
    let mut owner = stage.db.owner().await;
    // Killed before, and after, the schema was there.
    for (n, there) in [("1", false), ("2", true)] {
        let name = format!("saas_t_{:0>32}", n);
        sqlx::query(
            "insert into saas.ready_place (cluster, database_name, schema_name, mode, state, changed_at)
             values ('control', '', $1, 'schema', 'making', now())",
        )
        .bind(&name)
        .execute(&mut owner)
        .await
        .unwrap();
        if there {
            owner.execute(sqlx::AssertSqlSafe(format!("create schema {name} authorization saas_owner"))).await.unwrap();
        }
    }
    assert_eq!(sound.refill().await.unwrap(), Refill { made: 2, ..Refill::default() });
    assert_eq!(states(&sound).await, [Readiness::Ready, Readiness::Ready]);
    assert_eq!(sound.refill().await.unwrap(), Refill::default(), "nothing to do");

    let broken = stage.stock(&[PROJECT, TASK, "select 1 / 0"], schemas(), 3);
    assert_eq!(broken.refill().await.unwrap_err().code(), "migration_failed");
    let failed: Vec<_> =
        broken.list().await.unwrap().into_iter().filter(|r| r.readiness == Readiness::Failed).collect();
    assert!(failed[0].reason.as_ref().unwrap().contains("division by zero"), "{failed:?}");
    let refilled = stage.stock(&NEWER, schemas(), 2).refill().await.unwrap();
    assert_eq!(refilled, Refill { made: 1, migrated: 1, removed: 1 });
    let gone: bool = sqlx::query_scalar("select to_regnamespace($1) is null")
        .bind(failed[0].site.schema.as_ref().unwrap().as_str())
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert!(gone);
    // What a newer release has brought on is not for an older one.
    let ctx = stage.db.create_tenant("old").await;
    let placement = stage.provisioner(&FILES).provision(ctx.tenant(), &schemas()).await.unwrap();
    assert_eq!((placement.site, placement.schema_version), (schemas().site(ctx.tenant()), Some(2)));
    let ctx = stage.db.create_tenant("new").await;
    let placement = stage.provisioner(&NEWER).provision(ctx.tenant(), &schemas()).await.unwrap();
    assert_eq!((placement.site == schemas().site(ctx.tenant()), placement.schema_version), (false, Some(3)));

    let lock = "select pg_advisory_lock(hashtextextended('saas.stock:stock of schema on control', 0))";
    owner.execute(lock).await.unwrap();
    let refused = sound.refill().await.unwrap_err();
    assert_eq!((refused.code(), refused.is_retryable()), ("in_progress", true));
    owner.close().await.unwrap();
    assert!(Stock::new(stage.provisioner(&FILES), Target::Pooled(ClusterName::control()), 1).is_err());
    stage.finish().await;
}
