//! What goes with uses from leases on a real PostgreSQL: warnings, what windows leave over, meters that cannot be lent, and the
//! order of locks.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use futures_util::future::join_all;
use saas_core::{
    Actor, Clock, IdempotencyKey, MeterKey, PageSize, PlanCatalog, PlanKey, RequestContext, SharedClock, TenantContext,
    TenantTx, UsageGrantId, UserId, plan::Window, subscription::FixedPlan, testing::TestDatabase,
};
use saas_entitlements::{
    Adjustments, Balance, Entitlements, GrantSource, LeaseOptions, LeaseStore, LeasedUse, Leases, Meter, NewGrant,
    Period, PostgresCounters, PostgresLeases, PostgresSource, Reservations, Reserved, SCHEMA, THRESHOLD_RESOLVED_TOPIC,
    THRESHOLD_TOPIC, ThresholdCrossed, ThresholdResolved, Use, period_at,
    usage::{Recorded, UsagePipeline, UsageRecord, record_many},
};
use sqlx::Executor;

const CALLS: MeterKey = MeterKey::from_static("calls");
const ALPHA: MeterKey = MeterKey::from_static("alpha");
const BETA: MeterKey = MeterKey::from_static("beta");
const PEAK: MeterKey = MeterKey::from_static("peak");
const SEARCHES: MeterKey = MeterKey::from_static("searches");
const FILES: MeterKey = MeterKey::from_static("files");

const PLANS: &str = r#"
    default_plan = "free"
    [meters]
    calls = { aggregation = "sum" }
    alpha = { aggregation = "sum" }
    beta = { aggregation = "sum" }
    peak = { aggregation = "max" }
    searches = { aggregation = "sum" }
    files = { aggregation = "unique" }
    [plans.free]
    rank = 0
    [[plans.free.versions]]
    version = 1
    [plans.free.versions.limits]
    calls = { max = 1_000, window = "day", overage = "block", warn = [80, 90], rollover = { max = 300, windows = 1 } }
    alpha = { max = 1_000_000, window = "day", overage = "block" }
    beta = { max = 1_000_000, window = "lifetime", overage = "block" }
    peak = { max = 10, window = "day", overage = "block" }
    searches = { max = 100, window = "day", overage = "block", per_member = 2 }
    files = { max = 10, window = "day", overage = "block" }
"#;

struct App {
    database: TestDatabase,
    gate: Entitlements,
    store: Arc<PostgresLeases>,
    meter: Meter,
    acme: RequestContext,
}

impl App {
    async fn start() -> Self {
        let database = TestDatabase::builder()
            .max_connections(8)
            .max_system_connections(6)
            .start(&[&saas_core::SCHEMA, &SCHEMA])
            .await;
        let clock: SharedClock = Arc::new(database.clock().clone());
        let binding = Arc::new(database.tenants().clone());
        let source = PostgresSource::new(binding.clone(), Arc::new(FixedPlan(PlanKey::from_static("free"))));
        let gate = Entitlements::new(PlanCatalog::from_toml(PLANS).unwrap(), Arc::new(source), clock);
        let meter = Meter::new(gate.clone(), Arc::new(PostgresCounters::new(binding.clone())));
        let acme = database.create_tenant("acme").await;
        Self { database, gate, store: Arc::new(PostgresLeases::new(binding)), meter, acme }
    }

    /// A process that ticks when told to.
    fn process(&self, options: LeaseOptions) -> Leases {
        let options = options.with_exposed_share(1).with_tick(Duration::from_secs(3_600));
        Leases::new(self.gate.clone(), self.store.clone(), options)
    }

    fn advance(&self, by: TimeDelta) {
        self.database.clock().advance(by);
        self.gate.tick();
    }

    async fn period(&self, meter: &MeterKey) -> Period {
        let rule = self.gate.snapshot(self.acme.tenant()).await.limit(meter).unwrap();
        period_at(&rule, None, self.database.clock().now())
    }

    async fn balance(&self, meter: &MeterKey, window: Window) -> (u64, u64) {
        let period = self.period(meter).await;
        let Balance { used, held } = self.store.balance(&self.acme, meter, window, period).await.unwrap();
        (used, held)
    }

    async fn payloads(&self, topic: &str) -> Vec<Vec<u8>> {
        sqlx::query_scalar("select payload from saas.outbox where topic = $1 order by id")
            .bind(topic)
            .fetch_all(&mut self.database.owner().await)
            .await
            .unwrap()
    }

    /// Percentages, and what was used by then.
    async fn crossed(&self) -> Vec<(u16, u64)> {
        let event = |payload: Vec<u8>| serde_json::from_slice::<ThresholdCrossed>(&payload).unwrap();
        let payloads = self.payloads(THRESHOLD_TOPIC.as_str()).await;
        payloads.into_iter().map(event).map(|event| (event.percent, event.used)).collect()
    }

    async fn resolved(&self) -> Vec<u16> {
        let event = |payload: Vec<u8>| serde_json::from_slice::<ThresholdResolved>(&payload).unwrap();
        let payloads = self.payloads(THRESHOLD_RESOLVED_TOPIC.as_str()).await;
        payloads.into_iter().map(event).map(|event| event.percent).collect()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.database.owner().await).await.unwrap()
    }

    /// Until so many sessions wait for a lock.
    async fn until_waiting(&self, sessions: i64) {
        const WAITING: &str =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while self.count(WAITING).await < sessions {
            assert!(tokio::time::Instant::now() < deadline, "nobody waits");
        }
    }

    async fn assert_that_all_agrees(&self) {
        let pipeline = UsagePipeline::new(self.database.system().clone(), Arc::new(self.database.clock().clone()));
        let drift = pipeline.find_drift(None, PageSize::default()).await.unwrap();
        assert!(drift.drifted.is_empty(), "{drift:?}");
    }
}

fn of_size(units: u64) -> LeaseOptions {
    LeaseOptions::default().with_size(units, units).without_borrowing_ahead()
}

fn key(words: &str) -> IdempotencyKey {
    IdempotencyKey::try_from(words.to_owned()).unwrap()
}

// C18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leased_uses_that_reach_a_threshold_announce_it_once_and_a_new_window_takes_it_back() {
    let app = App::start().await;
    let processes = [app.process(of_size(50)), app.process(of_size(50))];
    let consume_all = |leases: Leases, acme: RequestContext| async move {
        let mut granted = 0;
        while granted < 410 && leases.consume(&acme, &CALLS, 1).await.unwrap().is_granted() {
            granted += 1;
        }
        granted
    };
    let tasks = processes.iter().map(|leases| tokio::spawn(consume_all(leases.clone(), app.acme.clone())));
    let granted: u64 = join_all(tasks).await.into_iter().map(|task| task.unwrap()).sum();
    assert_eq!(granted, 820);
    for leases in &processes {
        leases.tick().await.unwrap();
    }
    let crossed = app.crossed().await;
    assert!(matches!(crossed[..], [(80, 800..=900)]), "{crossed:?}");
    assert_eq!(app.count("select count(*) from saas.audit where action = 'usage.threshold_crossed'").await, 1);
    assert_eq!(app.count("select count(*) from saas.tenant_overview where near_limit_until is not null").await, 1);

    // From memory alone, until the tick reports it.
    let mut more = 0;
    while more < 100 && processes[0].try_consume(app.acme.tenant(), &CALLS, 1) {
        more += 1;
    }
    while more < 85 {
        assert!(processes[1].consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
        more += 1;
    }
    for leases in &processes {
        leases.tick().await.unwrap();
    }
    assert_eq!(app.crossed().await.iter().map(|(percent, _)| *percent).collect::<Vec<_>>(), [80, 90]);
    for leases in &processes {
        leases.tick().await.unwrap();
        leases.shutdown().await.unwrap();
    }
    assert_eq!(app.crossed().await.len(), 2, "once each");
    assert!(app.resolved().await.is_empty());

    app.advance(TimeDelta::days(1));
    let next = app.process(of_size(50));
    assert!(next.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
    assert_eq!(app.resolved().await, [80, 90]);
    assert_eq!(app.count("select count(*) from saas.tenant_overview where near_limit_until is not null").await, 0);
    assert!(next.consume(&app.acme, &CALLS, 850).await.unwrap().is_granted());
    assert_eq!(app.crossed().await[2..], [(80, 851)], "armed again");
    next.shutdown().await.unwrap();
    app.assert_that_all_agrees().await;
}

#[tokio::test]
async fn a_reservation_that_is_refused_asks_holders_to_give_back_only_where_that_could_be_enough() {
    let app = App::start().await;
    let counters = PostgresCounters::new(Arc::new(app.database.tenants().clone()));
    let reservations = Reservations::new(app.gate.clone(), Arc::new(counters));
    let leases = app.process(of_size(50));
    assert!(leases.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
    let minute = Duration::from_secs(60);
    let kept = reservations.reserve(&app.acme, &CALLS, 99, &key("kept"), minute).await.unwrap();
    assert!(matches!(kept, Reserved::Granted { .. }), "{kept:?}");
    // 900 would fit if the lease of 50 came back; what is reserved does not come back for it.
    for (amount, wanted) in [(901, 0), (900, 1)] {
        let refused = reservations.reserve(&app.acme, &CALLS, amount, &key("large"), minute).await.unwrap();
        assert!(matches!(refused, Reserved::Exhausted { held: 149, .. }), "{refused:?}");
        let sql = "select count(*) from saas.usage_counter where wanted_at is not null";
        assert_eq!(app.count(sql).await, wanted, "{amount}");
    }
    leases.tick().await.unwrap();
    assert_eq!(app.balance(&CALLS, Window::Day).await, (1, 149), "nothing is new to report");
    // A wish is one for a second.
    let refused = reservations.reserve(&app.acme, &CALLS, 900, &key("large"), minute).await.unwrap();
    assert!(matches!(refused, Reserved::Exhausted { held: 149, .. }), "{refused:?}");
    assert!(leases.try_consume(app.acme.tenant(), &CALLS, 1));
    leases.tick().await.unwrap();
    assert_eq!(app.balance(&CALLS, Window::Day).await, (2, 99));
}

// C18
#[tokio::test]
async fn a_report_that_reaches_a_threshold_announces_it() {
    let app = App::start().await;
    let leases = app.process(of_size(400));
    assert!(leases.consume(&app.acme, &CALLS, 700).await.unwrap().is_granted());
    let (used, held) = app.balance(&CALLS, Window::Day).await;
    assert!(used == 700 && held >= 100, "{used} {held}");
    assert!(leases.try_consume(app.acme.tenant(), &CALLS, 100));
    assert!(app.crossed().await.is_empty());
    leases.tick().await.unwrap();
    assert_eq!(app.crossed().await, [(80, 800)]);
    // Another process does not know that; the table does.
    let other = app.process(of_size(10));
    assert!(other.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
    // The last report is one, too.
    assert!(leases.consume(&app.acme, &CALLS, 99).await.unwrap().is_granted());
    leases.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
    assert_eq!(app.crossed().await, [(80, 800), (90, 900)]);
    let direct = app.meter.consume(&app.acme, &CALLS, 1, &key("direct")).await.unwrap();
    assert!(matches!(direct, saas_entitlements::Consumption::Granted { crossed, .. } if crossed.is_empty()));
}

// C11, C18
#[tokio::test]
async fn what_a_lost_holder_had_announces_what_it_reaches() {
    let app = App::start().await;
    let lost = app.process(of_size(500).with_life(Duration::ZERO));
    assert!(lost.consume(&app.acme, &CALLS, 600).await.unwrap().is_granted());
    assert_eq!(app.balance(&CALLS, Window::Day).await, (600, 200));
    let next = app.process(of_size(50));
    let refused = next.consume(&app.acme, &CALLS, 300).await.unwrap();
    assert!(matches!(refused, LeasedUse::Exhausted { used: 800, held: 0, .. }), "{refused:?}");
    assert_eq!(app.crossed().await, [(80, 800)]);
    assert!(!next.consume(&app.acme, &CALLS, 300).await.unwrap().is_granted());
    assert_eq!(app.crossed().await.len(), 1, "once");
}

// f-M9
#[tokio::test]
async fn what_is_left_over_is_carried_before_it_is_too_late_when_a_window_begins_with_a_lease() {
    let app = App::start().await;
    app.advance(TimeDelta::days(1));
    let leases = app.process(of_size(50));
    assert!(leases.consume(&app.acme, &CALLS, 800).await.unwrap().is_granted());
    leases.shutdown().await.unwrap();
    app.advance(TimeDelta::days(1));
    let next = app.process(of_size(50));
    assert!(next.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
    let carried = "select coalesce(sum(units), 0)::bigint from saas.usage_grant where source = 'rollover'";
    assert_eq!(app.count(carried).await, 500, "300 of the day of its making, 200 of the day after");
    let direct = app.meter.consume(&app.acme, &CALLS, 1, &key("direct")).await.unwrap();
    assert!(direct.is_granted());
    assert_eq!(app.count(carried).await, 500, "once");
    next.shutdown().await.unwrap();
    app.assert_that_all_agrees().await;
}

#[tokio::test]
async fn what_cannot_be_lent_is_counted_directly_where_there_is_a_meter() {
    let app = App::start().await;
    let ada = RequestContext::new_at(
        app.acme.tenant(),
        Actor::user(UserId::mint(app.database.clock())),
        app.database.clock().now(),
    );
    let alone = app.process(of_size(50));
    for meter in [&PEAK, &SEARCHES, &FILES] {
        let error = alone.consume(&ada, meter, 1).await.unwrap_err();
        assert_eq!(error.code(), "invalid_input", "{meter}");
        assert!(error.to_string().contains("`Meter`"), "{error}");
    }
    let leases = app.process(of_size(50)).with_meter(app.meter.clone());
    for _ in 0..2 {
        assert_eq!(leases.consume(&ada, &SEARCHES, 1).await.unwrap(), LeasedUse::Granted, "a use of its own each time");
    }
    let exhausted = leases.consume(&ada, &SEARCHES, 1).await.unwrap();
    assert!(
        matches!(exhausted, LeasedUse::Exhausted { limit: 2, used: 2, held: 0, resets_at: Some(_) }),
        "{exhausted:?}"
    );
    // The member is whoever asks.
    let bob = RequestContext::new_at(
        app.acme.tenant(),
        Actor::user(UserId::mint(app.database.clock())),
        app.database.clock().now(),
    );
    assert!(leases.consume(&bob, &SEARCHES, 1).await.unwrap().is_granted());
    let nobody = leases.consume(&app.acme, &SEARCHES, 1).await;
    assert!(app.acme.actor().person().is_some() || nobody.is_err_and(|error| error.to_string().contains("member")));
    assert_eq!(leases.consume(&ada, &PEAK, 7).await.unwrap(), LeasedUse::Granted);
    let beyond = leases.consume(&ada, &PEAK, 11).await.unwrap();
    assert!(matches!(beyond, LeasedUse::Exhausted { limit: 10, .. }), "{beyond:?}");
    assert_eq!(app.balance(&PEAK, Window::Day).await, (7, 0));
    let unnamed = leases.consume(&ada, &FILES, 1).await.unwrap_err();
    assert!(unnamed.to_string().contains("item"), "{unnamed}");
    // What can be lent is.
    assert!(leases.consume(&ada, &CALLS, 1).await.unwrap().is_granted());
    assert_eq!(app.balance(&CALLS, Window::Day).await, (1, 50));
}

#[tokio::test]
async fn grants_are_burnt_one_by_one_once_the_plans_own_units_are_used_up() {
    let app = App::start().await;
    let counters = Arc::new(PostgresCounters::new(Arc::new(app.database.tenants().clone())));
    let id = UsageGrantId::mint(app.database.clock());
    let grant = NewGrant::new(id, CALLS, 5, GrantSource::Given, "goodwill").unwrap();
    Adjustments::new(app.gate.clone(), counters).give(&app.acme, &grant).await.unwrap();
    let leases = app.process(of_size(50)).with_meter(app.meter.clone());
    let mut granted = 0;
    while leases.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted() {
        granted += 1;
    }
    assert_eq!(granted, 1_005);
    leases.shutdown().await.unwrap();
    assert_eq!(app.balance(&CALLS, Window::Day).await, (1_000, 0));
    assert_eq!(app.count("select burnt from saas.usage_counter").await, 5);
    app.assert_that_all_agrees().await;
}

// C4
#[tokio::test]
async fn what_an_ended_lease_has_paid_of_a_use_is_not_counted_again_by_the_meter() {
    let app = App::start().await;
    let counters = Arc::new(PostgresCounters::new(Arc::new(app.database.tenants().clone())));
    let id = UsageGrantId::mint(app.database.clock());
    let grant = NewGrant::new(id, CALLS, 500, GrantSource::Given, "goodwill").unwrap();
    Adjustments::new(app.gate.clone(), counters).give(&app.acme, &grant).await.unwrap();
    let late = app.process(of_size(50).with_life(Duration::ZERO)).with_meter(app.meter.clone());
    assert!(late.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
    app.store.reclaim(&app.acme, app.database.clock().now()).await.unwrap();
    assert_eq!(app.balance(&CALLS, Window::Day).await, (51, 0), "what it had counts as used");
    assert!(app.meter.consume(&app.acme, &CALLS, 949, &key("rest")).await.unwrap().is_granted());
    // 50 of it are paid; nothing of the plan is left for the other 10.
    assert!(late.consume(&app.acme, &CALLS, 60).await.unwrap().is_granted());
    assert_eq!(app.count("select burnt from saas.usage_counter").await, 10);
    assert_eq!(app.balance(&CALLS, Window::Day).await, (1_000, 0));
    app.assert_that_all_agrees().await;
}

/// Windows that began in another order than their counters are named: whoever takes several takes them by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_several_counters_waits_for_nobody_who_waits_for_it() {
    const ROUNDS: usize = 60;
    const AT_ONCE: usize = 3;
    let app = App::start().await;
    // Over at once.
    let holder = app.process(of_size(1).with_life(Duration::ZERO));
    let now = app.database.clock().now();
    let windows = [(ALPHA, Window::Day, app.period(&ALPHA).await), (BETA, Window::Lifetime, app.period(&BETA).await)];
    assert!(windows[0].2.start > windows[1].2.start, "the other way round by their beginnings");
    let (mut used, mut stranded) = (0, 0);
    for round in 0..ROUNDS {
        for (meter, ..) in &windows {
            // The second is a refill: of a lease that was ended, so it makes another.
            for _ in 0..2 {
                assert!(holder.consume(&app.acme, meter, 1).await.unwrap().is_granted());
            }
        }
        let records: Vec<Vec<UsageRecord>> = (0..AT_ONCE)
            .map(|task| {
                let record = |(meter, window, period): &(MeterKey, Window, Period)| {
                    let (key, place) = (key(&format!("{round}-{task}-{meter}")), (*window, *period));
                    let of = Use::new(meter.clone(), 1, &key);
                    let (tenant, actor) = (app.acme.tenant(), Actor::system("test"));
                    UsageRecord::in_window(app.gate.catalog(), tenant, &of, &actor, place, now).unwrap()
                };
                // In either order.
                let mut records: Vec<_> = windows.iter().map(record).collect();
                records.rotate_left(task % 2);
                records
            })
            .collect();
        let recording = join_all(records.iter().map(|records| record_many(app.database.system(), records, now)));
        let reclaiming = join_all((0..AT_ONCE).map(|_| app.store.reclaim(&app.acme, now)));
        let (recorded, reclaimed) = tokio::join!(recording, reclaiming);
        for recorded in recorded {
            assert_eq!(recorded.unwrap(), [Recorded::Counted; 2]);
            used += 2;
        }
        for units in reclaimed {
            stranded += units.unwrap();
        }
    }
    assert!(stranded > 0, "nothing was reclaimed");
    holder.shutdown().await.unwrap();
    let counted = app.balance(&ALPHA, Window::Day).await.0 + app.balance(&BETA, Window::Lifetime).await.0;
    assert!(counted >= used, "{counted} {used}");
    app.assert_that_all_agrees().await;
}

// C2: bulk recording once took keys before counters, and a use the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_and_a_batch_with_the_same_key_do_not_wait_for_each_other() {
    let app = App::start().await;
    let now = app.database.clock().now();
    assert!(app.meter.consume(&app.acme, &ALPHA, 1, &key("opens-the-window")).await.unwrap().is_granted());
    let snapshot = app.gate.snapshot(app.acme.tenant()).await;
    let both = key("both");
    let record = UsageRecord::new(&snapshot, &Use::new(ALPHA, 1, &both), &Actor::system("test"), now).unwrap();
    // Holds both up at the counter: the use first, then the batch with whatever it has taken by then.
    let mut barrier = app.database.owner().await;
    barrier.execute("begin; select from saas.usage_counter for no key update").await.unwrap();
    let using = async {
        let mut tx = TenantTx::begin(app.database.tenants(), &app.acme).await.unwrap();
        let used = app.meter.consume_in(&mut tx, &snapshot, &ALPHA, 1, &both).await.unwrap();
        tx.commit().await.unwrap();
        used
    };
    let recording = async {
        app.until_waiting(1).await;
        record_many(app.database.system(), std::slice::from_ref(&record), now).await.unwrap()
    };
    let opening = async {
        app.until_waiting(2).await;
        barrier.execute("rollback").await.unwrap();
    };
    let (used, recorded, _) = tokio::join!(using, recording, opening);
    assert!(used.is_granted(), "{used:?}");
    assert_eq!(recorded, [Recorded::AlreadyCounted]);
    assert_eq!(app.balance(&ALPHA, Window::Day).await, (2, 0), "what the batch had added was taken back");
    app.assert_that_all_agrees().await;
}
