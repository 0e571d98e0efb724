//! Many databases under one budget of connections: opened once, closed for room, and never starved by a dead one.

use std::{net::TcpListener, sync::Arc, time::Duration};

use futures_util::future::join_all;
use saas_core::{ErrorKind, testing::Proxy};
use saas_tenancy::placement::{Cluster, Clusters, Database, PlacementError, Pools};
use sqlx::{AssertSqlSafe, Executor};

use crate::stage::{Stage, at, limits, on, on_control, pools};

async fn use_once(pools: &Pools, database: &Database) -> Result<(), PlacementError> {
    let lease = pools.lease(database).await?;
    let found: String =
        sqlx::query_scalar("select current_database()::text").fetch_one(lease.pool().pool()).await.unwrap();
    assert_eq!(found, database.name.as_ref().unwrap().as_str());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_first_requests_open_a_database_once() {
    let mut stage = Stage::start().await;
    let databases = stage.databases(1).await;
    let pools = pools(stage.clusters(), limits());
    let leases = join_all((0..100).map(|_| pools.lease(&databases[0]))).await;
    assert!(leases.iter().all(Result::is_ok));
    let stats = pools.stats();
    assert_eq!((stats.opened, stats.databases, stats.reserved), (1, 1, 2));
    drop(leases);
    pools.close(&databases[0]).await;
    let stats = pools.stats();
    assert_eq!((stats.databases, stats.reserved, stats.connections), (0, 0, 0));
    stage.finish().await;
}

// T2
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_refused_for_what_a_pool_is_refused_for() {
    let mut stage = Stage::start().await;
    let sound = stage.databases(1).await.remove(0);
    let empty = stage.db.owner_options().get_database().map(|_| on_control("saas_test_empty")).unwrap();
    let privileged = Cluster::new(stage.db.owner_options(), stage.db.options("saas_system"));
    let clusters = stage.clusters().with_cluster("privileged".parse().unwrap(), privileged).unwrap();
    let pools = pools(clusters, limits());
    let refused = pools.lease(&on("privileged", sound.name.as_ref().unwrap().as_str())).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("privileged_role", ErrorKind::Misconfigured));
    let missing = pools.lease(&empty).await.unwrap_err();
    assert_eq!(missing.code(), "statement", "no such database: {missing}");
    let nowhere = pools.lease(&on("nowhere", "acme")).await.unwrap_err();
    assert_eq!(nowhere.code(), "unknown_cluster");
    let unmigrated = format!("{}_bare", stage.db.name());
    stage.db.owner().await.execute(AssertSqlSafe(format!("create database {unmigrated}"))).await.unwrap();
    let refused = pools.lease(&on_control(&unmigrated)).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("not_migrated", ErrorKind::Misconfigured));
    // What was refused holds nothing.
    let stats = pools.stats();
    assert_eq!((stats.reserved, stats.failed), (0, 3));
    stage.db.owner().await.execute(AssertSqlSafe(format!("drop database {unmigrated} with (force)"))).await.unwrap();
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_databases_share_a_budget_and_every_request_is_served() {
    let mut stage = Stage::start().await;
    let databases = stage.databases(8).await;
    let pools = pools(stage.clusters(), limits().with_connections(6).with_per_database(2));
    let requests = (0..200_usize).map(|n| {
        let (pools, database) = (pools.clone(), databases[n * 5 % databases.len()].clone());
        tokio::spawn(async move {
            let lease = pools.lease(&database).await?;
            let stats = pools.stats();
            assert!(stats.reserved <= 6, "{stats:?}");
            assert!(stats.connections as usize <= stats.reserved, "{stats:?}");
            let seen: i32 = sqlx::query_scalar("select 1").fetch_one(lease.pool().pool()).await.unwrap();
            assert_eq!(seen, 1);
            Ok::<(), PlacementError>(())
        })
    });
    for request in join_all(requests).await {
        request.unwrap().unwrap();
    }
    let stats = pools.stats();
    assert!(stats.reaped >= 5, "eight databases do not fit at once: {stats:?}");
    assert_eq!(stats.opened, stats.reaped + stats.databases as u64);
    // On the server, too, nothing is left but the open pools' connections.
    let mut owner = stage.db.owner().await;
    let names: Vec<&str> = databases.iter().map(|d| d.name.as_ref().unwrap().as_str()).collect();
    let count = "select count(*) from pg_stat_activity where usename = 'saas_app' and datname = any ($1)";
    while sqlx::query_scalar::<_, i64>(count).bind(&names).fetch_one(&mut owner).await.unwrap() > 6 {}
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_hangs_starves_nobody() {
    let mut stage = Stage::start().await;
    let databases = stage.databases(3).await;
    // Accepts and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let hanging = Cluster::new(at(stage.db.options("saas_app"), address), at(stage.db.options("saas_system"), address));
    let clusters = stage.clusters().with_cluster("hanging".parse().unwrap(), hanging).unwrap();
    let limits = limits().with_connections(4).with_per_database(2).with_openings_per_cluster(1);
    let pools = pools(clusters, limits);
    let stuck: Vec<_> = (0..20)
        .map(|n| {
            let pools = pools.clone();
            tokio::spawn(async move { pools.lease(&on("hanging", &format!("d{n}"))).await.map(drop) })
        })
        .collect();
    while pools.stats().reserved == 0 {
        tokio::task::yield_now().await;
    }
    // One share is tied up by the cluster that hangs; three databases take turns on the other one.
    for database in databases.iter().cycle().take(12) {
        use_once(&pools, database).await.unwrap();
    }
    assert!(stuck.iter().all(|request| !request.is_finished()), "they hang while the others are served");
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_failed_is_left_alone_and_tried_again_later() {
    let mut stage = Stage::start().await;
    let database = stage.databases(1).await.remove(0);
    let proxy = Proxy::start(stage.db.address()).unwrap();
    let through = |role: &str| at(stage.db.options(role), proxy.address());
    let clusters = || Clusters::new(Cluster::new(through("saas_app"), through("saas_system")));
    let hour = Duration::from_secs(3_600);
    let patient = pools(clusters(), limits().with_pause(hour, hour));
    proxy.refuse_connections();
    let failures = join_all((0..50).map(|_| patient.lease(&database))).await;
    for failure in failures {
        let error = failure.unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("database_down", true));
        assert!(matches!(error, PlacementError::DatabaseDown { retry_in, .. } if retry_in <= hour));
    }
    assert_eq!(patient.stats().failed, 1, "one attempt for all");
    proxy.accept_connections();
    assert_eq!(patient.lease(&database).await.unwrap_err().code(), "database_down", "left alone");
    assert_eq!((patient.stats().failed, proxy.connections()), (1, 0));

    let eager = pools(clusters(), limits().with_pause(Duration::ZERO, Duration::ZERO));
    proxy.refuse_connections();
    eager.lease(&database).await.unwrap_err();
    proxy.accept_connections();
    use_once(&eager, &database).await.unwrap();
    drop(proxy);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told_so_and_a_database_in_constant_use_gives_way() {
    let mut stage = Stage::start().await;
    let databases = stage.databases(2).await;
    let hour = Duration::from_secs(3_600);
    let one = limits().with_connections(2).with_per_database(2);
    let a_while = Duration::from_secs(5);
    let strict = one.with_acquire_timeout(a_while).with_connect_timeout(a_while).with_turn(hour);
    let strict = pools(stage.clusters(), strict);
    let held = strict.lease(&databases[0]).await.unwrap();
    let late = strict.lease(&databases[1]).await.unwrap_err();
    assert_eq!((late.code(), late.kind()), ("pools_busy", ErrorKind::Unavailable));
    drop(held);
    use_once(&strict, &databases[1]).await.unwrap();

    // Two users that overlap: the database is never idle.
    let fair = Arc::new(pools(stage.clusters(), one.with_turn(Duration::from_millis(50))));
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let (fair, database) = (Arc::clone(&fair), databases[0].clone());
            tokio::spawn(async move {
                loop {
                    let mut held = fair.lease(&database).await.unwrap();
                    // Asks for the next before it gives this one back, until the pool is closed to new users.
                    while let Ok(next) = tokio::time::timeout(Duration::from_millis(100), fair.lease(&database)).await {
                        held = next.unwrap();
                        tokio::task::yield_now().await;
                    }
                    drop(held);
                }
            })
        })
        .collect();
    while fair.stats().databases == 0 {
        tokio::task::yield_now().await;
    }
    use_once(&fair, &databases[1]).await.unwrap();
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    stage.finish().await;
}

#[tokio::test]
async fn a_server_that_refuses_is_known_at_once_and_by_its_own_words() {
    let stage = Stage::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = Cluster::new(at(stage.db.options("saas_app"), closed), at(stage.db.options("saas_system"), closed));
    let clusters = stage.clusters().with_cluster("refusing".parse().unwrap(), refusing).unwrap();
    let refused = pools(clusters, limits()).lease(&on("refusing", "acme")).await.unwrap_err();
    let PlacementError::DatabaseDown { cause, .. } = refused else { panic!("{refused:?}") };
    let words = std::error::Error::source(&*cause).map(ToString::to_string).unwrap_or_default();
    assert!(words.contains("refused"), "not the end of a wait: {words}");
    stage.finish().await;
}
