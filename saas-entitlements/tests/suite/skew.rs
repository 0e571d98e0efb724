//! Processes whose clocks are off, on a real PostgreSQL: what they show, and what they decide by.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, MeterKey, PlanCatalog, PlanKey, RequestContext, SharedClock, SystemClock, TenantContext,
    testing::TestDatabase,
};
use saas_entitlements::{
    AssignedPlans, Entitlements, GateOptions, Meter, NewOverride, OverrideGrant, Overrides, PostgresCounters,
    PostgresSource, SCHEMA,
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
    let overrides = Overrides::new(database.system().clone(), gate, Arc::new(SystemClock));
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
