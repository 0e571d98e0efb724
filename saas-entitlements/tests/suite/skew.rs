//! Processes whose clocks are off, on a real PostgreSQL: what they show, and what they decide by.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, MeterKey, PlanCatalog, PlanKey, RequestContext, SharedClock, SystemClock, TenantContext,
    subscription::PlanAssignment, testing::TestDatabase,
};
use saas_entitlements::{
    AssignedPlans, Assignments, Cohorts, Consumption, Entitlements, GateOptions, Meter, NewOverride, OverrideGrant,
    Overrides, PostgresCounters, PostgresSource, SCHEMA, usage::UsagePipeline,
};

use crate::{stage::EXPORT, staleness::Said};

const CALLS: MeterKey = MeterKey::from_static("calls");
const CATALOG: &str = "
default_plan = 'free'
[features.export]
kind = 'boolean'
fail = 'closed'
[meters.calls]
aggregation = 'sum'
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
limits.calls = { max = 10, window = 'year', overage = 'block' }
";

/// The machine's clock, off by so much.
#[derive(Debug, Clone, Copy)]
struct Off(TimeDelta);

impl Clock for Off {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + self.0
    }
}

/// A process of the application on a machine whose clock is off.
fn process(database: &TestDatabase, clock: SharedClock, options: GateOptions) -> (Entitlements, Meter) {
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    let binding = Arc::new(database.tenants().clone());
    let plans = Arc::new(AssignedPlans::new(binding.clone(), &catalog));
    let source = Arc::new(PostgresSource::new(binding.clone(), plans));
    let gate = Entitlements::with_options(catalog, source, clock, options).unwrap();
    gate.tick();
    let meter = Meter::new(gate.clone(), Arc::new(PostgresCounters::new(binding)));
    (gate, meter)
}

fn off(database: &TestDatabase, by: TimeDelta) -> (Entitlements, Meter) {
    process(database, Arc::new(Off(by)), GateOptions::default())
}

/// A tenant with an exception that ends so long after the present, by the database's clock.
async fn tenant_with_export_for(database: &TestDatabase, slug: &str, rest: TimeDelta) -> RequestContext {
    let ctx = database.create_tenant(slug).await;
    let (gate, _) = off(database, TimeDelta::zero());
    let overrides = Overrides::new(database.system().clone(), gate);
    let new = NewOverride::new(
        OverrideGrant::Switch { feature: EXPORT, on: true },
        "a trial of the export",
        SystemClock.now() + TimeDelta::days(1),
    );
    overrides.put_override(ctx.tenant(), new.unwrap(), &Actor::system("test")).await.unwrap();
    sqlx::query(
        "update saas.override
         set created_at = clock_timestamp() - interval '1 day', expires_at = clock_timestamp() + $2
         where tenant_id = $1",
    )
    .bind(ctx.tenant().as_uuid())
    .bind(rest)
    .execute(&mut database.owner().await)
    .await
    .unwrap();
    ctx
}

async fn start() -> TestDatabase {
    TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await
}

/// The skew that a gate shows, as minutes.
fn shown(gate: &Entitlements) -> Option<i64> {
    let minute = |ms: i64| (ms + 30_000).div_euclid(60_000);
    gate.staleness().clock_skew_ms.map(minute)
}

// G14
#[tokio::test]
async fn a_clock_that_is_minutes_off_is_shown_warned_of_once_and_grants_nothing_beyond_an_end() {
    let said = Said::of("saas.entitlements.gate.clock");
    let _guard = tracing::subscriber::set_default(said.clone());
    let database = start().await;
    let over = tenant_with_export_for(&database, "over", TimeDelta::minutes(-1)).await;
    let lasting = tenant_with_export_for(&database, "lasting", TimeDelta::minutes(2)).await;
    assert!(said.told().is_empty(), "by a clock that is right there is nothing to say");
    for minutes in [-7, 7] {
        let before = said.told().len();
        let (gate, _) = off(&database, TimeDelta::minutes(minutes));
        assert_eq!(shown(&gate), None, "before the first load nothing is known");
        // By its own clock, the one that is behind would grant what is over, and the one that is ahead refuse what lasts.
        assert!(!gate.is_feature_enabled(over.tenant(), &EXPORT).await, "{minutes}");
        assert!(gate.is_feature_enabled(lasting.tenant(), &EXPORT).await, "{minutes}");
        gate.tick();
        assert!(!gate.is_feature_enabled(over.tenant(), &EXPORT).await, "{minutes}, in memory");
        assert!(gate.is_feature_enabled(lasting.tenant(), &EXPORT).await, "{minutes}, in memory");
        assert_eq!(shown(&gate), Some(-minutes));
        gate.flush();
        assert!(gate.is_feature_enabled(lasting.tenant(), &EXPORT).await);
        assert_eq!(said.told().len(), before + 1, "once: {:?}", said.told());
    }
}

// G14
#[tokio::test]
async fn within_the_bound_a_process_goes_by_its_own_clock_and_nothing_is_warned_of() {
    let said = Said::of("saas.entitlements.gate.clock");
    let _guard = tracing::subscriber::set_default(said.clone());
    let database = start().await;
    let over = tenant_with_export_for(&database, "over", TimeDelta::minutes(-1)).await;
    let options = GateOptions::default().with_max_skew(TimeDelta::minutes(5));
    let (gate, _) = process(&database, Arc::new(Off(TimeDelta::minutes(-3))), options);
    assert!(gate.is_feature_enabled(over.tenant(), &EXPORT).await, "late by less than the bound");
    assert_eq!(shown(&gate), Some(3));
    assert!(said.told().is_empty());
}

// C9: the first use of each process already.
#[tokio::test]
async fn processes_whose_clocks_differ_by_years_count_in_one_window() {
    let database = start().await;
    let ctx = database.create_tenant("acme").await;
    let mut granted = 0;
    for (number, days) in [0, -800, 800, 400].into_iter().enumerate() {
        let (_, meter) = off(&database, TimeDelta::days(days));
        for turn in 0..4 {
            let key = format!("{number}-{turn}").parse().unwrap();
            granted += u64::from(meter.consume(&ctx, &CALLS, 1, &key).await.unwrap().is_granted());
        }
    }
    assert_eq!(granted, 10, "one limit");
    let windows: i64 = sqlx::query_scalar("select count(*) from saas.usage_counter where tenant_id = $1")
        .bind(ctx.tenant().as_uuid())
        .fetch_one(&mut database.owner().await)
        .await
        .unwrap();
    assert_eq!(windows, 1);
}

#[tokio::test]
async fn a_clock_that_a_test_moves_is_not_compared() {
    let database = start().await;
    let ctx = database.create_tenant("acme").await;
    let (gate, _) = process(&database, Arc::new(database.clock().clone()), GateOptions::default());
    assert!(!gate.is_feature_enabled(ctx.tenant(), &EXPORT).await);
    assert_eq!(gate.staleness().clock_skew_ms, None);
    let snapshot = gate.snapshot(ctx.tenant()).await;
    assert_eq!(snapshot.plan_version().unwrap().reference().plan, PlanKey::from_static("free"));
}

/// The machine's clock, off by what is set meanwhile.
#[derive(Debug, Clone, Default)]
struct Jumping(Arc<AtomicI64>);

impl Jumping {
    fn to(&self, days: i64) {
        self.0.store(days, Ordering::Relaxed);
    }
}

impl Clock for Jumping {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + TimeDelta::days(self.0.load(Ordering::Relaxed))
    }
}

/// Whether an instant is the present, as far as the bound lets clocks differ.
fn is_present(instant: DateTime<Utc>) -> bool {
    (SystemClock.now() - instant).abs() < TimeDelta::minutes(1)
}

// G14: of an operator's process that has loaded nothing yet, and of one whose clock jumps between two changes.
#[tokio::test]
async fn what_operators_change_is_dated_by_the_databases_clock_where_theirs_jumps() {
    let database = start().await;
    let ctx = database.create_tenant("acme").await;
    let (tenant, actor) = (ctx.tenant(), Actor::system("test"));
    for first in [-800, 800] {
        let clock = Jumping::default();
        clock.to(first);
        let (gate, _) = process(&database, Arc::new(clock.clone()), GateOptions::default());
        let assignments = Assignments::new(database.system().clone(), gate.clone());
        let overrides = Overrides::new(database.system().clone(), gate.clone());
        let cohorts = Cohorts::new(database.system().clone(), gate);
        for days in [first, 0, -first] {
            clock.to(days);
            let put = assignments
                .put_assignment(tenant, PlanAssignment::active(PlanKey::from_static("free")), &actor)
                .await
                .unwrap();
            assert!(put.since.is_none_or(is_present), "{days}: {put:?}");
            // By its own clock, tomorrow would be over already, or the exception would last for years.
            let tomorrow = SystemClock.now() + TimeDelta::days(1);
            let grant = || OverrideGrant::Switch { feature: EXPORT, on: true };
            let new = NewOverride::new(grant(), "a day of it", tomorrow).unwrap();
            let put = overrides.put_override(tenant, new.clone(), &actor).await.unwrap();
            assert!(is_present(put.created_at), "{days}: {put:?}");
            let many = overrides.put_override_many(&[tenant], &new, &actor).await.unwrap();
            assert!(many[0].1.is_ok(), "{days}: {many:?}");
            let over = NewOverride::new(grant(), "over", SystemClock.now() - TimeDelta::days(1)).unwrap();
            assert!(overrides.put_override(tenant, over, &actor).await.is_err(), "{days}");
            cohorts.add_to_cohort(tenant, &format!("{first}-{days}"), &actor).await.unwrap();
        }
    }
    let off: i64 = sqlx::query_scalar(
        "select (select count(*) from saas.audit
                 where tenant_id = $1 and abs(extract(epoch from at - clock_timestamp())) > 60)
              + (select count(*) from saas.entitlement_history
                 where tenant_id = $1 and abs(extract(epoch from at - clock_timestamp())) > 60)
              + (select count(*) from saas.plan_record
                 where tenant_id = $1 and abs(extract(epoch from at - clock_timestamp())) > 60)",
    )
    .bind(tenant.as_uuid())
    .fetch_one(&mut database.owner().await)
    .await
    .unwrap();
    assert_eq!(off, 0, "nothing is dated otherwise");
}

// C8, G14
#[tokio::test]
async fn a_sweeper_whose_clock_jumps_closes_no_window_that_is_open_and_forgets_nothing_that_is_kept() {
    let database = start().await;
    let ctx = database.create_tenant("acme").await;
    let (gate, meter) = off(&database, TimeDelta::zero());
    assert!(meter.consume(&ctx, &CALLS, 9, &"nine".parse().unwrap()).await.unwrap().is_granted());
    let clock = Jumping::default();
    let pipeline = UsagePipeline::new(database.system().clone(), Arc::new(clock.clone()));
    let month = SystemClock.now().date_naive().with_day(1).unwrap();
    for days in [800, -800, 0, 4_000] {
        clock.to(days);
        let swept = pipeline.sweep(&gate, 100).await.unwrap();
        assert_eq!((swept.closed, swept.resolved, swept.carried), (0, 0, 0), "{days}: {swept:?}");
        let kept = pipeline.maintain(&mut |_| {}).await.unwrap();
        assert_eq!((kept.keys, kept.dropped.len(), kept.held.len()), (0, 0, 0), "{days}: {kept:?}");
        assert!(kept.made.iter().all(|made| (*made - month).num_days().abs() < 100), "{days}: {kept:?}");
    }
    let known = meter.consume(&ctx, &CALLS, 9, &"nine".parse().unwrap()).await.unwrap();
    assert!(matches!(known, Consumption::AlreadyCounted), "{known:?}");

    // A window that is over is closed by one whose clock is years behind, too.
    sqlx::query("update saas.usage_counter set window_end = clock_timestamp() - interval '1 hour'")
        .execute(&mut database.owner().await)
        .await
        .unwrap();
    clock.to(-800);
    assert_eq!(pipeline.sweep(&gate, 100).await.unwrap().closed, 1);
}
