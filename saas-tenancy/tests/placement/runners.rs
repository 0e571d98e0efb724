//! Runs of the fleet that meet what they should not: each other, a place that is gone, one that others hold, a newer release.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use saas_core::TenantContext;
use saas_tenancy::placement::{
    Canaries, ClusterName, PlacementError, Target, Timeouts,
    fleet::{Ending, Event, Outcome, Shared},
};
use sqlx::{AssertSqlSafe, Executor};

use crate::{
    fleet::{NEW, OLD, many, site},
    stage::Stage,
};

#[tokio::test(flavor = "multi_thread")]
async fn two_runners_at_once_apply_nothing_twice_even_when_the_first_has_lost_its_lock() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(4).await;
    let fleet = stage.fleet(&NEW).with_shared(Shared::Excluded).with_canaries(Canaries::First(0));
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let stop = Mutex::new(Some((begun, may_go_on)));
    let first = fleet.clone().with_observer(Arc::new(move |event| {
        if matches!(event, Event::Began { .. })
            && let Some((begun, may_go_on)) = stop.lock().unwrap().take()
        {
            begun.send(()).unwrap();
            tokio::task::block_in_place(|| may_go_on.recv()).unwrap();
        }
    }));
    let first = tokio::spawn(async move { first.run().await });
    tokio::task::block_in_place(|| has_begun.recv()).unwrap();
    // It has listed all places, and holds the lock.
    let refused = fleet.run().await.unwrap_err();
    assert_eq!((refused.code(), refused.is_retryable()), ("in_progress", true));
    let mut owner = stage.db.owner().await;
    let ended: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(l.pid, 10000))
         from pg_locks l
         join pg_database d on d.oid = l.database and d.datname = current_database(),
         lateral (select hashtextextended('saas.fleet', 0) as key) k
         where l.locktype = 'advisory' and l.granted
           and ((l.classid::bigint << 32) | l.objid::bigint) = k.key",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(ended, 1);
    let second = fleet.run().await.unwrap();
    assert_eq!((second.ending, second.count("migrated")), (Ending::Complete, 4), "{second}");
    go_on.send(()).unwrap();
    let late = first.await.unwrap().unwrap();
    let none = |outcome: &Outcome| matches!(outcome, Outcome::Migrated { applied: 0 });
    assert!(late.sites.len() == 4 && late.sites.iter().all(|site| none(&site.outcome)), "{late}");
    stage.ledger_is_right(&fleet, &tenants).await;
    assert_eq!(fleet.status().await.unwrap().ending, Ending::Complete);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_others_hold_says_nothing_so_the_rest_waits() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(3).await;
    let brief = Timeouts { lock: Duration::from_millis(50), ..Timeouts::default() };
    let fleet = stage.fleet(&NEW).with_shared(Shared::Excluded).with_timeouts(brief);
    let mut other = stage.db.owner().await;
    sqlx::query("select pg_advisory_lock(hashtextextended('saas.site:' || $1, 0))")
        .bind(site(&tenants[0]).schema.unwrap().as_str())
        .execute(&mut other)
        .await
        .unwrap();
    let report = fleet.run().await.unwrap();
    assert_eq!((report.ending, report.count("skipped"), report.count("waiting")), (Ending::CanaryFailed, 1, 2));
    assert_eq!(fleet.status().await.unwrap().count("failed"), 0, "nobody has failed");
    // The end of its session takes a moment at the server.
    other.execute("select pg_advisory_unlock_all()").await.unwrap();
    assert_eq!(fleet.run().await.unwrap().ending, Ending::Complete);
    // A tenant without a place of its own is no canary, and a run that thinks so is not begun.
    let pooled = stage.db.create_tenant("pooled").await;
    let refused = fleet.with_canaries(Canaries::Of(vec![pooled.tenant()])).run().await.unwrap_err();
    assert!(matches!(&refused, PlacementError::InTheWay { tenant, .. } if *tenant == pooled.tenant()), "{refused}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_so_many_failures_no_further_place_is_begun() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(8).await;
    for ctx in &tenants {
        let taken = format!("alter table {}.project add column archived text", site(ctx).schema.unwrap());
        stage.db.owner().await.execute(AssertSqlSafe(taken)).await.unwrap();
    }
    let fleet = stage.fleet(&NEW).with_shared(Shared::Excluded).with_canaries(Canaries::First(0));
    let report = fleet.with_parallelism(many(1)).stop_after(many(3)).run().await.unwrap();
    assert_eq!((report.ending, report.count("failed"), report.count("waiting")), (Ending::Stopped, 3, 5), "{report}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_disappeared_is_named_and_the_others_are_migrated() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(2).await;
    let own = stage.db.create_tenant("own-database").await;
    let target = Target::Database(ClusterName::control());
    let database = stage.provisioner(&OLD).provision(own.tenant(), &target).await.unwrap().site;
    for drop in [
        format!("drop schema {} cascade", site(&tenants[1]).schema.unwrap()),
        format!("drop database {} with (force)", database.database.name.as_ref().unwrap()),
    ] {
        stage.db.owner().await.execute(AssertSqlSafe(drop)).await.unwrap();
    }
    let fleet = stage.fleet(&NEW).with_shared(Shared::Excluded).with_canaries(Canaries::First(0)).stop_after(many(9));
    let report = fleet.run().await.unwrap();
    assert_eq!((report.ending, report.count("migrated")), (Ending::WithFailures, 1), "{report}");
    for failure in report.failures() {
        let Outcome::Failed { error, .. } = &failure.outcome else { panic!("{failure:?}") };
        assert!(error.contains("has disappeared; restore it"), "{error}");
        assert_eq!(failure.to, Some(2), "its version stays as it was noted");
    }
    let gone: bool = sqlx::query_scalar("select to_regnamespace($1) is null")
        .bind(site(&tenants[1]).schema.unwrap().as_str())
        .fetch_one(&mut stage.db.owner().await)
        .await
        .unwrap();
    assert!(gone, "nothing was made in its place");
    stage.finish().await;
}

// Q13
#[tokio::test(flavor = "multi_thread")]
async fn an_older_release_leaves_places_of_a_newer_one_alone() {
    let stage = Stage::start().await;
    let tenants = stage.schemas(2).await;
    let newer = stage.fleet(&NEW).with_shared(Shared::Excluded);
    assert_eq!(newer.run().await.unwrap().ending, Ending::Complete);
    let older = stage.fleet(&OLD).with_shared(Shared::Excluded);
    let report = older.run().await.unwrap();
    assert_eq!((report.count("ahead"), report.sites.len()), (2, 2), "{report}");
    // Also where the ledger is behind.
    let forget = "update saas.placement set schema_version = 1 where tenant_id = $1";
    sqlx::query(forget).bind(tenants[0].tenant().as_uuid()).execute(&mut stage.db.owner().await).await.unwrap();
    let report = older.run().await.unwrap();
    let behind = report.sites.iter().find(|site| site.tenant == Some(tenants[0].tenant())).unwrap();
    assert_eq!((behind.to, &behind.outcome), (Some(4), &Outcome::Migrated { applied: 0 }));
    stage.ledger_is_right(&newer, &tenants).await;
    stage.finish().await;
}
