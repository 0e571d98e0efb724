//! What the gate answers while the source cannot be read, and as time passes.

use chrono::TimeDelta;
use saas_core::{
    Actor, FeatureKey, Limit, MeterKey, UserId,
    plan::StaticValue,
    subscription::{PlanAssignment, Standing},
};
use saas_entitlements::{NewOverride, Origin, OverrideGrant};

use crate::stage::{EXPORT, READ, Stage, plan};

// G11
#[tokio::test]
async fn the_last_known_state_serves_until_its_bound_and_then_each_feature_fails_as_declared() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    stage.source.set_down(true);
    stage.advance(3_599);
    let snapshot = stage.gate.snapshot(tenant).await;
    assert!(matches!(snapshot.origin(), Origin::LastKnown { .. }));
    assert!(snapshot.is_feature_enabled(&EXPORT));
    let sentence = snapshot.explain(&EXPORT).unwrap().to_string();
    assert_eq!(
        sentence,
        "`export` is on: plan `pro` version 1 grants it; last known state, read at 2026-01-15T12:00:00Z."
    );
    stage.advance(1);
    let snapshot = stage.gate.snapshot(tenant).await;
    assert_eq!(snapshot.origin(), Origin::FailPolicy);
    assert!(!snapshot.is_feature_enabled(&EXPORT), "declared closed");
    assert!(snapshot.is_feature_enabled(&READ), "declared open");
    let sentence = snapshot.explain(&EXPORT).unwrap().to_string();
    assert_eq!(sentence, "`export` is off: the tenant's plan cannot be read at present and the feature fails closed.");
    let stats = stage.gate.stats();
    assert!(stats.last_known_answers > 0 && stats.fail_policy_answers > 0 && stats.load_failures > 0);
}

// G12
#[tokio::test]
async fn a_fallback_is_never_kept() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    stage.source.set_down(true);
    assert!(!stage.export(tenant).await, "nothing is known: closed");
    stage.source.set_down(false);
    assert!(stage.export(tenant).await, "the next read is real, at the same instant");
}

#[tokio::test]
async fn in_an_outage_the_source_is_not_asked_for_every_question() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    stage.source.set_down(true);
    stage.advance(120);
    for _ in 0..100 {
        assert!(stage.export(tenant).await);
    }
    assert_eq!(stage.source.reads(), 2, "one try, then its pause");
    stage.source.set_down(false);
    stage.change(tenant, "free");
    stage.advance(1);
    assert!(stage.export(tenant).await, "nobody waits for the next try");
    stage.source.wait_for_reads(3).await;
    tokio::task::yield_now().await;
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(false), "which succeeded");
}

#[tokio::test]
async fn after_a_failed_load_nothing_older_than_what_was_heard_since_is_answered() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    stage.source.set_down(true);
    stage.advance(120);
    assert!(stage.export(tenant).await, "the last known state");
    assert_eq!(stage.gate.stats().load_failures, 1);
    stage.source.set_down(false);
    stage.gate.hear(tenant, stage.change(tenant, "free"));
    assert!(!stage.export(tenant).await, "the source answers again, and was asked");
}

// G11: a source that hangs holds nobody up twice.
#[tokio::test(start_paused = true)]
async fn while_the_source_hangs_only_the_first_caller_waits() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    stage.source.hold();
    stage.advance(120);
    let begun = tokio::time::Instant::now();
    assert!(stage.export(tenant).await);
    let first = begun.elapsed();
    for _ in 0..1_000 {
        stage.advance(1);
        assert!(stage.export(tenant).await);
    }
    assert_eq!((first.as_secs(), begun.elapsed().as_secs()), (2, 2));
}

// G7: the deadline of a load is its own.
#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_is_given_up_after_the_load_timeout() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    stage.source.hold();
    let begun = tokio::time::Instant::now();
    assert!(!stage.export(tenant).await);
    assert_eq!(begun.elapsed().as_secs(), 2);
    stage.source.release();
    assert!(stage.export(tenant).await);
}

// D6, G13
#[tokio::test]
async fn a_boundary_that_passes_while_cached_changes_the_answer_without_any_read() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let (until, suspended_from) = (stage.now() + TimeDelta::seconds(5), stage.now() + TimeDelta::seconds(20));
    let standing = Standing::Grace { until, suspended_from };
    stage.source.tenants.put_plan(tenant, PlanAssignment { standing, ..plan("pro") });
    assert!(stage.export(tenant).await);
    stage.advance(4);
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true));
    stage.advance(1);
    let enabled = |key: &FeatureKey| stage.gate.is_feature_enabled(tenant, key).if_ready();
    assert_eq!((enabled(&EXPORT), enabled(&READ)), (Some(false), Some(true)), "restricted");
    let sentence = stage.gate.explain(tenant, &EXPORT).await.unwrap().to_string();
    assert_eq!(
        sentence,
        "`export` is off: a payment is open and the grace period ended at 2026-01-15T12:00:05Z; it needs full access, \
         the tenant has restricted."
    );
    stage.advance(15);
    assert_eq!((enabled(&EXPORT), enabled(&READ)), (Some(false), Some(false)), "suspended");
    assert_eq!(stage.source.reads(), 1);
}

// G13
#[tokio::test]
async fn boundaries_also_pass_during_an_outage() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let ends_at = Some(stage.now() + TimeDelta::seconds(600));
    stage.source.tenants.put_plan(tenant, PlanAssignment { ends_at, ..plan("pro") });
    assert!(stage.export(tenant).await);
    stage.source.set_down(true);
    stage.advance(599);
    assert!(stage.export(tenant).await);
    stage.advance(1);
    assert!(!stage.export(tenant).await, "the trial ended, whether or not anything can be read");
}

// G13
#[tokio::test]
async fn an_override_ends_by_itself_and_explains_itself_until_then() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    let author = Actor::Operator { id: UserId::mint(&stage.clock) };
    let grant = OverrideGrant::Switch { feature: EXPORT, on: true };
    let new = NewOverride::new(grant, "goodwill after the outage", stage.now() + TimeDelta::seconds(30)).unwrap();
    let issued = new.issue(stage.gate.catalog(), &author, stage.now()).unwrap();
    let revision = stage.source.tenants.put_override(tenant, issued).unwrap();
    stage.gate.hear(tenant, revision);
    assert!(stage.export(tenant).await);
    let sentence = stage.gate.explain(tenant, &EXPORT).await.unwrap().to_string();
    assert_eq!(
        sentence,
        format!(
            "`export` is on: {author} decided until 2026-01-15T12:00:30Z, because “goodwill after the outage”; otherwise \
             plan `free` version 1 counts."
        )
    );
    stage.advance(30);
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(false));
    let explained = stage.gate.explain(tenant, &EXPORT).await.unwrap();
    assert_eq!(
        explained.to_string(),
        "`export` is off: plan `free` version 1 does not include it; `pro` is the first plan that does."
    );
}

#[tokio::test]
async fn static_values_and_limits_follow_plan_and_override() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    let (seats, calls) = (saas_core::FeatureKey::from_static("seats"), MeterKey::from_static("calls"));
    let actor = Actor::system("test");
    for grant in [
        OverrideGrant::Value { feature: seats.clone(), value: StaticValue::Integer(9) },
        OverrideGrant::Limit { meter: calls.clone(), limit: Limit::Max(0) },
    ] {
        let new = NewOverride::new(grant, "a test", stage.now() + TimeDelta::seconds(10)).unwrap();
        stage.source.tenants.put_override(tenant, new.issue(stage.gate.catalog(), &actor, stage.now()).unwrap());
    }
    let api = saas_core::FeatureKey::from_static("api");
    let snapshot = stage.gate.snapshot(tenant).await;
    assert_eq!(
        (snapshot.integer(&seats), snapshot.limit(&calls).map(|rule| rule.limit)),
        (Some(9), Some(Limit::Max(0)))
    );
    assert!(!snapshot.is_feature_enabled(&api), "a metered feature follows its meter's limit");
    stage.advance(10);
    let snapshot = stage.gate.snapshot(tenant).await;
    assert_eq!(
        (snapshot.integer(&seats), snapshot.limit(&calls).map(|rule| rule.limit)),
        (Some(1), Some(Limit::Max(1_000)))
    );
    assert!(snapshot.is_feature_enabled(&api));
}

#[tokio::test]
async fn an_override_gives_nothing_back_to_a_suspended_tenant() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    let standing = Standing::Suspended { since: stage.now() };
    stage.source.tenants.put_plan(tenant, PlanAssignment { standing, ..plan("free") });
    let new = NewOverride::new(
        OverrideGrant::Switch { feature: EXPORT, on: true },
        "a test",
        stage.now() + TimeDelta::days(1),
    );
    let issued = new.unwrap().issue(stage.gate.catalog(), &Actor::system("test"), stage.now()).unwrap();
    stage.source.tenants.put_override(tenant, issued);
    let explained = stage.gate.explain(tenant, &EXPORT).await.unwrap();
    assert!(!explained.enabled);
    assert!(explained.to_string().contains("access is suspended since 2026-01-15T12:00:00Z"), "{explained}");
}

#[tokio::test]
async fn a_plan_that_the_catalogue_lacks_is_an_outage_not_the_default_plan() {
    let stage = Stage::new();
    let tenant = stage.tenant("platinum");
    let snapshot = stage.gate.snapshot(tenant).await;
    assert_eq!(snapshot.origin(), Origin::FailPolicy);
    assert_eq!(stage.gate.stats().load_failures, 1);
}

#[test]
fn overrides_that_do_not_fit_are_refused() {
    let stage = Stage::new();
    let feature = |key: &'static str| saas_core::FeatureKey::from_static(key);
    let meter = MeterKey::from_static("calls");
    for (grant, code) in [
        (OverrideGrant::Switch { feature: feature("nope"), on: true }, "unknown_feature"),
        (OverrideGrant::Switch { feature: feature("seats"), on: true }, "invalid_input"),
        (OverrideGrant::Switch { feature: feature("api"), on: true }, "invalid_input"),
        (OverrideGrant::Value { feature: feature("seats"), value: StaticValue::Text("5".into()) }, "invalid_input"),
        (OverrideGrant::Value { feature: feature("export"), value: StaticValue::Integer(1) }, "invalid_input"),
        (OverrideGrant::Limit { meter: MeterKey::from_static("nope"), limit: Limit::Unlimited }, "unknown_meter"),
        (OverrideGrant::Limit { meter: meter.clone(), limit: Limit::Max(u64::MAX) }, "invalid_input"),
    ] {
        assert_eq!(grant.check(stage.gate.catalog()).unwrap_err().code(), code, "{grant:?}");
    }
    let grant = OverrideGrant::Limit { meter, limit: Limit::Unlimited };
    for reason in ["", "  ", "a\0b", &"x".repeat(501)] {
        assert!(NewOverride::new(grant.clone(), reason, stage.now()).is_err(), "{reason:?}");
    }
    let over = NewOverride::new(grant, "a test", stage.now()).unwrap();
    assert!(over.issue(stage.gate.catalog(), &Actor::system("test"), stage.now()).is_err(), "already over");
}

// G14
#[tokio::test]
async fn a_clock_that_went_back_while_the_gates_stood_still_shows_nothing_old() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    drop(stage.gate.start_clock());
    stage.clock.advance(-TimeDelta::hours(1));
    stage.change(tenant, "free"); // in silence
    stage.advance(0);
    stage.advance(120);
    assert!(!stage.export(tenant).await, "two lives of an answer later");
}

// One synchronous job on the runtime must not stop the time by which answers end.
#[tokio::test]
async fn the_gates_clock_goes_on_while_the_runtime_is_busy() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let ends_at = Some(stage.now() + TimeDelta::seconds(10));
    stage.source.tenants.put_plan(tenant, PlanAssignment { ends_at, ..plan("pro") });
    let _clock = stage.gate.start_clock();
    assert!(stage.export(tenant).await);
    stage.clock.advance(TimeDelta::seconds(10));
    // This thread is the whole runtime and does not give way.
    while stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready() == Some(true) {
        std::hint::spin_loop();
    }
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(false));
}

#[tokio::test]
async fn without_a_running_clock_every_answer_is_still_right() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let clock = stage.gate.start_clock();
    assert!(stage.export(tenant).await);
    drop(clock);
    let misses = stage.gate.stats().misses;
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true));
    assert_eq!(stage.gate.stats().misses, misses + 1, "by the slow path");
    stage.change(tenant, "free");
    stage.clock.advance(TimeDelta::seconds(60));
    assert!(!stage.export(tenant).await, "which asks the real clock");
}
