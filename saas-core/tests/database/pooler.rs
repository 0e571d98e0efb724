//! Through PgBouncer in transaction mode: many clients share two sessions, one transaction at a time.

use std::time::Duration;

use futures_util::future::join_all;
use saas_core::{
    Actor, CoreError, SystemPool, SystemTx, TenantContext, TenantPool, TenantTx,
    db::{Literal, TenantWork, pool_options},
    testing::Pooler,
};
use sqlx::{Executor, PgPool};

use crate::adopter::Fixture;

async fn pool(fixture: &Fixture, pooler: &Pooler, role: &str) -> PgPool {
    let options = fixture.db.options(role).host("127.0.0.1").port(pooler.port()).statement_cache_capacity(0);
    pool_options().max_connections(20).acquire_timeout(Duration::from_secs(20)).connect_with(options).await.unwrap()
}

async fn titles(tx: &mut TenantTx) -> Result<Vec<String>, CoreError> {
    sqlx::query_scalar("select title from public.task order by title")
        .fetch_all(&mut **tx)
        .await
        .map_err(CoreError::from_database)
}

// T42
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_tenant_stays_in_a_session_that_others_use_next() {
    let fixture = Fixture::start().await;
    let (host, port) = fixture.db.address();
    let pooler = Pooler::start((&host, port), 2).unwrap();
    let tenants =
        TenantPool::open_behind_pooler(pool(&fixture, &pooler, "saas_app").await, &[&saas_core::SCHEMA]).await.unwrap();
    let system = SystemPool::open_behind_pooler(pool(&fixture, &pooler, "saas_system").await, &[&saas_core::SCHEMA])
        .await
        .unwrap();

    // Both tenants at once on two sessions: each adds and sees its own, and only its own.
    let worker = async |number: usize| {
        let ctx = if number.is_multiple_of(2) { &fixture.a } else { &fixture.b };
        let own = ctx.tenant();
        for turn in 0..10 {
            let title = format!("{own} {number} {turn}");
            tenants
                .write(ctx, async |tx| {
                    sqlx::query(
                        "insert into public.task (tenant_id, project_id, title)
                         select tenant_id, id, $1 from public.project",
                    )
                    .bind(&title)
                    .execute(&mut **tx)
                    .await
                    .map_err(CoreError::from_database)
                })
                .await
                .unwrap();
            let seen = tenants.read(ctx, titles).await.unwrap();
            assert!(seen.contains(&title) && seen.iter().all(|t| t == "task" || t.starts_with(&own.to_string())));
            let id = [Literal::Uuid(own.as_uuid())];
            let others = "select count(*) from public.task where tenant_id <> $1";
            let rows = tenants.read_once(ctx, others, &id).await.unwrap();
            assert_eq!(sqlx::Row::get::<i64, _>(&rows[0], 0), 0);
            // Dropped somewhere in the middle: the session goes to the next client all the same.
            let dropped = tenants.write(ctx, async |tx| {
                tx.execute("insert into public.project (tenant_id, name) values (gen_random_uuid(), 'x')")
                    .await
                    .map(drop)
                    .map_err(CoreError::from_database)
            });
            drop(tokio::time::timeout(Duration::from_micros(100 * turn), dropped).await);
        }
    };
    join_all((0..16).map(worker)).await;

    let mut tx = SystemTx::begin(&system, Actor::system("test"), "count what was written").await.unwrap();
    let written: i64 =
        sqlx::query_scalar("select count(*) from public.task where title <> 'task'").fetch_one(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(written, 160);
    // Without a tenant, each of the sessions shows nothing.
    for _ in 0..8 {
        let unbound: Vec<sqlx::postgres::PgRow> =
            sqlx::raw_sql("select title from public.task").fetch_all(tenants.pool()).await.unwrap();
        assert!(unbound.is_empty());
    }
}
