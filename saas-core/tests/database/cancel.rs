//! Futures dropped at every point: no open transaction, no bound tenant, no acknowledged write lost.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use saas_core::{TenantContext, TenantPool, TenantTx};
use sqlx::{Executor, postgres::PgPoolOptions};

use crate::{
    adopter::Fixture,
    transactions::{proxy_of, through_proxy_with},
};

/// Polls a future at most `polls` times, then drops it.
pub(crate) async fn cancel_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polled = 0;
    poll_fn(|cx| {
        polled += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A table without a fence, so that a bare autocommit statement can write to it.
const LOG: &str = "
    create table public.log (n int primary key);
    grant select, insert on public.log to saas_app;
    select saas.declare_global('public.log', 'test')";

async fn insert(tenants: &TenantPool, n: i32) {
    sqlx::query("insert into public.log values ($1)").bind(n).execute(tenants.pool()).await.unwrap();
}

/// The whole life of a transaction, one await after another.
async fn work(tenants: &TenantPool, fixture: &Fixture, name: &str) {
    let mut tx = TenantTx::begin(tenants, &fixture.a).await.unwrap();
    fixture.add_project(&mut tx, name).await;
    let _: i64 = sqlx::query_scalar("select count(*) from public.project").fetch_one(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

// T17
#[tokio::test]
async fn dropping_a_transaction_at_any_poll_leaves_a_clean_pool_of_one() {
    let fixture = Fixture::start().await;
    fixture.db.owner().await.execute(LOG).await.unwrap();
    let proxy = proxy_of(&fixture.db);
    // Without the look at released connections that `pool_options` adds: the transaction alone must hold.
    let tenants = through_proxy_with(PgPoolOptions::new(), &fixture.db, &proxy).await;
    // An answer that is there before it is asked for costs no poll: one that got through says little, three in a row do.
    let (mut dropped, mut through) = (0, 0);
    for polls in 1..200 {
        let name = format!("dropped after {polls}");
        let done = cancel_after(polls, work(&tenants, &fixture, &name)).await.is_some();
        let n = i32::try_from(polls).unwrap();
        insert(&tenants, n).await;
        // A second session sees the row, so it was committed; and no session of the application is in a transaction.
        let mut owner = fixture.db.owner().await;
        let stored: bool = sqlx::query_scalar("select exists (select from public.log where n = $1)")
            .bind(n)
            .fetch_one(&mut owner)
            .await
            .unwrap();
        assert!(stored, "acknowledged insert {polls} was lost");
        let mut tx = TenantTx::begin(&tenants, &fixture.b).await.unwrap();
        let seen: Vec<uuid::Uuid> =
            sqlx::query_scalar("select distinct tenant_id from public.project").fetch_all(&mut *tx).await.unwrap();
        assert_eq!(seen, [fixture.b.tenant().as_uuid()]);
        drop(tx);
        (dropped, through) = if done { (dropped, through + 1) } else { (dropped + 1, 0) };
        if through == 3 {
            break;
        }
    }
    assert!(through == 3 && dropped >= 4, "the harness met {dropped} await points and got through {through} times");
}

// T17: 3,000 acknowledged inserts behind begins that are dropped after 0.2 to 3.0 ms on a slow network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_insert_is_lost_behind_a_dropped_begin_on_a_slow_network() {
    const INSERTS: i32 = 3_000;
    let fixture = Fixture::start().await;
    fixture.db.owner().await.execute(LOG).await.unwrap();
    let proxy = proxy_of(&fixture.db);
    proxy.delay(Duration::from_micros(250));
    // Without the look at released connections that `pool_options` adds: the transaction alone must hold.
    let tenants = through_proxy_with(PgPoolOptions::new(), &fixture.db, &proxy).await;
    let mut dropped = 0;
    for n in 0..INSERTS {
        // 0.2, 0.3, … 3.0 ms and again.
        let patience = Duration::from_micros(200 + 100 * u64::from(n.unsigned_abs() % 29));
        dropped += i32::from(tokio::time::timeout(patience, TenantTx::begin(&tenants, &fixture.a)).await.is_err());
        insert(&tenants, n).await;
    }
    tenants.pool().close().await;
    let mut owner = fixture.db.owner().await;
    let stored: i64 = sqlx::query_scalar("select count(*) from public.log").fetch_one(&mut owner).await.unwrap();
    assert_eq!(stored, i64::from(INSERTS), "{dropped} begins were dropped");
    assert!(dropped > 100, "only {dropped} begins were dropped half-way: the test did not test");
}

// T17: a storm of 10,000 transactions of two tenants, each dropped at a poll drawn by lot, on a pool of four.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_dropped_transactions_leaves_no_connection_bound_open_or_lost() {
    const TASKS: u64 = 20;
    const EACH: u64 = 500;
    let fixture = Fixture::start().await;
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(60))
        .connect_with(fixture.db.options("saas_app"))
        .await
        .unwrap();
    let tenants = TenantPool::open(pool, &[&saas_core::SCHEMA]).await.unwrap();
    let storm = futures_util::future::join_all((0..TASKS).map(async |task| {
        let mut lots = fastrand::Rng::with_seed(task);
        let ctx = if task.is_multiple_of(2) { &fixture.a } else { &fixture.b };
        let (mut kept, mut dropped) = (Vec::new(), 0);
        for n in 0..EACH {
            let name = format!("storm {task} {n}");
            let life = async {
                let mut tx = TenantTx::begin(&tenants, ctx).await.unwrap();
                fixture.add_project(&mut tx, &name).await;
                let seen: Vec<uuid::Uuid> = sqlx::query_scalar("select distinct tenant_id from public.project")
                    .fetch_all(&mut *tx)
                    .await
                    .unwrap();
                assert_eq!(seen, [ctx.tenant().as_uuid()]);
                tx.commit().await.unwrap();
            };
            match cancel_after(lots.usize(1..40), life).await {
                Some(()) => kept.push(name),
                None => dropped += 1,
            }
        }
        (kept, dropped)
    }))
    .await;
    let kept: Vec<String> = storm.iter().flat_map(|(kept, _)| kept.clone()).collect();
    let dropped: u64 = storm.iter().map(|(_, dropped)| dropped).sum();
    assert!(kept.len() > 50 && dropped > 5_000, "{} kept, {dropped} dropped: the storm did not blow", kept.len());

    // All four can be had at once, each at rest and bound to nobody.
    let at_rest = "select coalesce(current_setting('saas.tenant_id', true), '') = ''
                     and transaction_timestamp() = statement_timestamp()";
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut connection = tenants.pool().acquire().await.unwrap();
        let row = sqlx::raw_sql(at_rest).fetch_one(&mut *connection).await.unwrap();
        assert!(sqlx::Row::get::<bool, _>(&row, 0));
        held.push(connection);
    }
    let mut owner = fixture.db.owner().await;
    let open: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity
         where datname = current_database() and usename = 'saas_app' and state like 'idle in transaction%'",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(open, 0);
    let stored: i64 = sqlx::query_scalar("select count(*) from public.project where name = any ($1)")
        .bind(&kept)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(usize::try_from(stored).unwrap(), kept.len(), "every acknowledged one is stored");
}
