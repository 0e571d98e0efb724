//! What the past is said to have been is what the gate answered then, also of tenants that came to their plan with more than it
//! allows. On a real PostgreSQL, as the application role.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, ErrorKind, Limit, PlanCatalog, PlanKey, SystemTx, TenantContext, revision,
    subscription::PlanAssignment,
};
use saas_entitlements::{
    AssignedPlans, Entitlements, History, NewOverride, OverrideGrant, Overrides, PostgresSource, Snapshot,
    usage::{Retention, UsagePipeline},
};

use crate::over::{App, CALLS, EXPORT, FILES, FREE, PLANS, READ_ONLY, SEATS, VIEW, key_of};

/// Everything that usage decides about, and how it is explained.
fn answers(snapshot: &Snapshot) -> Vec<String> {
    let mut answers = vec![format!("{:?} {:?}", snapshot.excess(), snapshot.next_boundary())];
    answers.extend([EXPORT, VIEW].iter().map(|feature| {
        let why = snapshot.explain(feature).unwrap();
        format!("{} {why}", why.in_full())
    }));
    answers
}

async fn history(app: &App) -> History {
    let plans = AssignedPlans::new(std::sync::Arc::new(app.database.tenants().clone()), app.here.catalog());
    let history = History::new(app.database.system().clone(), &plans);
    let from = app.database.clock().now() - TimeDelta::days(1_000);
    history.publish(PLANS, &Actor::system("test"), from).await.unwrap();
    history
}

/// What the gate answers now, having heard of all that was committed.
async fn asked(app: &App) -> (DateTime<Utc>, Vec<String>) {
    let tenant = app.acme.tenant();
    let mut tx = SystemTx::begin(app.database.system(), Actor::system("test"), "hear").await.unwrap();
    app.here.hear(tenant, revision::current_in(&mut tx, tenant).await.unwrap());
    tx.rollback().await.unwrap();
    app.here.tick();
    let now = app.database.clock().now();
    (now, answers(&*app.here.snapshot(tenant).await))
}

// f-E15
#[tokio::test(flavor = "multi_thread")]
async fn what_was_beyond_a_limit_is_part_of_the_past() {
    for seed in 0..2 {
        record_and_compare(seed).await;
    }
}

async fn record_and_compare(seed: u64) {
    let app = App::start().await;
    let history = history(&app).await;
    let overrides = Overrides::new(app.database.system().clone(), app.here.clone());
    let mut random = fastrand::Rng::with_seed(seed);
    // At one instant the last answer counts.
    let mut answered = HashMap::new();
    for step in 0..260 {
        let meter = [FILES, SEATS, CALLS][random.usize(0..3)].clone();
        let key = format!("step {step}");
        match random.u8(0..12) {
            0..=2 => drop(app.consume(&meter, random.u64(1..9), &key).await),
            3 | 4 => drop(app.meter.record(&app.acme, &meter, random.u64(1..6), &key_of(&key)).await.unwrap()),
            5 | 6 => app.correct(&meter, -random.i64(1..6), &key).await,
            7 | 8 => app.change_plan(["free", "free", "free", "pro"][random.usize(0..4)]).await,
            9 => {
                let ends_at = app.database.clock().now() + TimeDelta::hours(random.i64(1..40));
                let trial =
                    PlanAssignment { ends_at: Some(ends_at), ..PlanAssignment::active(PlanKey::from_static("pro")) };
                app.assignments.put_assignment(app.acme.tenant(), trial, &Actor::system("test")).await.unwrap();
            }
            10 => {
                let grant = OverrideGrant::Limit { meter, limit: Limit::Max(random.u64(1..12)) };
                let until = app.database.clock().now() + TimeDelta::hours(random.i64(1..60));
                let new = NewOverride::new(grant, "test", until).unwrap();
                overrides.put_override(app.acme.tenant(), new, &Actor::system("test")).await.unwrap();
            }
            _ => {}
        }
        // Often only time passes: windows, graces, trials and overrides end by themselves.
        for moment in 0..random.i64(1..4) {
            let long = random.i64(0..8) / 7;
            app.advance(TimeDelta::minutes(moment * (random.i64(0..20) + long * 700)));
            let (now, answers) = asked(&app).await;
            answered.insert(now, answers);
        }
    }
    let (mut different, mut over) = (HashSet::new(), 0);
    for (instant, then) in answered {
        let past = history.at(app.acme.tenant(), instant).await.unwrap();
        assert_eq!(answers(&past), then, "seed {seed}, at {instant}");
        over += usize::from(past.excess().is_some());
        different.insert(then);
    }
    assert!(over > 30 && different.len() > 40, "{over} over, {} different: too few to say much", different.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_to_ask_for_the_past_to_be_known() {
    let app = App::start().await;
    let history = history(&app).await;
    let tenant = app.acme.tenant();
    let _ = app.consume(&FILES, 9, "nine files").await;
    app.change_plan("free").await;
    app.advance(TimeDelta::hours(1));
    let unasked = app.database.clock().now();
    let past = history.at(tenant, unasked).await.unwrap();
    assert_eq!(past.excess().map(|excess| (excess.meter.clone(), excess.over)), Some((FILES, 4)), "it holds still");
    app.advance(TimeDelta::hours(1));
    assert_eq!(app.enabled(&app.here).await, READ_ONLY);
    app.correct(&FILES, -5, "five are gone").await;
    app.advance(TimeDelta::hours(1));
    let unasked_again = app.database.clock().now();
    app.advance(TimeDelta::hours(1));
    assert_eq!(app.enabled(&app.here).await, FREE);
    let past = history.at(tenant, unasked).await.unwrap();
    assert_eq!(past.excess().map(|excess| excess.over), Some(4), "as whoever had asked would have been told");
    assert!(history.at(tenant, unasked_again).await.unwrap().excess().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_ends_by_time_alone_leaves_the_gate_knowing_what_is_used() {
    let app = App::start().await;
    let ends_at = app.database.clock().now() + TimeDelta::seconds(20);
    let trial = PlanAssignment { ends_at: Some(ends_at), ..PlanAssignment::active(PlanKey::from_static("pro")) };
    app.assignments.put_assignment(app.acme.tenant(), trial, &Actor::system("test")).await.unwrap();
    let _ = app.consume(&FILES, 9, "nine files").await;
    assert_eq!(app.enabled(&app.here).await, FREE);
    app.heard(FREE).await;
    app.advance(TimeDelta::seconds(20));
    assert_eq!((app.enabled(&app.here).await, app.enabled(&app.there).await), (READ_ONLY, READ_ONLY));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_use_of_a_window_is_watched_too() {
    let app = App::start().await;
    app.change_plan("free").await;
    app.heard(FREE).await;
    let _ = app.meter.record(&app.acme, &CALLS, 20, &key_of("twenty calls")).await.unwrap();
    app.heard(READ_ONLY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_with_the_events_is_not_made_up() {
    let app = App::start().await;
    let history = history(&app).await;
    let tenant = app.acme.tenant();
    let _ = app.consume(&FILES, 9, "nine files").await;
    app.change_plan("free").await;
    assert_eq!(app.enabled(&app.here).await, READ_ONLY);
    let over = app.database.clock().now();
    app.advance(TimeDelta::days(1));
    app.correct(&FILES, -5, "five are gone").await;
    app.heard(FREE).await;
    app.advance(TimeDelta::days(100));
    let clock = std::sync::Arc::new(app.database.clock().clone());
    let keep = Retention::new(TimeDelta::days(60), TimeDelta::days(30)).unwrap();
    let pipeline = UsagePipeline::new(app.database.system().clone(), clock).with_retention(keep);
    let done = pipeline.maintain(&mut |_| {}).await.unwrap();
    assert!(done.excess > 0, "{done:?}");
    assert_eq!(pipeline.maintain(&mut |_| {}).await.unwrap().excess, 0);
    let gone = history.at(tenant, over).await.unwrap_err();
    assert_eq!((gone.kind(), gone.code()), (ErrorKind::NotFound, "unrecorded"));
    assert!(gone.to_string().starts_with("what the tenant had used was not recorded"), "{gone}");
    // What is in force still was told long ago, and stays.
    let kept = "select count(*) from saas.excess_history where meter = 'files'";
    assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&mut app.database.owner().await).await.unwrap(), 1);
    assert!(history.at(tenant, app.database.clock().now()).await.unwrap().excess().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_that_ask_at_the_same_time_tell_the_past_once() {
    let app = App::start().await;
    let _ = app.consume(&FILES, 9, "nine files").await;
    app.change_plan("free").await;
    let catalog = PlanCatalog::from_toml(PLANS).unwrap();
    let binding = std::sync::Arc::new(app.database.tenants().clone());
    let plans = std::sync::Arc::new(AssignedPlans::new(binding.clone(), &catalog));
    let source = std::sync::Arc::new(PostgresSource::new(binding, plans));
    let gates: Vec<_> = (0..6)
        .map(|_| {
            let clock = std::sync::Arc::new(app.database.clock().clone());
            Entitlements::new(catalog.clone(), source.clone(), clock)
        })
        .collect();
    let tenant = app.acme.tenant();
    let asked: Vec<_> = gates
        .into_iter()
        .map(|gate| tokio::spawn(async move { gate.snapshot(tenant).await.is_feature_enabled(&EXPORT) }))
        .collect();
    for answer in asked {
        assert!(!answer.await.unwrap());
    }
    let told = "select count(*) from saas.excess_history where meter = 'files'";
    assert_eq!(sqlx::query_scalar::<_, i64>(told).fetch_one(&mut app.database.owner().await).await.unwrap(), 1);
}
