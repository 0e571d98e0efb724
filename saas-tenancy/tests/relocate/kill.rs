//! Movers that end in the middle: dropped at any of their awaits, or with their connections cut at any of their steps.

use std::{
    future::poll_fn,
    sync::{Mutex, atomic::Ordering},
    task::Poll,
};

use saas_core::{TenantContext, TenantTx};
use saas_tenancy::relocate::{Address, MoveError, Phase, Progress, Report, State};
use sqlx::{Connection, PgConnection};

use crate::{
    refuse::apart,
    work::Work,
    world::{World, operator},
};

/// Polls a future so often, and drops it. `None` when it was dropped.
async fn poll_times<T>(future: impl Future<Output = T>, mut times: usize) -> Option<T> {
    let mut future = Box::pin(future);
    poll_fn(move |cx| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

impl World {
    /// Whether the tenant is let in where the placement says that it lives.
    async fn is_served(&self) -> bool {
        match TenantTx::begin(&*self.binding, &self.acme).await {
            Ok(tx) => tx.commit().await.is_ok(),
            Err(error) => {
                assert_eq!(error.code(), "tenant_moved", "{error}");
                false
            }
        }
    }

    async fn state(&self) -> Option<State> {
        self.mover.find(self.acme.tenant()).await.unwrap().map(|status| status.state)
    }
}

async fn cut(
    control: &sqlx::postgres::PgConnectOptions,
    second: &sqlx::postgres::PgConnectOptions,
    sessions: &'static str,
) {
    for server in [control, second] {
        let mut admin = PgConnection::connect_with(server).await.unwrap();
        // Only this test's own: others run on the same servers.
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where application_name like $1 and (datname = $2 or datname = $3)",
        )
        .bind(sessions)
        .bind(control.get_database())
        .bind(second.get_database())
        .execute(&mut admin)
        .await
        .unwrap();
    }
}

/// A mover is dropped at its first await and at every `stride`th after it, and each time another one goes on or goes back. One
/// writer is at work all the while.
async fn drop_everywhere(world: &World, stride: usize, place: impl AsyncFn() -> Address) -> (usize, usize) {
    let pooled = Address::pooled("control");
    let tenant = world.acme.tenant();
    let work = Work::start(world, 1);
    let (mut home, mut away, mut unserved, mut seen) = (pooled.clone(), place().await, 0, Vec::new());
    let mut polls = 1;
    loop {
        let actor = operator();
        let moving = world.mover.move_tenant(tenant, &away, &actor, &|_| {});
        let is_through = match poll_times(moving, polls).await {
            Some(result) => {
                result.unwrap();
                true
            }
            None => false,
        };
        let state = world.state().await;
        if !is_through && !world.is_served().await {
            // Only while the source is being closed may a killed mover leave the tenant outside.
            assert_eq!(state, Some(State::Switching), "after {polls} polls");
            unserved += 1;
        }
        if !seen.contains(&state) {
            seen.push(state);
        }
        let goes_back = polls % 2 == 0 && !matches!(state, Some(State::Switched) | None);
        if goes_back {
            world.mover.roll_back(tenant, &|_| {}).await.unwrap();
            assert_eq!(world.count_at(&away).await, 0, "after {polls} polls");
        } else if state.is_some() {
            world.mover.resume(tenant, &|_| {}).await.unwrap();
            world.mover.confirm(tenant, &|_| {}).await.unwrap();
            (home, away) = (away, home);
            if away != pooled {
                away = place().await;
            }
        }
        assert!(world.is_served().await);
        assert!(world.state().await.is_none());
        if is_through {
            break;
        }
        polls += stride;
    }
    work.finish(world, &home).await;
    for state in [State::Planned, State::Copying, State::CatchingUp, State::Switched] {
        assert!(seen.contains(&Some(state)), "no mover was dropped while it was {state}: {seen:?}");
    }
    (polls, unserved)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_dropped_at_any_await_is_resumed_or_rolled_back_within_one_database() {
    let world = World::start().await;
    let mut others = world.rows_at(&Address::pooled("control"), &world.other).await;
    let (polls, unserved) = drop_everywhere(&world, 7, async || world.make_schema().await).await;
    println!("dropped after up to {polls} polls; {unserved} of them between the doors");
    assert_eq!(world.rows_at(&Address::pooled("control"), &world.other).await, std::mem::take(&mut others));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_dropped_at_any_await_is_resumed_or_rolled_back_between_two_servers() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let database = world.make_database().await;
    let (polls, unserved) = drop_everywhere(&world, 13, async || database.clone()).await;
    println!("dropped after up to {polls} polls; {unserved} of them between the doors");
}

impl World {
    /// Moves, and ends sessions of the mover the first time that `phase` is told.
    async fn move_and_cut(&self, to: &Address, phase: Phase, sessions: &'static str) -> Result<Report, MoveError> {
        let done = Mutex::new(false);
        let database = to.database.clone().unwrap_or_default();
        let (control, second) = (self.ways.control.clone(), self.ways.second.clone().database(&database));
        self.mover
            .move_tenant(self.acme.tenant(), to, &operator(), &|told| {
                let mut done = done.lock().unwrap();
                if told.phase == phase && !*done {
                    *done = true;
                    let (control, second) = (control.clone(), second.clone());
                    apart(async move { cut(&control, &second, sessions).await });
                }
            })
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_whose_connections_are_cut_at_any_step_leaves_the_tenant_served_and_is_resumed() {
    let world = World::start().await;
    let pooled = Address::pooled("control");
    let tenant = world.acme.tenant();
    let work = Work::start(&world, 2);
    let phases = [
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
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let database = world.make_database().await;
    for phase in phases {
        let result = world.move_and_cut(&database, phase, "saas mover%").await;
        assert!(world.is_served().await, "{phase:?}: {result:?}");
        work.go_on(5).await;
        let error = match result {
            // All that was left to do needed none of them.
            Ok(_) => panic!("{phase:?} did not need its connections"),
            Err(error) => error,
        };
        assert!(error.is_retryable(), "{phase:?}: {error}");
        world.mover.resume(tenant, &|_| {}).await.unwrap();
        work.go_on(5).await;
        world.mover.move_back(tenant, &operator(), &|_| {}).await.unwrap();
        world.mover.confirm(tenant, &|_| {}).await.unwrap();
    }
    work.finish(&world, &pooled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_lost_lets_the_tenant_go_on_at_the_source_and_nothing_is_switched() {
    let world = World::start().await;
    let database = world.make_database().await;
    let work = Work::start(&world, 2);
    for phase in [Phase::Drain, Phase::Close] {
        let error = world.move_and_cut(&database, phase, "saas mover gate").await.unwrap_err();
        assert!(error.is_retryable(), "{phase:?}: {error}");
        assert_eq!(world.home().await.3, 0);
        work.go_on(20).await;
        world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
    }
    world.mover.move_tenant(world.acme.tenant(), &database, &operator(), &|_| {}).await.unwrap();
    work.finish(&world, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_whose_door_was_opened_for_nothing_can_be_moved_to_again() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let database = world.make_database().await;
    let (tenant, actor, opened) = (world.acme.tenant(), operator(), tokio::sync::Notify::new());
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
    assert_eq!(world.state().await, Some(State::Switching));
    world.mover.roll_back(tenant, &|_| {}).await.unwrap();
    assert!(world.is_served().await);
    world.mover.move_tenant(tenant, &database, &actor, &|_| {}).await.unwrap();
    assert!(world.is_served().await);
    assert_eq!(world.home().await.3, 1, "one move");
}
