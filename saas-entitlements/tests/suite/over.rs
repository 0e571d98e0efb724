//! A tenant that comes to its plan with more than that allows: what the gate answers, and from when to when. On a real
//! PostgreSQL, as the application role, in two gates that stand for two processes.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_core::{
    Actor, Clock, FeatureKey, IdempotencyKey, MeterKey, PlanCatalog, PlanKey, RequestContext, SharedClock,
    TenantContext, TestClock,
    plan::OverLimitState,
    subscription::{AccessLevel, PastPlan, PlanAssignment},
    testing::TestDatabase,
};
use saas_entitlements::{
    Adjustments, AssignedPlans, Assignments, Consumption, Correction, Entitlements, EntitlementsError, FeatureRequired,
    LeaseOptions, LeaseStore, Leases, Meter, PostgresCounters, PostgresLeases, PostgresSource, Reason, Reservations,
    Reserved, RevisionListener, SCHEMA, Snapshot, UpgradeLink,
    memory::{MemoryCounters, MemorySource},
    usage::{Rebuild, UsagePipeline},
};

pub(crate) const EXPORT: FeatureKey = FeatureKey::from_static("export");
pub(crate) const VIEW: FeatureKey = FeatureKey::from_static("view");
pub(crate) const FILES: MeterKey = MeterKey::from_static("files");
pub(crate) const SEATS: MeterKey = MeterKey::from_static("seats");
pub(crate) const CALLS: MeterKey = MeterKey::from_static("calls");

pub(crate) const PLANS: &str = r#"
    default_plan = "free"
    [features]
    export = { kind = "boolean", fail = "closed" }
    view = { kind = "boolean", fail = "open", min_access = "restricted" }
    [meters]
    files = { aggregation = "sum" }
    seats = { aggregation = "sum" }
    calls = { aggregation = "sum" }
    [plans.free]
    rank = 0
    [[plans.free.versions]]
    version = 1
    grants = { export = true, view = true }
    [plans.free.versions.limits]
    files = { max = 5, window = "lifetime", overage = "block", over_limit = "read_only" }
    seats = { max = 3, window = "lifetime", overage = "block", over_limit = { grace_days = 14 } }
    calls = { max = 10, window = "day", overage = "block", over_limit = "read_only" }
    [plans.team]
    rank = 1
    [[plans.team.versions]]
    version = 1
    grants = { export = true, view = true }
    [plans.team.versions.limits]
    files = { max = 8, window = "lifetime", overage = "block" }
    seats = { max = 5, window = "lifetime", overage = "block" }
    calls = { max = 50, window = "day", overage = "block" }
    [plans.pro]
    rank = 2
    [[plans.pro.versions]]
    version = 1
    grants = { export = true, view = true }
    [plans.pro.versions.limits]
    files = { max = 100, window = "lifetime", overage = "block" }
    seats = { max = 10, window = "lifetime", overage = "block" }
    calls = { max = 100, window = "day", overage = "block" }
"#;

/// Words as a key.
pub(crate) fn key_of(words: &str) -> IdempotencyKey {
    words.replace(' ', "-").parse().unwrap()
}

pub(crate) struct App {
    pub(crate) database: TestDatabase,
    pub(crate) here: Entitlements,
    /// Another process, which only hears.
    pub(crate) there: Entitlements,
    _listener: RevisionListener,
    pub(crate) meter: Meter,
    adjustments: Adjustments,
    pub(crate) assignments: Assignments,
    pipeline: UsagePipeline,
    pub(crate) acme: RequestContext,
}

impl App {
    /// A tenant on `pro`, at noon.
    pub(crate) async fn start() -> Self {
        let database = TestDatabase::builder().max_system_connections(6).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let acme = database.create_tenant("acme").await;
        let noon = (database.clock().now() + TimeDelta::days(1)).date_naive().and_hms_opt(12, 0, 0).unwrap().and_utc();
        database.clock().advance(noon - database.clock().now());
        let clock: SharedClock = Arc::new(database.clock().clone());
        let binding = Arc::new(database.tenants().clone());
        let catalog = PlanCatalog::from_toml(PLANS).unwrap();
        let plans = Arc::new(AssignedPlans::new(binding.clone(), &catalog));
        let source = Arc::new(PostgresSource::new(binding.clone(), plans));
        let link = UpgradeLink::new("/billing?plan={plan}").unwrap();
        let gate = || Entitlements::new(catalog.clone(), source.clone(), clock.clone()).with_upgrade_link(link.clone());
        let (here, there) = (gate(), gate());
        // Before it starts: it may have flushed by the time that this thread goes on.
        let flushes = there.stats().flushes;
        let listener = RevisionListener::start(there.clone(), database.options("saas_app"));
        while there.stats().flushes == flushes {
            tokio::task::yield_now().await;
        }
        let counters = Arc::new(PostgresCounters::new(binding));
        let app = Self {
            meter: Meter::new(here.clone(), counters.clone()),
            adjustments: Adjustments::new(here.clone(), counters),
            assignments: Assignments::new(database.system().clone(), here.clone()),
            pipeline: UsagePipeline::new(database.system().clone(), clock),
            database,
            here,
            there,
            _listener: listener,
            acme,
        };
        app.change_plan("pro").await;
        app
    }

    pub(crate) fn advance(&self, by: TimeDelta) {
        self.database.clock().advance(by);
        self.here.tick();
        self.there.tick();
    }

    pub(crate) async fn change_plan(&self, to: &'static str) {
        let plan = PlanAssignment::active(PlanKey::from_static(to));
        self.assignments.put_assignment(self.acme.tenant(), plan, &Actor::system("test")).await.unwrap();
    }

    pub(crate) async fn consume(&self, meter: &MeterKey, amount: u64, key: &str) -> Consumption {
        self.meter.consume(&self.acme, meter, amount, &key_of(key)).await.unwrap()
    }

    pub(crate) async fn correct(&self, meter: &MeterKey, amount: i64, key: &str) {
        let at = self.database.clock().now();
        let (key, reason) = (key_of(key), "a test".into());
        let correction = Correction { meter: meter.clone(), amount, key, item: None, member: None, at, reason };
        let _ = self.adjustments.correct(&self.acme, correction).await.unwrap();
    }

    pub(crate) async fn enabled(&self, gate: &Entitlements) -> (bool, bool) {
        let snapshot = gate.snapshot(self.acme.tenant()).await;
        let answers = (snapshot.is_feature_enabled(&EXPORT), snapshot.is_feature_enabled(&VIEW));
        assert_eq!(snapshot.explain(&EXPORT).unwrap().enabled, answers.0);
        assert_eq!(snapshot.require(&EXPORT).is_ok(), answers.0);
        answers
    }

    /// The other process hears of it, by itself. Ends with the test's time where it does not.
    pub(crate) async fn heard(&self, expected: (bool, bool)) {
        while self.enabled(&self.there).await != expected {
            tokio::task::yield_now().await;
        }
    }

    fn store(&self) -> Arc<PostgresLeases> {
        Arc::new(PostgresLeases::new(Arc::new(self.database.tenants().clone())))
    }

    /// Lends all that is wanted, and ticks when told to.
    fn leases(&self, options: LeaseOptions) -> Leases {
        let options = options.with_size(20, 20).with_exposed_share(1).with_tick(Duration::from_secs(3_600));
        Leases::new(self.here.clone(), self.store(), options)
    }

    async fn revision(&self) -> i64 {
        sqlx::query_scalar("select revision from saas.tenant")
            .fetch_one(&mut self.database.owner().await)
            .await
            .unwrap()
    }

    async fn refused(&self) -> FeatureRequired {
        let refused = self.here.require(self.acme.tenant(), &EXPORT).await;
        let Err(EntitlementsError::FeatureRequired(refused)) = refused else { unreachable!("{refused:?}") };
        *refused
    }
}

pub(crate) const READ_ONLY: (bool, bool) = (false, true);
pub(crate) const FREE: (bool, bool) = (true, true);

// D9, f-E15
#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_below_what_is_used_lets_the_tenant_only_read_until_it_has_less() {
    let app = App::start().await;
    let _ = app.consume(&FILES, 9, "nine files").await;
    assert_eq!((app.enabled(&app.here).await, app.enabled(&app.there).await), (FREE, FREE));

    app.change_plan("free").await;
    assert_eq!(app.enabled(&app.here).await, READ_ONLY);
    app.heard(READ_ONLY).await;
    let refused = app.refused().await;
    let Reason::OverLimit { excess, needs } = &refused.reason else { panic!("{refused}") };
    assert_eq!((excess.meter.clone(), excess.used, excess.over, excess.until), (FILES, 9, 4, None));
    assert_eq!(*needs, AccessLevel::Full);
    assert_eq!(
        refused.to_string(),
        "`export` is paused: you have 9 of 5 `files`; remove 4 of them, or move to the plan `pro`: /billing?plan=pro"
    );
    assert_eq!(refused.http_status(), 402);
    let told = app.here.snapshot(app.acme.tenant()).await.explain(&EXPORT).unwrap();
    assert_eq!(told.access, AccessLevel::Restricted);
    assert_eq!(
        told.to_string(),
        "`export` is off: `files` is 9 of 5, 4 too many, so the tenant may only read; it needs full access; `pro` is the \
         first plan that has room for it."
    );
    assert!(told.in_full().ends_with("because `files` is 9 of 5, 4 too many."), "{}", told.in_full());
    let by_the_meter = app.meter.over_limit_state(&app.acme).await.unwrap();
    assert_eq!(by_the_meter, OverLimitState::ReadOnly, "both say the same");

    app.correct(&FILES, -3, "three are gone").await;
    assert_eq!(app.enabled(&app.there).await, READ_ONLY, "six of five");
    app.correct(&FILES, -1, "one more").await;
    app.heard(FREE).await;
    let snapshot = app.there.snapshot(app.acme.tenant()).await;
    app.here.hear(app.acme.tenant(), snapshot.revision());
    assert_eq!(app.enabled(&app.here).await, FREE);
    let revision = snapshot.revision();

    // What has happened is counted whatever the limit, and what is more than it is noticed.
    let _ = app.meter.record(&app.acme, &FILES, 1, &key_of("found one more")).await.unwrap();
    app.heard(READ_ONLY).await;
    let raised = app.there.snapshot(app.acme.tenant()).await.revision();
    assert_eq!(raised.get(), revision.get() + 1, "only a use that crosses it raises the revision");
    app.change_plan("pro").await;
    app.heard(FREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leased_uses_that_turn_out_to_be_too_many_are_heard_of_when_they_are_reported() {
    let app = App::start().await;
    let leases = app.leases(LeaseOptions::default());
    for _ in 0..8 {
        assert!(leases.consume(&app.acme, &FILES, 1).await.unwrap().is_granted());
    }
    // Of the eight, the database knows one.
    app.change_plan("free").await;
    assert_eq!((app.enabled(&app.here).await, app.enabled(&app.there).await), (FREE, FREE));
    let before = app.revision().await;
    leases.shutdown().await.unwrap();
    assert_eq!(app.revision().await, before + 1);
    app.heard(READ_ONLY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_passes_what_is_watched_raises_the_revision_also_leases_that_are_lost_or_made() {
    let app = App::start().await;
    let _ = app.consume(&FILES, 3, "three files").await;
    let _ = app.consume(&SEATS, 1, "one seat").await;
    let leases = app.leases(LeaseOptions::default().with_life(Duration::ZERO));
    assert!(leases.consume(&app.acme, &CALLS, 1).await.unwrap().is_granted());
    app.change_plan("free").await;
    assert_eq!(app.enabled(&app.here).await, FREE, "from now on, five files, three seats and ten calls are watched");

    // Its holder is lost: what it had of the day's calls counts as used, and is more than ten.
    let before = app.revision().await;
    let stranded = app.store().reclaim(&app.acme, app.database.clock().now()).await.unwrap();
    assert!(stranded > 10, "{stranded}");
    assert_eq!(app.revision().await, before + 1);
    assert_eq!(app.store().reclaim(&app.acme, app.database.clock().now()).await.unwrap(), 0);
    assert_eq!(app.revision().await, before + 1, "once");

    // A plan that allows more leaves the mark where it was.
    app.change_plan("pro").await;
    let before = app.revision().await;
    let leases = app.leases(LeaseOptions::default());
    assert!(leases.consume(&app.acme, &FILES, 3).await.unwrap().is_granted());
    assert_eq!(app.revision().await, before + 1, "by the use that is counted as the lease is made");
    // So it does for a use that is counted directly.
    let _ = app.consume(&SEATS, 2, "up to the mark").await;
    assert_eq!(app.revision().await, before + 1);
    let _ = app.consume(&SEATS, 1, "past the mark").await;
    assert_eq!(app.revision().await, before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_never_had_another_plan_is_refused_by_its_meters_alone() {
    let app = App::start().await;
    let _ = app.meter.record(&app.acme, &FILES, 900, &"many".parse().unwrap()).await.unwrap();
    assert_eq!(app.enabled(&app.here).await, FREE, "`pro` blocks, and says nothing else");
}

// f-E15
#[tokio::test(flavor = "multi_thread")]
async fn a_grace_ends_by_itself_in_every_process() {
    let app = App::start().await;
    let _ = app.consume(&SEATS, 5, "five seats").await;
    app.change_plan("free").await;
    assert_eq!(app.enabled(&app.here).await, FREE, "in its grace");
    app.heard(FREE).await;
    let snapshot = app.here.snapshot(app.acme.tenant()).await;
    assert_eq!(snapshot.next_boundary(), Some(app.database.clock().now() + TimeDelta::days(14)));
    app.advance(TimeDelta::days(14));
    assert_eq!((app.enabled(&app.here).await, app.enabled(&app.there).await), (READ_ONLY, READ_ONLY));
    let refused = app.refused().await;
    assert_eq!(refused.plan.as_ref().map(|plan| plan.plan.as_str()), Some("team"), "the lowest with room for five");
    assert_eq!(app.meter.over_limit_state(&app.acme).await.unwrap(), OverLimitState::ReadOnly);
    app.correct(&SEATS, -2, "two left").await;
    app.heard(FREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_its_window_the_excess_is_over() {
    let app = App::start().await;
    let _ = app.consume(&CALLS, 20, "twenty calls").await;
    app.change_plan("free").await;
    assert_eq!(app.enabled(&app.here).await, READ_ONLY);
    app.heard(READ_ONLY).await;
    app.advance(TimeDelta::hours(12));
    assert_eq!((app.enabled(&app.here).await, app.enabled(&app.there).await), (FREE, FREE), "a new day");
    assert!(matches!(app.consume(&CALLS, 10, "ten calls").await, Consumption::Granted { .. }));
    assert_eq!(app.enabled(&app.here).await, FREE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_counter_is_heard_of_where_it_turns_the_answer() {
    let app = App::start().await;
    let _ = app.consume(&FILES, 4, "four files").await;
    app.change_plan("free").await;
    app.heard(FREE).await;
    sqlx::query("update saas.usage_counter set used = 9").execute(&mut app.database.owner().await).await.unwrap();
    app.change_plan("free").await;
    app.heard(READ_ONLY).await;
    let windows = "select window_start from saas.usage_counter where meter = 'files'";
    let start = sqlx::query_scalar(windows).fetch_one(&mut app.database.owner().await).await.unwrap();
    let window = saas_core::plan::Window::Lifetime;
    let mended = app.pipeline.rebuild(&app.acme, &FILES, window, start, Rebuild::Repair).await.unwrap();
    assert!(mended.is_some_and(|drift| (drift.used, drift.events) == (9, 4)));
    app.heard(FREE).await;
}

/// An application whose gate hears of changes by itself: on a database, or in memory.
#[async_trait]
trait Shop: Sync {
    fn meter(&self) -> &Meter;
    fn adjustments(&self) -> &Adjustments;
    fn reservations(&self) -> Reservations;
    /// A gate that nobody tells anything.
    fn gate(&self) -> &Entitlements;
    fn acme(&self) -> &RequestContext;
    fn clock(&self) -> &TestClock;
    async fn put(&self, plan: &'static str);
}

#[async_trait]
impl Shop for App {
    fn meter(&self) -> &Meter {
        &self.meter
    }

    fn adjustments(&self) -> &Adjustments {
        &self.adjustments
    }

    fn reservations(&self) -> Reservations {
        Reservations::new(self.here.clone(), Arc::new(PostgresCounters::new(Arc::new(self.database.tenants().clone()))))
    }

    fn gate(&self) -> &Entitlements {
        &self.there
    }

    fn acme(&self) -> &RequestContext {
        &self.acme
    }

    fn clock(&self) -> &TestClock {
        self.database.clock()
    }

    async fn put(&self, plan: &'static str) {
        self.change_plan(plan).await;
    }
}

struct InMemory {
    clock: TestClock,
    counters: Arc<MemoryCounters>,
    tenants: MemorySource,
    gate: Entitlements,
    meter: Meter,
    adjustments: Adjustments,
    acme: RequestContext,
}

impl InMemory {
    fn start() -> Self {
        let clock = TestClock::at("2026-03-10T12:00:00Z".parse().unwrap());
        let counters = Arc::new(MemoryCounters::new());
        let tenants = MemorySource::new().with_counters(counters.clone());
        let catalog = PlanCatalog::from_toml(PLANS).unwrap();
        let gate = Entitlements::new(catalog, Arc::new(tenants.clone()), Arc::new(clock.clone()));
        tenants.announce_to(&gate);
        let acme =
            RequestContext::new_at(saas_core::TenantId::mint_at(clock.now()), Actor::system("test"), clock.now());
        tenants.put_plan(acme.tenant(), PlanAssignment::active(PlanKey::from_static("pro")));
        let meter = Meter::new(gate.clone(), counters.clone());
        let adjustments = Adjustments::new(gate.clone(), counters.clone());
        Self { clock, counters, tenants, gate, meter, adjustments, acme }
    }
}

#[async_trait]
impl Shop for InMemory {
    fn meter(&self) -> &Meter {
        &self.meter
    }

    fn adjustments(&self) -> &Adjustments {
        &self.adjustments
    }

    fn reservations(&self) -> Reservations {
        Reservations::new(self.gate.clone(), self.counters.clone())
    }

    fn gate(&self) -> &Entitlements {
        &self.gate
    }

    fn acme(&self) -> &RequestContext {
        &self.acme
    }

    fn clock(&self) -> &TestClock {
        &self.clock
    }

    async fn put(&self, plan: &'static str) {
        let before = vec![PastPlan { plan: PlanKey::from_static("pro"), version: Some(1), since: None }];
        let plan = PlanAssignment::active(PlanKey::from_static(plan));
        self.tenants.put_plan(self.acme.tenant(), PlanAssignment { since: Some(self.clock.now()), before, ..plan });
    }
}

/// The gate comes to this answer by itself. Ends with the test's time where it does not.
async fn comes_to(shop: &impl Shop, expected: (bool, bool)) -> Arc<Snapshot> {
    loop {
        let snapshot = shop.gate().snapshot(shop.acme().tenant()).await;
        if (snapshot.is_feature_enabled(&EXPORT), snapshot.is_feature_enabled(&VIEW)) == expected {
            return snapshot;
        }
        tokio::task::yield_now().await;
    }
}

/// Whatever crosses a limit that lets a tenant only read is heard of, either way, and nothing else is.
async fn what_crosses_the_limit_is_heard_of(shop: &impl Shop) {
    let correct = async |meter: &MeterKey, amount: i64, key: &str| {
        let (key, reason, at) = (key_of(key), "a test".into(), shop.clock().now());
        let correction = Correction { meter: meter.clone(), amount, key, item: None, member: None, at, reason };
        let _ = shop.adjustments().correct(shop.acme(), correction).await.unwrap();
    };
    let record = async |meter: &MeterKey, amount: u64, key: &str| {
        let _ = shop.meter().record(shop.acme(), meter, amount, &key_of(key)).await.unwrap();
    };
    let _ = shop.meter().consume(shop.acme(), &FILES, 9, &key_of("nine files")).await.unwrap();
    shop.put("free").await;
    let snapshot = comes_to(shop, READ_ONLY).await;
    assert_eq!(snapshot.excess().map(|excess| (excess.used, excess.over)), Some((9, 4)));
    assert_eq!(snapshot.access(), AccessLevel::Full, "the standing is what billing says");
    let before = snapshot.revision();
    correct(&FILES, -3, "three are gone").await;
    correct(&FILES, -1, "one more").await;
    assert_eq!(comes_to(shop, FREE).await.revision().get(), before.get() + 1, "only the one that crosses it");
    record(&FILES, 1, "found one").await;
    comes_to(shop, READ_ONLY).await;
    correct(&FILES, -3, "three more").await;
    comes_to(shop, FREE).await;
    let reservations = shop.reservations();
    let life = std::time::Duration::from_secs(60);
    let reserved = reservations.reserve(shop.acme(), &FILES, 1, &key_of("work"), life).await.unwrap();
    let Reserved::Granted { reservation: mut held, .. } = reserved else { unreachable!("there are two left") };
    let _ = held.commit(4).await.unwrap();
    comes_to(shop, READ_ONLY).await;
    correct(&FILES, -4, "four more").await;
    comes_to(shop, FREE).await;
    // The first use of its window.
    record(&CALLS, 20, "twenty calls").await;
    comes_to(shop, READ_ONLY).await;
    shop.clock().advance(TimeDelta::hours(12));
    shop.gate().tick();
    comes_to(shop, FREE).await;
    record(&CALLS, 11, "eleven calls of the next day").await;
    comes_to(shop, READ_ONLY).await;
    shop.put("pro").await;
    comes_to(shop, FREE).await;
}

// f-E15
#[tokio::test(flavor = "multi_thread")]
async fn what_crosses_a_limit_is_heard_of_from_a_database() {
    what_crosses_the_limit_is_heard_of(&App::start().await).await;
}

// f-E15
#[tokio::test]
async fn what_crosses_a_limit_is_heard_of_in_memory() {
    what_crosses_the_limit_is_heard_of(&InMemory::start()).await;
}
