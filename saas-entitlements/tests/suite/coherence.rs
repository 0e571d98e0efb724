//! No old answer comes back, whatever overtakes whatever.

use chrono::TimeDelta;
use saas_core::{
    FeatureKey, Revision, TenantId,
    subscription::{AccessLevel, PlanAssignment},
};
use saas_entitlements::{GateOptions, Origin};

use crate::stage::{EXPORT, Stage, cancel_after, catalog, plan};

// G1
#[tokio::test]
async fn a_read_that_was_overtaken_is_thrown_away_for_everyone_who_waits() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    stage.source.hold();
    let early = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(tenant, &EXPORT).await }
    });
    stage.source.wait_for_reads(1).await; // it has read the old plan and is held up on its way back
    let revision = stage.change(tenant, "pro");
    stage.gate.hear(tenant, revision);
    let late = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(tenant, &EXPORT).await }
    });
    stage.source.release();
    assert!(early.await.unwrap(), "the one who asked before the change");
    assert!(late.await.unwrap(), "the one who joined after it");
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true), "and what is kept");
    assert_eq!(stage.gate.stats().outdated_loads, 1);
}

// G2
#[tokio::test]
async fn an_announcement_before_the_change_is_visible_does_not_keep_the_old_answer() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    assert!(!stage.export(tenant).await);
    // Announced, but the read does not show it yet: the load runs again until it does.
    stage.gate.hear(tenant, Revision::new(2));
    let asked = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(tenant, &EXPORT).await }
    });
    stage.source.wait_for_reads(3).await;
    stage.change(tenant, "pro");
    assert!(asked.await.unwrap());
}

#[tokio::test]
async fn a_held_answer_ends_with_the_announcement_and_only_that_tenants() {
    let stage = Stage::new();
    let (one, other) = (stage.tenant("free"), stage.tenant("free"));
    assert!(!stage.export(one).await && !stage.export(other).await);
    stage.gate.hear(one, stage.change(one, "pro"));
    assert!(stage.export(one).await);
    assert_eq!(stage.gate.is_feature_enabled(other, &EXPORT).if_ready(), Some(false));
    assert_eq!(stage.source.reads(), 3);
}

#[tokio::test]
async fn an_old_announcement_after_a_newer_one_changes_nothing() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    let new = stage.change(tenant, "pro");
    stage.gate.hear(tenant, new);
    assert!(stage.export(tenant).await);
    stage.gate.hear(tenant, Revision::new(1));
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true));
}

// Any session can announce any number.
#[tokio::test]
async fn a_number_that_the_source_does_not_have_delays_answers_and_denies_none() {
    let stage = Stage::new();
    let (held, cold) = (stage.tenant("pro"), stage.tenant("pro"));
    assert!(stage.export(held).await);
    for tenant in [held, cold] {
        stage.gate.hear(tenant, Revision::new(u64::MAX));
        assert!(stage.export(tenant).await);
        assert_eq!(stage.gate.snapshot(tenant).await.origin(), Origin::Loaded);
        assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true), "and it is kept");
    }
    let stats = stage.gate.stats();
    assert_eq!((stats.load_failures, stats.unfounded_announcements), (0, 2));
}

#[tokio::test]
async fn after_a_number_that_did_not_exist_the_next_true_one_is_heard() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    stage.gate.hear(tenant, Revision::new(u64::MAX));
    assert!(stage.export(tenant).await);
    stage.gate.hear(tenant, stage.change(tenant, "free"));
    assert!(!stage.export(tenant).await);
}

#[tokio::test]
async fn a_true_number_below_one_that_does_not_exist_overtakes_the_reads_before_it() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    stage.gate.hear(tenant, Revision::new(u64::MAX));
    let asked = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(tenant, &EXPORT).await }
    });
    // Until the read that would be believed is on its way back with the old plan.
    stage.source.wait_for_reads(6).await;
    stage.source.hold();
    stage.source.wait_for_reads(7).await;
    stage.gate.hear(tenant, stage.change(tenant, "free"));
    stage.source.release();
    assert!(!asked.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn tenants_that_wait_for_a_change_to_show_do_not_hold_up_others() {
    let stage = Stage::with(GateOptions::default().with_concurrent_loads(1));
    let (waiting, other) = (stage.tenant("pro"), stage.tenant("pro"));
    stage.gate.hear(waiting, Revision::new(u64::MAX));
    let asked = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(waiting, &EXPORT).await }
    });
    stage.source.wait_for_reads(1).await;
    assert!(stage.export(other).await);
    assert!(!asked.is_finished(), "it still waits, and gave its turn away meanwhile");
    assert!(asked.await.unwrap());
}

// G3: the floor outlives what it guards.
#[tokio::test]
async fn the_floor_survives_the_eviction_of_the_tenant() {
    let stage = Stage::with(GateOptions::default().with_capacity(1));
    let tenant = stage.tenant("free");
    stage.source.hold();
    let asked = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(tenant, &EXPORT).await }
    });
    stage.source.wait_for_reads(1).await;
    stage.gate.hear(tenant, stage.change(tenant, "pro"));
    stage.source.release();
    assert!(asked.await.unwrap());
    for _ in 0..200 {
        stage.export(stage.tenant("free")).await;
    }
    assert!(stage.gate.stats().evictions > 0, "the table is far too small for all of them");
    assert!(stage.export(tenant).await);
}

// G4
#[tokio::test]
async fn a_flush_also_throws_away_reads_that_began_before_it() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    stage.source.hold();
    let asked = tokio::spawn({
        let gate = stage.gate.clone();
        async move { gate.is_feature_enabled(tenant, &EXPORT).await }
    });
    stage.source.wait_for_reads(1).await;
    stage.change(tenant, "pro"); // whose announcement is lost
    stage.gate.flush();
    stage.source.release();
    assert!(asked.await.unwrap());
    assert_eq!(stage.source.reads(), 2);
}

// G4: every announcement lost.
#[tokio::test]
async fn without_any_announcement_the_answer_is_right_within_the_ttl() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    assert!(!stage.export(tenant).await);
    stage.change(tenant, "pro");
    stage.advance(30);
    assert!(!stage.export(tenant).await, "within the bound the old answer may stand");
    stage.advance(30);
    assert!(stage.export(tenant).await, "60 s after the read it may not");
}

#[tokio::test]
async fn a_tenant_in_use_is_read_again_before_its_answer_ends_and_nobody_waits() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    for round in 1..=5 {
        stage.advance(50);
        assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true), "round {round}");
        stage.source.wait_for_reads(1 + round).await;
        tokio::task::yield_now().await;
    }
}

// G6
#[tokio::test]
async fn a_thousand_misses_at_once_are_one_read() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let tasks: Vec<_> = (0..1_000)
        .map(|_| {
            let gate = stage.gate.clone();
            tokio::spawn(async move { gate.is_feature_enabled(tenant, &EXPORT).await })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    assert_eq!(stage.source.reads(), 1);
}

// G6
#[tokio::test]
async fn what_was_loaded_together_does_not_expire_together() {
    let stage = Stage::new();
    let tenants: Vec<_> = (0..200).map(|_| stage.tenant("pro")).collect();
    for tenant in &tenants {
        stage.export(*tenant).await;
    }
    // A held-up source: whoever has expired cannot be answered at once.
    stage.source.hold();
    let alive = || tenants.iter().filter(|t| stage.gate.is_feature_enabled(**t, &EXPORT).if_ready().is_some()).count();
    stage.advance(54);
    assert_eq!(alive(), 200, "nine tenths of the ttl are everybody's");
    stage.advance(3);
    assert!((50..150).contains(&alive()), "{}", alive());
    stage.advance(3);
    assert_eq!(alive(), 0);
}

// G8: waiters of every kind share one load and one error.
#[tokio::test]
async fn questions_of_every_kind_wait_for_the_same_read() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    let handle = stage.gate.feature(&EXPORT).unwrap();
    for down in [true, false] {
        stage.source.set_down(down);
        stage.source.hold();
        let gate = stage.gate.clone();
        let by_name = tokio::spawn(gate.is_feature_enabled(tenant, &EXPORT));
        let by_handle = tokio::spawn(gate.is_enabled(tenant, handle));
        let whole = tokio::spawn({
            let gate = gate.clone();
            async move { gate.snapshot(tenant).await.is_feature_enabled(&EXPORT) }
        });
        let why = tokio::spawn(async move { gate.explain(tenant, &EXPORT).await.unwrap().enabled });
        let reads = stage.source.reads();
        stage.source.wait_for_reads(reads + 1).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        stage.source.release();
        let answers = [by_name.await, by_handle.await, whole.await, why.await].map(Result::unwrap);
        assert_eq!(answers, [!down; 4]);
        assert_eq!(stage.source.reads(), reads + 1);
    }
}

// G7
#[tokio::test]
async fn callers_that_give_up_do_not_disturb_the_load() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    stage.source.hold();
    for _ in 0..250 {
        assert_eq!(cancel_after(1, stage.gate.is_feature_enabled(tenant, &EXPORT)).await, None);
    }
    stage.source.wait_for_reads(1).await;
    stage.source.release();
    assert!(stage.export(tenant).await);
    assert_eq!(stage.source.reads(), 1);
}

// G9
#[tokio::test]
async fn a_tenant_that_is_created_after_it_was_asked_for_is_known_with_its_announcement() {
    let stage = Stage::new();
    let tenant = TenantId::mint(&stage.clock);
    assert!(!stage.export(tenant).await);
    let snapshot = stage.gate.snapshot(tenant).await;
    assert_eq!((snapshot.origin(), snapshot.access()), (Origin::UnknownTenant, AccessLevel::Suspended));
    let revision = stage.change(tenant, "pro");
    assert!(!stage.export(tenant).await, "not known yet");
    stage.gate.hear(tenant, revision);
    assert!(stage.export(tenant).await);
}

// G9
#[tokio::test]
async fn a_tenant_that_is_created_in_silence_is_known_two_seconds_later() {
    let stage = Stage::new();
    let tenant = TenantId::mint(&stage.clock);
    assert!(!stage.export(tenant).await);
    stage.change(tenant, "pro");
    stage.advance(2);
    assert!(stage.export(tenant).await);
}

#[tokio::test]
async fn a_tenant_that_was_erased_is_unknown_after_its_announcement() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    stage.source.tenants.remove(tenant);
    stage.gate.hear(tenant, Revision::new(2));
    assert!(!stage.export(tenant).await);
    assert_eq!(stage.gate.snapshot(tenant).await.origin(), Origin::UnknownTenant);
}

// G15, G19
#[tokio::test]
async fn an_unknown_feature_and_a_handle_of_another_catalogue_are_off_and_counted() {
    let stage = Stage::new();
    let tenant = stage.tenant("pro");
    assert!(stage.export(tenant).await);
    let text = "default_plan = 'a'\n[features.x]\nkind = 'boolean'\nfail = 'open'\n[plans.a]\nrank = 0\n[[plans.a.versions]]\nversion = 1\n";
    let other = saas_core::PlanCatalog::from_toml(text).unwrap();
    let foreign = saas_entitlements::FeatureHandle::of(&other, &FeatureKey::from_static("x")).unwrap();
    assert_eq!(stage.gate.is_enabled(tenant, foreign).if_ready(), Some(false));
    assert_eq!(stage.gate.is_feature_enabled(tenant, &FeatureKey::from_static("x")).if_ready(), Some(false));
    assert!(!stage.gate.snapshot(tenant).await.is_enabled(foreign));
    assert_eq!(stage.gate.stats().unknown_features, 2);
}

// G14
#[tokio::test]
async fn a_clock_that_goes_back_makes_everything_be_read_again() {
    let stage = Stage::new();
    let tenant = stage.tenant("free");
    assert!(!stage.export(tenant).await);
    stage.change(tenant, "pro");
    stage.advance(-3_600);
    assert!(stage.export(tenant).await);
    assert_eq!(stage.gate.is_feature_enabled(tenant, &EXPORT).if_ready(), Some(true), "and hits work again");
}

// G14: clocks that differ. Lives are counted on each one's own clock; boundaries are met as far apart as the clocks are.
#[tokio::test]
async fn a_process_whose_clock_is_ahead_meets_boundaries_early_by_as_much_and_is_stale_no_longer() {
    let stage = Stage::new();
    let ahead = stage.beside(catalog(), TimeDelta::seconds(60));
    let tenant = stage.tenant("pro");
    let ends_at = Some(stage.now() + TimeDelta::seconds(90));
    stage.source.tenants.put_plan(tenant, PlanAssignment { ends_at, ..plan("pro") });
    assert!(stage.export(tenant).await && ahead.export(tenant).await);
    let both = async |seconds| {
        stage.advance(seconds);
        ahead.advance(seconds);
        (stage.export(tenant).await, ahead.export(tenant).await)
    };
    assert_eq!(both(29).await, (true, true));
    assert_eq!(both(1).await, (true, false), "its boundary");
    assert_eq!(both(59).await, (true, false));
    assert_eq!(both(1).await, (false, false), "60 s later: theirs");
    // A change in silence shows to both after the same time: that of one life.
    stage.change(tenant, "pro");
    assert_eq!(both(60).await, (true, true));
}

// G15: two versions of the application beside each other, during a deployment.
#[tokio::test]
async fn a_snapshot_of_one_catalogue_answers_nothing_for_another() {
    let stage = Stage::new();
    // A feature before all others: every place has moved.
    let text = "default_plan = 'free'\n[features.archive]\nkind = 'boolean'\nfail = 'closed'\n[features.export]\nkind = \
        'boolean'\nfail = 'closed'\n[plans.free]\nrank = 0\n[[plans.free.versions]]\nversion = 1\n[plans.pro]\nrank = 1\n\
        [[plans.pro.versions]]\nversion = 1\ngrants.archive = true\n";
    let newer = stage.beside(saas_core::PlanCatalog::from_toml(text).unwrap(), TimeDelta::zero());
    assert_ne!(newer.gate.catalog().fingerprint(), stage.gate.catalog().fingerprint());
    let tenant = stage.tenant("pro");
    let handles = [&stage, &newer].map(|stage| stage.gate.feature(&EXPORT).unwrap());
    let snapshots = [stage.gate.snapshot(tenant).await, newer.gate.snapshot(tenant).await];
    // Each by its own; across, all is off, whatever the other feature in that place would be.
    let asked = |of: usize, handle: usize| {
        let gate = [&stage, &newer][of].gate.is_enabled(tenant, handles[handle]).if_ready();
        (gate, snapshots[of].is_enabled(handles[handle]))
    };
    assert_eq!([asked(0, 0), asked(1, 1)], [(Some(true), true), (Some(false), false)]);
    assert_eq!([asked(0, 1), asked(1, 0)], [(Some(false), false); 2]);
    let archive = newer.gate.feature(&FeatureKey::from_static("archive")).unwrap();
    assert!(newer.gate.is_enabled(tenant, archive).await);
    assert_eq!(
        stage.gate.is_enabled(tenant, archive).if_ready(),
        Some(false),
        "although the feature in its place is on"
    );
    assert!(!snapshots[0].is_enabled(archive));
}

#[tokio::test]
async fn several_gates_in_one_process_do_not_mix() {
    let (one, other) = (Stage::new(), Stage::new());
    let tenant = one.tenant("pro");
    other.source.tenants.put_plan(tenant, crate::stage::plan("free"));
    for _ in 0..2 {
        assert!(one.export(tenant).await);
        assert!(!other.export(tenant).await);
    }
}

#[tokio::test]
async fn more_news_than_can_be_remembered_is_a_flush_not_a_leak() {
    let stage = Stage::with(GateOptions::default().with_capacity(1));
    let tenant = stage.tenant("free");
    assert!(!stage.export(tenant).await);
    stage.change(tenant, "pro");
    for _ in 0..1_100 {
        stage.gate.hear(TenantId::mint(&stage.clock), Revision::new(7));
    }
    assert!(stage.export(tenant).await, "flushed although its own announcement was lost");
}
