//! A tenant whose status changes before, while and after it moves: its door tells the status, wherever it lives.

use std::sync::{Arc, Mutex, atomic::Ordering};

use saas_core::{
    Actor, SCHEMA as CORE, SystemClock, SystemPool, TenantContext, TenantId, TenantTx, UserId, db::pool_options,
};
use saas_tenancy::{
    lifecycle::Lifecycle,
    placement::{Cluster, Clusters},
    relocate::{Address, Phase, Progress, State},
};
use sqlx::postgres::PgConnectOptions;

use crate::{
    refuse::apart,
    world::{World, operator},
};

const PHASES: [Phase; 11] = [
    Phase::Planned,
    Phase::Capture,
    Phase::Copy,
    Phase::Verify,
    Phase::CatchUp,
    Phase::Freeze,
    Phase::Drain,
    Phase::Close,
    Phase::Switch,
    Phase::Switched,
    Phase::Audit,
];

/// A change of status, and what it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Suspend,
    Resume,
    Maintain,
}

impl World {
    fn clusters(&self, second: &PgConnectOptions) -> Clusters {
        let of = |login: &PgConnectOptions| {
            Cluster::new(login.clone().username("saas_app"), login.clone().username("saas_system"))
        };
        Clusters::new(of(&self.ways.control)).with_cluster("second".parse().unwrap(), of(second)).unwrap()
    }

    fn lifecycle(&self, second: &PgConnectOptions) -> Lifecycle {
        let alone = Lifecycle::new(self.db.system().clone(), Arc::new(self.db.clock().clone()));
        alone.with_clusters(self.clusters(second))
    }

    /// Generation and state of the tenant's door at an address, and why.
    pub(crate) async fn door_at(&self, address: &Address) -> (i64, String, Option<String>) {
        sqlx::query_as("select generation, state, reason from saas.resident where tenant_id = $1")
            .bind(self.acme.tenant().as_uuid())
            .fetch_one(&mut self.ways.connect(address).await)
            .await
            .unwrap()
    }

    /// Whether the tenant may look, and write, where it lives.
    async fn is_let(&self) -> (bool, bool) {
        let Ok(mut tx) = TenantTx::begin(&*self.binding, &self.acme).await else { return (false, false) };
        let write = sqlx::query("update project set name = name where tenant_id = $1")
            .bind(self.acme.tenant().as_uuid())
            .execute(&mut *tx)
            .await;
        (true, write.is_ok())
    }
}

fn vendor() -> Actor {
    Actor::Operator { id: UserId::mint(&SystemClock) }
}

async fn make(lifecycle: &Lifecycle, tenant: TenantId, change: Change) {
    match change {
        Change::Suspend => lifecycle.suspend(tenant, &vendor(), "unpaid").await.unwrap(),
        Change::Resume => lifecycle.resume(tenant, &vendor()).await.unwrap(),
        Change::Maintain => lifecycle.start_maintenance(tenant, &vendor(), "upgrade").await.unwrap(),
    }
}

/// Moves, and changes the status when `phase` is told for the first time. While the doors are being exchanged, a change
/// has to wait for the move, so that the mover must not wait for it there.
async fn move_and_change(world: &World, to: &Address, phase: Phase, change: Change) {
    let (tenant, changing) = (world.acme.tenant(), Mutex::new(None));
    world
        .mover
        .move_tenant(tenant, to, &operator(), &|told| {
            let mut changing = changing.lock().unwrap();
            if told.phase == phase && changing.is_none() {
                let (login, clusters) = (world.db.options("saas_system"), world.clusters(&world.ways.second));
                // With a pool of its own: connections belong to the runtime that opened them.
                let work = async move {
                    let pool = pool_options().max_connections(2).connect_lazy_with(login);
                    let system = SystemPool::open(pool, &[&CORE]).await.unwrap();
                    let lifecycle = Lifecycle::new(system, Arc::new(SystemClock)).with_clusters(clusters);
                    make(&lifecycle, tenant, change).await;
                };
                // One that waits until the tenant's transactions have left waits for the mover, too.
                let waits = phase == Phase::Switch || (change == Change::Maintain && phase != Phase::Planned);
                *changing = Some(if waits {
                    Some(tokio::spawn(work))
                } else {
                    apart(work);
                    None
                });
            }
        })
        .await
        .unwrap();
    let changing = changing.lock().unwrap().take().unwrap();
    if let Some(changing) = changing {
        changing.await.unwrap();
    }
}

/// To and fro: suspended at a phase of one move, resumed at the same phase of the next. In maintenance at some, and moved so.
async fn change_at_phases(world: &World, away: &Address, phases: &[Phase]) {
    let lifecycle = world.lifecycle(&world.ways.second);
    let (mut here, mut there, mut generation) = (Address::pooled("control"), away.clone(), 0);
    for phase in phases {
        let with_maintenance = matches!(phase, Phase::Capture | Phase::Drain | Phase::Audit);
        for (change, state, allowed) in [
            (Some(Change::Suspend), "read_only", (true, false)),
            (Some(Change::Resume), "open", (true, true)),
            (Some(Change::Maintain), "closed", (false, false)),
            (None, "closed", (false, false)),
        ] {
            match change {
                Some(Change::Maintain) | None if !with_maintenance => continue,
                Some(change) => move_and_change(world, &there, *phase, change).await,
                None => {
                    world.mover.move_tenant(world.acme.tenant(), &there, &operator(), &|_| {}).await.unwrap();
                }
            }
            generation += 1;
            let door = world.door_at(&there).await;
            assert_eq!((door.0, door.1.as_str()), (generation, state), "{change:?} at {phase:?}: {door:?}");
            assert_eq!(world.is_let().await, allowed, "{change:?} at {phase:?}");
            if here.cluster != there.cluster {
                let left = world.door_at(&here).await;
                assert_eq!((left.0, left.1.as_str()), (generation - 1, "closed"), "nobody comes in where it has been");
            }
            world.mover.confirm(world.acme.tenant(), &|_| {}).await.unwrap();
            if here.schema.is_some() {
                world.make_schema().await;
            }
            (here, there) = (there, here);
        }
        if with_maintenance {
            lifecycle.end_maintenance(world.acme.tenant(), &vendor()).await.unwrap();
            assert_eq!(world.door_at(&here).await, (generation, "open".into(), None));
            assert_eq!(world.is_let().await, (true, true));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_changes_at_any_phase_is_what_the_door_of_another_server_tells() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let database = world.make_database().await;
    change_at_phases(&world, &database, &PHASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_changes_during_the_switch_is_what_the_door_tells_within_one_database() {
    let world = World::start().await;
    let schema = world.make_schema().await;
    change_at_phases(&world, &schema, &PHASES[5..10]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_a_killed_mover_has_closed_is_not_opened_by_a_change_of_status() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let database = world.make_database().await;
    let (lifecycle, pooled) = (world.lifecycle(&world.ways.second), Address::pooled("control"));
    let tenant = world.acme.tenant();
    for goes_back in [true, false] {
        let (actor, opened) = (operator(), tokio::sync::Notify::new());
        let listener = |told: Progress<'_>| {
            if told.phase == Phase::Switch {
                opened.notify_one();
            }
        };
        let moving = world.mover.move_tenant(tenant, &database, &actor, &listener);
        tokio::select! {
            biased;
            () = opened.notified() => {}
            result = moving => panic!("it was not dropped between the doors: {result:?}"),
        }
        assert_eq!(world.mover.find(tenant).await.unwrap().unwrap().state, State::Switching);
        make(&lifecycle, tenant, Change::Suspend).await;
        make(&lifecycle, tenant, Change::Resume).await;
        assert_eq!(world.door_at(&pooled).await, (0, "closed".into(), Some("it has moved".into())));
        make(&lifecycle, tenant, Change::Suspend).await;
        if goes_back {
            world.mover.roll_back(tenant, &|_| {}).await.unwrap();
            assert_eq!(world.door_at(&pooled).await.1, "read_only", "as its status is by now, not as it was");
        } else {
            world.mover.resume(tenant, &|_| {}).await.unwrap();
            assert_eq!(world.door_at(&database).await.1, "read_only");
        }
        make(&lifecycle, tenant, Change::Resume).await;
        assert_eq!(world.is_let().await, (true, true));
    }
}

#[tokio::test]
async fn a_change_after_the_move_reaches_the_door_of_the_placed_database_or_stays_due() {
    let world = World::start().await;
    let database = world.make_database().await;
    let tenant = world.acme.tenant();
    world.mover.move_tenant(tenant, &database, &operator(), &|_| {}).await.unwrap();
    let lifecycle = world.lifecycle(&world.ways.second);
    make(&lifecycle, tenant, Change::Suspend).await;
    assert_eq!(world.door_at(&database).await, (1, "read_only".into(), Some("the tenant is suspended".into())));
    assert_eq!(world.is_let().await, (true, false));
    make(&lifecycle, tenant, Change::Resume).await;
    assert_eq!(world.is_let().await, (true, true));

    // Its server does not answer: the status stands, and whoever asked is told what is missing.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cut_off = world.lifecycle(&world.ways.second.clone().port(nobody));
    let alone = Lifecycle::new(world.db.system().clone(), Arc::new(world.db.clock().clone()));
    for lifecycle in [&cut_off, &alone] {
        let error = lifecycle.suspend(tenant, &vendor(), "unpaid").await.unwrap_err();
        assert_eq!(error.code(), "door_not_set", "{error}");
        assert!(error.is_retryable() && error.to_string().contains(database.database.as_deref().unwrap()), "{error}");
        assert!(lifecycle.status(tenant).await.unwrap().is_some());
        assert_eq!(world.door_at(&database).await.1, "open");
        assert_eq!(lifecycle.set_due_doors().await.unwrap(), [tenant]);
    }
    assert_eq!(lifecycle.set_due_doors().await.unwrap(), []);
    assert_eq!(world.door_at(&database).await.1, "read_only");
    // Due again; the same call once more does it, too.
    assert_eq!(cut_off.resume(tenant, &vendor()).await.unwrap_err().code(), "door_not_set");
    lifecycle.resume(tenant, &vendor()).await.unwrap();
    assert_eq!(world.door_at(&database).await.1, "open");
    assert_eq!(cut_off.set_due_doors().await.unwrap(), [], "nothing is due");
}

#[tokio::test]
async fn a_door_that_is_due_when_the_tenant_moves_back_is_not_set_at_the_place_it_left() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let (database, pooled) = (world.make_database().await, Address::pooled("control"));
    let tenant = world.acme.tenant();
    world.mover.move_tenant(tenant, &database, &operator(), &|_| {}).await.unwrap();
    let alone = Lifecycle::new(world.db.system().clone(), Arc::new(world.db.clock().clone()));
    assert_eq!(alone.suspend(tenant, &vendor(), "unpaid").await.unwrap_err().code(), "door_not_set");
    world.mover.move_back(tenant, &operator(), &|_| {}).await.unwrap();
    assert_eq!(world.door_at(&pooled).await.1, "read_only");
    let lifecycle = world.lifecycle(&world.ways.second);
    assert_eq!(lifecycle.set_due_doors().await.unwrap(), []);
    assert_eq!(world.door_at(&database).await, (1, "closed".into(), Some("it has moved".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_of_a_placed_tenant_begins_when_everyone_has_left_its_database() {
    let world = World::start().await;
    let database = world.make_database().await;
    world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap();
    let inside = TenantTx::begin(&*world.binding, &world.acme).await.unwrap();
    let (lifecycle, tenant) = (world.lifecycle(&world.ways.second), world.acme.tenant());
    let starting = tokio::spawn(async move { lifecycle.start_maintenance(tenant, &vendor(), "upgrade").await });
    let mut there = world.ways.connect(&database).await;
    let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted
                                and database = (select oid from pg_database where datname = current_database()))";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut there).await.unwrap() {
        assert!(!starting.is_finished(), "someone is still inside");
        tokio::task::yield_now().await;
    }
    assert_eq!(world.door_at(&database).await.1, "closed", "whoever comes now is refused");
    inside.rollback().await.unwrap();
    starting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_door_that_was_closed_by_hand_is_neither_opened_nor_forgotten_by_a_move() {
    let world = World::start().await;
    let database = world.make_database().await;
    let by_hand = "insert into saas.resident values ($1, 0, $2, 'suspected leak')
                   on conflict (tenant_id) do update set state = excluded.state, reason = excluded.reason";
    for state in ["closed", "read_only"] {
        let mut owner = world.db.owner().await;
        sqlx::query(by_hand).bind(world.acme.tenant().as_uuid()).bind(state).execute(&mut owner).await.unwrap();
        let error = world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), "tenant_closed");
        assert!(error.to_string().contains("suspected leak"), "{error}");
        world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
        assert_eq!(world.door_at(&Address::pooled("control")).await, (0, state.into(), Some("suspected leak".into())));
    }
}
