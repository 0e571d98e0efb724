//! Every reservation store keeps the contract; a handle that goes away leaves nothing behind, and nothing uncounted.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use saas_core::{
    Actor, Clock, ErrorKind, IdempotencyKey, Limit, MeterKey, RequestContext, Revision, TenantId, UserId,
    subscription::{PlanAssignment, Standing},
    testing::TestDatabase,
};
use saas_entitlements::{
    CounterStore, Meter, PostgresCounters, Reservation, Reservations, Reserved, SCHEMA, Settlement,
    memory::MemoryCounters, reservation_conformance, reservation_conformance::Fixture,
};

use crate::stage::{Stage, cancel_after, plan};

const CALLS: MeterKey = MeterKey::from_static("calls");
const EXPORTS: MeterKey = MeterKey::from_static("exports");
const MINUTE: Duration = Duration::from_secs(60);

async fn postgres() -> Fixture {
    let database = TestDatabase::builder().max_connections(8).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let tenants = [database.create_tenant("acme").await, database.create_tenant("globex").await];
    let store = PostgresCounters::new(Arc::new(database.tenants().clone()));
    Fixture::new(Arc::new(store), tenants, Revision::new(1), database)
}

async fn memory() -> Fixture {
    let clock = saas_core::TestClock::starting("2026-01-15T12:00:00Z");
    let tenant = || {
        let actor = Actor::user(UserId::mint(&clock));
        RequestContext::new_at(TenantId::mint(&clock), actor, clock.now())
    };
    Fixture::new(Arc::new(MemoryCounters::new()), [tenant(), tenant()], Revision::new(1), ())
}

reservation_conformance!(on_postgres, postgres);
reservation_conformance!(in_memory, memory);

struct Bench {
    stage: Stage,
    meter: Meter,
    reservations: Reservations,
}

impl Bench {
    fn new() -> Self {
        let (stage, store) = (Stage::new(), Arc::new(MemoryCounters::new()));
        let meter = Meter::new(stage.gate.clone(), Arc::clone(&store) as Arc<dyn CounterStore>);
        let reservations = Reservations::new(stage.gate.clone(), store);
        Self { stage, meter, reservations }
    }

    fn ctx(&self, tenant: TenantId) -> RequestContext {
        RequestContext::new_at(tenant, Actor::system("test"), self.stage.clock.now())
    }

    async fn reserve(&self, tenant: TenantId, amount: u64, key: &str) -> Reserved {
        self.reservations.reserve(&self.ctx(tenant), &CALLS, amount, &key_of(key), MINUTE).await.unwrap()
    }

    async fn granted(&self, tenant: TenantId, amount: u64, key: &str) -> Reservation {
        let reserved = self.reserve(tenant, amount, key).await;
        let granted = if let Reserved::Granted { reservation, .. } = reserved { Some(reservation) } else { None };
        granted.unwrap()
    }

    async fn used(&self, tenant: TenantId) -> u64 {
        self.meter.usage(&self.ctx(tenant), &CALLS).await.unwrap().unwrap().used
    }
}

fn key_of(text: &str) -> IdempotencyKey {
    text.replace(' ', "-").parse().unwrap()
}

/// Lets what was spawned on this thread's runtime run until it waits.
async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reservation_says_what_it_came_to() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("free");
    let granted = bench.reserve(tenant, 700, "turn-1").await;
    assert_eq!(granted.to_string(), "700 set aside, 300 left");
    let refused = bench.reserve(tenant, 400, "turn-2").await;
    let Reserved::Exhausted { limit: 1_000, left: 300, held: 700, upgrade: Some(upgrade), .. } = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(upgrade.to_string(), "pro@1");
    assert_eq!(
        refused.to_string(),
        "limit of 1000: 300 left while 700 are set aside until 2026-01-16 00:00:00 UTC; `pro@1` has more"
    );
    let Reserved::Granted { mut reservation, left, over: 0, of_grants: 0 } = granted else { panic!("{granted:?}") };
    assert_eq!(left, Limit::Max(300));
    let counted = reservation.commit(820).await.unwrap();
    assert_eq!(counted.to_string(), "counted, 180 left, 120 not reserved, 80 % of the limit reached");
    assert_eq!(reservation.commit(820).await.unwrap(), Settlement::AlreadyCounted { amount: 820 });
    assert_eq!(reservation.release().await.unwrap(), Settlement::AlreadyCounted { amount: 820 });
    drop(reservation);
    settle().await;
    assert_eq!(bench.used(tenant).await, 820);
    let repeat = bench.reserve(tenant, 700, "turn-1").await;
    assert_eq!(repeat.to_string(), "already counted, with 820");
}

// C16
#[tokio::test]
async fn a_reservation_that_is_dropped_is_released() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("free");
    drop(bench.granted(tenant, 1_000, "dropped").await);
    settle().await;
    let again = bench.granted(tenant, 1_000, "next").await;
    again.keep();
    settle().await;
    assert!(matches!(bench.reserve(tenant, 1, "more").await, Reserved::Exhausted { held: 1_000, .. }));
    let mut resumed = bench.granted(tenant, 1_000, "next").await;
    assert!(matches!(resumed.commit(10).await.unwrap(), Settlement::Counted { beyond: 0, late: false, .. }));
    assert_eq!(bench.used(tenant).await, 10);
}

// C16: given up at every point, a reservation holds nothing afterwards and a commit is counted once or not at all.
#[tokio::test]
async fn a_caller_may_go_away_at_any_point() {
    for polls in 1..12 {
        let bench = Bench::new();
        let tenant = bench.stage.tenant("free");
        let work = async {
            let mut reservation = bench.granted(tenant, 1_000, "work").await;
            reservation.commit(100).await.unwrap();
        };
        let finished = cancel_after(polls, work).await.is_some();
        settle().await;
        let used = bench.used(tenant).await;
        assert!(used == 100 || (used == 0 && !finished), "{polls}: {used}");
        assert!(matches!(bench.reserve(tenant, 1_000 - used, "rest").await, Reserved::Granted { .. }), "{polls}");
    }
}

#[tokio::test]
async fn what_cannot_be_reserved_is_refused_with_a_reason() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("pro");
    let reserve = async |tenant, meter: &MeterKey, amount, life| {
        bench.reservations.reserve(&bench.ctx(tenant), meter, amount, &key_of("bad"), life).await
    };
    let peak = MeterKey::from_static("peak");
    for (meter, amount, life) in [
        (&CALLS, 0, MINUTE),
        (&CALLS, u64::MAX, MINUTE),
        (&EXPORTS, 2, MINUTE),
        (&peak, 1, MINUTE),
        (&CALLS, 1, Duration::ZERO),
        (&CALLS, 1, Duration::from_secs(86_401)),
    ] {
        let error = reserve(tenant, meter, amount, life).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{meter} {amount} {life:?}: {error}");
    }
    let stranger = TenantId::mint(&bench.stage.clock);
    assert_eq!(reserve(stranger, &CALLS, 1, MINUTE).await.unwrap_err().kind(), ErrorKind::NotFound);
    let free = bench.stage.tenant("free");
    let denied = reserve(free, &EXPORTS, 1, MINUTE).await.unwrap();
    assert_eq!(denied.to_string(), "not included in the plan; `pro@1` has more");
    let standing = Standing::Grace { until: bench.stage.now(), suspended_from: bench.stage.now() + TimeDelta::days(7) };
    bench.stage.source.tenants.put_plan(free, PlanAssignment { standing, ..plan("free") });
    bench.stage.gate.flush();
    let denied = reserve(free, &CALLS, 1, MINUTE).await.unwrap();
    assert_eq!(denied.to_string(), "access is restricted");

    let mut counted = match reserve(tenant, &EXPORTS, 1, MINUTE).await.unwrap() {
        Reserved::Granted { reservation, .. } => reservation,
        other => panic!("{other:?}"),
    };
    assert_eq!(counted.commit(2).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(matches!(counted.commit(1).await.unwrap(), Settlement::Counted { .. }), "a mistake does not end it");
}

// C8: work that ends in the next window counts in the one in which it was reserved.
#[tokio::test]
async fn work_counts_in_the_window_in_which_it_was_reserved() {
    let bench = Bench::new();
    let tenant = bench.stage.tenant("free");
    let mut reservation = bench.granted(tenant, 500, "over midnight").await;
    bench.stage.advance(86_400);
    let counted = reservation.commit(400).await.unwrap();
    assert!(matches!(counted, Settlement::Counted { left: Limit::Max(600), .. }), "{counted:?}");
    assert_eq!(bench.used(tenant).await, 0);
}
