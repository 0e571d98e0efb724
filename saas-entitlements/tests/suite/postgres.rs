//! The gate, overrides and counting on a real PostgreSQL, as the application role.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, CoreError, IdempotencyKey, Limit, MeterKey, OverrideId, RequestContext, SharedClock, SystemTx,
    TenantContext, TenantPool, TenantTx, UsageGrantId, UserId, revision,
    subscription::{PlanAssignment, PlanSource},
    testing::{Proxy, TestDatabase},
};
use saas_entitlements::{
    Adjustments, Consumption, Corrected, Correction, Entitlements, GateOptions, GrantSource, Meter, NewGrant,
    NewOverride, Origin, OverrideGrant, Overrides, PostgresCounters, PostgresSource, RevisionListener, RevisionPoller,
    SCHEMA, SnapshotSource, THRESHOLD_TOPIC,
};
use sqlx::Executor;

use crate::stage::{EXPORT, cancel_after, catalog, flights_at_rest, plan};

const CALLS: MeterKey = MeterKey::from_static("calls");

/// Plans in a table of the application, as an adopter without Stripe would have it.
#[derive(Debug)]
pub(crate) struct PlanTable(pub(crate) TenantPool);

#[async_trait]
impl PlanSource for PlanTable {
    async fn plan_of(&self, ctx: &dyn TenantContext, _: DateTime<Utc>) -> Result<PlanAssignment, CoreError> {
        let mut tx = TenantTx::begin(&self.0, ctx).await?;
        let found: Option<String> = sqlx::query_scalar("select plan from tenant_plan where tenant_id = $1")
            .bind(ctx.tenant().as_uuid())
            .fetch_optional(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        Ok(plan(found.as_deref().unwrap_or("free")))
    }
}

/// A database with the application's plan table, and the services on it.
pub(crate) struct App {
    pub(crate) database: TestDatabase,
    tenants: TenantPool,
    network: Proxy,
    pub(crate) gate: Entitlements,
    pub(crate) meter: Meter,
    overrides: Overrides,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::with_connections(5).await
    }

    async fn with_connections(connections: u32) -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let mut owner = database.owner().await;
        owner
            .execute(
                "create table tenant_plan (tenant_id uuid primary key references saas.tenant (id), plan text not null);
                 select saas.fence('tenant_plan');
                 grant usage on schema public to saas_app",
            )
            .await
            .unwrap();
        let (host, port) = database.address();
        let network = Proxy::start((host.as_str(), port)).unwrap();
        let login = database.options("saas_app").host("127.0.0.1").port(network.address().port());
        let pool = saas_core::db::pool_options().max_connections(connections).connect_with(login).await.unwrap();
        let tenants = TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap();
        let clock: SharedClock = Arc::new(database.clock().clone());
        let binding = Arc::new(tenants.clone());
        let plans = Arc::new(PlanTable(tenants.clone()));
        let source = Arc::new(PostgresSource::new(binding.clone(), plans));
        let gate = Entitlements::with_options(catalog(), source, clock.clone(), GateOptions::default()).unwrap();
        gate.tick();
        let meter = Meter::new(gate.clone(), Arc::new(PostgresCounters::new(binding)));
        let overrides = Overrides::new(database.system().clone(), gate.clone());
        Self { database, tenants, network, gate, meter, overrides }
    }

    /// One connection, on a network that answers no await at once.
    async fn on_one_slow_connection() -> Self {
        let app = Self::with_connections(1).await;
        app.network.delay(Duration::from_micros(250));
        app
    }

    fn now(&self) -> DateTime<Utc> {
        self.database.clock().now()
    }

    /// What billing does: the change and the revision in one transaction. The announcement is PostgreSQL's.
    pub(crate) async fn change_plan(&self, ctx: &RequestContext, to: &str) -> revision::Revision {
        let mut tx = TenantTx::begin(&self.tenants, ctx).await.unwrap();
        sqlx::query(
            "insert into tenant_plan (tenant_id, plan) values ($1, $2)
             on conflict (tenant_id) do update set plan = excluded.plan",
        )
        .bind(ctx.tenant().as_uuid())
        .bind(to)
        .execute(&mut *tx)
        .await
        .unwrap();
        let revision = revision::bump_in(&mut tx, ctx.tenant()).await.unwrap();
        tx.commit().await.unwrap();
        revision
    }

    /// Sends on the revision channel as the application's login.
    async fn notify(&self, ctx: &RequestContext, payload: &str) {
        let mut tx = TenantTx::begin(&self.tenants, ctx).await.unwrap();
        sqlx::query("select pg_notify($1, $2)").bind(revision::CHANNEL).bind(payload).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn export(&self, ctx: &RequestContext) -> bool {
        self.gate.is_feature_enabled(ctx.tenant(), &EXPORT).await
    }

    pub(crate) async fn r#use(&self, ctx: &RequestContext, amount: u64, key: &str) -> Consumption {
        let key: IdempotencyKey = key.parse().unwrap();
        self.meter.consume(ctx, &CALLS, amount, &key).await.unwrap()
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.database.owner().await).await.unwrap()
    }

    /// Transactions that are still open once the pool has served another statement on its connection.
    pub(crate) async fn open_transactions(&self) -> i64 {
        sqlx::query("select 1").execute(self.tenants.pool()).await.unwrap();
        self.count(
            "select count(*)
             from pg_stat_activity
             where datname = current_database() and state like 'idle in transaction%'",
        )
        .await
    }

    /// Waits for something that the listener's task brings about.
    pub(crate) async fn until(&self, mut done: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !done().await {
            assert!(tokio::time::Instant::now() < deadline, "nothing happened for a minute");
            tokio::task::yield_now().await;
        }
    }

    async fn listen(&self) -> RevisionListener {
        let listener = RevisionListener::start(self.gate.clone(), self.database.options("saas_app"));
        let flushes = self.gate.stats().flushes;
        self.until(async || self.gate.stats().flushes > flushes).await;
        listener
    }
}

#[tokio::test]
async fn a_change_of_plan_reaches_the_gate_by_its_notification() {
    let app = App::start().await;
    let (acme, globex) = (app.database.create_tenant("acme").await, app.database.create_tenant("globex").await);
    let _listener = app.listen().await;
    assert!(!app.export(&acme).await && !app.export(&globex).await);
    app.change_plan(&acme, "pro").await;
    app.until(async || app.export(&acme).await).await;
    assert!(!app.export(&globex).await);
}

// G4
#[tokio::test]
async fn a_listener_whose_backend_is_killed_misses_nothing() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    let _listener = app.listen().await;
    assert!(!app.export(&acme).await);
    let killed = app
        .count("select count(pg_terminate_backend(pid)) from pg_stat_activity where query ~* '^(listen|select pg_notify)' and datname = current_database()")
        .await;
    assert_eq!(killed, 1);
    // Meanwhile the plan changes: its notification may go to nobody.
    app.change_plan(&acme, "pro").await;
    app.until(async || app.export(&acme).await).await;
    // And the new connection hears again.
    app.until(async || app.gate.stats().flushes >= 3).await;
    app.change_plan(&acme, "free").await;
    app.until(async || !app.export(&acme).await).await;
}

// G5: there is no step between the commit and the announcement.
#[tokio::test]
async fn a_session_that_dies_right_after_its_commit_has_announced_it() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    let _listener = app.listen().await;
    assert!(!app.export(&acme).await);
    let mut session = app.database.owner().await;
    session.execute("begin").await.unwrap();
    for statement in [
        "select set_config('saas.tenant_id', $1::text, true)",
        "insert into tenant_plan (tenant_id, plan) values ($1::uuid, 'pro')",
        "select saas.bump_revision($1::uuid)",
    ] {
        sqlx::query(statement).bind(acme.tenant().to_string()).execute(&mut session).await.unwrap();
    }
    let dies = "commit; select pg_terminate_backend(pg_backend_pid())";
    assert!(session.execute(sqlx::raw_sql(dies)).await.is_err(), "it died");
    app.until(async || app.gate.stats().announcements == 1).await;
    assert!(app.export(&acme).await);
}

#[tokio::test]
async fn a_listener_and_a_poller_show_that_they_work_and_how_late_they_hear() {
    let app = App::start().await;
    let _listener = app.listen().await;
    let poller = RevisionPoller::start(app.gate.clone(), app.database.system().clone(), Duration::from_millis(5));
    let health = |name: &str| app.gate.staleness().channels.into_iter().find(|health| health.channel == name);
    // The listener's own message came back; the poller asked.
    for name in ["notify", "poll"] {
        app.until(async || health(name).unwrap().worst_lag.is_some()).await;
    }
    let lag = health("notify").unwrap().worst_lag.unwrap();
    assert!(!lag.is_zero() && lag < Duration::from_secs(10), "{lag:?}");
    // In silence both are alive: time passes, and the poller's next answer is a sign of life.
    app.database.clock().advance(TimeDelta::seconds(40));
    app.until(async || health("poll").unwrap().silent_for.is_zero()).await;
    assert_eq!(health("notify").unwrap().silent_for, Duration::from_secs(40));
    let acme = app.database.create_tenant("acme").await;
    app.change_plan(&acme, "pro").await;
    app.until(async || health("notify").unwrap().silent_for.is_zero()).await;
    drop(poller);
    app.until(async || health("poll").is_none()).await;
}

#[tokio::test]
async fn a_message_that_is_no_announcement_is_counted_and_ignored() {
    let app = App::start().await;
    let (acme, mallory) = (app.database.create_tenant("acme").await, app.database.create_tenant("mallory").await);
    let _listener = app.listen().await;
    assert!(!app.export(&acme).await);
    let flushes = app.gate.stats().flushes;
    for payload in ["x", "", "x:1"] {
        app.notify(&mallory, payload).await;
    }
    app.until(async || app.gate.stats().unreadable_announcements == 3).await;
    assert_eq!(app.gate.stats().flushes, flushes);
    app.change_plan(&acme, "pro").await;
    app.until(async || app.export(&acme).await).await;
}

// G4: all notifications lost.
#[tokio::test]
async fn without_a_listener_the_ttl_is_the_bound() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    app.change_plan(&acme, "pro").await;
    assert!(!app.export(&acme).await);
    app.database.clock().advance(TimeDelta::seconds(60));
    app.gate.tick();
    assert!(app.export(&acme).await);
}

// G9
#[tokio::test]
async fn a_tenant_without_a_row_is_unknown() {
    let app = App::start().await;
    let stranger = saas_core::TenantId::mint(app.database.clock());
    assert_eq!(app.gate.snapshot(stranger).await.origin(), Origin::UnknownTenant);
}

#[tokio::test]
async fn a_use_takes_one_round_trip() {
    let app = App::with_connections(1).await;
    let acme = app.database.create_tenant("acme").await;
    // Opened and prepared, so that one warm connection is left.
    for key in ["a", "b", "c"] {
        assert!(app.r#use(&acme, 1, key).await.is_granted());
    }
    let before = flights_at_rest(&app.tenants, &app.network).await;
    assert!(app.r#use(&acme, 1, "d").await.is_granted());
    let flights = flights_at_rest(&app.tenants, &app.network).await - before;
    assert_eq!(flights, 2, "begin, bind, count and commit in one, and the pool's own ping on the release");
}

// Q10
#[tokio::test]
async fn loading_and_counting_need_one_connection_at_a_time() {
    let app = App::with_connections(1).await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    assert!(app.r#use(&acme, 800, "a").await.is_granted());
    let snapshot = app.gate.snapshot(acme.tenant()).await;
    let mut tx = TenantTx::begin(&app.tenants, &acme).await.unwrap();
    let granted = app.meter.consume_in(&mut tx, &snapshot, &CALLS, 1, &"b".parse().unwrap()).await.unwrap();
    assert!(granted.is_granted());
    tx.commit().await.unwrap();
    assert_eq!(app.gate.snapshot(acme.tenant()).await.origin(), Origin::Loaded);
}

#[tokio::test]
async fn an_override_is_written_with_its_audit_row_and_seen_at_once() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(!app.export(&acme).await);
    let operator = Actor::Operator { id: UserId::mint(app.database.clock()) };
    let grant = OverrideGrant::Switch { feature: EXPORT, on: true };
    let new = NewOverride::new(grant.clone(), "goodwill", app.now() + TimeDelta::days(1)).unwrap();
    let put = app.overrides.put_override(acme.tenant(), new.clone(), &operator).await.unwrap();
    assert!(app.export(&acme).await, "in this process, without a listener");
    let explained = app.gate.explain(acme.tenant(), &EXPORT).await.unwrap().to_string();
    assert!(explained.contains(&operator.to_string()) && explained.contains("goodwill"), "{explained}");
    let again = app.overrides.put_override(acme.tenant(), new, &operator).await.unwrap();
    assert_ne!(OverrideId::as_uuid(put.id), OverrideId::as_uuid(again.id));
    assert_eq!(app.count("select count(*) from saas.override").await, 1, "one per subject");
    let subject = grant.subject();
    assert!(app.overrides.remove_override(acme.tenant(), &subject, &operator).await.unwrap());
    assert!(!app.export(&acme).await);
    assert!(!app.overrides.remove_override(acme.tenant(), &subject, &operator).await.unwrap(), "none left");
    assert_eq!(app.count("select count(*) from saas.audit where action like 'override.%'").await, 3);
    assert_eq!(app.count("select revision from saas.tenant").await, 4);
}

// C18
#[tokio::test]
async fn a_threshold_is_one_job_one_audit_row_and_the_operators_flag() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(matches!(app.r#use(&acme, 800, "a").await, Consumption::Granted { crossed, .. } if crossed == [80]));
    assert!(app.r#use(&acme, 100, "b").await.is_granted());
    let near = "select count(*) from saas.tenant_overview where near_limit_until = '2026-01-16T00:00:00Z'";
    assert_eq!(app.count("select count(*) from saas.outbox").await, 1);
    let topic: String =
        sqlx::query_scalar("select topic from saas.outbox").fetch_one(&mut app.database.owner().await).await.unwrap();
    assert_eq!(topic, THRESHOLD_TOPIC.as_str());
    assert_eq!(app.count("select count(*) from saas.audit where action = 'usage.threshold_crossed'").await, 1);
    assert_eq!(app.count(near).await, 1);
    app.database.clock().advance(TimeDelta::days(1));
    app.gate.tick();
    assert!(app.r#use(&acme, 1, "c").await.is_granted());
    assert_eq!(app.count(near).await, 0, "the flag goes with its window");
}

// C18
#[tokio::test]
async fn a_raised_limit_clears_the_flag_and_warns_for_itself() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(app.r#use(&acme, 800, "a").await.is_granted());
    let near = "select count(*) from saas.tenant_overview where near_limit_until is not null";
    assert_eq!(app.count(near).await, 1);
    let grant = OverrideGrant::Limit { meter: CALLS, limit: Limit::Max(1_000_000) };
    let new = NewOverride::new(grant, "a launch", app.now() + TimeDelta::days(1)).unwrap();
    app.overrides.put_override(acme.tenant(), new, &Actor::system("test")).await.unwrap();
    assert!(matches!(app.r#use(&acme, 1, "b").await, Consumption::Granted { crossed, .. } if crossed.is_empty()));
    assert_eq!(app.count(near).await, 0, "801 of a million is not near");
    assert!(matches!(app.r#use(&acme, 899_000, "c").await, Consumption::Granted { crossed, .. } if crossed == [80]));
    assert_eq!(app.count(near).await, 1);
}

// C19
#[tokio::test]
async fn a_limit_that_was_lowered_is_in_force_for_the_next_use_though_nothing_was_heard() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    app.change_plan(&acme, "pro").await;
    assert!(app.r#use(&acme, 1_000, "a").await.is_granted(), "5,000 a month");
    let new = OverrideGrant::Limit { meter: CALLS, limit: Limit::Max(1_000) };
    let new = NewOverride::new(new, "abuse", app.now() + TimeDelta::days(1)).unwrap();
    // By another process: this gate hears nothing of it.
    let other = Overrides::new(
        app.database.system().clone(),
        Entitlements::new(
            catalog(),
            Arc::new(saas_entitlements::memory::MemorySource::new()),
            Arc::new(app.database.clock().clone()),
        ),
    );
    other.put_override(acme.tenant(), new, &Actor::system("test")).await.unwrap();
    let outcome = app.r#use(&acme, 1, "b").await;
    assert!(matches!(outcome, Consumption::Exhausted { limit: 1_000, left: 0, .. }), "{outcome:?}");
}

// C19
#[tokio::test]
async fn in_a_transaction_an_outdated_snapshot_is_refused_and_writes_nothing() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    // The window has its counter, so that nothing but the revision is in the way.
    assert!(app.r#use(&acme, 1, "before").await.is_granted());
    let snapshot = app.gate.snapshot(acme.tenant()).await;
    app.change_plan(&acme, "pro").await;
    let mut tx = TenantTx::begin(&app.tenants, &acme).await.unwrap();
    let error = app.meter.consume_in(&mut tx, &snapshot, &CALLS, 1, &"a".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), "entitlements_outdated");
    tx.commit().await.unwrap();
    assert_eq!(app.count("select count(*) from saas.usage_event").await, 1);
    assert_eq!(app.count("select used from saas.usage_counter").await, 1);
    let fresh = app.gate.snapshot(acme.tenant()).await;
    assert_eq!(fresh.revision().get(), 2, "the next snapshot is read anew, though nothing was heard");
}

// C19
#[tokio::test]
async fn a_revision_of_a_transaction_that_rolls_back_is_not_heard() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    assert!(app.r#use(&acme, 1, "before").await.is_granted());
    let snapshot = app.gate.snapshot(acme.tenant()).await;
    let mut tx = TenantTx::begin(&app.tenants, &acme).await.unwrap();
    revision::bump_in(&mut tx, acme.tenant()).await.unwrap(); // part of the caller's own unit of work
    let error = app.meter.consume_in(&mut tx, &snapshot, &CALLS, 1, &"a".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), "entitlements_outdated");
    tx.rollback().await.unwrap();
    let fresh = app.gate.snapshot(acme.tenant()).await;
    assert_eq!((fresh.origin(), fresh.revision()), (Origin::Loaded, snapshot.revision()));
    let stats = app.gate.stats();
    assert_eq!((stats.announcements, stats.outdated_loads), (0, 0), "one read, and nothing to wait for");
    assert!(app.r#use(&acme, 1, "after").await.is_granted());
}

// Any login of the database can send on the channel.
#[tokio::test]
async fn a_forged_notification_denies_nobody_its_loads() {
    let app = App::start().await;
    let (victim, mallory) = (app.database.create_tenant("victim").await, app.database.create_tenant("mallory").await);
    app.change_plan(&victim, "pro").await;
    let _listener = app.listen().await;
    app.notify(&mallory, &format!("{}:{}", victim.tenant(), u64::MAX)).await;
    app.until(async || app.gate.stats().announcements > 0).await;
    assert!(app.export(&victim).await);
    assert_eq!(app.gate.snapshot(victim.tenant()).await.origin(), Origin::Loaded);
    app.change_plan(&victim, "free").await;
    app.until(async || !app.export(&victim).await).await;
}

// C3
#[tokio::test]
async fn a_use_in_a_transaction_counts_if_and_only_if_that_commits() {
    let app = App::start().await;
    let (acme, globex) = (app.database.create_tenant("acme").await, app.database.create_tenant("globex").await);
    let snapshot = app.gate.snapshot(acme.tenant()).await;
    let key: IdempotencyKey = "a".parse().unwrap();
    for commit in [false, true] {
        let mut tx = TenantTx::begin(&app.tenants, &acme).await.unwrap();
        let outcome = app.meter.consume_in(&mut tx, &snapshot, &CALLS, 10, &key).await.unwrap();
        assert!(matches!(outcome, Consumption::Granted { left: Limit::Max(990), .. }), "{outcome:?}");
        if commit {
            tx.commit().await.unwrap();
        }
    }
    assert_eq!(app.r#use(&acme, 10, "a").await, Consumption::AlreadyCounted);
    let mut tx = TenantTx::begin(&app.tenants, &globex).await.unwrap();
    let error = app.meter.consume_in(&mut tx, &snapshot, &CALLS, 1, &key).await.unwrap_err();
    assert_eq!(error.code(), "invalid_input", "another tenant's snapshot decides nothing here");
}

// I3, I4
#[tokio::test]
async fn counters_are_the_sums_of_the_events() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    for (number, amount) in [3, 5, 990, 7, 2].into_iter().enumerate() {
        let _ = app.r#use(&acme, amount, &format!("k{number}")).await;
    }
    let differing = "select count(*) from saas.usage_counter c
         where used <> (select coalesce(sum(units), 0) from saas.usage_event e
                        where (e.tenant_id, e.counter, e.window_kind, e.window_start)
                            = (c.tenant_id, c.meter, c.window_kind, c.window_start))";
    assert_eq!(app.count(differing).await, 0);
    assert_eq!(app.count("select used from saas.usage_counter").await, 1_000);
    assert_eq!(app.count("select count(*) from saas.usage_event").await, 4, "the refused one left nothing");
}

// Q9, C2
#[tokio::test]
async fn a_use_dropped_at_any_poll_and_repeated_counts_once() {
    let app = App::on_one_slow_connection().await;
    let (acme, calls) = (app.database.create_tenant("acme").await, CALLS);
    assert!(!app.export(&acme).await);
    let mut finished_at = None;
    for polls in 1..200 {
        let key: IdempotencyKey = format!("use-{polls}").parse().unwrap();
        let done = cancel_after(polls, app.meter.consume(&acme, &calls, 1, &key)).await.is_some();
        let repeated = app.meter.consume(&acme, &calls, 1, &key).await.unwrap();
        assert!(repeated.is_granted(), "{polls}: {repeated:?}");
        assert_eq!(app.count("select coalesce(sum(used), 0)::bigint from saas.usage_counter").await, polls as i64);
        if done {
            finished_at = Some(polls);
            break;
        }
    }
    assert!(finished_at.is_some_and(|polls| polls > 1), "the harness met an await point: {finished_at:?}");
    assert_eq!(app.open_transactions().await, 0);
}

// Q9
#[tokio::test]
async fn a_load_dropped_at_any_poll_leaves_the_pool_of_one_usable() {
    let app = App::on_one_slow_connection().await;
    let acme = app.database.create_tenant("acme").await;
    let tenants = &app.tenants;
    let source = PostgresSource::new(Arc::new(tenants.clone()), Arc::new(PlanTable(tenants.clone())));
    let mut finished_at = None;
    for polls in 1..200 {
        let done = cancel_after(polls, source.load(acme.tenant(), app.now())).await.is_some();
        let loaded = source.load(acme.tenant(), app.now()).await.unwrap().unwrap();
        assert_eq!(loaded.assignment, plan("free"));
        if done {
            finished_at = Some(polls);
            break;
        }
    }
    assert!(finished_at.is_some_and(|polls| polls > 1), "the harness met an await point: {finished_at:?}");
    assert_eq!(app.open_transactions().await, 0);
}

// Q9: whoever asks may give up at any point; the next one gets the present answer.
#[tokio::test]
async fn a_question_dropped_at_any_poll_leaves_the_gate_right() {
    let app = App::on_one_slow_connection().await;
    let acme = app.database.create_tenant("acme").await;
    for polls in 1..10 {
        let pro = polls % 2 == 1;
        let revision = app.change_plan(&acme, if pro { "pro" } else { "free" }).await;
        app.gate.hear(acme.tenant(), revision);
        let _ = cancel_after(polls, app.gate.is_feature_enabled(acme.tenant(), &EXPORT)).await;
        assert_eq!(app.export(&acme).await, pro, "dropped after {polls} polls");
    }
    assert_eq!(app.open_transactions().await, 0);
}

// T51
#[tokio::test]
async fn a_tenant_that_is_shut_out_or_gone_is_denied_whatever_it_has_bought() {
    let app = App::start().await;
    let (acme, other) = (app.database.create_tenant("acme").await, app.database.create_tenant("other").await);
    app.change_plan(&acme, "pro").await;
    app.change_plan(&other, "pro").await;
    assert!(app.export(&acme).await && app.export(&other).await);
    let _listener = app.listen().await;
    for state in ["suspended", "erasing", "erased"] {
        let mut tx = SystemTx::begin(app.database.system(), Actor::system("test"), "shut a tenant out").await.unwrap();
        sqlx::query(
            "insert into saas.tenant_status (tenant_id, state, reason, changed_by, since)
             values ($1, $2, 'why', 'test', $3)",
        )
        .bind(acme.tenant().as_uuid())
        .bind(state)
        .bind(app.now())
        .execute(&mut *tx)
        .await
        .unwrap();
        revision::bump_in(&mut tx, acme.tenant()).await.unwrap();
        tx.commit().await.unwrap();
        app.until(async || !app.export(&acme).await).await;
        assert!(app.export(&other).await, "{state}");

        let mut tx = SystemTx::begin(app.database.system(), Actor::system("test"), "let it in again").await.unwrap();
        sqlx::query("delete from saas.tenant_status where tenant_id = $1")
            .bind(acme.tenant().as_uuid())
            .execute(&mut *tx)
            .await
            .unwrap();
        revision::bump_in(&mut tx, acme.tenant()).await.unwrap();
        tx.commit().await.unwrap();
        app.until(async || app.export(&acme).await).await;
    }
}

// C15, f-M11
#[tokio::test]
async fn adjustments_keep_who_why_and_the_whole_amount_and_the_sums_agree() {
    let app = App::start().await;
    let acme = app.database.create_tenant("acme").await;
    let adjustments =
        Adjustments::new(app.gate.clone(), Arc::new(PostgresCounters::new(Arc::new(app.tenants.clone()))));
    assert!(app.r#use(&acme, 3, "a").await.is_granted());
    let correction = Correction {
        meter: CALLS,
        amount: -5,
        key: "ticket-7".parse().unwrap(),
        item: None,
        member: None,
        at: app.now(),
        reason: "counted by a broken client".to_owned(),
    };
    let future = Correction { at: app.now() + TimeDelta::seconds(1), ..correction.clone() };
    assert_eq!(adjustments.correct(&acme, future).await.unwrap_err().code(), "invalid_input");
    let corrected = adjustments.correct(&acme, correction.clone()).await.unwrap();
    assert_eq!(corrected, Corrected::Counted { before: 3, after: 0 });
    assert_eq!(adjustments.correct(&acme, correction).await.unwrap(), Corrected::AlreadyCounted);
    let id = UsageGrantId::mint(app.database.clock());
    let pack = NewGrant::new(id, CALLS, 7, GrantSource::Bought, "invoice 12").unwrap();
    for _ in 0..2 {
        assert_eq!(adjustments.give(&acme, &pack).await.unwrap().units, 7);
    }
    assert!(matches!(app.r#use(&acme, 1_004, "b").await, Consumption::Granted { over: 0, burnt: 4, .. }));
    let recorded = app.meter.record(&acme, &CALLS, 10, &"c".parse().unwrap()).await.unwrap();
    assert!(matches!(recorded, Consumption::Granted { over: 7, burnt: 3, .. }), "{recorded:?}");
    let (used, burnt, events, of_grants): (i64, i64, i64, i64) = sqlx::query_as(
        "select (select sum(used)::bigint from saas.usage_counter), (select sum(burnt)::bigint from saas.usage_counter),
                (select sum(units)::bigint from saas.usage_event), (select sum(burnt)::bigint from saas.usage_grant)",
    )
    .fetch_one(&mut app.database.owner().await)
    .await
    .unwrap();
    assert_eq!((used, burnt, events, of_grants), (1_007, 7, 1_014, 7));
    let (amount, units, actor): (i64, i64, String) =
        sqlx::query_as("select amount, units, actor from saas.usage_event where kind = 'correction'")
            .fetch_one(&mut app.database.owner().await)
            .await
            .unwrap();
    assert_eq!((amount, units, actor), (-5, -3, acme.actor().to_string()));
    let told: Vec<(String, String)> = sqlx::query_as(
        "select action, detail->>'reason' from saas.audit where action in ('usage.corrected', 'usage.granted') order by action",
    )
    .fetch_all(&mut app.database.owner().await)
    .await
    .unwrap();
    let row = |action: &str, reason: &str| (action.to_owned(), reason.to_owned());
    assert_eq!(told, [row("usage.corrected", "counted by a broken client"), row("usage.granted", "invoice 12")]);
}
