//! What is counted and how: peaks, items, levels, members and late uses, from the plan to the tables of PostgreSQL.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, ErrorKind, IdempotencyKey, Limit, MeterKey, PageSize, PlanCatalog, PlanKey, RequestContext,
    TenantContext, TenantPool, TenantTx, TestClock, UsageGrantId, UserId,
    subscription::FixedPlan,
    testing::{Proxy, TestDatabase},
};
use saas_entitlements::{
    Adjustments, Consumption, Corrected, Correction, Entitlements, EntitlementsError, GateOptions, GrantSource,
    LeaseOptions, Leases, LimitOf, Meter, NewGrant, NewOverride, OverrideGrant, Overrides, PostgresCounters,
    PostgresSource, Reservations, SCHEMA, Use,
    memory::MemoryLeases,
    usage::{Bucket, Rebuild, Recorded, SeriesQuery, UsagePipeline, UsageRecord, record_many, series_in},
};

use crate::stage::{cancel_after, flights_at_rest};

const JOBS: MeterKey = MeterKey::from_static("jobs");
const USERS: MeterKey = MeterKey::from_static("users");
const STORAGE: MeterKey = MeterKey::from_static("storage");
const PAGES: MeterKey = MeterKey::from_static("pages");
const SCANS: MeterKey = MeterKey::from_static("scans");

const CATALOG: &str = r#"
default_plan = "free"
[meters]
jobs = { aggregation = "max" }
users = { aggregation = "unique", late_hours = 1 }
storage = { aggregation = "latest" }
disk = { aggregation = "latest" }
pages = { aggregation = "sum", late_hours = 48 }
scans = { aggregation = "sum", credit = { of = "pages", cost = 3 } }
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.free.versions.limits]
jobs = { max = 2, window = "month", overage = "block" }
users = { max = 2, window = "day", overage = "bill" }
storage = { max = 100, window = "lifetime", overage = "block", warn = [80] }
pages = { max = 12, window = "day", overage = "block", per_member = 6 }
[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
[plans.pro.versions.limits]
jobs = { max = 5, window = "month", overage = "block" }
pages = { max = 100, window = "day", overage = "block", per_member = 50 }
"#;

/// A tenant on the free plan, a member who acts, and what counts for it.
struct Bench {
    database: TestDatabase,
    network: Proxy,
    tenants: TenantPool,
    gate: Entitlements,
    meter: Meter,
    adjustments: Adjustments,
    pipeline: UsagePipeline,
    acme: RequestContext,
    ada: String,
}

impl Bench {
    async fn start() -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let acme = database.create_tenant("acme").await;
        let (host, port) = database.address();
        let network = Proxy::start((host.as_str(), port)).unwrap();
        let login = database.options("saas_app").host("127.0.0.1").port(network.address().port());
        let pool = saas_core::db::pool_options().max_connections(1).connect_with(login).await.unwrap();
        let tenants = TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap();
        let gate = gate(&tenants, database.clock());
        let store = Arc::new(PostgresCounters::new(Arc::new(tenants.clone())));
        let meter = Meter::new(gate.clone(), store.clone());
        let adjustments = Adjustments::new(gate.clone(), store);
        let pipeline = UsagePipeline::new(database.system().clone(), Arc::new(database.clock().clone()));
        let person = UserId::mint(database.clock());
        let acme = RequestContext::new_at(acme.tenant(), Actor::user(person), database.clock().now());
        Self { database, network, tenants, gate, meter, adjustments, pipeline, acme, ada: person.to_string() }
    }

    fn move_to(&self, instant: &str) {
        self.database.clock().advance(at(instant) - self.database.clock().now());
        self.gate.tick();
    }

    async fn level(&self, meter: &MeterKey, level: u64, name: &str) -> Consumption {
        self.meter.consume(&self.acme, meter, level, &key(name)).await.unwrap()
    }

    async fn item(&self, item: &str, name: &str) -> Result<Consumption, EntitlementsError> {
        self.meter.consume_use(&self.acme, &Use::new(USERS, 1, &key(name)).with_item(item)).await
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut self.database.owner().await).await.unwrap()
    }

    fn correction(&self, meter: &MeterKey, amount: i64, name: &str) -> Correction {
        Correction {
            meter: meter.clone(),
            amount,
            key: key(name),
            item: None,
            member: None,
            at: self.database.clock().now(),
            reason: "a test".to_owned(),
        }
    }

    /// Counters, members and items that say something else than their events.
    async fn drifted(&self) -> usize {
        self.pipeline.find_drift(None, PageSize::default()).await.unwrap().drifted.len()
    }
}

fn gate(tenants: &TenantPool, clock: &TestClock) -> Entitlements {
    let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
    let source = Arc::new(PostgresSource::new(Arc::new(tenants.clone()), plans));
    let catalog = PlanCatalog::from_toml(CATALOG).unwrap();
    let gate = Entitlements::with_options(catalog, source, Arc::new(clock.clone()), GateOptions::default()).unwrap();
    gate.tick();
    gate
}

fn at(rfc3339: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(rfc3339).unwrap().to_utc()
}

fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

fn granted(left: u64, over: u64) -> Consumption {
    Consumption::Granted { left: Limit::Max(left), over, burnt: 0, crossed: Vec::new() }
}

fn refused(answer: Result<impl std::fmt::Debug, EntitlementsError>, words: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

// f-M2, f-M3
#[tokio::test]
async fn peaks_items_and_levels_are_limits_of_a_plan() {
    let bench = Bench::start().await;
    assert_eq!(bench.level(&JOBS, 2, "a").await, granted(0, 0));
    assert_eq!(bench.level(&JOBS, 1, "b").await, granted(0, 0));
    let exhausted = bench.level(&JOBS, 4, "c").await;
    assert_eq!(exhausted.to_string(), "limit of 2 reached, 0 left until 2026-02-01 00:00:00 UTC; `pro@1` has more");
    assert!(matches!(bench.level(&JOBS, 6, "d").await, Consumption::Exhausted { upgrade: None, .. }), "no plan has 6");

    assert_eq!(bench.item("ada", "a").await.unwrap(), granted(1, 0));
    assert_eq!(bench.item("bob", "b").await.unwrap(), granted(0, 0));
    assert_eq!(bench.item("ada", "c").await.unwrap(), granted(0, 0), "known");
    assert_eq!(bench.item("cyd", "d").await.unwrap(), granted(0, 1), "the plan bills what is beyond");

    let warned = Consumption::Granted { left: Limit::Max(20), over: 0, burnt: 0, crossed: vec![80] };
    assert_eq!(bench.level(&STORAGE, 80, "a").await, warned);
    assert!(!bench.level(&STORAGE, 101, "b").await.is_granted());
    assert_eq!(bench.level(&STORAGE, 30, "b").await, granted(70, 0));
    bench.move_to("2026-02-20T00:00:00Z");
    let usage = bench.meter.usage(&bench.acme, &STORAGE).await.unwrap().unwrap();
    assert_eq!((usage.used, usage.period.end), (30, None), "a level stays when a month ends");
    let over = bench.meter.record(&bench.acme, &STORAGE, 130, &key("c")).await.unwrap();
    assert!(matches!(over, Consumption::Granted { left: Limit::Max(0), over: 30, .. }), "{over:?}");
    assert_eq!(bench.level(&JOBS, 2, "e").await, granted(0, 0), "a peak does not");
}

#[tokio::test]
async fn what_a_meter_cannot_count_is_refused_with_a_reason() {
    let bench = Bench::start().await;
    let (meter, acme, name) = (&bench.meter, &bench.acme, key("a"));
    refused(meter.consume(acme, &USERS, 1, &name).await, "is not named, though the meter counts different items");
    let item = Use::new(USERS, 2, &name).with_item("ada");
    refused(meter.consume_use(acme, &item).await, "pass 1 for each item");
    refused(meter.consume_use(acme, &Use::new(PAGES, 1, &name).with_item("x")).await, "does not count items");
    for text in ["", "a\0b", "x".repeat(256).as_str()] {
        refused(bench.item(text, "a").await, "is empty, longer than 255 characters");
        refused(meter.consume_use(acme, &Use::new(PAGES, 1, &name).with_member(text)).await, "is empty");
    }
    refused(meter.consume(acme, &JOBS, i64::MAX.unsigned_abs() + 1, &name).await, "is more than 2^63-1");
    let adjust = &bench.adjustments;
    let ancient = Correction { at: DateTime::<Utc>::MIN_UTC, ..bench.correction(&JOBS, 1, "a") };
    refused(adjust.correct(acme, ancient).await, "is before 1970");
    refused(adjust.correct(acme, bench.correction(&STORAGE, -5, "a")).await, "record the level that is right");
    let item = Some("ada".to_owned());
    let correction = Correction { item: item.clone(), ..bench.correction(&USERS, -2, "a") };
    refused(adjust.correct(acme, correction).await, "pass 1 or -1 for each item");
    refused(adjust.correct(acme, bench.correction(&USERS, -1, "a")).await, "is not named");
    refused(
        adjust.correct(acme, Correction { item, ..bench.correction(&JOBS, -1, "a") }).await,
        "does not count items",
    );
    let grant = |meter| NewGrant::new(UsageGrantId::mint(bench.database.clock()), meter, 5, GrantSource::Given, "x");
    for meter in [JOBS, USERS, STORAGE] {
        refused(adjust.give(acme, &grant(meter).unwrap()).await, "does not add up its uses");
    }
    refused(meter.usage_of_member(acme, &JOBS, "ada").await, "does not add up its uses");
    let leases = Leases::new(bench.gate.clone(), Arc::new(MemoryLeases::new()), LeaseOptions::default());
    for meter in [JOBS, USERS, STORAGE, PAGES, SCANS] {
        refused(leases.consume(acme, &meter, 1).await, "use `Meter::consume`");
    }
    assert_eq!(bench.count("select count(*) from saas.usage_event").await, 0, "nothing was written");
    assert!(meter.consume(acme, &PAGES, 1, &name).await.unwrap().is_granted(), "and the key is free");
}

#[tokio::test]
async fn what_is_no_sum_or_limited_per_member_cannot_be_reserved() {
    let bench = Bench::start().await;
    let store = Arc::new(PostgresCounters::new(Arc::new(bench.tenants.clone())));
    let reservations = Reservations::new(bench.gate.clone(), store);
    let system = RequestContext::new_at(bench.acme.tenant(), Actor::system("test"), bench.database.clock().now());
    for (ctx, meter, words) in [
        (&bench.acme, JOBS, "meter does not add up its uses"),
        (&bench.acme, USERS, "meter does not add up its uses"),
        (&bench.acme, STORAGE, "meter does not add up its uses"),
        (&bench.acme, PAGES, "meter is limited per member"),
        (&system, PAGES, "meter is limited per member"),
        (&system, SCANS, "meter is limited per member"),
    ] {
        let error = reservations.reserve(ctx, &meter, 1, &key("r"), Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(words), "{meter}: {error}");
    }
    assert_eq!(bench.count("select count(*) from saas.usage_reservation").await, 0);
}

// C2, C15, I3
#[tokio::test]
async fn counters_members_items_and_roll_ups_agree_with_the_events() {
    let bench = Bench::start().await;
    for (number, level) in [1, 2, 1, 2].into_iter().enumerate() {
        assert!(bench.level(&JOBS, level, &format!("k{number}")).await.is_granted());
        assert!(bench.level(&STORAGE, level * 40, &format!("k{number}")).await.is_granted());
        assert!(bench.level(&PAGES, level, &format!("k{number}")).await.is_granted());
        assert!(bench.item(&format!("user-{level}"), &format!("k{number}")).await.unwrap().is_granted());
    }
    let robot = Correction { item: Some("user-2".to_owned()), ..bench.correction(&USERS, -1, "fix") };
    let corrected = bench.adjustments.correct(&bench.acme, robot).await.unwrap();
    assert_eq!(corrected, Corrected::Counted { before: 2, after: 1 });
    let back = Correction { member: Some(bench.ada.clone()), ..bench.correction(&PAGES, -2, "fix") };
    assert_eq!(bench.adjustments.correct(&bench.acme, back).await.unwrap(), Corrected::Counted { before: 6, after: 4 });
    assert_eq!(bench.drifted().await, 0);
    assert_eq!(bench.count("select count(*) from saas.usage_item").await, 1);
    assert_eq!(bench.count("select used from saas.usage_member").await, 4);

    assert!(bench.pipeline.roll_up(Duration::from_secs(60)).await.unwrap().complete);
    for (meter, sums) in [(JOBS, (2, 2)), (STORAGE, (80, 80)), (PAGES, (4, 2)), (USERS, (1, 1))] {
        let mut tx = TenantTx::begin_read_only(&bench.tenants, &bench.acme).await.unwrap();
        let (from, until) = (at("2026-01-01T00:00:00Z"), at("2026-02-01T00:00:00Z"));
        let query = SeriesQuery { meter, bucket: Bucket::Hour, from, until, member: None };
        let points = series_in(&mut tx, &query).await.unwrap();
        let sum: i64 = points.iter().map(|point| point.units).sum();
        assert_eq!((sum, points.iter().map(|point| point.peak).max().unwrap()), sums, "{}", query.meter);
    }

    // What a hand bent is found, and counted again.
    let mut owner = bench.database.owner().await;
    for bend in [
        "update saas.usage_member set used = 1",
        "insert into saas.usage_item select tenant_id, meter, window_kind, window_start, 'ghost', at from saas.usage_item",
        "update saas.usage_counter set used = 9 where meter = 'jobs'",
    ] {
        sqlx::query(bend).execute(&mut owner).await.unwrap();
    }
    let drifted = bench.pipeline.find_drift(None, PageSize::default()).await.unwrap().drifted;
    let found: Vec<_> =
        drifted.iter().map(|drift| (drift.meter.as_str(), drift.used, drift.events, drift.details)).collect();
    assert_eq!(found, [("jobs", 9, 2, 0), ("pages", 4, 4, 1), ("users", 1, 1, 1)]);
    for drift in drifted {
        let mended =
            bench.pipeline.rebuild(&bench.acme, &drift.meter, drift.window, drift.window_start, Rebuild::Repair).await;
        assert_eq!(mended.unwrap(), Some(drift));
    }
    assert_eq!(bench.drifted().await, 0);
    assert_eq!(bench.count("select used from saas.usage_member").await, 4);
}

// f-M18
#[tokio::test]
async fn a_member_has_a_part_of_what_the_tenant_has() {
    let bench = Bench::start().await;
    let used = async |of: Use<'_>| bench.meter.consume_use(&bench.acme, &of).await.unwrap();
    // Two scans are six pages.
    assert_eq!(used(Use::new(SCANS, 2, &key("a"))).await, granted(6, 0));
    let exhausted = bench.level(&PAGES, 1, "b").await;
    let Consumption::Exhausted { of, limit, left, upgrade, .. } = &exhausted else { panic!("{exhausted:?}") };
    assert_eq!((*of, *limit, *left, upgrade.is_some()), (LimitOf::Member, 6, 0, true));
    assert!(exhausted.to_string().starts_with("member's limit of 6 reached, 0 left until"), "{exhausted}");
    let name = key("b");
    assert_eq!(used(Use::new(PAGES, 4, &name).with_member("bob")).await, granted(2, 0));
    let both = used(Use::new(PAGES, 3, &key("c")).with_member("cyd")).await;
    assert!(matches!(both, Consumption::Exhausted { of: LimitOf::Tenant, limit: 12, left: 2, .. }), "{both:?}");
    let own = bench.meter.usage_of_member(&bench.acme, &PAGES, &bench.ada).await.unwrap().unwrap();
    assert_eq!((own.used, own.limit), (6, Limit::Max(6)));

    // Somebody has to be named; who looks through a member's eyes is that member.
    let job = RequestContext::new_at(bench.acme.tenant(), Actor::system("nightly"), bench.database.clock().now());
    refused(bench.meter.consume(&job, &PAGES, 1, &key("d")).await, "the plan limits what each may use");
    assert!(bench.meter.record(&job, &PAGES, 1, &key("d")).await.unwrap().is_granted(), "but it has happened");
    let user = bench.acme.actor().person().unwrap();
    let operator = Actor::Impersonation { operator: UserId::mint(bench.database.clock()), user };
    let operator = RequestContext::new_at(bench.acme.tenant(), operator, bench.database.clock().now());
    let through = bench.meter.consume(&operator, &PAGES, 1, &key("e")).await.unwrap();
    assert!(matches!(through, Consumption::Exhausted { of: LimitOf::Member, .. }), "{through:?}");
    assert_eq!(bench.meter.consume(&operator, &PAGES, 4, &name).await.unwrap(), Consumption::AlreadyCounted);
    assert_eq!(bench.drifted().await, 0);
}

#[tokio::test]
async fn a_limit_that_an_override_gives_to_a_level_is_one_of_a_lifetime() {
    let bench = Bench::start().await;
    let disk = MeterKey::from_static("disk");
    assert!(matches!(bench.level(&disk, 1, "a").await, Consumption::Denied { .. }));
    let overrides = Overrides::new(bench.database.system().clone(), bench.gate.clone());
    let grant = OverrideGrant::Limit { meter: disk.clone(), limit: Limit::Max(10) };
    let new = NewOverride::new(grant, "a trial", bench.database.clock().now() + TimeDelta::days(90)).unwrap();
    overrides.put_override(bench.acme.tenant(), new, &Actor::system("test")).await.unwrap();
    assert_eq!(bench.level(&disk, 7, "a").await, granted(3, 0));
    bench.move_to("2026-03-01T00:00:00Z");
    let usage = bench.meter.usage(&bench.acme, &disk).await.unwrap().unwrap();
    assert_eq!((usage.used, usage.period.end), (7, None));
}

// f-M18, I3
#[tokio::test]
async fn uses_recorded_in_bulk_count_for_their_member() {
    let bench = Bench::start().await;
    let now = bench.database.clock().now();
    let snapshot = bench.gate.snapshot(bench.acme.tenant()).await;
    let record = |name: &str, member: &str| {
        let key = key(name);
        UsageRecord::new(&snapshot, &Use::new(PAGES, 2, &key).with_member(member), bench.acme.actor(), now).unwrap()
    };
    let one = key("one");
    let of =
        |meter: MeterKey, amount| UsageRecord::new(&snapshot, &Use::new(meter, amount, &one), bench.acme.actor(), now);
    assert_eq!(of(SCANS, 2).unwrap().units(), 6, "in units of the meter that pays");
    assert_eq!(of(JOBS, 2).unwrap_err().kind(), ErrorKind::Invalid, "a peak is no sum");
    assert_eq!(of(PAGES, 0).unwrap_err().kind(), ErrorKind::Invalid);
    // Before the window keeps what each member used, and after.
    for (round, left) in [("a", 4), ("b", 1)] {
        let records = [record(&format!("{round}-1"), &bench.ada), record(&format!("{round}-2"), "bob")];
        let recorded = record_many(bench.database.system(), &records, now).await.unwrap();
        assert_eq!(recorded, [Recorded::Counted, Recorded::Counted]);
        let Consumption::Exhausted { of: LimitOf::Member, left: room, .. } = bench.level(&PAGES, 5, "c").await else {
            panic!("six pages are the most")
        };
        assert_eq!(room, left);
        assert!(bench.level(&PAGES, 1, round).await.is_granted());
    }
    assert_eq!(bench.count("select count(*) from saas.usage_member where used in (6, 4)").await, 2);
    assert_eq!(bench.drifted().await, 0);
}

// Q9, C2: the rarer ways, in which a window opens and members are added up.
#[tokio::test]
async fn a_members_use_dropped_at_any_poll_and_repeated_counts_once() {
    let bench = Bench::start().await;
    bench.network.delay(Duration::from_micros(250));
    let mut finished_at = None;
    for polls in 1..300 {
        // A day of its own for each try, so that each opens its window.
        bench.database.clock().advance(TimeDelta::days(1));
        bench.gate.tick();
        let name = key(&format!("use-{polls}"));
        let of = Use::new(PAGES, 4, &name);
        let done = cancel_after(polls, bench.meter.consume_use(&bench.acme, &of)).await.is_some();
        let repeated = bench.meter.consume_use(&bench.acme, &of).await.unwrap();
        assert!(repeated.is_granted(), "{polls}: {repeated:?}");
        if done {
            finished_at = Some(polls);
            break;
        }
    }
    let polls = finished_at.unwrap();
    assert!(polls > 1, "the harness met an await point");
    let counted = [
        "select sum(used)::bigint from saas.usage_counter",
        "select sum(used)::bigint from saas.usage_member",
        "select sum(units)::bigint from saas.usage_event",
    ];
    for sql in counted {
        assert_eq!(bench.count(sql).await, 4 * i64::try_from(polls).unwrap(), "{sql}");
    }
}

#[tokio::test]
async fn a_use_of_any_kind_takes_one_round_trip() {
    let bench = Bench::start().await;
    for round in ["a", "b", "c"] {
        assert!(bench.level(&JOBS, 1, round).await.is_granted());
        assert!(bench.item(round, round).await.unwrap().is_granted());
        assert!(bench.level(&STORAGE, 7, round).await.is_granted());
        assert!(bench.level(&PAGES, 1, round).await.is_granted());
    }
    let name = key("d");
    for of in [
        Use::new(JOBS, 2, &name),
        Use::new(USERS, 1, &name).with_item("a"),
        Use::new(USERS, 1, &key("e")).with_item("d"),
        Use::new(STORAGE, 9, &name),
        Use::new(PAGES, 1, &name).with_member("bob"),
    ] {
        let before = flights_at_rest(&bench.tenants, &bench.network).await;
        assert!(bench.meter.consume_use(&bench.acme, &of).await.unwrap().is_granted());
        let flights = flights_at_rest(&bench.tenants, &bench.network).await - before;
        assert_eq!(flights, 2, "one of its own, and the pool's own ping on the release: {of:?}");
    }
}

// C8, f-M15
#[tokio::test]
async fn what_is_recorded_after_midnight_counts_in_the_day_in_which_it_happened() {
    let bench = Bench::start().await;
    let (before, after) = (at("2026-01-15T23:59:59.999Z"), at("2026-01-16T00:00:00Z"));
    bench.move_to("2026-01-16T00:00:07Z");
    for (name, amount, instant) in [("a", 5, before), ("b", 3, after)] {
        let of = key(name);
        let answer = bench.meter.consume_use(&bench.acme, &Use::new(PAGES, amount, &of).with_instant(instant)).await;
        assert_eq!(answer.unwrap(), granted(12 - amount, 0), "each in its own day");
    }
    let days = "select count(*) from saas.usage_counter
         where (window_start, used) in (('2026-01-15T00:00:00Z', 5), ('2026-01-16T00:00:00Z', 3))";
    assert_eq!(bench.count(days).await, 2);
    assert_eq!(bench.count("select count(*) from saas.usage_event where at < window_start").await, 0);
    // The member's part and the tenant's of that day, not of this one.
    let name = key("c");
    let late = Use::new(PAGES, 2, &name).with_instant(before);
    let answer = bench.meter.consume_use(&bench.acme, &late).await.unwrap();
    assert!(matches!(answer, Consumption::Exhausted { of: LimitOf::Member, left: 1, .. }), "{answer:?}");
    assert!(bench.pipeline.roll_up(Duration::from_secs(60)).await.unwrap().complete);
    assert_eq!(bench.count("select units from saas.usage_day where bucket = '2026-01-15T00:00:00Z'").await, 5);
    assert_eq!(bench.drifted().await, 0);
}

// C8, f-M15
#[tokio::test]
async fn a_window_takes_late_uses_for_as_long_as_its_meter_says() {
    let bench = Bench::start().await;
    let happened = at("2026-01-15T12:00:00Z");
    let late = async |name: &str| {
        let of = key(name);
        bench.meter.record_use(&bench.acme, &Use::new(PAGES, 2, &of).with_instant(happened)).await
    };
    bench.move_to("2026-01-17T23:59:59.999Z");
    assert!(late("a").await.unwrap().is_granted(), "48 hours are not over");
    bench.move_to("2026-01-18T00:00:00Z");
    let error = late("b").await.unwrap_err();
    let EntitlementsError::TooLate { ended_at, late_hours } = &error else { panic!("{error}") };
    assert_eq!((*ended_at, *late_hours), (at("2026-01-16T00:00:00Z"), 48));
    assert_eq!((error.kind(), error.code()), (ErrorKind::Invalid, "use_too_late"));
    assert!(error.to_string().contains("correct it with `Adjustments::correct`"), "{error}");
    // What it says helps, and a use that was counted after all is not counted twice by it.
    for (name, outcome) in [("b", Corrected::Counted { before: 2, after: 4 }), ("a", Corrected::AlreadyCounted)] {
        let correction = Correction { at: happened, ..bench.correction(&PAGES, 2, name) };
        assert_eq!(bench.adjustments.correct(&bench.acme, correction).await.unwrap(), outcome);
    }
    // An item of a meter with an hour, a level of one without: that counts for a lifetime.
    let name = key("s");
    let seen = Use::new(USERS, 1, &name).with_item("ada").with_instant(at("2026-01-17T22:00:00Z"));
    assert!(bench.meter.consume_use(&bench.acme, &seen).await.unwrap().is_granted());
    let level = Use::new(STORAGE, 9, &name).with_instant(happened);
    assert!(bench.meter.consume_use(&bench.acme, &level).await.unwrap().is_granted());
    let peak = Use::new(JOBS, 1, &name).with_instant(at("2025-12-31T23:59:59Z"));
    let error = bench.meter.consume_use(&bench.acme, &peak).await.unwrap_err();
    assert_eq!(error.code(), "use_too_late", "without `late_hours` a window is over when it ends");
}

// C9, C12
#[tokio::test]
async fn the_instant_of_a_use_decides_whatever_the_clock_of_the_process() {
    let bench = Bench::start().await;
    bench.move_to("2026-01-16T00:00:30Z");
    let store = Arc::new(PostgresCounters::new(Arc::new(bench.tenants.clone())));
    let instants = ["2026-01-15T23:59:59.999999Z", "2026-01-16T00:00:00Z", "2026-01-16T00:00:29Z"];
    for (node, off) in [-120, 0, 120].into_iter().enumerate() {
        let clock = TestClock::starting("2026-01-16T00:00:30Z");
        clock.advance(TimeDelta::seconds(off));
        let meter = Meter::new(gate(&bench.tenants, &clock), store.clone());
        for (number, instant) in instants.into_iter().enumerate() {
            let name = key(&format!("{node}-{number}"));
            let of = Use::new(PAGES, 1, &name).with_instant(at(instant));
            assert!(meter.record_use(&bench.acme, &of).await.unwrap().is_granted(), "{off} {instant}");
        }
        let name = key("future");
        let future = Use::new(PAGES, 1, &name).with_instant(clock.now() + TimeDelta::seconds(301));
        refused(meter.consume_use(&bench.acme, &future).await, "is in the future");
        let never = Use::new(PAGES, 1, &name).with_instant(DateTime::<Utc>::MAX_UTC);
        refused(meter.consume_use(&bench.acme, &never).await, "is in the future");
        let ever = Use::new(PAGES, 1, &name).with_instant(DateTime::<Utc>::MIN_UTC);
        refused(meter.consume_use(&bench.acme, &ever).await, "is before 1970");
    }
    let days = "select count(*) from saas.usage_counter
         where (window_start, used) in (('2026-01-15T00:00:00Z', 3), ('2026-01-16T00:00:00Z', 6))";
    assert_eq!(bench.count(days).await, 2, "three nodes, one total");
}
