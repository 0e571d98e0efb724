//! What happens where a window ends, a plan changes or a warning holds no more. On a real PostgreSQL, as the roles of
//! production; the rules by themselves on values.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, IdempotencyKey, Limit, MeterKey, PageSize, PlanCatalog, PlanKey, RequestContext, Revision,
    SharedClock, TenantContext, TenantId,
    plan::{OverLimit, OverLimitState},
    subscription::{PastPlan, PlanAssignment},
    testing::TestDatabase,
};
use saas_entitlements::{
    Adjustments, AssignedPlans, Assignments, Because, Consumption, Correction, Entitlements, Ledger, Meter,
    PostgresCounters, PostgresSource, Reservations, Reserved, SCHEMA, Snapshot, THRESHOLD_RESOLVED_TOPIC, TenantState,
    ThresholdResolved, Use, resolve, usage::UsagePipeline,
};

const CALLS: MeterKey = MeterKey::from_static("calls");
const SHARE: MeterKey = MeterKey::from_static("share");
const FRESH: MeterKey = MeterKey::from_static("fresh");
const SEATS: MeterKey = MeterKey::from_static("seats");
const DISK: MeterKey = MeterKey::from_static("disk");
const FILES: MeterKey = MeterKey::from_static("files");
const FREE: PlanKey = PlanKey::from_static("free");
const PRO: PlanKey = PlanKey::from_static("pro");

const PLANS: &str = r#"
    default_plan = "free"
    [features.export]
    kind = "boolean"
    fail = "closed"
    [meters]
    calls = { aggregation = "sum", late_hours = 24 }
    share = { aggregation = "sum", late_hours = 24 }
    fresh = { aggregation = "sum", late_hours = 24 }
    seats = { aggregation = "sum" }
    files = { aggregation = "sum" }
    disk = { aggregation = "latest" }
    [plans.free]
    rank = 0
    [[plans.free.versions]]
    version = 1
    [plans.free.versions.limits]
    calls = { max = 100, window = "day", overage = "block", warn = [80], rollover = { max = 150, windows = 2 } }
    share = { max = 100, window = "day", overage = "block", on_plan_change = "prorate" }
    fresh = { max = 100, window = "day", overage = "block", on_plan_change = "reset", warn = [50] }
    seats = { max = 3, window = "lifetime", overage = "block", over_limit = { grace_days = 14 } }
    files = { max = 5, window = "lifetime", overage = "block", over_limit = "read_only" }
    disk = { max = 100, window = "lifetime", overage = "block", warn = [80] }
    [plans.pro]
    rank = 1
    [[plans.pro.versions]]
    version = 1
    grants = { export = true }
    [plans.pro.versions.limits]
    calls = { max = 1_000, window = "day", overage = "block", warn = [80] }
    share = { max = 700, window = "day", overage = "block", on_plan_change = "prorate" }
    fresh = { max = 200, window = "day", overage = "block", on_plan_change = "reset", warn = [50] }
    seats = { max = 10, window = "lifetime", overage = "block" }
    files = { max = "unlimited", window = "lifetime" }
    disk = { max = 200, window = "lifetime", overage = "block", warn = [80] }
"#;

fn at(rfc3339: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(rfc3339).unwrap().to_utc()
}

/// Words as a key.
fn key_of(words: &str) -> IdempotencyKey {
    words.replace(' ', "-").parse().unwrap()
}

struct App {
    database: TestDatabase,
    gate: Entitlements,
    meter: Meter,
    reservations: Reservations,
    adjustments: Adjustments,
    assignments: Assignments,
    pipeline: UsagePipeline,
    counters: Arc<PostgresCounters>,
    acme: RequestContext,
}

impl App {
    /// At noon of the day after the tenant was made.
    async fn start() -> Self {
        let database = TestDatabase::builder().max_system_connections(6).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let clock: SharedClock = Arc::new(database.clock().clone());
        let binding = Arc::new(database.tenants().clone());
        let catalog = PlanCatalog::from_toml(PLANS).unwrap();
        let plans = Arc::new(AssignedPlans::new(binding.clone(), &catalog));
        let source = Arc::new(PostgresSource::new(binding.clone(), plans));
        let gate = Entitlements::new(catalog, source, clock.clone());
        let counters = Arc::new(PostgresCounters::new(binding));
        let acme = database.create_tenant("acme").await;
        let app = Self {
            meter: Meter::new(gate.clone(), counters.clone()),
            reservations: Reservations::new(gate.clone(), counters.clone()),
            adjustments: Adjustments::new(gate.clone(), counters.clone()),
            assignments: Assignments::new(database.system().clone(), gate.clone()),
            pipeline: UsagePipeline::new(database.system().clone(), clock),
            database,
            gate,
            counters,
            acme,
        };
        app.move_to_noon_of_day(1);
        app
    }

    fn now(&self) -> DateTime<Utc> {
        self.database.clock().now()
    }

    /// Days count from that on which the database was made.
    fn move_to_noon_of_day(&self, number: i64) {
        let first = self.database.clock().now();
        let made = self.acme_made();
        let noon = made.date_naive().and_hms_opt(12, 0, 0).unwrap().and_utc() + TimeDelta::days(number);
        self.database.clock().advance(noon - first);
        self.gate.tick();
    }

    fn acme_made(&self) -> DateTime<Utc> {
        let (seconds, nanos) = self.acme.tenant().as_uuid().get_timestamp().unwrap().to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).unwrap(), nanos).unwrap()
    }

    async fn consume(&self, meter: &MeterKey, amount: u64, key: &str) -> Consumption {
        let key = key_of(key);
        self.meter.consume(&self.acme, meter, amount, &key).await.unwrap()
    }

    /// Whether so much is there, all of it and no more.
    async fn takes_exactly(&self, meter: &MeterKey, amount: u64, key: &str) {
        let more = self.consume(meter, amount + 1, &format!("{key} and more")).await;
        assert!(matches!(more, Consumption::Exhausted { left, .. } if left == amount), "{key}: {more}");
        let all = self.consume(meter, amount, key).await;
        assert!(matches!(all, Consumption::Granted { .. }), "{key}: {all}");
    }

    async fn change_plan(&self, to: &PlanKey) {
        self.assignments
            .put_assignment(self.acme.tenant(), PlanAssignment::active(to.clone()), &Actor::system("test"))
            .await
            .unwrap();
    }

    async fn correct(&self, meter: &MeterKey, amount: i64, key: &str) {
        let correction = Correction {
            meter: meter.clone(),
            amount,
            key: key_of(key),
            item: None,
            member: None,
            at: self.now(),
            reason: "a test".into(),
        };
        let _ = self.adjustments.correct(&self.acme, correction).await.unwrap();
    }

    /// The units and the ends of what was carried over and is not used up.
    async fn carried(&self) -> Vec<(u64, DateTime<Utc>)> {
        let grants = self.counters.list_grants(&self.acme, &CALLS, self.now()).await.unwrap();
        grants.into_iter().map(|grant| (grant.units, grant.expires_at.unwrap())).collect()
    }

    async fn assert_that_all_agrees(&self) {
        let drift = self.pipeline.find_drift(None, PageSize::default()).await.unwrap();
        assert!(drift.drifted.is_empty(), "{drift:?}");
        let burnt: (i64, i64) = sqlx::query_as(
            "select (select coalesce(sum(burnt), 0)::bigint from saas.usage_counter),
                    (select coalesce(sum(burnt), 0)::bigint from saas.usage_grant)",
        )
        .fetch_one(&mut self.database.owner().await)
        .await
        .unwrap();
        assert_eq!(burnt.0, burnt.1);
    }

    async fn resolved(&self) -> Vec<(u16, u64, u64, Because)> {
        let payloads: Vec<Vec<u8>> = sqlx::query_scalar("select payload from saas.outbox where topic = $1 order by id")
            .bind(THRESHOLD_RESOLVED_TOPIC.as_str())
            .fetch_all(&mut self.database.owner().await)
            .await
            .unwrap();
        let event = |payload: Vec<u8>| serde_json::from_slice::<ThresholdResolved>(&payload).unwrap();
        payloads.into_iter().map(event).map(|event| (event.percent, event.limit, event.used, event.because)).collect()
    }

    fn midnight_after_day(&self, number: i64) -> DateTime<Utc> {
        self.acme_made().date_naive().and_hms_opt(0, 0, 0).unwrap().and_utc() + TimeDelta::days(number + 1)
    }
}

// f-M9
#[tokio::test]
async fn what_a_window_leaves_is_carried_over_once_up_to_its_maximum_and_ends() {
    let app = App::start().await;
    assert!(app.consume(&CALLS, 70, "day 1").await.is_granted());
    // The day on which the tenant was made left 100, and ends with day 2.
    assert_eq!(app.carried().await, [(100, app.midnight_after_day(2))]);
    app.move_to_noon_of_day(2);
    let at_once: Vec<_> = (0..6)
        .map(|number| {
            let (meter, acme) = (app.meter.clone(), app.acme.clone());
            tokio::spawn(async move {
                let key = key_of(&format!("at once {number}"));
                meter.consume(&acme, &CALLS, 20, &key).await.unwrap().is_granted()
            })
        })
        .collect();
    for granted in at_once {
        assert!(granted.await.unwrap());
    }
    // 30 are left of day 1. Of what ends first, 20 are used by now.
    assert_eq!(app.carried().await, [(100, app.midnight_after_day(2)), (30, app.midnight_after_day(3))]);
    app.takes_exactly(&CALLS, 110, "the rest of day 2").await;
    app.assert_that_all_agrees().await;
    // Nobody uses anything for a week: day 8 left 100, day 9 what fits beside it.
    app.move_to_noon_of_day(10);
    app.takes_exactly(&CALLS, 250, "day 10").await;
    assert_eq!(app.carried().await, []);
    // What was carried over is not left over again: day 10 had none of its own left.
    app.move_to_noon_of_day(11);
    app.takes_exactly(&CALLS, 100, "day 11").await;
    app.assert_that_all_agrees().await;
}

// f-M9, C16
#[tokio::test]
async fn the_sweep_does_what_time_brings_for_tenants_that_do_nothing() {
    let app = App::start().await;
    assert!(app.consume(&CALLS, 80, "day 1").await.is_granted());
    let key = key_of("dead");
    let Reserved::Granted { reservation, .. } =
        app.reservations.reserve(&app.acme, &SHARE, 60, &key, Duration::from_secs(60)).await.unwrap()
    else {
        panic!("nothing was in its way")
    };
    reservation.keep();
    assert_eq!(app.pipeline.sweep(&app.gate, 100).await.unwrap().expired, 0, "it has a minute");
    sqlx::query("update saas.usage_reservation set expires_at = now() - interval '1 second'")
        .execute(&mut app.database.owner().await)
        .await
        .unwrap();
    app.move_to_noon_of_day(2);
    let swept = app.pipeline.sweep(&app.gate, 1).await.unwrap();
    assert_eq!((swept.expired, swept.closed, swept.more), (1, 1, true), "{swept:?}");
    let rest = app.pipeline.sweep(&app.gate, 100).await.unwrap();
    assert_eq!((rest.expired, rest.closed, rest.more), (0, 1, false), "{rest:?}");
    assert_eq!((swept.resolved + rest.resolved, swept.carried + rest.carried), (1, 20));
    assert_eq!(app.pipeline.sweep(&app.gate, 100).await.unwrap(), Default::default(), "once");
    assert_eq!(app.resolved().await, [(80, 100, 0, Because::NewWindow)]);
    // Beside the 100 of the day before the first use.
    assert_eq!(app.carried().await, [(100, app.midnight_after_day(2)), (20, app.midnight_after_day(3))]);
    app.takes_exactly(&CALLS, 220, "day 2").await;
    app.assert_that_all_agrees().await;
    app.move_to_noon_of_day(60);
    let forgotten = app.pipeline.sweep(&app.gate, 100).await.unwrap().forgotten;
    // It was given back at the database's time, which is not the test's.
    let kept: i64 = sqlx::query_scalar("select count(*) from saas.usage_reservation")
        .fetch_one(&mut app.database.owner().await)
        .await
        .unwrap();
    assert_eq!(forgotten + u64::try_from(kept).unwrap(), 1);
}

// f-M9
#[tokio::test]
async fn a_reservation_begins_a_window_as_a_use_does() {
    let app = App::start().await;
    assert!(app.consume(&CALLS, 90, "day 1").await.is_granted());
    app.move_to_noon_of_day(2);
    let reserve = async |amount, key| {
        app.reservations.reserve(&app.acme, &CALLS, amount, &key_of(key), Duration::from_secs(60)).await.unwrap()
    };
    let refused = reserve(211, "too much").await;
    assert!(matches!(refused, Reserved::Exhausted { left: 210, held: 0, .. }), "{refused}");
    let Reserved::Granted { mut reservation, of_grants: 110, .. } = reserve(210, "all").await else {
        panic!("what is left is there")
    };
    let counted = reservation.commit(205).await.unwrap();
    assert_eq!(counted.to_string(), "counted, 0 left, 105 of a grant, 80 % of the limit reached");
    assert_eq!(app.resolved().await, [(80, 100, 0, Because::NewWindow)]);
    app.takes_exactly(&CALLS, 5, "the rest").await;
    app.assert_that_all_agrees().await;
}

// C18, f-M13
#[tokio::test]
async fn a_warning_is_taken_back_once_by_a_correction_a_higher_limit_and_a_new_window() {
    let app = App::start().await;
    let crossed = async |amount, key| match app.consume(&CALLS, amount, key).await {
        Consumption::Granted { crossed, .. } => crossed,
        other => panic!("{other:?}"),
    };
    assert_eq!(crossed(80, "to the warning").await, [80]);
    app.correct(&CALLS, -1, "one too many").await;
    app.correct(&CALLS, -1, "another").await;
    assert_eq!(app.resolved().await, [(80, 100, 79, Because::Correction)]);
    assert_eq!(crossed(2, "to it again").await, [] as [u16; 0], "once per window and limit");

    app.move_to_noon_of_day(2);
    assert_eq!(crossed(90, "the next day").await, [80], "armed again");
    app.change_plan(&PRO).await;
    assert_eq!(crossed(1, "under the higher limit").await, [] as [u16; 0]);
    assert_eq!(crossed(1, "once").await, [] as [u16; 0]);
    assert_eq!(app.resolved().await[1..], [(80, 100, 91, Because::HigherLimit)]);

    app.correct(&CALLS, 800, "forgotten").await;
    let announced: i64 = sqlx::query_scalar("select count(*) from saas.usage_crossing where limit_units = 1000")
        .fetch_one(&mut app.database.owner().await)
        .await
        .unwrap();
    assert_eq!(announced, 1, "a correction that reaches a threshold says so");
    app.move_to_noon_of_day(3);
    assert_eq!(crossed(1, "day 3").await, [] as [u16; 0]);
    assert_eq!(crossed(1, "day 3 again").await, [] as [u16; 0]);
    assert_eq!(app.resolved().await[2..], [(80, 1_000, 0, Because::NewWindow)]);
}

// f-M14
#[tokio::test]
async fn a_change_in_the_middle_of_a_window_gives_the_share_of_each_plan() {
    let app = App::start().await;
    assert!(app.consume(&SHARE, 100, "all of free").await.is_granted());
    app.change_plan(&PRO).await;
    // Half a day of 100 and half a day of 700.
    app.takes_exactly(&SHARE, 300, "the share").await;
    app.database.clock().advance(TimeDelta::hours(6));
    app.gate.tick();
    app.change_plan(&FREE).await;
    let usage = app.meter.usage(&app.acme, &SHARE).await.unwrap().unwrap();
    assert_eq!((usage.used, usage.limit), (400, Limit::Max((12 * 100 + 6 * 700 + 6 * 100) / 24)));
    let none = app.consume(&SHARE, 1, "one more").await;
    assert!(matches!(none, Consumption::Exhausted { left: 0, .. }), "{none}");
    app.move_to_noon_of_day(2);
    app.takes_exactly(&SHARE, 100, "the next day").await;
    app.assert_that_all_agrees().await;
}

// f-M14
#[tokio::test]
async fn a_change_that_resets_begins_another_window() {
    let app = App::start().await;
    assert!(app.consume(&FRESH, 90, "before").await.is_granted());
    app.change_plan(&PRO).await;
    let changed = app.now();
    app.takes_exactly(&FRESH, 200, "after").await;
    let usage = app.meter.usage(&app.acme, &FRESH).await.unwrap().unwrap();
    assert_eq!((usage.used, usage.period.start), (200, changed));
    assert_eq!(usage.period.end, Some(app.midnight_after_day(1)));
    assert_eq!(app.resolved().await, [(50, 100, 0, Because::NewWindow)]);
    // What belongs to the time before is corrected there.
    let before = Correction {
        meter: FRESH,
        amount: -10,
        key: key_of("of the morning"),
        item: None,
        member: None,
        at: changed - TimeDelta::hours(1),
        reason: "a test".into(),
    };
    let corrected = app.adjustments.correct(&app.acme, before).await.unwrap();
    assert_eq!(corrected, saas_entitlements::Corrected::Counted { before: 90, after: 80 });
    app.assert_that_all_agrees().await;
    app.move_to_noon_of_day(2);
    app.takes_exactly(&FRESH, 200, "the next day").await;
}

// C8, f-M9, f-M14, f-M15
#[tokio::test]
async fn a_late_use_counts_under_the_terms_of_its_window() {
    let app = App::start().await;
    let late = async |meter: &MeterKey, amount, happened: DateTime<Utc>, key: &str| {
        let of = key_of(key);
        app.meter.consume_use(&app.acme, &Use::new(meter.clone(), amount, &of).with_instant(happened)).await.unwrap()
    };
    let granted = |crossed: Vec<u16>, consumption: Consumption| match consumption {
        Consumption::Granted { crossed: found, .. } => assert_eq!(found, crossed),
        other => panic!("{other}"),
    };
    let exhausted = |left, consumption: Consumption| {
        assert!(matches!(consumption, Consumption::Exhausted { left: found, .. } if found == left), "{consumption}");
    };
    assert!(app.consume(&CALLS, 40, "of day 1").await.is_granted());
    let morning = app.now() - TimeDelta::hours(1);
    assert!(app.consume(&FRESH, 40, "before the change").await.is_granted());
    app.change_plan(&PRO).await;
    // The window that the change has ended, not the one that it has begun; and its warning is nobody's any more.
    granted(vec![], late(&FRESH, 70, morning, "of the morning").await);
    app.takes_exactly(&FRESH, 200, "of the new window").await;
    app.change_plan(&FREE).await;
    app.move_to_noon_of_day(2);
    // Half of day 1 was of 100, and no time of 700: it stays 100 to the last unit, on day 2 as well.
    exhausted(100, late(&SHARE, 101, morning, "more than the share").await);
    granted(vec![], late(&SHARE, 100, morning, "the share").await);
    app.takes_exactly(&SHARE, 100, "of day 2").await;
    app.assert_that_all_agrees().await;
}

// f-M9, f-M15: what was carried over is there once, whichever of the two windows uses it.
#[tokio::test]
async fn what_was_carried_over_is_not_there_for_late_uses_too() {
    let app = App::start().await;
    assert!(app.consume(&CALLS, 40, "of day 1").await.is_granted());
    let happened = app.now();
    app.move_to_noon_of_day(2);
    assert!(app.consume(&CALLS, 1, "of day 2").await.is_granted());
    assert_eq!(app.carried().await.iter().map(|(units, _)| units).sum::<u64>(), 150);
    let late = async |amount, key: &str| {
        let of = key_of(key);
        app.meter.consume_use(&app.acme, &Use::new(CALLS, amount, &of).with_instant(happened)).await.unwrap()
    };
    // 60 were left of day 1, of which 50 were carried over beside the 100 of day 0.
    let more = late(161, "more").await;
    assert!(matches!(more, Consumption::Exhausted { left: 160, .. }), "{more}");
    let all = late(160, "all").await;
    assert!(matches!(all, Consumption::Granted { burnt: 150, over: 0, .. }), "{all}");
    app.takes_exactly(&CALLS, 99, "the rest of day 2").await;
    app.assert_that_all_agrees().await;
}

// C18
#[tokio::test]
async fn a_level_that_falls_takes_its_warning_back_and_can_warn_again() {
    let app = App::start().await;
    let crossed = async |level, key| match app.consume(&DISK, level, key).await {
        Consumption::Granted { crossed, .. } => crossed,
        other => panic!("{other:?}"),
    };
    assert_eq!(crossed(90, "up").await, [80]);
    assert_eq!(crossed(85, "hardly down").await, [] as [u16; 0]);
    assert_eq!(app.resolved().await, []);
    assert_eq!(crossed(10, "down").await, [] as [u16; 0]);
    assert_eq!(crossed(9, "further down").await, [] as [u16; 0]);
    assert_eq!(app.resolved().await, [(80, 100, 10, Because::LowerLevel)], "once");
    assert_eq!(crossed(100, "up again").await, [80]);
    app.change_plan(&PRO).await;
    assert_eq!(crossed(100, "of more").await, [] as [u16; 0]);
    assert_eq!(app.resolved().await[1..], [(80, 100, 100, Because::HigherLimit)]);
    app.assert_that_all_agrees().await;
}

// f-E15, D9
#[tokio::test]
async fn a_downgrade_is_reported_before_and_holds_what_was_declared_after() {
    let app = App::start().await;
    app.change_plan(&PRO).await;
    for (meter, amount) in [(&SEATS, 7), (&FILES, 9)] {
        assert!(app.consume(meter, amount, "before").await.is_granted());
    }
    let report = app.meter.preview_change(&app.acme, &FREE, None).await.unwrap();
    // The port that billing asks gives the same answer.
    let port: &dyn saas_core::plan::OverLimits = &app.meter;
    assert_eq!(port.report(&app.acme, &report.plan).await.unwrap(), report);
    assert_eq!(
        report.to_string(),
        "on `free@1`: `files` is 9 of 5 (read-only), `seats` is 7 of 3 (grace for 14 days); loses `export`"
    );
    assert_eq!(app.meter.over_limit_state(&app.acme).await.unwrap(), OverLimitState::Within);
    let unknown = app.meter.preview_change(&app.acme, &FREE, Some(9)).await.unwrap_err();
    assert_eq!(unknown.code(), "unknown_plan");

    app.change_plan(&FREE).await;
    assert_eq!(app.meter.over_limit_state(&app.acme).await.unwrap(), OverLimitState::ReadOnly);
    let report = app.meter.over_limit(&app.acme).await.unwrap();
    let until = app.now() + TimeDelta::days(14);
    let states: Vec<_> =
        report.exceeding().map(|meter| (meter.meter.as_str(), meter.state(Some(app.now()), app.now()))).collect();
    assert_eq!(states, [("files", OverLimitState::ReadOnly), ("seats", OverLimitState::Grace { until })]);
    let files = app.consume(&FILES, 1, "read-only").await;
    assert!(matches!(files, Consumption::Exhausted { left: 0, .. }), "{files}");
    let seats = app.consume(&SEATS, 1, "in its grace").await;
    assert!(matches!(seats, Consumption::Granted { over: 1, .. }), "{seats}");
    app.takes_exactly(&SEATS, 2, "up to what it had").await;
    app.database.clock().advance(TimeDelta::days(14));
    app.gate.tick();
    app.correct(&SEATS, -6, "four are left").await;
    let seats = app.consume(&SEATS, 1, "after its grace").await;
    assert!(matches!(seats, Consumption::Exhausted { left: 0, .. }), "{seats}");
    app.correct(&SEATS, -2, "two are left").await;
    app.takes_exactly(&SEATS, 1, "within the limit").await;
}

/// A tenant on `pro` since an instant, and on free before.
fn changed(since: Option<DateTime<Utc>>, now: DateTime<Utc>, before: &[(&str, Option<DateTime<Utc>>)]) -> Snapshot {
    let catalog = PlanCatalog::from_toml(PLANS).unwrap();
    let past = |(plan, since): &(&str, Option<DateTime<Utc>>)| PastPlan {
        plan: plan.parse().unwrap(),
        version: Some(1),
        since: *since,
    };
    let assignment = PlanAssignment { since, before: before.iter().map(past).collect(), ..PlanAssignment::active(PRO) };
    let state = TenantState { revision: Revision::new(1), assignment, overrides: Vec::new(), cohorts: Vec::new() };
    resolve(&catalog, TenantId::from_uuid(uuid::Uuid::nil()), state, now).unwrap()
}

// f-M14
#[test]
fn shares_are_rounded_down_once_and_unknown_times_count_as_the_present_plan() {
    let now = at("2026-05-10T18:00:00Z");
    let limit = |since: Option<&str>, before: &[(&str, Option<&str>)]| {
        let before: Vec<_> = before.iter().map(|(plan, since)| (*plan, since.map(at))).collect();
        changed(since.map(at), now, &before).terms(&SHARE, now).unwrap().rule.limit
    };
    let free = [("free", None)];
    assert_eq!(limit(None, &[]), Limit::Max(700), "nobody knows");
    assert_eq!(limit(Some("2026-05-09T12:00:00Z"), &free), Limit::Max(700), "before the window");
    assert_eq!(limit(Some("2026-05-10T00:00:00Z"), &free), Limit::Max(700), "with the window");
    assert_eq!(limit(Some("2026-05-10T08:00:00Z"), &free), Limit::Max(500), "a third of 100, two of 700");
    assert_eq!(limit(Some("2026-05-10T00:00:01Z"), &free), Limit::Max(699), "700 less a second of 600");
    assert_eq!(limit(Some("2026-05-10T08:00:00Z"), &[]), Limit::Max(700), "nobody knows what was before");
    assert_eq!(limit(Some("2026-05-10T08:00:00Z"), &[("gone", None)]), Limit::Max(700), "the catalogue lacks it");
    let there_and_back = [("free", Some("2026-05-10T06:00:00Z")), ("pro", None)];
    assert_eq!(limit(Some("2026-05-10T12:00:00Z"), &there_and_back), Limit::Max(550));
}

// f-M14, C8
#[test]
fn windows_that_a_change_divides_still_hold_every_instant() {
    let since = at("2026-05-10T08:00:00Z");
    let snapshot = changed(Some(since), at("2026-05-10T18:00:00Z"), &[("free", None)]);
    let period = |instant: &str| snapshot.terms(&FRESH, at(instant)).unwrap().period;
    let (midnight, next) = (at("2026-05-10T00:00:00Z"), at("2026-05-11T00:00:00Z"));
    let bounds = |instant| (period(instant).start, period(instant).end);
    assert_eq!(bounds("2026-05-10T07:59:59.999999Z"), (midnight, Some(since)));
    assert_eq!(bounds("2026-05-10T08:00:00Z"), (since, Some(next)));
    assert_eq!(bounds("2026-05-11T08:00:00Z").0, next);
    assert_eq!(bounds("2026-05-09T08:00:00Z").1, Some(midnight));
}

#[test]
fn a_policy_for_the_time_after_a_change_reads_as_words() {
    let words = [OverLimit::Block, OverLimit::ReadOnly, OverLimit::Grace { days: 3 }].map(|policy| policy.to_string());
    assert_eq!(words, ["blocked", "read-only", "grace for 3 days"]);
}
