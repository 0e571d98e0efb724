//! The whole round trip, with writers.

use std::sync::atomic::Ordering;

use saas_core::{SystemTx, TenantContext, TenantTx, doctor};
use saas_tenancy::relocate::{Address, Audit, CAPTURE, State};
use sqlx::Executor;

use crate::{
    work::Work,
    world::{NAMES, World, operator},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_moves_through_all_modes_and_back_while_it_writes_and_nothing_is_lost_or_there_twice() {
    let world = World::start().await;
    let pooled = Address::pooled("control");
    let others = world.rows_at(&pooled, &world.other).await;
    let (schema, database) = (world.make_schema().await, world.make_database().await);
    let work = Work::start(&world, 4);
    let mut from = pooled.clone();
    for (generation, to) in [&schema, &database, &pooled].into_iter().enumerate() {
        work.go_on(30).await;
        let report = world.mover.move_tenant(world.acme.tenant(), to, &operator(), &|_| {}).await.unwrap();
        println!("{from} -> {to}: {} rows, {} rounds, freeze {:?}", report.rows(), report.rounds, report.freeze);
        assert_eq!(report.audit, Audit::Equal);
        assert_eq!(report.tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), {
            let mut names = NAMES;
            names.sort_unstable();
            names
        });
        assert!(report.rows() >= 1_000 && report.bytes() > 10_000, "{report:?}");
        assert_eq!(world.home().await.3, generation as i64 + 1);
        work.go_on(30).await;
        // Kept until it is confirmed, and the tenant's writes do not reach it.
        let kept = world.rows_at(&from, &world.acme).await;
        work.go_on(30).await;
        assert_eq!(world.rows_at(&from, &world.acme).await, kept);
        world.mover.confirm(world.acme.tenant(), &|_| {}).await.unwrap();
        from = to.clone();
    }
    let ledger = work.finish(&world, &pooled).await;
    assert_eq!(ledger.refused.load(Ordering::Relaxed), 0, "whoever came too late was let in at the new place");
    assert_eq!(world.rows_at(&pooled, &world.other).await, others, "nobody else's rows were touched");
    assert_eq!(world.traces_at(&pooled).await, 0);
    let gone: bool = sqlx::query_scalar("select to_regnamespace($1) is null")
        .bind(schema.schema.as_deref())
        .fetch_one(&mut world.db.owner().await)
        .await
        .unwrap();
    assert!(gone, "the schema of the tenant's own was dropped");
    assert!(world.mover.list_unfinished().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_source_holds_is_what_the_target_holds_to_the_last_character() {
    let world = World::start().await;
    let pooled = Address::pooled("control");
    let mut from = pooled.clone();
    for to in [world.make_schema().await, world.make_database().await] {
        let before = world.rows_at(&from, &world.acme).await;
        world.mover.move_tenant(world.acme.tenant(), &to, &operator(), &|_| {}).await.unwrap();
        assert_eq!(world.rows_at(&to, &world.acme).await, before, "also that no trigger of the application fired");
        assert_eq!(world.rows_at(&from, &world.acme).await, before);
        world.mover.confirm(world.acme.tenant(), &|_| {}).await.unwrap();
        from = to;
    }
    assert_eq!(world.count_at(&pooled).await, 0);
    // No number is given out twice, also where its row has gone.
    let mut tx = TenantTx::begin(&*world.binding, &world.acme).await.unwrap();
    let number: i64 = sqlx::query_scalar("insert into entry (tenant_id, what) values ($1, 'next') returning number")
        .bind(world.acme.tenant().as_uuid())
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(number, 401, "behind every number that was drawn in the shared tables");
}

#[tokio::test]
async fn a_tenant_moves_back_with_what_it_has_written_since() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap();
    let mut tx = TenantTx::begin(&*world.binding, &world.acme).await.unwrap();
    sqlx::query("delete from event where tenant_id = $1")
        .bind(world.acme.tenant().as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let since = world.rows_at(&database, &world.acme).await;
    world.mover.move_back(world.acme.tenant(), &operator(), &|_| {}).await.unwrap();
    assert_eq!(world.rows_at(&pooled, &world.acme).await, since);
    assert_eq!(world.home().await, ("pooled".into(), None, None, 2));
    let status = world.mover.find(world.acme.tenant()).await.unwrap().unwrap();
    assert_eq!((status.state, status.target), (State::Switched, pooled));
}

#[tokio::test]
async fn a_writer_that_does_not_use_the_door_is_refused_at_the_old_place_too() {
    let world = World::start().await;
    let database = world.make_database().await;
    world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap();
    let tenant = world.acme.tenant().as_uuid();
    let mut tx = SystemTx::begin(world.db.system(), operator(), "a worker that knows no placements").await.unwrap();
    let refused =
        sqlx::query("insert into project (tenant_id, name) values ($1, 'late')").bind(tenant).execute(&mut *tx).await;
    assert_eq!(refused.unwrap_err().as_database_error().unwrap().code().unwrap(), "SA001");
    drop(tx);
    // The pooled binding gives no generation, so the door is not asked; the trigger is.
    let mut tx = TenantTx::begin(world.db.tenants(), &world.acme).await.unwrap();
    let refused = sqlx::query("delete from task where tenant_id = $1").bind(tenant).execute(&mut *tx).await;
    assert_eq!(refused.unwrap_err().as_database_error().unwrap().code().unwrap(), "SA001");
    drop(tx);
    // The other tenant in the same tables does not notice.
    let mut tx = TenantTx::begin(world.db.tenants(), &world.other).await.unwrap();
    sqlx::query("insert into project (tenant_id, name) values ($1, 'fine')")
        .bind(world.other.tenant().as_uuid())
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut owner = world.db.owner().await;
    let refused = owner.execute("truncate project cascade").await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "55006", "a truncation is in no log");
}

#[tokio::test]
async fn what_a_mover_leaves_in_a_database_passes_the_isolation_audit() {
    let world = World::start().await;
    let database = world.make_database().await;
    let before = doctor::examine(world.db.tenants().pool()).await.unwrap();
    world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap();
    let found: i64 = sqlx::query_scalar(CAPTURE.version_query).fetch_one(&mut world.db.owner().await).await.unwrap();
    assert_eq!(found, CAPTURE.version(), "the log is there");
    assert_eq!(doctor::examine(world.db.tenants().pool()).await.unwrap(), before);
}
