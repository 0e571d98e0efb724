//! Every lease store keeps the contract; a process spends from memory what the plan allows, and gives the rest back.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, CoreError, MeterKey, PlanKey, RequestContext, Revision, SharedClock, TenantContext, TenantId,
    TenantPool, TenantTx, UserId,
    plan::Window,
    revision,
    subscription::FixedPlan,
    testing::{Cut, Proxy, TestDatabase},
};
use saas_entitlements::{
    Ask, Balance, Borrowed, Denial, Draw, Entitlements, EntitlementsError, LeaseOptions, LeaseStore, LeasedUse, Leases,
    Period, PostgresLeases, PostgresSource, Report, Reported, SCHEMA, lease_conformance::Fixture,
    lease_store_conformance, memory::MemoryLeases, period_at,
};

use crate::stage::{Stage, catalog, plan};

const CALLS: MeterKey = MeterKey::from_static("calls");
const EXPORTS: MeterKey = MeterKey::from_static("exports");

async fn postgres() -> Fixture {
    let database = TestDatabase::builder().max_connections(8).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let tenants = [database.create_tenant("acme").await, database.create_tenant("globex").await];
    let store = PostgresLeases::new(Arc::new(database.tenants().clone()));
    Fixture::new(Arc::new(store), tenants, Revision::new(1), database)
}

async fn memory() -> Fixture {
    let clock = saas_core::TestClock::starting("2026-01-15T12:00:00Z");
    let tenant = || {
        let actor = Actor::user(UserId::mint(&clock));
        RequestContext::new_at(TenantId::mint(&clock), actor, clock.now())
    };
    Fixture::new(Arc::new(MemoryLeases::new()), [tenant(), tenant()], Revision::new(1), ())
}

lease_store_conformance!(on_postgres, postgres);
lease_store_conformance!(in_memory, memory);

/// Two processes' worth of leases on one store. They tick when told to.
struct Two {
    stage: Stage,
    store: Arc<MemoryLeases>,
    leases: [Leases; 2],
}

impl Two {
    fn new() -> Self {
        let stage = Stage::new();
        let store = Arc::new(MemoryLeases::new());
        let options = LeaseOptions::default()
            .without_borrowing_ahead()
            .with_size(100, 100)
            .with_exposed_share(2)
            .with_tick(std::time::Duration::from_secs(3_600));
        let leases = [0, 1].map(|_| Leases::new(stage.gate.clone(), store.clone(), options.clone()));
        Self { stage, store, leases }
    }

    fn ctx(&self, tenant: TenantId) -> RequestContext {
        RequestContext::new_at(tenant, Actor::system("test"), self.stage.clock.now())
    }

    async fn consume(&self, process: usize, tenant: TenantId, amount: u64) -> LeasedUse {
        self.leases[process].consume(&self.ctx(tenant), &CALLS, amount).await.unwrap()
    }

    async fn balance(&self, tenant: TenantId) -> (u64, u64) {
        let rule = self.stage.gate.snapshot(tenant).await.limit(&CALLS).unwrap();
        let period = period_at(&rule, None, self.stage.now());
        let ctx = self.ctx(tenant);
        let Balance { used, held } = self.store.balance(&ctx, &CALLS, Window::Day, period).await.unwrap();
        (used, held)
    }
}

#[tokio::test]
async fn a_use_is_spent_from_memory_and_an_idle_process_gives_back() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    assert_eq!(two.balance(tenant).await, (1, 100));
    let info = allocation_counter::measure(|| assert!(two.leases[0].try_consume(tenant, &CALLS, 30)));
    assert_eq!(info.count_total, 0, "a use from memory allocates nothing");
    assert_eq!(two.balance(tenant).await, (1, 100), "nobody was asked");
    two.leases[0].tick().await.unwrap();
    assert_eq!(two.balance(tenant).await, (31, 70));
    for _ in 0..3 {
        two.leases[0].tick().await.unwrap();
    }
    assert_eq!(two.balance(tenant).await, (31, 0));
    assert!(!two.leases[0].try_consume(tenant, &CALLS, 1), "what was given back is not spent");
}

#[tokio::test]
async fn a_process_that_holds_gives_back_what_another_was_refused() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    let refused = two.consume(1, tenant, 950).await;
    assert!(matches!(refused, LeasedUse::Exhausted { limit: 1_000, used: 1, held: 100, .. }), "{refused:?}");
    assert!(two.leases[0].try_consume(tenant, &CALLS, 1));
    two.leases[0].tick().await.unwrap();
    assert_eq!(two.balance(tenant).await, (2, 0));
    assert_eq!(two.consume(1, tenant, 950).await, LeasedUse::Granted);
}

// C11
#[test]
fn reports_go_on_when_the_runtime_that_sent_them_has_ended() {
    for ahead in [false, true] {
        let stage = Stage::new();
        let tenant = stage.tenant("free");
        let store = Arc::new(MemoryLeases::new());
        let tick = Duration::from_secs(3_600);
        let options = LeaseOptions::default().with_size(100, 100).with_exposed_share(2).with_tick(tick);
        let options = if ahead { options } else { options.without_borrowing_ahead() };
        let leases = Leases::new(stage.gate.clone(), store.clone(), options.with_life(Duration::from_secs(7_200)));
        let ctx = RequestContext::new_at(tenant, Actor::system("test"), stage.now());
        let used_of = async || {
            let period = period_at(&stage.gate.snapshot(tenant).await.limit(&CALLS).unwrap(), None, stage.now());
            store.balance(&ctx, &CALLS, Window::Day, period).await.unwrap().used
        };
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true).build().unwrap()
        };
        for used in [1, 2, 3] {
            // The first asks, the second uses what is in memory.
            runtime().block_on(async {
                assert_eq!(leases.consume(&ctx, &CALLS, 1).await.unwrap(), LeasedUse::Granted);
                let deadline = std::time::Instant::now() + Duration::from_secs(60);
                while used_of().await < used {
                    assert!(std::time::Instant::now() < deadline, "nobody reports");
                    tokio::time::advance(tick).await;
                    tokio::task::yield_now().await;
                }
            });
        }
    }
}

#[tokio::test]
async fn a_use_takes_what_is_left_and_the_rest_of_it_is_counted_with_the_refill() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    assert!(two.leases[0].try_consume(tenant, &CALLS, 70));
    assert_eq!(two.consume(0, tenant, 50).await, LeasedUse::Granted);
    assert_eq!(two.balance(tenant).await, (121, 100), "30 of the lease and 20 more, and 100 on top");
    assert!(two.leases[0].try_consume(tenant, &CALLS, 100) && !two.leases[0].try_consume(tenant, &CALLS, 1));
    // What does not fit leaves what was left.
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    assert!(two.leases[0].try_consume(tenant, &CALLS, 40));
    assert!(!two.consume(0, tenant, 900).await.is_granted());
    assert!(two.leases[0].try_consume(tenant, &CALLS, 60), "still there");
    two.leases[0].shutdown().await.unwrap();
    assert_eq!(two.balance(tenant).await, (322, 0));
}

// C17, Q3
#[tokio::test]
async fn a_holder_whose_lease_was_ended_borrows_anew_and_what_it_had_counts_as_used() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    let options = LeaseOptions::default()
        .without_borrowing_ahead()
        .with_size(100, 100)
        .with_exposed_share(2)
        .with_life(Duration::ZERO);
    let late = Leases::new(two.stage.gate.clone(), two.store.clone(), options.with_tick(Duration::from_secs(3_600)));
    let ctx = two.ctx(tenant);
    assert_eq!(late.consume(&ctx, &CALLS, 1).await.unwrap(), LeasedUse::Granted);
    assert!(late.try_consume(tenant, &CALLS, 60));
    assert_eq!(two.store.reclaim(&ctx, two.stage.now()).await.unwrap(), 100);
    assert_eq!(late.consume(&ctx, &CALLS, 50).await.unwrap(), LeasedUse::Granted);
    assert_eq!(two.balance(tenant).await, (111, 100), "40 of it were still there, so 10 more");
    late.shutdown().await.unwrap();
    assert_eq!(two.balance(tenant).await, (111, 0));
}

// C1
#[tokio::test]
async fn the_end_of_a_limit_is_counted_exactly() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    let mut granted = 0;
    for turn in 0..1_100 {
        granted += u64::from(two.consume(turn % 2, tenant, 1).await.is_granted());
    }
    for leases in &two.leases {
        leases.shutdown().await.unwrap();
    }
    assert_eq!(two.balance(tenant).await, (granted, 0));
    while two.consume(0, tenant, 1).await.is_granted() {
        granted += 1;
    }
    assert_eq!((granted, two.balance(tenant).await), (1_000, (1_000, 0)), "after the end one by one, to the last unit");
}

#[tokio::test]
async fn another_rule_or_window_ends_the_lease() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    two.stage.advance(86_400);
    two.leases[0].tick().await.unwrap();
    assert!(!two.leases[0].try_consume(tenant, &CALLS, 1), "the window has ended");
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    assert_eq!(two.balance(tenant).await, (1, 100), "of the new day");
    two.stage.advance(-86_400);
    two.leases[0].tick().await.unwrap();
    assert_eq!(two.balance(tenant).await, (1, 0), "a clock that jumps back finds the day before as it was left");
    two.stage.advance(86_400);
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    let standing = saas_core::subscription::Standing::Grace {
        until: two.stage.now(),
        suspended_from: two.stage.now() + TimeDelta::days(7),
    };
    let restricted = saas_core::subscription::PlanAssignment { standing, ..plan("free") };
    two.stage.source.tenants.put_plan(tenant, restricted);
    two.stage.gate.flush();
    two.leases[0].tick().await.unwrap();
    assert!(!two.leases[0].try_consume(tenant, &CALLS, 1), "what the tenant may do has changed");
    let denied = two.consume(0, tenant, 1).await;
    assert!(matches!(denied, LeasedUse::Denied(Denial::Standing { .. })), "{denied:?}");
}

/// A store that fails when it is told to: with an announcement, or after it has lent.
#[derive(Debug, Default)]
struct Flaky {
    store: MemoryLeases,
    refuse_to_announce: AtomicBool,
    refuse_to_lend: AtomicBool,
    lose_answers: AtomicBool,
    announced: Mutex<Vec<u16>>,
}

#[async_trait]
impl LeaseStore for Flaky {
    async fn borrow(
        &self,
        ctx: &dyn TenantContext,
        ask: &Ask,
        now: DateTime<Utc>,
    ) -> Result<Borrowed, EntitlementsError> {
        if self.refuse_to_lend.load(Ordering::Relaxed) {
            return Err(CoreError::Unavailable { cause: "the test cut the store off".into() }.into());
        }
        let borrowed = self.store.borrow(ctx, ask, now).await;
        if self.lose_answers.load(Ordering::Relaxed) {
            return Err(CoreError::OutcomeUnknown { cause: "the test lost the answer".into() }.into());
        }
        borrowed
    }

    async fn report(
        &self,
        ctx: &dyn TenantContext,
        report: &Report,
        now: DateTime<Utc>,
    ) -> Result<Reported, EntitlementsError> {
        self.store.report(ctx, report, now).await
    }

    async fn announce(
        &self,
        ctx: &dyn TenantContext,
        draw: &Draw,
        now: DateTime<Utc>,
    ) -> Result<Vec<u16>, EntitlementsError> {
        if self.refuse_to_announce.load(Ordering::Relaxed) {
            return Err(CoreError::Unavailable { cause: "the test cut the store off".into() }.into());
        }
        let crossed = self.store.announce(ctx, draw, now).await?;
        self.announced.lock().unwrap().extend(&crossed);
        Ok(crossed)
    }

    async fn reclaim(&self, ctx: &dyn TenantContext, now: DateTime<Utc>) -> Result<u64, EntitlementsError> {
        self.store.reclaim(ctx, now).await
    }

    async fn balance(
        &self,
        ctx: &dyn TenantContext,
        counter: &MeterKey,
        window: Window,
        period: Period,
    ) -> Result<Balance, EntitlementsError> {
        self.store.balance(ctx, counter, window, period).await
    }
}

// C11, C18, C19
#[tokio::test]
async fn an_announcement_that_fails_is_made_up_for_and_a_lost_answer_gives_its_units_back() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    let ctx = RequestContext::new_at(tenant, Actor::system("test"), stage.now());
    let store = Arc::new(Flaky::default());
    let options = LeaseOptions::default()
        .without_borrowing_ahead()
        .with_size(50, 50)
        .with_exposed_share(1)
        .with_tick(Duration::from_secs(3_600));
    let leases = Leases::new(stage.gate.clone(), store.clone(), options);
    let period = period_at(&stage.gate.snapshot(tenant).await.limit(&CALLS).unwrap(), None, stage.now());
    let balance = async || store.balance(&ctx, &CALLS, Window::Day, period).await.unwrap();
    let announced = || store.announced.lock().unwrap().clone();

    store.refuse_to_announce.store(true, Ordering::Relaxed);
    assert_eq!(leases.consume(&ctx, &CALLS, 800).await.unwrap(), LeasedUse::Granted, "the use is counted all the same");
    assert_eq!(balance().await, Balance { used: 800, held: 50 });
    store.refuse_to_announce.store(false, Ordering::Relaxed);
    assert!(leases.try_consume(tenant, &CALLS, 1));
    leases.tick().await.unwrap();
    assert_eq!(announced(), [80]);
    assert_eq!(leases.consume(&ctx, &CALLS, 50).await.unwrap(), LeasedUse::Granted);
    assert_eq!(announced(), [80], "once");

    store.lose_answers.store(true, Ordering::Relaxed);
    let error = leases.consume(&ctx, &CALLS, 60).await.unwrap_err();
    assert_eq!(error.kind(), saas_core::ErrorKind::OutcomeUnknown);
    store.lose_answers.store(false, Ordering::Relaxed);
    assert!(!leases.try_consume(tenant, &CALLS, 1), "what it may have lent is not used");
    leases.tick().await.unwrap();
    assert_eq!(balance().await, Balance { used: 911, held: 0 });
    // Whatever follows counts on the truth.
    assert_eq!(leases.consume(&ctx, &CALLS, 89).await.unwrap(), LeasedUse::Granted);
    assert!(!leases.consume(&ctx, &CALLS, 1).await.unwrap().is_granted());
    assert_eq!(announced(), [80, 100]);
}

// C11, C20
#[tokio::test]
async fn a_refill_that_did_not_happen_leaves_what_was_left() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    let ctx = RequestContext::new_at(tenant, Actor::system("test"), stage.now());
    let store = Arc::new(Flaky::default());
    let options = LeaseOptions::default().without_borrowing_ahead().with_size(50, 50).with_exposed_share(1);
    let leases = Leases::new(stage.gate.clone(), store.clone(), options.with_tick(Duration::from_secs(3_600)));
    assert_eq!(leases.consume(&ctx, &CALLS, 1).await.unwrap(), LeasedUse::Granted);
    assert!(leases.try_consume(tenant, &CALLS, 30));
    store.refuse_to_lend.store(true, Ordering::Relaxed);
    let error = leases.consume(&ctx, &CALLS, 60).await.unwrap_err();
    assert_eq!(error.kind(), saas_core::ErrorKind::Unavailable);
    assert!(leases.try_consume(tenant, &CALLS, 20) && !leases.try_consume(tenant, &CALLS, 1), "20 were left");
    store.refuse_to_lend.store(false, Ordering::Relaxed);
    assert_eq!(leases.consume(&ctx, &CALLS, 5).await.unwrap(), LeasedUse::Granted);
    leases.shutdown().await.unwrap();
    let period = period_at(&stage.gate.snapshot(tenant).await.limit(&CALLS).unwrap(), None, stage.now());
    let balance = store.balance(&ctx, &CALLS, Window::Day, period).await.unwrap();
    assert_eq!(balance, Balance { used: 56, held: 0 }, "each use once");
}

// C12, Q12
#[tokio::test]
async fn what_makes_no_sense_is_refused_and_the_rest_is_given_back_at_the_end() {
    let two = Two::new();
    let tenant = two.stage.tenant("free");
    let ctx = two.ctx(tenant);
    for amount in [0, u64::MAX] {
        let error = two.leases[0].consume(&ctx, &CALLS, amount).await.unwrap_err();
        assert_eq!(error.code(), "invalid_input");
    }
    let missing = two.leases[0].consume(&ctx, &EXPORTS, 1).await.unwrap();
    assert_eq!(missing, LeasedUse::Denied(Denial::NotIncluded));
    assert_eq!(two.consume(0, tenant, 1).await, LeasedUse::Granted);
    assert!(!two.leases[0].try_consume(tenant, &CALLS, 0) && !two.leases[0].try_consume(tenant, &CALLS, u64::MAX));
    two.leases[0].shutdown().await.unwrap();
    assert_eq!(two.balance(tenant).await, (1, 0));
}

// C11, C19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_cost_no_unit_and_admit_none_too_many() {
    let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let ctx = database.create_tenant("acme").await;
    let (host, port) = database.address();
    let network = Proxy::start((host.as_str(), port)).unwrap();
    let login = database.options("saas_app").host("127.0.0.1").port(network.address().port());
    let pool = saas_core::db::pool_options().max_connections(4).connect_with(login).await.unwrap();
    let pool = Arc::new(TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap());
    let clock: SharedClock = Arc::new(database.clock().clone());
    let source = PostgresSource::new(pool.clone(), Arc::new(FixedPlan(PlanKey::from_static("free"))));
    let gate = Entitlements::new(catalog(), Arc::new(source), clock);
    let options = LeaseOptions::default().with_exposed_share(4).with_life(Duration::from_secs(1));
    let leases = Leases::new(gate.clone(), Arc::new(PostgresLeases::new(pool)), options);
    assert_eq!(leases.consume(&ctx, &CALLS, 1).await.unwrap(), LeasedUse::Granted);

    // Somebody changes the tenant, and nobody hears of it: the next borrow does.
    let mut tx = TenantTx::begin(database.tenants(), &ctx).await.unwrap();
    let changed = revision::bump_in(&mut tx, ctx.tenant()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(leases.consume(&ctx, &CALLS, 200).await.unwrap(), LeasedUse::Granted);
    assert_eq!(gate.snapshot(ctx.tenant()).await.revision(), changed);

    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (leases, ctx) = (leases.clone(), ctx.clone());
            tokio::spawn(async move {
                let (mut granted, mut unknown) = (0_u64, 0_u64);
                loop {
                    match leases.consume(&ctx, &CALLS, 1).await {
                        Ok(LeasedUse::Granted) => granted += 1,
                        Ok(LeasedUse::Exhausted { held: 0, .. }) => return (granted, unknown),
                        Ok(LeasedUse::Exhausted { .. }) => {}
                        Ok(denied @ LeasedUse::Denied(_)) => panic!("{denied:?}"),
                        Err(error) => {
                            assert!(
                                error.is_retryable() || error.kind() == saas_core::ErrorKind::OutcomeUnknown,
                                "{error}"
                            );
                            unknown += 1;
                        }
                    }
                }
            })
        })
        .collect();
    let direct = PostgresLeases::new(Arc::new(database.tenants().clone()));
    let rule = gate.snapshot(ctx.tenant()).await.limit(&CALLS).unwrap();
    let period = period_at(&rule, None, database.clock().now());
    let balance = || async { direct.balance(&ctx, &CALLS, Window::Day, period).await.unwrap() };
    let mut cuts = 0;
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        if cuts < 60 {
            network.cut(Cut::Reset);
            cuts += 1;
        }
        let Balance { used, held } = balance().await;
        assert!(used + held <= 1_000, "{used} {held}");
    }
    let (mut granted, mut unknown) = (201, 0);
    for task in tasks {
        let (of_task, unknown_of_task) = task.await.unwrap();
        granted += of_task;
        unknown += unknown_of_task;
    }
    assert!(unknown > 0, "no connection broke in the middle of a use");
    assert_eq!(balance().await, Balance { used: 1_000, held: 0 });
    assert!(granted <= 1_000, "{granted} were admitted");
}
