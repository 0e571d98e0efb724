//! A tenant of all four crates can be erased: every table says whether it goes or stays, and no use is left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use chrono::DateTime;
use saas_core::{
    Actor, Clock, ErrorKind, MeterKey, PlanCatalog, RequestContext, SharedClock, SystemTx, TenantContext, TenantTx,
    UserId, plan::Window, subscription::FixedPlan, tenant, testing::TestDatabase,
};
use saas_entitlements::{
    Consumption, Entitlements, GateOptions, Meter, Period, PostgresCounters, PostgresSource, Use,
    usage::{UsageRecord, record_many},
};
use saas_tenancy::erase::{EraseState, EraseStep, Erasures, Fate, SlugPolicy};
use sqlx::Executor as _;
use tokio::task::JoinHandle;

#[tokio::test]
async fn every_table_of_the_four_crates_can_be_erased_or_says_why_it_is_kept() {
    let db = TestDatabase::start(&[
        &saas_core::SCHEMA,
        &saas_tenancy::SCHEMA,
        &saas_entitlements::SCHEMA,
        &saas_billing::SCHEMA,
    ])
    .await;
    // What a database has, too, once a tenant was moved out of it.
    let mut owner = db.owner().await;
    for script in ["set role saas_owner", include_str!("../../../saas-tenancy/migrations/capture/0001_change.sql")] {
        owner.execute(script).await.unwrap();
    }
    let acme = db.create_tenant("acme").await;
    let erasures = Erasures::new(db.system().clone(), Arc::new(db.clock().clone()))
        .with_dependents(Arc::new(saas_billing::LiveBilling));
    let plan = erasures.plan(acme.tenant()).await.unwrap();
    assert!(plan.is_possible(), "{:?} {:?}", plan.obstacles, plan.dependents);
    let fate = |name: &str| plan.tables.iter().find(|table| table.name == name).map(|table| &table.fate);
    assert_eq!(fate("saas.usage_event"), Some(&Fate::Erase));
    assert!(matches!(fate("saas.billing_object"), Some(Fate::Keep { reason }) if reason.contains("tax law")));
}

/// A tenant with a window of uses, and its erasure, approved.
struct Ending {
    db: TestDatabase,
    acme: RequestContext,
    erasures: Erasures,
    gate: Entitlements,
    meter: Meter,
}

const CALLS: MeterKey = MeterKey::from_static("calls");

impl Ending {
    async fn start() -> Self {
        let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA];
        let db = TestDatabase::builder().max_system_connections(6).start(&schemas).await;
        let acme = db.create_tenant("acme").await;
        let clock: SharedClock = Arc::new(db.clock().clone());
        let binding = Arc::new(db.tenants().clone());
        let catalog = PlanCatalog::from_toml(
            r#"
            default_plan = "free"
            [meters.calls]
            aggregation = "sum"
            [plans.free]
            rank = 0
            [[plans.free.versions]]
            version = 1
            limits.calls = { max = 1_000, window = "lifetime", overage = "block" }
            "#,
        )
        .unwrap();
        let plans = Arc::new(FixedPlan("free".parse().unwrap()));
        let source = Arc::new(PostgresSource::new(binding.clone(), plans));
        let gate = Entitlements::with_options(catalog, source, clock.clone(), GateOptions::default()).unwrap();
        let meter = Meter::new(gate.clone(), Arc::new(PostgresCounters::new(binding)));
        let erasures = Erasures::new(db.system().clone(), clock);
        let ending = Self { db, acme, erasures, gate, meter };
        // The window has its counter, so nothing of a further use refers to the tenant.
        let used = ending.meter.consume(&ending.acme, &CALLS, 1, &"first".parse().unwrap()).await.unwrap();
        assert!(matches!(used, Consumption::Granted { .. }));
        let operator = || Actor::Operator { id: UserId::mint(&saas_core::SystemClock) };
        let tenant = ending.acme.tenant();
        ending.erasures.request(tenant, &operator(), "the customer asked", SlugPolicy::Keep).await.unwrap();
        ending.erasures.approve(tenant, &operator()).await.unwrap();
        ending
    }

    /// Erases until nothing is left to do but to end it.
    async fn go_to_the_end(&self) {
        let mut owner = self.db.owner().await;
        loop {
            let step = self.erasures.step(self.acme.tenant()).await.unwrap();
            assert!(!matches!(step, EraseStep::Done(_)));
            let open: i64 = sqlx::query_scalar("select count(*) from saas.erasure_step where finished_at is null")
                .fetch_one(&mut owner)
                .await
                .unwrap();
            if open == 0 {
                return;
            }
        }
    }

    fn record(&self) -> UsageRecord {
        let key = "late".parse().unwrap();
        let always = (Window::Lifetime, Period { start: DateTime::UNIX_EPOCH, end: None });
        let (tenant, actor, now) = (self.acme.tenant(), self.acme.actor(), self.db.clock().now());
        let catalog = self.gate.catalog();
        UsageRecord::in_window(catalog, tenant, &Use::new(CALLS, 1, &key), actor, always, now).unwrap()
    }

    /// Waits until that many sessions wait for a lock, this one among them: it must not get to its end without.
    async fn waiting<T>(&self, sessions: i64, last: &JoinHandle<T>) {
        let mut owner = self.db.owner().await;
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()",
            )
            .fetch_one(&mut owner)
            .await
            .unwrap();
            if waiting >= sessions {
                return;
            }
            assert!(!last.is_finished(), "it waited for nobody");
            tokio::task::yield_now().await;
        }
    }

    /// Waits until an erasure waits for this transaction, and for nothing else; it must not get to its end without.
    async fn waits_for<T>(&self, inside: &mut SystemTx, erasure: &JoinHandle<T>) {
        let inside: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut **inside).await.unwrap();
        let mut owner = self.db.owner().await;
        loop {
            let waits: bool = sqlx::query_scalar(
                "select exists (select from pg_locks l where not l.granted and pg_blocking_pids(l.pid) = array[$1])",
            )
            .bind(inside)
            .fetch_one(&mut owner)
            .await
            .unwrap();
            if waits {
                return;
            }
            assert!(!erasure.is_finished(), "it came to its end over a use that is under way");
            tokio::task::yield_now().await;
        }
    }

    async fn assert_nothing_is_left(&self) {
        let mut owner = self.db.owner().await;
        for table in ["usage_event", "usage_key", "usage_counter"] {
            let left: Option<i64> = sqlx::query_scalar("select saas.count_rows(('saas.' || $1)::regclass, $2)")
                .bind(table)
                .bind(self.acme.tenant().as_uuid())
                .fetch_one(&mut owner)
                .await
                .unwrap();
            assert_eq!(left, Some(0), "{table}");
        }
    }
}

/// A use in a transaction that is open, of the kind that goes through no door; in another window, so that no step of the
/// erasure waits for its counter.
async fn recorded_in_bulk(of: &Ending) -> SystemTx {
    let mut tx = SystemTx::begin(of.db.system(), Actor::system("test"), "record a use").await.unwrap();
    let repeated = sqlx::query(
        "select from saas.usage_record(array[$1::uuid], '{calls}', '{calls}', '{day}', '{2026-01-01Z}', '{2026-01-02Z}', '{1}',
                                       '{late}', array[gen_random_uuid()], '{1}', '{1}', array[now()], '{null}', '{test}', now())",
    )
    .bind(of.acme.tenant().as_uuid())
    .fetch_all(&mut *tx)
    .await
    .unwrap();
    assert!(repeated.is_empty());
    tx
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_under_way_when_an_erasure_begins_is_erased_with_it() {
    let ending = Ending::start().await;
    let snapshot = ending.gate.snapshot(ending.acme.tenant()).await;
    let mut tx = TenantTx::begin(ending.db.tenants(), &ending.acme).await.unwrap();
    let used = ending.meter.consume_in(&mut tx, &snapshot, &CALLS, 1, &"late".parse().unwrap()).await.unwrap();
    assert!(matches!(used, Consumption::Granted { .. }));
    let (erasures, tenant) = (ending.erasures.clone(), ending.acme.tenant());
    let run = tokio::spawn(async move { erasures.run(tenant, &mut |_| {}).await });
    ending.waiting(1, &run).await;
    tx.commit().await.unwrap();
    assert_eq!(run.await.unwrap().unwrap().state, EraseState::Done);
    ending.assert_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_under_way_when_an_erasure_ends_is_erased_with_it() {
    let ending = Ending::start().await;
    // Before the door closes, and open until all tables were emptied: a use that came through it would be waited for.
    let mut tx = recorded_in_bulk(&ending).await;
    ending.go_to_the_end().await;
    let (erasures, tenant) = (ending.erasures.clone(), ending.acme.tenant());
    let run = tokio::spawn(async move { erasures.run(tenant, &mut |_| {}).await });
    ending.waits_for(&mut tx, &run).await;
    tx.commit().await.unwrap();
    let done = run.await.unwrap().unwrap();
    assert_eq!(done.state, EraseState::Done);
    let erased = |name: &str| done.tables.iter().find(|table| table.name == name).map(|table| table.rows_erased);
    assert_eq!(erased("saas.usage_event"), Some(2), "the first, and the late one");
    ending.assert_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_that_begins_while_a_tenant_is_erased_is_refused() {
    let ending = Ending::start().await;
    let begun = ending.erasures.step(ending.acme.tenant()).await.unwrap();
    assert_eq!(begun, EraseStep::Begun);
    let by_the_meter = ending.meter.consume(&ending.acme, &CALLS, 1, &"late".parse().unwrap()).await.unwrap();
    assert!(matches!(by_the_meter, Consumption::Denied { .. }), "{by_the_meter}");
    // A process that has not heard of it has no door to pass in shared tables.
    let mut tx = TenantTx::begin(ending.db.tenants(), &ending.acme).await.unwrap();
    let held = tenant::hold_in(&mut tx, ending.acme.tenant()).await.unwrap_err();
    assert_eq!(held.kind(), ErrorKind::NotFound);
    drop(tx);
    let in_bulk = record_many(ending.db.system(), &[ending.record()], ending.db.clock().now()).await.unwrap_err();
    assert_eq!(in_bulk.kind(), ErrorKind::Conflict);

    ending.go_to_the_end().await;
    // The end waits for the last table that it looks at, with the tenant's row taken; the use waits for the row.
    let mut blocker = ending.db.owner().await;
    blocker.execute("begin; lock table saas.usage_reservation in access exclusive mode").await.unwrap();
    let (erasures, tenant) = (ending.erasures.clone(), ending.acme.tenant());
    let run = tokio::spawn(async move { erasures.run(tenant, &mut |_| {}).await });
    ending.waiting(1, &run).await;
    let (system, record, now) = (ending.db.system().clone(), ending.record(), ending.db.clock().now());
    let late = tokio::spawn(async move { record_many(&system, &[record], now).await });
    ending.waiting(2, &late).await;
    blocker.execute("rollback").await.unwrap();
    assert_eq!(run.await.unwrap().unwrap().state, EraseState::Done);
    assert_eq!(late.await.unwrap().unwrap_err().kind(), ErrorKind::Conflict);
    ending.assert_nothing_is_left().await;
}
