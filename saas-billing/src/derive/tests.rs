use chrono::{DateTime, Utc};
use saas_core::{
    PlanCatalog,
    subscription::{AccessLevel, Standing},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    dunning::{DunningPolicy, DunningTerms},
    event::{Envelope, read_snapshot},
};

const CATALOG: &str = r#"
default_plan = "free"
[features.export]
kind = "boolean"
fail = "closed"
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
[plans.starter]
rank = 5
[[plans.starter.versions]]
version = 1
prices = ["price_starter"]
[plans.pro]
rank = 10
[[plans.pro.versions]]
version = 1
prices = ["price_pro_old"]
grants = { export = true }
[[plans.pro.versions]]
version = 2
prices = ["price_pro", "price_pro_yearly"]
grants = { export = true }
"#;

const DAY: i64 = 86_400;

fn catalog() -> PlanCatalog {
    PlanCatalog::from_toml(CATALOG).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn seconds(at_seconds: i64) -> i64 {
    at(at_seconds).timestamp()
}

/// Objects from `(type, second, object)`; what was before the change stands in the object, where nobody reads it.
fn objects(events: &[(&str, i64, Value)]) -> TenantObjects {
    let mut objects = TenantObjects::default();
    for (n, (event_type, second, object)) in events.iter().enumerate() {
        let body = json!({"id": format!("evt_{n}"), "object": "event", "type": event_type, "created": seconds(*second),
                          "livemode": false, "data": {"object": object, "previous_attributes": object["before"]}});
        let body = body.to_string();
        let envelope = Envelope::read(body.as_bytes()).unwrap();
        objects.merge(read_snapshot(&envelope).unwrap().unwrap());
    }
    objects
}

/// What is derived; the same in every rotation of the events and backwards.
fn derived(events: &[(&str, i64, Value)]) -> Derived {
    let straight = derive(&objects(events), &catalog());
    for turn in 0..events.len() {
        let mut turned = events.to_vec();
        turned.rotate_left(turn);
        assert_eq!(derive(&objects(&turned), &catalog()), straight);
        turned.reverse();
        assert_eq!(derive(&objects(&turned), &catalog()), straight);
    }
    straight
}

fn subscription(id: &str, status: &str, price: &str) -> Value {
    json!({
        "id": id, "object": "subscription", "customer": "cus_1", "status": status, "created": seconds(0),
        "items": {"has_more": false, "data": [{
            "id": format!("si_{id}"), "quantity": 3,
            "price": {"id": price, "unit_amount": 1000, "currency": "eur", "recurring": {"interval": "month", "interval_count": 1}},
            "current_period_start": seconds(0), "current_period_end": seconds(30 * DAY)
        }]}
    })
}

fn invoice(id: &str, status: &str, attempts: u32) -> Value {
    json!({
        "id": id, "object": "invoice", "customer": "cus_1", "status": status, "attempt_count": attempts,
        "amount_remaining": if status == "paid" { 0 } else { 3000 }, "currency": "eur",
        "collection_method": "charge_automatically", "created": seconds(0),
        "parent": {"subscription_details": {"subscription": "sub_1"}}
    })
}

fn plan(derived: &Derived) -> Option<String> {
    derived.plan.as_ref().map(ToString::to_string)
}

fn access(derived: &Derived, terms: &DunningTerms, second: i64) -> AccessLevel {
    terms.standing(derived.unpaid_since, derived.suspended_since, at(second)).access(at(second))
}

const CREATED: &str = "customer.subscription.created";
const UPDATED: &str = "customer.subscription.updated";
const FAILED: &str = "invoice.payment_failed";
const PAID: &str = "invoice.paid";

// D4, D5
#[test]
fn every_status_has_its_meaning() {
    for (status, has_plan, suspended) in [
        ("incomplete", false, false),
        ("incomplete_expired", false, false),
        ("trialing", true, false),
        ("active", true, false),
        ("past_due", true, false),
        ("unpaid", true, false),
        ("canceled", false, false),
        ("paused", true, true),
    ] {
        let derived = derived(&[(UPDATED, 1, subscription("sub_1", status, "price_pro"))]);
        assert_eq!(plan(&derived).is_some(), has_plan, "{status}");
        assert_eq!(derived.suspended_since.is_some(), suspended, "{status}");
    }
    // A word of tomorrow keeps what there was, and says so; without a past there is nothing to keep.
    let tomorrow = (UPDATED, 2, subscription("sub_1", "quantum", "price_pro"));
    let kept = derived(&[(UPDATED, 1, subscription("sub_1", "active", "price_pro")), tomorrow.clone()]);
    assert_eq!(plan(&kept).as_deref(), Some("pro@2"));
    assert!(matches!(kept.alerts.first(), Some(Alert::UnknownStatus { status, .. }) if status == "quantum"));
    assert_eq!(plan(&derived(&[tomorrow])), None);
}

// D4
#[test]
fn a_pause_of_collection_is_a_fact_beside_the_status() {
    let mut paused = subscription("sub_1", "active", "price_pro");
    paused["pause_collection"] = json!({"behavior": "void", "resumes_at": null});
    let derived = derived(&[(UPDATED, 1, paused)]);
    assert_eq!(plan(&derived).as_deref(), Some("pro@2"));
    assert_eq!(derived.revenue, crate::revenue::Recurring::default());
    assert!(derived.alerts.contains(&Alert::CollectionPaused { subscription: "sub_1".parse().unwrap() }));
}

// D4: since 2026-09-30 Stripe pauses for other reasons than a trial without a payment method, too.
#[test]
fn a_pause_counts_from_its_beginning_and_not_from_a_trial_of_long_ago() {
    let since = |subscription| derived(&[(UPDATED, 1, subscription)]).suspended_since;
    let mut paused = subscription("sub_1", "paused", "price_pro");
    paused["trial_end"] = json!(seconds(-300 * DAY));
    assert_eq!(since(paused.clone()), Some(at(-300 * DAY)));
    paused["status_details"] = json!({"paused": {"type": "subscription", "transitioned_at": seconds(5 * DAY)}});
    assert_eq!(since(paused), Some(at(5 * DAY)));
}

// D1
#[test]
fn a_late_failure_does_not_reopen_what_was_paid() {
    let derived = derived(&[
        (UPDATED, 10, subscription("sub_1", "active", "price_pro")),
        (PAID, 10, invoice("in_1", "paid", 2)),
        (FAILED, 5, invoice("in_1", "open", 1)),
    ]);
    assert_eq!(derived.unpaid_since, None);
}

// D2, D3, D6
#[test]
fn grace_runs_from_the_first_failure_and_no_retry_moves_it() {
    let policy = DunningTerms::new(std::sync::Arc::new(DunningPolicy::without_messages(7, 7).unwrap()));
    let mut behind = subscription("sub_1", "past_due", "price_pro");
    behind["latest_invoice"] = "in_1".into();
    let derived = derived(&[
        (UPDATED, 0, behind),
        (FAILED, 0, invoice("in_1", "open", 1)),
        (FAILED, 3 * DAY, invoice("in_1", "open", 2)),
        (FAILED, 5 * DAY, invoice("in_1", "open", 3)),
    ]);
    assert_eq!(derived.unpaid_since, Some(at(0)));
    assert_eq!(derived.seats, Some(3), "dunning never changes quantities");
    use AccessLevel::{Full, Restricted, Suspended};
    for (second, expected) in [
        (0, Full),
        (7 * DAY - 1, Full),
        (7 * DAY, Restricted),
        (7 * DAY + 1, Restricted),
        (14 * DAY - 1, Restricted),
        (14 * DAY, Suspended),
    ] {
        assert_eq!(access(&derived, &policy, second), expected, "second {second}");
    }
    assert_eq!(policy.standing(Some(at(0)), None, at(14 * DAY)), Standing::Suspended { since: at(14 * DAY) });
}

// D7
#[test]
fn paying_one_of_two_invoices_leaves_the_other_owed() {
    let both = [
        (UPDATED, 50, subscription("sub_1", "past_due", "price_pro")),
        (FAILED, 10, invoice("in_1", "open", 1)),
        (FAILED, 20, invoice("in_2", "open", 1)),
    ];
    assert_eq!(derived(&both).unpaid_since, Some(at(10)));
    let with = |event| both.iter().cloned().chain([event]).collect::<Vec<_>>();
    assert_eq!(derived(&with((PAID, 60, invoice("in_1", "paid", 2)))).unpaid_since, Some(at(20)));
    assert_eq!(derived(&with((PAID, 60, invoice("in_2", "paid", 2)))).unpaid_since, Some(at(10)));
    let voided = derived(&with(("invoice.voided", 60, invoice("in_1", "void", 1))));
    assert_eq!(voided.unpaid_since, Some(at(20)));
    let written_off = derived(&with(("invoice.marked_uncollectible", 60, invoice("in_1", "uncollectible", 1))));
    assert_eq!(written_off.unpaid_since, Some(at(10)), "the next month's failure does not begin a new grace period");
}

/// A subscription whose latest invoice is the one named.
fn charged_by(status: &str, latest: &str) -> Value {
    let mut object = subscription("sub_1", status, "price_pro");
    object["latest_invoice"] = latest.into();
    object
}

// D12
#[test]
fn writing_a_debt_off_pays_nothing_while_the_subscription_is_behind() {
    for (event, status) in [("invoice.marked_uncollectible", "uncollectible"), ("invoice.voided", "void")] {
        // What Stripe does by itself: all retries failed, mark the subscription unpaid and the invoice uncollectible.
        let history = [
            (UPDATED, 1, charged_by("past_due", "in_1")),
            (FAILED, 0, invoice("in_1", "open", 1)),
            (FAILED, 20 * DAY, invoice("in_1", "open", 4)),
            (event, 21 * DAY, invoice("in_1", status, 4)),
            (UPDATED, 21 * DAY, charged_by("unpaid", "in_1")),
        ];
        let closed = derived(&history);
        assert_eq!(closed.unpaid_since, Some(at(0)), "{status}");
        assert_eq!(access(&closed, &DunningTerms::default(), 60 * DAY), AccessLevel::Suspended);
        let with = |more: &[(&'static str, i64, Value)]| history.iter().chain(more).cloned().collect::<Vec<_>>();
        let back = (UPDATED, 70 * DAY, charged_by("active", "in_2"));
        assert_eq!(derived(&with(std::slice::from_ref(&back))).unpaid_since, None, "{status}");
        // The debt of long ago does not date the next one.
        let again = [
            back,
            (UPDATED, 99 * DAY, charged_by("past_due", "in_3")),
            (FAILED, 99 * DAY, {
                let mut next = invoice("in_3", "open", 1);
                next["created"] = seconds(99 * DAY).into();
                next
            }),
        ];
        assert_eq!(derived(&with(&again)).unpaid_since, Some(at(99 * DAY)), "{status}");
    }
}

#[test]
fn an_unpaid_subscription_owes_even_if_only_the_next_draft_is_known() {
    let draft = ("invoice.created", 40 * DAY, invoice("in_2", "draft", 0));
    let unpaid = (UPDATED, 40 * DAY, charged_by("unpaid", "in_2"));
    let unexplained = derived(&[unpaid.clone(), draft.clone()]);
    assert_eq!(unexplained.unpaid_since, Some(at(40 * DAY)));
    assert_eq!(unexplained.alerts.first(), Some(&Alert::UnexplainedDebt { subscription: "sub_1".parse().unwrap() }));
    assert_eq!(unexplained.fetches.first().map(|fetch| fetch.id.as_str()), Some("sub_1"));
    // The failure event was lost; that there were attempts says as much.
    let attempted = derived(&[unpaid, draft, ("invoice.updated", 5 * DAY, invoice("in_1", "open", 3))]);
    assert_eq!((attempted.unpaid_since, attempted.alerts.len()), (Some(at(0)), 0));
}

// W27
#[test]
fn who_pays_for_one_subscription_is_not_locked_out_by_the_debt_of_another() {
    let mut debt = invoice("in_2", "open", 1);
    debt["parent"]["subscription_details"]["subscription"] = "sub_2".into();
    let with = |status| {
        derived(&[
            (UPDATED, 1, subscription("sub_1", status, "price_pro")),
            (UPDATED, 2, subscription("sub_2", "past_due", "price_starter")),
            (FAILED, 2, debt.clone()),
        ])
    };
    let paid = with("active");
    assert_eq!((plan(&paid).as_deref(), paid.unpaid_since), (Some("pro@2"), None));
    assert!(matches!(paid.alerts.first(), Some(Alert::SeveralSubscriptions { .. })));
    for status in ["trialing", "past_due", "unpaid"] {
        assert_eq!(with(status).unpaid_since, Some(at(if status == "trialing" { 2 } else { 1 })), "{status}");
    }
    // Its own debt and a single sale's count.
    for payer in [json!({"subscription_details": {"subscription": "sub_1"}}), Value::Null] {
        let mut own = debt.clone();
        own["parent"] = payer;
        let owing = derived(&[(UPDATED, 1, subscription("sub_1", "active", "price_pro")), (FAILED, 2, own)]);
        assert_eq!(owing.unpaid_since, Some(at(2)));
    }
}

// D2
#[test]
fn no_update_moves_the_beginning_of_a_debt_whose_invoice_is_unseen() {
    let update = |day: i64| {
        let mut object = charged_by("past_due", "in_9");
        object["items"]["data"][0]["quantity"] = day.into();
        (UPDATED, day * DAY, object)
    };
    let updates: Vec<_> = (0..40).map(update).collect();
    let behind = derived(&updates);
    assert_eq!(behind.unpaid_since, Some(at(0)));
    assert_eq!(access(&behind, &DunningTerms::default(), 40 * DAY), AccessLevel::Suspended);
    // Paid in between, whenever that is heard of: a new debt with a beginning of its own.
    let paid = (UPDATED, 20 * DAY + 1, charged_by("active", "in_9"));
    let twice: Vec<_> = updates.iter().cloned().chain([paid]).collect();
    assert_eq!(derived(&twice).unpaid_since, Some(at(21 * DAY)));
}

#[test]
fn a_subscription_that_is_behind_for_an_invoice_nobody_told_about_asks_for_it() {
    let mut behind = subscription("sub_1", "past_due", "price_pro");
    behind["latest_invoice"] = "in_9".into();
    let unseen = derived(&[(UPDATED, 40, behind.clone())]);
    assert_eq!(unseen.unpaid_since, Some(at(40)), "the debt is certain, and this is the latest it can have begun");
    assert_eq!(unseen.fetches.first().map(|fetch| fetch.id.as_str()), Some("in_9"));
    // Seen but without a failure event: Stripe charges when it finalises.
    let mut open = invoice("in_9", "open", 1);
    open["status_transitions"] = json!({"finalized_at": seconds(30)});
    let seen = derived(&[(UPDATED, 40, behind), ("invoice.finalized", 30, open)]);
    assert_eq!((seen.unpaid_since, seen.fetches.len()), (Some(at(30)), 0));
}

#[test]
fn an_invoice_that_was_sent_is_late_from_its_due_date() {
    let mut sent = invoice("in_1", "open", 0);
    sent["collection_method"] = "send_invoice".into();
    sent["due_date"] = seconds(10 * DAY).into();
    let derived =
        derived(&[(UPDATED, 1, subscription("sub_1", "active", "price_pro")), ("invoice.finalized", 1, sent)]);
    let policy = DunningTerms::default();
    assert_eq!(policy.standing(derived.unpaid_since, None, at(10 * DAY - 1)), Standing::Active);
    assert!(matches!(policy.standing(derived.unpaid_since, None, at(10 * DAY)), Standing::Grace { .. }));
}

// D8
#[test]
fn cancelling_at_the_period_end_can_be_taken_back() {
    let mut cancelling = subscription("sub_1", "active", "price_pro");
    cancelling["cancel_at_period_end"] = true.into();
    let first = (UPDATED, 10, cancelling);
    assert_eq!(derived(std::slice::from_ref(&first)).ends_at, Some(at(30 * DAY)));
    assert_eq!(derived(&[first, (UPDATED, 20, subscription("sub_1", "active", "price_pro"))]).ends_at, None);
}

// W27, W28
#[test]
fn the_best_live_subscription_counts() {
    let two = [
        (CREATED, 1, subscription("sub_1", "active", "price_starter")),
        (CREATED, 2, subscription("sub_2", "active", "price_pro")),
    ];
    let both = derived(&two);
    assert_eq!(plan(&both).as_deref(), Some("pro@2"));
    assert!(
        both.alerts
            .iter()
            .any(|alert| matches!(alert, Alert::SeveralSubscriptions { subscriptions } if subscriptions.len() == 2))
    );
    let with = |event| two.iter().cloned().chain([event]).collect::<Vec<_>>();
    let old_ended =
        derived(&with(("customer.subscription.deleted", 9, subscription("sub_1", "canceled", "price_starter"))));
    assert_eq!((plan(&old_ended).as_deref(), old_ended.alerts.len()), (Some("pro@2"), 0));
    let new_behind = derived(&with((UPDATED, 9, subscription("sub_2", "past_due", "price_pro"))));
    assert_eq!(plan(&new_behind).as_deref(), Some("starter@1"), "a paid one is better than an unpaid one");
}

// W29
#[test]
fn an_unknown_price_keeps_the_last_plan_and_is_never_silent() {
    let moved = (UPDATED, 20, subscription("sub_1", "active", "price_by_hand"));
    let derived_with = |old: &str| derived(&[(CREATED, 10, subscription("sub_1", "active", old)), moved.clone()]);
    assert_eq!(plan(&derived_with("price_pro")).as_deref(), Some("pro@2"));
    assert_eq!(plan(&derived_with("price_pro_old")).as_deref(), Some("pro@1"));
    let alone = derived(std::slice::from_ref(&moved));
    assert_eq!(plan(&alone), None);
    for derived in [alone, derived_with("price_pro")] {
        assert!(
            matches!(derived.alerts.first(), Some(Alert::UnknownPrice { price, .. }) if price.as_str() == "price_by_hand")
        );
    }
}

/// A fee and a usage price of one plan: seats are the fee's quantity, wherever it stands.
#[test]
fn of_a_plan_with_a_usage_price_the_item_with_a_quantity_has_the_seats() {
    for usage_first in [true, false] {
        let mut both = subscription("sub_1", "active", "price_pro");
        let mut usage = both["items"]["data"][0].clone();
        (usage["price"]["id"], usage["quantity"]) = ("price_pro_yearly".into(), Value::Null);
        usage["id"] = if usage_first { "si_0" } else { "si_z" }.into();
        both["items"]["data"].as_array_mut().unwrap().push(usage);
        let derived = derived(&[(UPDATED, 1, both)]);
        assert_eq!((plan(&derived).as_deref(), derived.seats), (Some("pro@2"), Some(3)));
        assert!(derived.alerts.is_empty(), "{:?}", derived.alerts);
    }
}

// W16
#[test]
fn a_period_is_found_in_both_places_and_its_absence_is_never_zero() {
    let current = subscription("sub_1", "active", "price_pro");
    let mut legacy = current.clone();
    let item = &mut legacy["items"]["data"][0];
    (item["current_period_start"], item["current_period_end"]) = (Value::Null, Value::Null);
    let mut neither = legacy.clone();
    (legacy["current_period_start"], legacy["current_period_end"]) = (seconds(0).into(), seconds(30 * DAY).into());
    for object in [current, legacy] {
        let derived = derived(&[(UPDATED, 1, object)]);
        assert_eq!(derived.period, Some(Period { start: at(0), end: at(30 * DAY) }));
        assert!(derived.fetches.is_empty());
    }
    neither["current_period_start"] = 0.into();
    neither["current_period_end"] = 0.into();
    let derived = derived(&[(UPDATED, 1, neither)]);
    assert_eq!(derived.period, None);
    assert_eq!(derived.fetches.first().map(|fetch| fetch.id.as_str()), Some("sub_1"));
}

#[test]
fn truncated_items_are_fetched() {
    let mut truncated = subscription("sub_1", "active", "price_pro");
    truncated["items"]["has_more"] = true.into();
    assert_eq!(derived(&[(UPDATED, 1, truncated)]).fetches.len(), 1);
}

#[test]
fn what_an_unknown_payload_lacks_is_an_error_and_never_a_default() {
    let read = |object: Value| {
        let body = json!({"id": "evt_1", "object": "event", "type": UPDATED, "created": seconds(0), "livemode": false, "data": {"object": object}});
        read_snapshot(&Envelope::read(body.to_string().as_bytes()).unwrap()).map(|read| read.is_some())
    };
    let mut without_status = subscription("sub_1", "active", "price_pro");
    without_status.as_object_mut().unwrap().remove("status");
    assert!(read(without_status).is_err());
    let mut expanded = subscription("sub_1", "active", "price_pro");
    expanded["customer"] = json!({"object": "customer", "email": "a@example.com", "id": "cus_1"});
    assert_eq!(read(expanded), Ok(true));
    // The text of the payload stays out of the error. W38
    let mut odd = subscription("sub_1", "active", "price_pro");
    odd["created"] = "ada@example.com".into();
    let error = read(odd).unwrap_err().to_string();
    assert!(error.starts_with("event.data.object: JSON of an unexpected shape at line"), "{error}");
}

/// Another price, with or without the word that it was another before.
fn moved(id: &str, price: &str, from: Option<&str>) -> Value {
    let mut object = subscription(id, "active", price);
    if let Some(from) = from {
        object["before"] = json!({"items": subscription(id, "active", from)["items"]});
    }
    object
}

fn ended(id: &str, price: &str, second: i64) -> Value {
    let mut object = subscription(id, "canceled", price);
    object["ended_at"] = seconds(second).into();
    object
}

/// Since when, and the plans before it.
fn tenure(derived: &Derived) -> (Option<i64>, Vec<String>) {
    let second = |at: DateTime<Utc>| (at - super::tests::at(0)).num_seconds();
    let before = derived.before.iter().map(|past| {
        let version = past.version.map_or_else(|| "newest".to_owned(), |version| version.to_string());
        format!("{}@{version} since {:?}", past.plan, past.since.map(second))
    });
    (derived.since.map(second), before.collect())
}

// f-M14, D1: by Stripe's clock, whatever the order.
#[test]
fn since_when_a_plan_is_had_and_what_was_before_it() {
    let bought = (CREATED, 10, subscription("sub_1", "active", "price_starter"));
    let unpaid = (UPDATED, 60, subscription("sub_1", "past_due", "price_starter"));
    let upgraded = (UPDATED, 100, moved("sub_1", "price_pro", Some("price_starter")));
    let renewed = (UPDATED, 30 * DAY, moved("sub_1", "price_pro", None));
    let over = ("customer.subscription.deleted", 150, ended("sub_1", "price_pro", 150));
    let again = (CREATED, 300, subscription("sub_2", "active", "price_pro"));
    let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(tenure(&derived(&[])), (None, vec![]), "the default plan, as long as anybody knows");
    let free = "free@newest since None";
    let known = derived(&[bought.clone(), unpaid.clone()]);
    assert_eq!(tenure(&known), (Some(10), lines(&[free])), "another standing is no other plan");
    let known = derived(&[bought.clone(), unpaid.clone(), upgraded.clone(), renewed]);
    assert_eq!(tenure(&known), (Some(100), lines(&["starter@1 since Some(10)", free])));
    let known = derived(&[bought.clone(), upgraded.clone(), over.clone()]);
    assert_eq!(tenure(&known), (Some(150), lines(&["pro@2 since Some(100)", "starter@1 since Some(10)", free])));
    let known = derived(&[bought.clone(), upgraded, over, again]);
    let before = ["free@newest since Some(150)", "pro@2 since Some(100)", "starter@1 since Some(10)", free];
    assert_eq!(tenure(&known), (Some(300), lines(&before)));
    // The report of the change was lost: from the last report of what was before it, and nothing later moves that.
    let lost = [bought, unpaid, (UPDATED, 200, moved("sub_1", "price_pro", None))];
    assert_eq!(tenure(&derived(&lost)), (Some(60), lines(&["starter@1 since Some(10)", free])));
}

#[test]
fn an_item_or_a_quantity_more_is_no_other_plan_and_a_first_payment_begins_it() {
    let mut waiting = subscription("sub_1", "incomplete", "price_starter");
    waiting["items"]["data"][0]["quantity"] = 1.into();
    let more = {
        let mut object = subscription("sub_1", "active", "price_starter");
        let addon = json!({"id": "si_z", "quantity": 1, "price": {"id": "price_addon"},
                           "current_period_start": seconds(0), "current_period_end": seconds(30 * DAY)});
        object["items"]["data"].as_array_mut().unwrap().push(addon);
        object["before"] = json!({"items": subscription("sub_1", "active", "price_starter")["items"]});
        object
    };
    let known = derived(&[
        (CREATED, 0, waiting),
        (UPDATED, 40, subscription("sub_1", "active", "price_starter")),
        (UPDATED, 90, more),
    ]);
    assert_eq!(tenure(&known).0, Some(40));
}

#[test]
fn of_several_subscriptions_the_better_one_was_had() {
    let known = derived(&[
        (CREATED, 10, subscription("sub_1", "active", "price_starter")),
        (CREATED, 50, subscription("sub_2", "active", "price_pro")),
        ("customer.subscription.deleted", 90, ended("sub_2", "price_pro", 90)),
    ]);
    assert_eq!(plan(&known).as_deref(), Some("starter@1"));
    let before = ["pro@2 since Some(50)", "starter@1 since Some(10)", "free@newest since None"];
    assert_eq!(tenure(&known), (Some(90), before.map(str::to_owned).to_vec()));
    // The better one is not paid for: the other decides, and is had since it was bought.
    let known = derived(&[
        (CREATED, 10, subscription("sub_1", "active", "price_starter")),
        (CREATED, 50, subscription("sub_2", "unpaid", "price_pro")),
    ]);
    assert_eq!((plan(&known).as_deref(), tenure(&known).0), (Some("starter@1"), Some(10)));
}
