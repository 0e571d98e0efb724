//! Hostile places and callers: two movers at once, a place that is another's, a tenant that is not to be moved.

use std::sync::atomic::Ordering;

use saas_core::{Clock as _, SystemTx, TenantContext};
use saas_tenancy::relocate::{Address, MoveError};
use sqlx::Executor;

use crate::{
    work::Work,
    world::{World, operator},
};

#[tokio::test(flavor = "multi_thread")]
async fn of_many_movers_at_once_one_moves_the_tenant_and_the_others_do_no_harm() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let (tenant, work) = (world.acme.tenant(), Work::start(&world, 2));
    let (mut away, mut home, mut moved) = (database, pooled, 0);
    for _ in 0..4 {
        let actor = operator();
        let fine = |result: Result<(), MoveError>| match result {
            Ok(()) => 1,
            Err(error) => {
                let codes = [
                    "move_under_way",
                    "move_driven_elsewhere",
                    "no_move",
                    "wrong_move_state",
                    "already_there",
                    "unavailable",
                    "placement_changed",
                ];
                assert!(codes.contains(&error.code()), "{}: {error:?}", error.code());
                0
            }
        };
        let go = async || world.mover.move_tenant(tenant, &away, &actor, &|_| {}).await.map(drop);
        let go_on = async || world.mover.resume(tenant, &|_| {}).await.map(drop);
        let (a, b, c, d, e) = tokio::join!(go(), go(), go_on(), go_on(), world.mover.roll_back(tenant, &|_| {}));
        let done: u32 = [a, b, c, d, e].into_iter().map(fine).sum();
        println!("{done} of five calls did something");
        // Whoever finds it afterwards brings it to an end.
        if world.mover.find(tenant).await.unwrap().is_none() {
            world.mover.move_tenant(tenant, &away, &actor, &|_| {}).await.unwrap();
        } else if let Err(error) = world.mover.resume(tenant, &|_| {}).await {
            assert_eq!(error.code(), "wrong_move_state", "it is being rolled back: {error}");
            world.mover.roll_back(tenant, &|_| {}).await.unwrap();
            world.mover.move_tenant(tenant, &away, &actor, &|_| {}).await.unwrap();
        }
        let confirm = async || world.mover.confirm(tenant, &|_| {}).await;
        let (a, b) = tokio::join!(confirm(), confirm());
        fine(a);
        fine(b);
        if world.mover.find(tenant).await.unwrap().is_some() {
            world.mover.confirm(tenant, &|_| {}).await.unwrap();
        }
        moved += 1;
        (home, away) = (away, home);
        assert_eq!(world.home().await.3, moved);
        assert_eq!(world.count_at(&away).await, 0);
        assert_eq!(world.traces_at(&away).await, 0, "no log is left that nobody reads");
    }
    work.finish(&world, &home).await;
}

#[tokio::test]
async fn a_place_under_another_name_is_still_the_same_place_and_one_of_another_tenant_is_refused() {
    let world = World::start().await;
    let (pooled, tenant) = (Address::pooled("control"), world.acme.tenant());
    let before = world.rows_at(&pooled, &world.acme).await;
    let itself = Address::database("control", world.db.name());
    for alias in [itself, Address::schema("control", "public")] {
        let error = world.mover.move_tenant(tenant, &alias, &operator(), &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), "already_there", "{error}");
        world.mover.roll_back(tenant, &|_| {}).await.unwrap();
        assert_eq!(world.rows_at(&pooled, &world.acme).await, before, "and nothing of it is cleared");
    }

    // Rows of another tenant, and a place that another has or is on its way to.
    let database = world.make_database().await;
    let mut there = world.ways.connect(&database).await;
    sqlx::query("insert into saas.tenant (id, slug, name, created_at) values ($1, 'other', 'other', now())")
        .bind(world.other.tenant().as_uuid())
        .execute(&mut there)
        .await
        .unwrap();
    sqlx::query("insert into entry (tenant_id, what) values ($1, 'theirs')")
        .bind(world.other.tenant().as_uuid())
        .execute(&mut there)
        .await
        .unwrap();
    let error = world.mover.move_tenant(tenant, &database, &operator(), &|_| {}).await.unwrap_err();
    assert_eq!(error.code(), "place_occupied", "{error}");
    world.mover.roll_back(tenant, &|_| {}).await.unwrap();
    there.execute("delete from entry").await.unwrap();
    // Not even a row of its own yet.
    world.mover.move_tenant(world.other.tenant(), &database, &operator(), &|_| {}).await.unwrap();
    for _ in ["on its way", "at home"] {
        let error = world.mover.move_tenant(tenant, &database, &operator(), &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), "place_occupied", "{error}");
        assert!(world.mover.find(tenant).await.unwrap().is_none());
        drop(world.mover.confirm(world.other.tenant(), &|_| {}).await);
    }
}

#[tokio::test]
async fn a_tenant_whose_place_is_not_ready_is_not_moved() {
    let world = World::start().await;
    let database = world.make_database().await;
    let mut tx = SystemTx::begin(world.db.system(), operator(), "set a test up").await.unwrap();
    sqlx::query(
        "insert into saas.placement (tenant_id, mode, cluster, schema_name, generation, state, changed_at)
         values ($1, 'schema', 'control', 'saas_t_x', 1, 'provisioning', now())",
    )
    .bind(world.acme.tenant().as_uuid())
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let error = world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap_err();
    assert_eq!(error.code(), "not_served");
}

#[tokio::test]
async fn writes_at_the_target_are_never_rolled_back_and_go_along_when_the_tenant_moves_back() {
    let world = World::start().await;
    let (pooled, schema) = (Address::pooled("control"), world.make_schema().await);
    let tenant = world.acme.tenant();
    world.mover.move_tenant(tenant, &schema, &operator(), &|_| {}).await.unwrap();
    world.write("insert into entry (tenant_id, what) values ($1, 'since')").await.unwrap();
    let since = world.texts_at(&schema, "entry").await;
    assert_eq!(world.mover.roll_back(tenant, &|_| {}).await.unwrap_err().code(), "wrong_move_state");
    assert_eq!(world.texts_at(&schema, "entry").await, since);
    world.mover.move_back(tenant, &operator(), &|_| {}).await.unwrap();
    assert_eq!(world.texts_at(&pooled, "entry").await, since);
}

#[tokio::test]
async fn a_tenant_that_is_being_erased_is_not_moved() {
    let world = World::start().await;
    let database = world.make_database().await;
    let tenant = world.acme.tenant();
    for state in ["erasing", "erased"] {
        let status = "insert into saas.tenant_status values ($1, $2, 'why', 'who', $3)
                      on conflict (tenant_id) do update set state = excluded.state";
        let mut tx = SystemTx::begin(world.db.system(), operator(), "set a test up").await.unwrap();
        sqlx::query(status)
            .bind(tenant.as_uuid())
            .bind(state)
            .bind(world.db.clock().now())
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let error = world.mover.move_tenant(tenant, &database, &operator(), &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), "tenant_erased", "{error}");
        assert!(world.mover.find(tenant).await.unwrap().is_none(), "nothing stands in the erasure's way");
    }
}
