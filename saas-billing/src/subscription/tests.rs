use chrono::{DateTime, TimeDelta, Utc};
use saas_core::PlanCatalog;
use serde_json::json;

use super::{
    Change, Goal,
    edit::Edit,
    goal::{Next, Seen, next},
    schedule::Schedule,
};
use crate::{
    error::BillingError,
    event::{AnySnapshot, read_fetched},
    merge::Origin,
    object::{ObjectId, ObjectKind, PauseBehavior, PauseReason, PausedStatus, Subscription},
    provider::{Cancellation, Command, OnFailedPayment, Proration},
};

const STATUSES: [&str; 9] = [
    "incomplete",
    "incomplete_expired",
    "trialing",
    "active",
    "past_due",
    "unpaid",
    "canceled",
    "paused",
    "of_tomorrow",
];

fn catalog() -> PlanCatalog {
    let text = r#"
        default_plan = "free"
        [plans.free]
        rank = 0
        [[plans.free.versions]]
        version = 1
        [plans.pro]
        rank = 10
        [[plans.pro.versions]]
        version = 1
        prices = ["price_pro"]
        [plans.team]
        rank = 20
        [[plans.team.versions]]
        version = 1
        prices = ["price_team"]"#;
    PlanCatalog::from_toml(text).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

fn id(text: &str) -> ObjectId {
    text.parse().unwrap()
}

fn subscription(status: &str) -> Subscription {
    let object = json!({
        "id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status,
        "items": {"data": [{
            "id": "si_1", "quantity": 2, "price": {"id": "price_pro", "currency": "eur"},
            "current_period_start": 1000, "current_period_end": 2000
        }]}
    });
    let object = serde_json::value::to_raw_value(&object).unwrap();
    let origin = Origin::Fetch { sequence: 0, covers: Default::default(), covers_overflow: false };
    match read_fetched(ObjectKind::Subscription, &object, at(0), origin).unwrap() {
        AnySnapshot::Subscription(snapshot) => snapshot.value,
        other => panic!("{other:?}"),
    }
}

fn seen(status: &str) -> Seen {
    Seen { subscription: subscription(status), schedule: None }
}

fn schedule(following: Option<&str>) -> Schedule {
    let mut phases = vec![json!({"start_date": 1000, "items": [{"price": "price_pro", "quantity": 2}]})];
    // A price may come whole.
    phases
        .extend(following.map(|price| json!({"start_date": 2000, "items": [{"price": {"id": price}, "quantity": 2}]})));
    let object =
        json!({"id": "sub_sched_1", "current_phase": {"start_date": 1000, "end_date": 2000}, "phases": phases});
    Schedule::read(&serde_json::value::to_raw_value(&object).unwrap()).unwrap().unwrap()
}

fn to_team() -> Edit {
    Edit { price: Some(id("price_team")), ..Edit::default() }
}

fn now(edit: Edit) -> Goal {
    Goal::ItemsNow {
        edit,
        proration: Proration::InvoiceNow,
        proration_date: None,
        on_failed_payment: OnFailedPayment::Wait,
        basis: None,
    }
}

/// One word for what comes next.
fn step(goal: &Goal, seen: &Seen, done: &[&str]) -> String {
    let done: Vec<String> = done.iter().map(|step| (*step).to_owned()).collect();
    match next(goal, seen, &catalog(), &done) {
        Ok(Next::Do(what, _)) => what.to_owned(),
        Ok(Next::Stop(change)) => format!("{change:?}").split(' ').next().unwrap_or_default().to_owned(),
        Err(BillingError::StateForbids { .. }) => "-".to_owned(),
        Err(other) => panic!("{other:?}"),
    }
}

// D4
#[test]
fn every_goal_has_an_answer_in_every_status() {
    let goals = [
        now(to_team()),
        Goal::ItemsNext { edit: to_team(), basis: None },
        Goal::End { when: Cancellation::Now },
        Goal::End { when: Cancellation::AtPeriodEnd },
        Goal::Pause { behavior: PauseBehavior::Void, resumes_at: None },
        Goal::Running,
        Goal::AsIs,
    ];
    let (change, attach, pause) = ("change_items", "attach_schedule", "pause_collection");
    let expected = [
        ["-", "-", "cancel", "cancel", "-", "-", "Already"],
        ["-", "-", "Already", "Already", "-", "-", "Already"],
        [change, change, "cancel", "cancel", pause, "Already", "Already"],
        [change, attach, "cancel", "cancel", pause, "Already", "Already"],
        ["-", "-", "cancel", "cancel", pause, "Already", "Already"],
        ["-", "-", "cancel", "cancel", pause, "Already", "Already"],
        ["-", "-", "Already", "Already", "-", "-", "Already"],
        ["-", "-", "cancel", "cancel", pause, "resume_subscription", "Already"],
        [change, attach, "cancel", "cancel", pause, "Already", "Already"],
    ];
    for (status, row) in STATUSES.iter().zip(expected) {
        let steps: Vec<String> = goals.iter().map(|goal| step(goal, &seen(status), &[])).collect();
        assert_eq!(steps, row, "{status}");
    }
}

// D4: Stripe pauses for other reasons, too, since 2026-09-30.
#[test]
fn what_is_paused_in_the_middle_of_a_paid_period_is_resumed_at_stripe() {
    let resumed = |reason: Option<&str>| {
        let mut state = seen("paused");
        let reason = reason.map(|word| PauseReason::from(word.to_owned()));
        state.subscription.paused = Some(PausedStatus { since: None, reason });
        step(&Goal::Running, &state, &[])
    };
    assert_eq!(resumed(None), "resume_subscription");
    assert_eq!(resumed(Some("trial_end_without_payment_method")), "resume_subscription");
    for reason in ["pause_requested", "first_payment_failure", "final_payment_failure", "a word of tomorrow"] {
        assert_eq!(resumed(Some(reason)), "-", "{reason}");
    }
}

#[test]
fn a_downgrade_goes_on_from_wherever_it_was_left() {
    let goal = Goal::ItemsNext { edit: to_team(), basis: None };
    let mut state = seen("active");
    assert_eq!(step(&goal, &state, &[]), "attach_schedule");
    for (following, steps, expected) in [
        (None, &["attach_schedule"][..], "plan_phases"),
        // The answer to attaching was lost, or somebody else attached it.
        (None, &[], "plan_phases"),
        (Some("price_other"), &[], "plan_phases"),
        (Some("price_team"), &["attach_schedule", "plan_phases"], "Scheduled"),
        (Some("price_team"), &[], "Scheduled"),
    ] {
        state.schedule = Some(schedule(following));
        assert_eq!(step(&goal, &state, steps), expected, "{following:?} {steps:?}");
    }
    // What is planned keeps the present phase whole, and changes only what comes after it.
    state.schedule = Some(schedule(None));
    let Ok(Next::Do(_, Command::PlanPhases { phases, .. })) = next(&goal, &state, &catalog(), &[]) else { panic!() };
    assert_eq!((phases[0].start, phases[0].end), (Some(at(1000)), Some(at(2000))));
    assert_eq!(
        phases.iter().map(|phase| phase.items[0].clone()).collect::<Vec<_>>(),
        [(id("price_pro"), Some(2)), (id("price_team"), Some(2))]
    );
    let as_it_is = Goal::ItemsNext { edit: Edit { quantity: Some(2), ..Edit::default() }, basis: None };
    assert_eq!(step(&as_it_is, &state, &[]), "release_schedule");
}

#[test]
fn an_upgrade_steps_over_an_empty_schedule_and_not_over_one_that_plans() {
    let mut state = seen("active");
    state.schedule = Some(schedule(None));
    assert_eq!(step(&now(to_team()), &state, &[]), "release_schedule");
    state.schedule = Some(schedule(Some("price_free")));
    assert_eq!(step(&now(to_team()), &state, &[]), "-");
    state.schedule = None;
    assert_eq!(step(&now(to_team()), &state, &["release_schedule"]), "change_items");
    assert_eq!(step(&now(to_team()), &state, &["release_schedule", "change_items"]), "RolledBack");
}

#[test]
fn an_end_with_the_period_lets_the_schedule_go_first() {
    let goal = Goal::End { when: Cancellation::AtPeriodEnd };
    let mut state = seen("active");
    state.schedule = Some(schedule(Some("price_team")));
    assert_eq!(step(&goal, &state, &[]), "release_schedule");
    state.schedule = None;
    assert_eq!(step(&goal, &state, &["release_schedule"]), "cancel");
    state.subscription.cancel_at_period_end = true;
    let stop = next(&goal, &state, &catalog(), &["cancel".to_owned()]).unwrap();
    assert_eq!(stop, Next::Stop(Change::Scheduled { at: at(2000) }), "where Stripe does not say, the period does");
    state.subscription.cancel_at = Some(at(2000) - TimeDelta::seconds(1));
    assert_eq!(step(&Goal::ItemsNext { edit: to_team(), basis: None }, &state, &[]), "-");
}

#[test]
fn as_many_as_there_are_or_more_are_enough_for_whoever_needs_at_least_so_many() {
    let edit = |quantity, at_least| now(Edit { quantity: Some(quantity), at_least, ..Edit::default() });
    assert_eq!(step(&edit(1, true), &seen("active"), &[]), "Already");
    assert_eq!(step(&edit(2, true), &seen("active"), &[]), "Already");
    assert_eq!(step(&edit(3, true), &seen("active"), &[]), "change_items");
    assert_eq!(step(&edit(1, false), &seen("active"), &[]), "change_items");
}
