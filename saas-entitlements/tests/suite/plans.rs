//! Plans without billing, cohorts and the past, on a real PostgreSQL.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, AddOnKey, Clock, CoreError, ErrorKind, FeatureKey, Limit, MeterKey, PageSize, PlanCatalog, PlanKey,
    PlanVersionRef, RequestContext, SharedClock, SystemTx, TenantContext, TenantId, audit, revision,
    subscription::{self, FixedPlan, PlanAssignment, PlanSource, Standing},
    testing::TestDatabase,
};
use saas_entitlements::{
    AssignedPlans, Assignments, Cohorts, Entitlements, EntitlementsError, History, NewOverride, OverrideFilter,
    OverrideGrant, OverrideSubject, Overrides, PlanMove, PostgresSource, SCHEMA,
};

const FIRST: &str = r#"
default_plan = "free"

[features]
csv = { kind = "boolean", fail = "closed" }
read = { kind = "boolean", fail = "open", min_access = "restricted" }
beta = { kind = "boolean", fail = "closed", rollout = { percent = 30, cohorts = ["friends"] } }
seats = { kind = "integer", fail = "open" }
api = { kind = "metered", meter = "calls", fail = "closed" }

[meters]
calls = { aggregation = "sum" }

[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
grants = { seats = 1, read = true }

[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
trial_days = 14
grants = { seats = 5, csv = true, read = true, beta = true }
limits.calls = { max = 100, window = "day", overage = "block" }

[addons.more]
mode = "stack"
max_quantity = 3
grants = { seats = 2 }
limits = { calls = 50 }
"#;

/// Version 2 of `pro`, and everybody in the roll-out.
fn second() -> String {
    let version = "[[plans.pro.versions]]\nversion = 2\ngrants = { seats = 7, read = true }\n\n[addons.more]";
    FIRST.replace("percent = 30", "percent = 90").replace("[addons.more]", version)
}

static ACTOR: Actor = Actor::system("test");
static PRO: PlanKey = PlanKey::from_static("pro");
const CSV: FeatureKey = FeatureKey::from_static("csv");
const FEATURES: [&str; 5] = ["csv", "read", "beta", "seats", "api"];

/// The services on one catalogue; the gate's memory and clock are its own.
struct Shop {
    plans: Arc<AssignedPlans>,
    gate: Entitlements,
    assignments: Assignments,
    cohorts: Cohorts,
    overrides: Overrides,
}

impl Shop {
    fn open(database: &TestDatabase, catalog: PlanCatalog) -> Self {
        let clock: SharedClock = Arc::new(database.clock().clone());
        let binding = Arc::new(database.tenants().clone());
        let plans = Arc::new(AssignedPlans::new(binding.clone(), &catalog));
        let gate = Entitlements::new(catalog, Arc::new(PostgresSource::new(binding, plans.clone())), clock.clone());
        gate.tick();
        let system = database.system().clone();
        Self {
            plans,
            assignments: Assignments::new(system.clone(), gate.clone()),
            cohorts: Cohorts::new(system.clone(), gate.clone()),
            overrides: Overrides::new(system, gate.clone()),
            gate,
        }
    }
}

async fn database() -> TestDatabase {
    TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await
}

async fn audited(database: &TestDatabase, tenant: TenantId) -> Vec<String> {
    sqlx::query_scalar("select action from saas.audit where tenant_id = $1 order by id")
        .bind(tenant.as_uuid())
        .fetch_all(&mut database.owner().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn an_assignment_keeps_its_version_and_is_seen_at_once() {
    let database = database().await;
    let shop = Shop::open(&database, PlanCatalog::from_toml(FIRST).unwrap());
    let tenant = database.create_tenant("acme").await.tenant();
    assert!(!shop.gate.is_feature_enabled(tenant, &CSV).await);
    assert_eq!(shop.assignments.find_assignment(tenant).await.unwrap(), None);

    let put = shop.assignments.put_assignment(tenant, PlanAssignment::active(PRO.clone()), &ACTOR).await.unwrap();
    assert_eq!(put.version, Some(1));
    assert!(shop.gate.is_feature_enabled(tenant, &CSV).await);
    // A release with another version: who has the first keeps it.
    let released = Shop::open(&database, PlanCatalog::from_toml(&second()).unwrap());
    assert!(released.gate.is_feature_enabled(tenant, &CSV).await);

    // Sixteen at once, each adding to what it finds: none is lost.
    let changes = (0..16).map(|number| {
        let (shop, number) = (&shop, TimeDelta::days(number));
        shop.assignments.change_assignment(tenant, &ACTOR, move |assignment| {
            let ends = assignment.ends_at.map_or(number, |end| end - DateTime::UNIX_EPOCH + number);
            assignment.ends_at = Some(DateTime::UNIX_EPOCH + ends);
        })
    });
    for changed in futures_util::future::join_all(changes).await {
        changed.unwrap();
    }
    let ends = shop.assignments.find_assignment(tenant).await.unwrap().unwrap().ends_at.unwrap();
    assert_eq!((ends - DateTime::UNIX_EPOCH).num_days(), (0..16).sum::<i64>());
    assert_eq!(audited(&database, tenant).await.len(), 17);
}

#[tokio::test]
async fn what_the_catalogue_lacks_is_refused_and_nothing_is_written() {
    let database = database().await;
    let shop = Shop::open(&database, PlanCatalog::from_toml(FIRST).unwrap());
    let tenant = database.create_tenant("acme").await.tenant();
    let more = |quantity| (AddOnKey::from_static("more"), quantity);
    let active = || PlanAssignment::active(PRO.clone());
    let bad = [
        (PlanAssignment::active(PlanKey::from_static("gold")), "unknown_plan"),
        (PlanAssignment { version: Some(9), ..active() }, "unknown_plan"),
        (PlanAssignment { addons: vec![(AddOnKey::from_static("less"), 1)], ..active() }, "unknown_addon"),
        (PlanAssignment { addons: vec![more(0)], ..active() }, "invalid_input"),
        (PlanAssignment { addons: vec![more(4)], ..active() }, "invalid_input"),
        (PlanAssignment { addons: vec![more(1), more(1)], ..active() }, "invalid_input"),
    ];
    for (assignment, code) in bad {
        let refused = shop.assignments.put_assignment(tenant, assignment.clone(), &ACTOR).await.unwrap_err();
        assert_eq!(refused.code(), code, "{assignment:?}: {refused}");
    }
    let stranger = TenantId::mint(database.clock());
    let refused = shop.assignments.put_assignment(stranger, active(), &ACTOR).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    for name in ["", "a\nb", &"x".repeat(65)] {
        let refused = shop.cohorts.add_to_cohort(tenant, name, &ACTOR).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{name:?}");
    }
    assert_eq!(shop.assignments.find_assignment(tenant).await.unwrap(), None);
    assert_eq!(audited(&database, tenant).await, [""; 0]);
}

#[tokio::test]
async fn a_trial_ends_by_itself_and_comes_once_for_ever() {
    let database = database().await;
    let shop = Shop::open(&database, PlanCatalog::from_toml(FIRST).unwrap());
    let tenant = database.create_tenant("acme").await.tenant();
    let free = shop.assignments.start_trial(tenant, &PlanKey::from_static("free"), &ACTOR).await.unwrap_err();
    assert_eq!(free.kind(), ErrorKind::Invalid, "{free}");

    // Eight at once: one trial.
    let starts = (0..8).map(|_| shop.assignments.start_trial(tenant, &PRO, &ACTOR));
    let started: Vec<_> = futures_util::future::join_all(starts).await;
    assert_eq!(started.iter().filter(|result| result.is_ok()).count(), 1);
    for refused in started.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!((refused.kind(), refused.code()), (ErrorKind::Conflict, "trial_used"));
    }
    assert!(shop.gate.is_feature_enabled(tenant, &CSV).await);
    database.clock().advance(TimeDelta::days(14));
    shop.gate.tick();
    assert!(!shop.gate.is_feature_enabled(tenant, &CSV).await, "nothing had to fire");
    database.clock().advance(TimeDelta::days(4000));
    let again = shop.assignments.start_trial(tenant, &PRO, &ACTOR).await.unwrap_err();
    assert!(matches!(again, EntitlementsError::TrialUsed { .. }), "{again}");

    // A trial does not take the place of what was bought.
    let buyer = database.create_tenant("bigco").await.tenant();
    shop.assignments.put_assignment(buyer, PlanAssignment::active(PRO.clone()), &ACTOR).await.unwrap();
    let refused = shop.assignments.start_trial(buyer, &PRO, &ACTOR).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
}

#[tokio::test]
async fn a_cohort_lets_a_tenant_in_and_is_listed_in_pages() {
    let database = database().await;
    let catalog = FIRST.replace("percent = 30", "percent = 0");
    let shop = Shop::open(&database, PlanCatalog::from_toml(&catalog).unwrap());
    let beta = FeatureKey::from_static("beta");
    let mut tenants = Vec::new();
    for slug in ["one", "two", "three"] {
        let tenant = database.create_tenant(slug).await.tenant();
        shop.assignments.put_assignment(tenant, PlanAssignment::active(PRO.clone()), &ACTOR).await.unwrap();
        assert!(!shop.gate.is_feature_enabled(tenant, &beta).await);
        assert!(shop.cohorts.add_to_cohort(tenant, "friends", &ACTOR).await.unwrap());
        assert!(!shop.cohorts.add_to_cohort(tenant, "friends", &ACTOR).await.unwrap(), "it is in already");
        assert!(shop.gate.is_feature_enabled(tenant, &beta).await);
        tenants.push(tenant);
    }
    tenants.sort_unstable();
    let two = PageSize::new(2).unwrap();
    let first = shop.cohorts.list_tenants("friends", None, two).await.unwrap();
    let rest = shop.cohorts.list_tenants("friends", first.next, two).await.unwrap();
    assert_eq!(([first.items, rest.items].concat(), rest.next), (tenants.clone(), None));
    assert!(shop.cohorts.remove_from_cohort(tenants[0], "friends", &ACTOR).await.unwrap());
    assert!(!shop.cohorts.remove_from_cohort(tenants[0], "friends", &ACTOR).await.unwrap());
    assert!(!shop.gate.is_feature_enabled(tenants[0], &beta).await);
    assert_eq!(audited(&database, tenants[0]).await, ["plan.assigned", "cohort.added", "cohort.removed"]);
}

#[tokio::test]
async fn tenants_are_moved_between_versions_page_by_page_and_a_run_that_stopped_is_taken_up() {
    let database = database().await;
    let shop = Shop::open(&database, PlanCatalog::from_toml(&second()).unwrap());
    let version = |number| PlanVersionRef { plan: PRO.clone(), version: number };
    let on_first = || PlanAssignment {
        version: Some(1),
        addons: vec![(AddOnKey::from_static("more"), 1)],
        ..PlanAssignment::active(PRO.clone())
    };
    let mut tenants = Vec::new();
    for number in 0..5 {
        let tenant = database.create_tenant(&format!("tenant-{number}")).await.tenant();
        shop.assignments.put_assignment(tenant, on_first(), &ACTOR).await.unwrap();
        tenants.push(tenant);
    }
    tenants.sort_unstable();
    let keep = NewOverride::new(
        OverrideGrant::Switch { feature: CSV, on: true },
        "was promised",
        database.clock().now() + TimeDelta::days(9),
    );
    shop.overrides.put_override(tenants[0], keep.unwrap(), &ACTOR).await.unwrap();
    shop.cohorts.add_to_cohort(tenants[4], "friends", &ACTOR).await.unwrap();

    let planned = PlanMove::new(version(1), version(2));
    let all = PageSize::default();
    let page = shop.assignments.preview_move(&planned, None, all).await.unwrap();
    let (calls, seats) = (MeterKey::from_static("calls"), FeatureKey::from_static("seats"));
    assert_eq!(page.previews.iter().map(|preview| preview.tenant).collect::<Vec<_>>(), tenants);
    assert!(page.failed.is_empty() && page.next.is_none());
    assert!(!page.previews[0].losses.contains(&CSV) && page.previews[1].losses.contains(&CSV), "the override stays");
    let number = |value| Some(saas_core::plan::StaticValue::Integer(value));
    assert_eq!(page.previews[1].values, [(seats.clone(), number(7), number(9))], "the add-on counts before and after");
    assert_eq!(page.previews[1].limits, [(calls, Some(Limit::Max(150)), Some(Limit::Max(50)))]);
    assert_eq!(shop.assignments.count_to_move(&planned).await.unwrap(), 5, "looking changes nothing");

    let friends = planned.clone().with_cohort("friends");
    let report = shop.assignments.run_move(&friends, None, all, &ACTOR).await.unwrap();
    assert_eq!((report.moved, report.next), (vec![tenants[4]], None));
    assert_eq!(shop.gate.snapshot(tenants[4]).await.integer(&seats), Some(9));

    // A tenant that cannot be moved stops the run where none may fail, and nobody else's turn comes.
    let mut owner = database.owner().await;
    let break_one = "update saas.plan_assignment set assigned = jsonb_set(assigned, '{addons}', '[[\"more\", 7]]') where tenant_id = $1";
    sqlx::query(break_one).bind(tenants[1].as_uuid()).execute(&mut owner).await.unwrap();
    let report = shop.assignments.run_move(&planned, None, all, &ACTOR).await.unwrap();
    assert_eq!((report.moved, report.stopped, report.next), (vec![tenants[0]], true, Some(tenants[1])));
    assert_eq!(
        report.failed.iter().map(|(tenant, error)| (*tenant, error.code())).collect::<Vec<_>>(),
        [(tenants[1], "invalid_input")]
    );

    // Taken up by two at once, one of them from the start: everybody is moved once.
    let patient = planned.clone().with_max_failures(1);
    let two = PageSize::new(2).unwrap();
    let runs = (0..2).map(async |_| {
        let (mut after, mut moved) = (None, Vec::new());
        loop {
            let report = shop.assignments.run_move(&patient, after, two, &ACTOR).await.unwrap();
            moved.extend(report.moved);
            match report.next {
                Some(next) => after = Some(next),
                None => return moved,
            }
        }
    });
    let mut moved = futures_util::future::join_all(runs).await.concat();
    moved.sort_unstable();
    assert_eq!(moved, tenants[2..4]);
    assert_eq!(shop.assignments.count_to_move(&planned).await.unwrap(), 1);
    shop.assignments.put_assignment(tenants[1], on_first(), &ACTOR).await.unwrap();
    let report = shop.assignments.run_move(&planned, None, all, &ACTOR).await.unwrap();
    assert_eq!((report.moved, report.stopped, report.next), (vec![tenants[1]], false, None));
    let moves: Vec<i64> = sqlx::query_scalar(
        "select count(*) from saas.audit where action = 'plan.migrated' and tenant_id = any($1) group by tenant_id",
    )
    .bind(tenants.iter().map(|tenant| tenant.as_uuid()).collect::<Vec<_>>())
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert_eq!(moves, [1; 5]);
}

#[tokio::test]
async fn a_preview_says_nothing_about_a_tenant_whose_state_cannot_be_read() {
    let database = database().await;
    let shop = Shop::open(&database, PlanCatalog::from_toml(&second()).unwrap());
    let version = |version| PlanVersionRef { plan: PRO.clone(), version };
    let mut tenants = Vec::new();
    for slug in ["one", "two"] {
        let tenant = database.create_tenant(slug).await.tenant();
        let on_first = PlanAssignment { version: Some(1), ..PlanAssignment::active(PRO.clone()) };
        shop.assignments.put_assignment(tenant, on_first, &ACTOR).await.unwrap();
        tenants.push(tenant);
    }
    tenants.sort_unstable();
    sqlx::query("update saas.plan_assignment set assigned = jsonb_set(assigned, '{addons}', '[[\"gone\", 1]]') where tenant_id = $1")
        .bind(tenants[0].as_uuid())
        .execute(&mut database.owner().await)
        .await
        .unwrap();
    // A process that has nothing in memory.
    let fresh = Shop::open(&database, PlanCatalog::from_toml(&second()).unwrap());
    let planned = PlanMove::new(version(1), version(2));
    let shown = fresh.assignments.preview_move(&planned, None, PageSize::default()).await.unwrap();
    assert_eq!(shown.previews.iter().map(|preview| preview.tenant).collect::<Vec<_>>(), tenants[1..]);
    let failed: Vec<_> = shown.failed.iter().map(|(tenant, error)| (*tenant, error.code())).collect();
    assert_eq!(failed, [(tenants[0], "entitlements_unavailable")]);
}

#[tokio::test]
async fn overrides_are_put_for_many_and_found_by_what_they_are() {
    let database = database().await;
    let shop = Shop::open(&database, PlanCatalog::from_toml(FIRST).unwrap());
    let mut tenants = Vec::new();
    for slug in ["one", "two", "three"] {
        tenants.push(database.create_tenant(slug).await.tenant());
    }
    tenants.sort_unstable();
    let now = database.clock().now();
    let for_days = |grant, days| NewOverride::new(grant, "an outage", now + TimeDelta::days(days)).unwrap();
    let on = || OverrideGrant::Switch { feature: CSV, on: true };
    let calls = MeterKey::from_static("calls");
    let stranger = TenantId::mint(database.clock());
    let everyone = [tenants[0], stranger, tenants[1], tenants[2]];
    let report = shop.overrides.put_override_many(&everyone, &for_days(on(), 1), &ACTOR).await.unwrap();
    let outcome = report.iter().map(|(tenant, put)| (*tenant, put.as_ref().map_err(EntitlementsError::kind).is_ok()));
    assert_eq!(outcome.collect::<Vec<_>>(), everyone.map(|tenant| (tenant, tenant != stranger)));
    for tenant in &tenants {
        assert!(shop.gate.is_feature_enabled(*tenant, &CSV).await);
    }
    let more = OverrideGrant::Limit { meter: calls.clone(), limit: Limit::Max(9) };
    let other = Actor::system("somebody");
    shop.overrides.put_override(tenants[1], for_days(more, 30), &other).await.unwrap();
    let unknown = OverrideGrant::Switch { feature: FeatureKey::from_static("nothing"), on: true };
    let refused = shop.overrides.put_override_many(&tenants, &for_days(unknown, 1), &ACTOR).await.unwrap_err();
    assert_eq!(refused.code(), "unknown_feature");

    let feature = || OverrideSubject::Feature(CSV);
    let meter = || OverrideSubject::Meter(calls.clone());
    let all = [(tenants[0], feature()), (tenants[1], feature()), (tenants[1], meter()), (tenants[2], feature())];
    let found = async |change: &dyn Fn(&mut OverrideFilter)| {
        let mut filter = OverrideFilter::default();
        change(&mut filter);
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let page = shop.overrides.list_overrides(&filter, after, PageSize::new(1).unwrap()).await.unwrap();
            found.extend(page.items.into_iter().map(|(tenant, found)| (tenant, found.grant.subject())));
            match page.next {
                Some(next) => after = Some(next),
                None => return found,
            }
        }
    };
    assert_eq!(found(&|_| {}).await, all);
    assert_eq!(found(&|filter| filter.tenant = Some(tenants[1])).await, all[1..3]);
    assert_eq!(found(&|filter| filter.subject = Some(meter())).await, all[2..3]);
    assert_eq!(found(&|filter| filter.author = Some(other.to_string())).await, all[2..3]);
    assert_eq!(found(&|filter| filter.live_at = Some(now + TimeDelta::days(1))).await, all[2..3]);
    assert_eq!(found(&|filter| filter.ending_by = Some(now + TimeDelta::days(1))).await.len(), 3);
}

/// What tenancy does when an operator shuts a tenant out or lets it back in.
async fn set_served(database: &TestDatabase, tenant: TenantId, served: bool) {
    let now = database.clock().now();
    let mut tx = SystemTx::begin(database.system(), ACTOR.clone(), "change a status").await.unwrap();
    let (action, statement) = if served {
        ("tenant.resumed", "delete from saas.tenant_status where tenant_id = $1 and $2::timestamptz is not null")
    } else {
        (
            "tenant.suspended",
            "insert into saas.tenant_status (tenant_id, state, reason, changed_by, since)
             values ($1, 'suspended', 'test', 'test', $2)",
        )
    };
    sqlx::query(statement).bind(tenant.as_uuid()).bind(now).execute(&mut *tx).await.unwrap();
    audit::record_in(&mut tx, tenant, &ACTOR, audit::Entry::new(action, tenant), now).await.unwrap();
    revision::bump_in(&mut tx, tenant).await.unwrap();
    tx.commit().await.unwrap();
}

/// Everything that a gate answers about a tenant, and how it explains it.
fn answers(snapshot: &saas_entitlements::Snapshot) -> Vec<String> {
    let calls = MeterKey::from_static("calls");
    let mut answers = vec![format!("{:?}", snapshot.limit(&calls)), format!("{:?}", snapshot.next_boundary())];
    for feature in FEATURES {
        let why = snapshot.explain(&FeatureKey::from_static(feature)).unwrap();
        answers.push(format!("{} {:?} {}", why.in_full(), why.value, why));
    }
    answers
}

#[tokio::test]
async fn the_past_is_answered_as_the_gate_answered_then() {
    for seed in 0..2 {
        record_and_compare(seed).await;
    }
}

async fn record_and_compare(seed: u64) {
    let database = database().await;
    let catalog = PlanCatalog::from_toml(FIRST).unwrap();
    let history = History::new(database.system().clone(), &*Shop::open(&database, catalog).plans);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut recorded: Vec<(TenantId, DateTime<Utc>, Vec<String>)> = Vec::new();
    let first = history.publish(FIRST, &ACTOR, database.clock().now()).await.unwrap();
    let mut shop = Shop::open(&database, first);
    database.clock().advance(TimeDelta::seconds(1));
    let tenants = [database.create_tenant("one").await.tenant(), database.create_tenant("two").await.tenant()];
    let mut shut = [false; 2];
    for step in 0..120 {
        if step == 60 {
            let released = history.publish(&second(), &ACTOR, database.clock().now()).await.unwrap();
            shop = Shop::open(&database, released);
        }
        let which = random.usize(0..2);
        let (tenant, now) = (tenants[which], database.clock().now());
        let soon = now + TimeDelta::seconds(random.i64(1..400));
        match random.u8(0..9) {
            0 | 1 => {
                let standing = match random.u8(0..4) {
                    0 => Standing::Grace { until: soon, suspended_from: soon + TimeDelta::seconds(90) },
                    1 => Standing::Suspended { since: soon },
                    _ => Standing::Active,
                };
                let assignment = PlanAssignment {
                    standing,
                    ends_at: random.bool().then_some(soon),
                    addons: random
                        .bool()
                        .then(|| (AddOnKey::from_static("more"), random.u32(1..4)))
                        .into_iter()
                        .collect(),
                    ..PlanAssignment::active(if random.bool() { PRO.clone() } else { PlanKey::from_static("free") })
                };
                shop.assignments.put_assignment(tenant, assignment, &ACTOR).await.unwrap();
            }
            2 | 3 => {
                let grant = match random.u8(0..3) {
                    0 => OverrideGrant::Switch { feature: CSV, on: random.bool() },
                    1 => OverrideGrant::Value {
                        feature: FeatureKey::from_static("seats"),
                        value: saas_core::plan::StaticValue::Integer(random.i64(1..99)),
                    },
                    _ => OverrideGrant::Limit {
                        meter: MeterKey::from_static("calls"),
                        limit: Limit::Max(random.u64(0..9)),
                    },
                };
                let new = NewOverride::new(grant, "test", soon).unwrap();
                shop.overrides.put_override(tenant, new, &ACTOR).await.unwrap();
            }
            4 => {
                let subject = OverrideSubject::Feature(CSV);
                shop.overrides.remove_override(tenant, &subject, &ACTOR).await.unwrap();
            }
            5 => drop(shop.cohorts.add_to_cohort(tenant, "friends", &ACTOR).await.unwrap()),
            6 => drop(shop.cohorts.remove_from_cohort(tenant, "friends", &ACTOR).await.unwrap()),
            7 => {
                set_served(&database, tenant, shut[which]).await;
                shut[which] = !shut[which];
                shop.gate.flush();
            }
            _ => {}
        }
        // Often nothing but time passes; sometimes two changes fall on one instant.
        for moment in 0..random.u8(1..3) {
            database.clock().advance(TimeDelta::seconds(random.i64(0..60) * i64::from(moment)));
            shop.gate.tick();
            for tenant in tenants {
                let snapshot = shop.gate.snapshot(tenant).await.at(database.clock().now());
                recorded.push((tenant, database.clock().now(), answers(&snapshot)));
            }
        }
    }
    // At one instant the last answer counts.
    let mut different = std::collections::HashSet::new();
    let mut seen = std::collections::HashSet::new();
    for (tenant, instant, answered) in recorded.into_iter().rev() {
        if seen.insert((tenant, instant)) {
            let past = history.at(tenant, instant).await.unwrap();
            assert_eq!(answers(&past), answered, "seed {seed}, {tenant} at {instant}");
            different.insert(answered);
        }
    }
    assert!(different.len() > 30, "only {} different answers: the run proves little", different.len());
}

#[tokio::test]
async fn the_past_that_was_not_recorded_is_not_made_up() {
    let database = database().await;
    let (clock, system) = (database.clock(), database.system().clone());
    let ctx: RequestContext = database.create_tenant("acme").await;
    let (tenant, created) = (ctx.tenant(), clock.now());
    let constant = FixedPlan(PRO.clone());
    let elsewhere = History::new(system.clone(), &constant);
    let unpublished = elsewhere.at(tenant, created).await.unwrap_err();
    assert_eq!((unpublished.kind(), unpublished.code()), (ErrorKind::NotFound, "unrecorded"));
    elsewhere.publish(FIRST, &ACTOR, created - TimeDelta::days(1)).await.unwrap();
    assert_eq!(elsewhere.publish("plans = 3", &ACTOR, created).await.unwrap_err().kind(), ErrorKind::Invalid);
    let unrecorded = elsewhere.at(tenant, created).await.unwrap_err();
    assert!(unrecorded.to_string().starts_with("the tenant's plan was not recorded"), "{unrecorded}");
    let unborn = elsewhere.at(tenant, created - TimeDelta::seconds(1)).await.unwrap();
    assert_eq!(unborn.origin(), saas_entitlements::Origin::UnknownTenant);

    // A source of plans of another kind records in its own transaction, once for each revision.
    clock.advance(TimeDelta::days(1));
    let mut tx = SystemTx::begin(&system, ACTOR.clone(), "change a plan elsewhere").await.unwrap();
    let changed = revision::bump_in(&mut tx, tenant).await.unwrap();
    let pro = PlanAssignment::active(PRO.clone());
    subscription::record_in(&mut tx, tenant, "own-table", changed, Some(&pro), clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    let began = clock.now();
    clock.advance(TimeDelta::days(1));
    let recorded = History::new(system.clone(), &OwnTable);
    let past = recorded.at(tenant, clock.now() - TimeDelta::hours(1)).await.unwrap();
    assert_eq!((past.is_feature_enabled(&CSV), past.revision()), (true, changed));
    assert!(!recorded.at(tenant, created).await.unwrap().is_feature_enabled(&CSV), "nothing had been bought");
    let later = recorded.clone().with_plans_recorded_from(began);
    assert_eq!(later.at(tenant, created).await.unwrap_err().code(), "unrecorded");
    assert!(later.at(tenant, began).await.unwrap().is_feature_enabled(&CSV));
    // A later change of another kind does not forget it.
    let shop = Shop::open(&database, PlanCatalog::from_toml(FIRST).unwrap());
    shop.cohorts.add_to_cohort(tenant, "friends", &ACTOR).await.unwrap();
    let now = recorded.at(tenant, clock.now()).await.unwrap();
    assert!(now.is_feature_enabled(&CSV) && now.is_feature_enabled(&FeatureKey::from_static("beta")));
    // Another source is not heard: it was not the one that answered.
    let assigned = History::new(system.clone(), &*shop.plans);
    assert!(!assigned.at(tenant, clock.now()).await.unwrap().is_feature_enabled(&CSV));

    // A clock that goes back does not change the order.
    let mut tx = SystemTx::begin(&system, ACTOR.clone(), "record by a clock that is late").await.unwrap();
    let ended = revision::bump_in(&mut tx, tenant).await.unwrap();
    subscription::record_in(&mut tx, tenant, "own-table", ended, None, created).await.unwrap();
    tx.commit().await.unwrap();
    assert!(!recorded.at(tenant, began).await.unwrap().is_feature_enabled(&CSV));
    let mut tx = SystemTx::begin(&system, ACTOR.clone(), "record one revision twice").await.unwrap();
    let again = subscription::record_in(&mut tx, tenant, "own-table", changed, Some(&pro), clock.now()).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Conflict);
}

/// An adopter's own source of plans, which records what it changes.
#[derive(Debug)]
struct OwnTable;

#[async_trait::async_trait]
impl PlanSource for OwnTable {
    async fn plan_of(&self, _: &dyn TenantContext, _: DateTime<Utc>) -> Result<PlanAssignment, CoreError> {
        Ok(PlanAssignment::active(PRO.clone()))
    }

    fn recorded_as(&self) -> Option<&'static str> {
        Some("own-table")
    }
}
