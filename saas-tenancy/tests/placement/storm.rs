//! What many callers at once, and callers that go away, must not break: the budget, single flight, and each tenant's share.

use std::{future::Future, pin::pin, task::Context, time::Duration};

use futures_util::{future::join_all, task::noop_waker};
use saas_core::{ErrorKind, TenantContext, TenantTx, testing::Proxy};
use saas_tenancy::placement::{Cluster, Clusters, Database, Fairness, State, Target};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor};

use crate::stage::{PROJECT, Stage, add_project, at, limits, pools};

/// Polls a future so many times and drops it.
async fn cancel_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&noop_waker())) {
            return Some(done);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_full_for_a_moment_is_waited_for_and_one_that_stays_full_is_said_to_be() {
    let mut stage = Stage::start().await;
    let database = stage.databases(1).await.remove(0);
    let name = database.name.as_ref().unwrap().to_string();
    let limit = format!("alter database {name} connection limit 1");
    stage.db.owner().await.execute(AssertSqlSafe(limit)).await.unwrap();
    // The session that made it may not have ended yet for the server.
    let sessions = "select count(*) from pg_stat_activity where datname = $1";
    let mut owner = stage.db.owner().await;
    while sqlx::query_scalar::<_, i64>(sessions).bind(&name).fetch_one(&mut owner).await.unwrap() > 0 {}
    // Its only session is one that the server has not ended yet.
    let ending = stage.db.options("saas_app").database(&name).connect().await.unwrap();
    let proxy = Proxy::start(stage.db.address()).unwrap();
    let through = |role: &str| at(stage.db.options(role), proxy.address());
    let clusters = Clusters::new(Cluster::new(through("saas_app"), through("saas_system")));
    let tight = pools(clusters, limits().with_connections(1).with_per_database(1));
    let opening = tokio::spawn({
        let (tight, database) = (tight.clone(), database.clone());
        async move { tight.lease(&database).await.map(drop) }
    });
    while proxy.connections() < 3 && !opening.is_finished() {
        tokio::task::yield_now().await;
    }
    ending.close().await.unwrap();
    opening.await.unwrap().unwrap();
    assert_eq!(tight.stats().failed, 0);
    tight.close(&database).await;

    let full = format!("alter database {name} connection limit 0");
    stage.db.owner().await.execute(AssertSqlSafe(full)).await.unwrap();
    let brief = limits().with_connect_timeout(Duration::from_secs(3)).with_pause(Duration::ZERO, Duration::ZERO);
    let pools = pools(stage.clusters(), brief);
    let refused = pools.lease(&database).await.unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Unavailable, true));
    assert!(refused.in_full().contains("too many connections"), "{}", refused.in_full());
    assert_eq!(pools.stats().reserved, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_go_away_take_no_share_of_the_budget_with_them() {
    let mut stage = Stage::start().await;
    let databases = stage.databases(3).await;
    let pools = pools(stage.clusters(), limits().with_connections(2).with_per_database(1));
    let callers = (0..600_usize).map(|n| {
        let (pools, database) = (pools.clone(), databases[n % databases.len()].clone());
        tokio::spawn(async move { drop(cancel_after(n % 40, pools.lease(&database)).await) })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    for database in databases.iter().cycle().take(9) {
        pools.lease(database).await.unwrap();
    }
    for database in &databases {
        pools.close(database).await;
    }
    // A pool that gave way is closed in its own time.
    while pools.stats().reserved > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((pools.stats().connections, pools.stats().failed), (0, 0));
    stage.finish().await;
}

// T43
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_go_away_take_no_turn_of_the_tenant_with_them() {
    let stage = Stage::start().await;
    stage.shared_tables(&[PROJECT]).await;
    let fairness = Fairness::new(2, Duration::from_secs(5)).unwrap();
    let placements = stage.placements().with_fairness(fairness.with_statement_timeout(Duration::from_secs(1))).build();
    let (greedy, other) = (stage.db.create_tenant("greedy").await, stage.db.create_tenant("other").await);
    let callers = (0..1_000_usize).map(|n| {
        let (placements, greedy) = (placements.clone(), greedy.clone());
        tokio::spawn(async move {
            let work = async {
                let Ok(mut tx) = TenantTx::begin(&placements, &greedy).await else { return };
                // Runs on at the server when its caller is gone, for as long as a statement may.
                drop(tx.execute("select pg_sleep(30)").await);
            };
            cancel_after(n % 60, work).await;
        })
    });
    let callers = join_all(callers);
    let (done, ()) = tokio::join!(callers, async {
        for n in 0..20 {
            add_project(&placements, &other, &n.to_string()).await.unwrap();
        }
    });
    done.into_iter().for_each(|caller| caller.unwrap());
    let held =
        [TenantTx::begin(&placements, &greedy).await.unwrap(), TenantTx::begin(&placements, &greedy).await.unwrap()];
    let brief = tokio::time::timeout(Duration::from_millis(50), TenantTx::begin(&placements, &greedy)).await;
    assert!(brief.is_err(), "a third one waits");
    drop(held);
    add_project(&placements, &greedy, "served").await.unwrap();
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_full_fails_with_the_reason_and_is_finished_when_there_is_room() {
    let stage = Stage::start().await;
    let ctx = stage.db.create_tenant("acme").await;
    let target = Target::Database("eu".parse().unwrap());
    let database = target.site(ctx.tenant()).database;
    let mut eu = stage.owner_of(&Database { name: None, ..database.clone() }).await.unwrap();
    let name = database.name.as_ref().unwrap();
    eu.execute(AssertSqlSafe(format!("create database {name} connection limit 0"))).await.unwrap();
    let provisioner = stage.provisioner(&[PROJECT]);
    let full = provisioner.provision(ctx.tenant(), &target).await.unwrap_err();
    assert!(full.is_retryable() && full.in_full().contains("too many connections"), "{}", full.in_full());
    let progress = provisioner.progress(ctx.tenant()).await.unwrap().unwrap();
    assert_eq!(progress.placement.state, State::Failed);
    assert!(progress.placement.reason.unwrap().contains("too many connections"));
    eu.execute(AssertSqlSafe(format!("alter database {name} connection limit -1"))).await.unwrap();
    provisioner.resume(ctx.tenant()).await.unwrap();
    add_project(&stage.serving(&[PROJECT]), &ctx, "there is room").await.unwrap();
    stage.finish().await;
}
