//! Connections at hand: the one that was used last is used next, and nobody is kept waiting for one that lies there.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use saas_core::{RequestContext, TenantPool, TenantTx, db::pool_options};
use sqlx::PgPool;

use crate::adopter::Fixture;

/// Far beyond what anything here takes, and below what a lost connection would.
const PATIENCE: Duration = Duration::from_secs(20);

async fn tenants(fixture: &Fixture, connections: u32) -> TenantPool {
    let options = pool_options().max_connections(connections).acquire_timeout(PATIENCE);
    let pool = options.connect_with(fixture.db.options("saas_app")).await.unwrap();
    TenantPool::open(pool, &[&saas_core::SCHEMA]).await.unwrap()
}

/// Opens them all, and waits until they are back.
async fn fill(pool: &PgPool, connections: u32) {
    drop(join_all((0..connections).map(|_| pool.acquire())).await);
    while pool.num_idle() < connections as usize {
        tokio::task::yield_now().await;
    }
}

/// The session of the server that served a committed write.
async fn session(tenants: &TenantPool, ctx: &RequestContext) -> i32 {
    let mut tx = TenantTx::begin(tenants, ctx).await.unwrap();
    let session = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    session
}

/// Until each session has the check prepared that rides with a commit.
async fn warm_up(tenants: &TenantPool, ctx: &RequestContext) {
    for _ in 0..20 {
        let _ = session(tenants, ctx).await;
    }
}

#[tokio::test]
async fn the_session_that_served_last_serves_next() {
    let fixture = Fixture::start().await;
    let tenants = tenants(&fixture, 6).await;
    fill(tenants.pool(), 6).await;
    let mut sessions = Vec::new();
    for turn in 0..60 {
        let ctx = if turn % 2 == 0 { &fixture.a } else { &fixture.b };
        sessions.push(session(&tenants, ctx).await);
    }
    // The check of the first use of a session is made on its way home; a pause of this process lets one go there.
    let changes = sessions.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes < 20, "{changes} changes of the session in sixty transactions one after the other");
}

#[tokio::test]
async fn whoever_asks_the_pool_itself_gets_every_connection() {
    let fixture = Fixture::start().await;
    let tenants = tenants(&fixture, 4).await;
    for _ in 0..20 {
        fill(tenants.pool(), 4).await;
        let _ = session(&tenants, &fixture.a).await;
        let all = join_all((0..4).map(|_| tenants.pool().acquire()));
        let all = tokio::time::timeout(PATIENCE / 2, all).await.expect("none is kept from them");
        assert!(all.iter().all(Result::is_ok));
    }
}

#[tokio::test]
async fn no_session_stays_away_from_its_pool_for_good() {
    let fixture = Fixture::start().await;
    let tenants = tenants(&fixture, 4).await;
    fill(tenants.pool(), 4).await;
    warm_up(&tenants, &fixture.a).await;
    let mut sessions = BTreeSet::new();
    let in_turn = async {
        while sessions.len() < 2 {
            sessions.insert(session(&tenants, &fixture.a).await);
        }
    };
    tokio::time::timeout(PATIENCE, in_turn).await.expect("another one comes to its turn, also without a pause");
}

#[tokio::test]
async fn a_pool_that_closes_waits_for_nothing_at_hand() {
    let fixture = Fixture::start().await;
    let tenants = tenants(&fixture, 4).await;
    fill(tenants.pool(), 4).await;
    let _ = session(&tenants, &fixture.a).await;
    tokio::time::timeout(PATIENCE / 2, tenants.pool().close()).await.expect("it closes");
    assert_eq!(tenants.pool().size(), 0);
    assert!(TenantTx::begin(&tenants, &fixture.a).await.is_err());
}

#[tokio::test]
async fn what_was_left_behind_dirty_is_not_at_hand() {
    let fixture = Fixture::start().await;
    let tenants = tenants(&fixture, 4).await;
    fill(tenants.pool(), 4).await;
    warm_up(&tenants, &fixture.a).await;
    let mut tx = TenantTx::begin(&tenants, &fixture.a).await.unwrap();
    // Beyond the transaction: the next one would begin with it.
    let dirty: i32 = sqlx::query_scalar("select pg_backend_pid() from set_config('saas.tenant_id', $1, false)")
        .bind(fixture.a_id())
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    for _ in 0..20 {
        assert_ne!(session(&tenants, &fixture.b).await, dirty);
    }
}

#[test]
fn a_pool_may_be_dropped_outside_of_the_runtime_that_used_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (fixture, tenants) = runtime.block_on(async {
        let fixture = Fixture::start().await;
        let tenants = tenants(&fixture, 4).await;
        fill(tenants.pool(), 4).await;
        warm_up(&tenants, &fixture.a).await;
        (fixture, tenants)
    });
    let pool = tenants.pool().clone();
    assert!(pool.num_idle() < 4, "something lies at hand");
    drop(tenants);
    let all = runtime.block_on(async { join_all((0..4).map(|_| pool.acquire())).await });
    assert!(all.iter().all(Result::is_ok), "what lay at hand has gone home");
    let _entered = runtime.enter();
    drop((all, fixture));
}
