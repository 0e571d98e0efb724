use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::*;
use crate::object::{BillingMode, Collection, Invoice, InvoiceStatus, Subscription, SubscriptionStatus};
use crate::testing::orders;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

/// A subscription in which the end of the trial stands for any field that can change.
fn subscription(status: &str, field: i64) -> Subscription {
    Subscription {
        id: "sub_1".parse().unwrap(),
        customer: "cus_1".parse().unwrap(),
        status: SubscriptionStatus::from(status.to_owned()),
        items: Vec::new(),
        items_truncated: false,
        cancel_at: None,
        cancel_at_period_end: false,
        ended_at: None,
        trial_end: Some(at(field)),
        pause: None,
        paused: None,
        latest_invoice: None,
        created: Some(at(0)),
        anchor: None,
        discounts: Vec::new(),
        pending: None,
        schedule: None,
        billing_mode: Some(BillingMode::Flexible),
    }
}

fn invoice(status: &str, attempts: u32) -> Invoice {
    Invoice {
        id: "in_1".parse().unwrap(),
        customer: Some("cus_1".parse().unwrap()),
        subscription: Some("sub_1".parse().unwrap()),
        status: InvoiceStatus::from(status.to_owned()),
        deleted: false,
        attempt_count: attempts,
        collection: Collection::ChargeAutomatically,
        amount_remaining: 100,
        amount_paid: 0,
        currency: Some("eur".to_owned()),
        due_at: None,
        finalized_at: Some(at(0)),
        created: Some(at(0)),
        total: None,
        tax: 0,
        credit_used: 0,
        credited: 0,
        paid_elsewhere: 0,
        paid_at: None,
        voided_at: None,
        written_off_at: None,
    }
}

fn change<T: StripeObject>(value: T, before: Option<T>, seconds: i64) -> Snapshot<T> {
    Snapshot::new(value, before, at(seconds), Origin::Change, "customer.subscription.updated")
}

fn creation(value: Subscription, seconds: i64) -> Snapshot<Subscription> {
    Snapshot::new(value, None, at(seconds), Origin::Creation, "customer.subscription.created")
}

fn merge<T: StripeObject>(snapshots: &[Snapshot<T>]) -> Merged<T> {
    snapshots.iter().cloned().map(Merged::of).reduce(Merged::join).unwrap()
}

/// Every order of the snapshots must give this value with this certainty.
fn always<T: StripeObject>(snapshots: &[Snapshot<T>], value: &T, ambiguous: bool) {
    let first = merge(snapshots);
    permute(snapshots, |order| {
        let merged = merge(order);
        assert_eq!(merged, first);
        assert_eq!(merged.resolve(), Resolution { value, ambiguous });
    });
}

fn permute<T: Clone>(items: &[T], visit: impl Fn(&[T])) {
    for order in orders(items.len()) {
        let ordered: Vec<T> = order.into_iter().map(|at| items[at].clone()).collect();
        visit(&ordered);
    }
}

// W5
#[test]
fn an_update_that_arrives_before_the_creation_wins() {
    let (created, updated) = (subscription("incomplete", 0), subscription("active", 0));
    always(&[creation(created.clone(), 265), change(updated.clone(), None, 266)], &updated, false);
    // Also within one second: nothing can have been before a creation.
    always(&[creation(created, 265), change(updated.clone(), None, 265)], &updated, false);
}

// W6
#[test]
fn within_one_second_what_was_before_decides() {
    let (old, new) = (subscription("active", 1), subscription("active", 2));
    // `trial_will_end` shows the old value and no previous attributes; `updated` says what it replaced.
    always(&[change(old.clone(), None, 5), change(new.clone(), Some(old.clone()), 5)], &new, false);
    // A chain of three, and two ways round.
    let newest = subscription("past_due", 2);
    let chain = [
        change(old.clone(), None, 5),
        change(new.clone(), Some(old.clone()), 5),
        change(newest.clone(), Some(new.clone()), 5),
    ];
    always(&chain, &newest, false);
    let back = [
        change(new.clone(), Some(old.clone()), 5),
        change(old.clone(), Some(new.clone()), 5),
        change(newest.clone(), Some(old), 5),
    ];
    always(&back, &newest, false);
}

// W6
#[test]
fn within_one_second_without_evidence_the_rank_counts_and_a_fetch_is_asked_for() {
    let (active, behind) = (subscription("active", 1), subscription("past_due", 2));
    always(&[change(active.clone(), None, 5), change(behind.clone(), None, 5)], &behind, true);
    // There and back again: either may be the last.
    let there = change(behind.clone(), Some(active.clone()), 5);
    let back = change(active.clone(), Some(behind.clone()), 5);
    always(&[there.clone(), back.clone()], &behind, true);
    // A chain beside a circle: the circle may have come last.
    let (apart, end) = (subscription("active", 8), subscription("active", 9));
    always(&[there, back, change(end.clone(), Some(apart), 5)], &end, true);
}

#[test]
fn a_fetch_ends_an_ambiguity_whatever_arrives_late() {
    let (active, behind) = (subscription("active", 1), subscription("past_due", 2));
    let known = [change(active.clone(), None, 5), change(behind.clone(), None, 5)];
    let (origin, created) = merge(&known).fetch_origin(1, None);
    let fetched = Snapshot::new(active.clone(), None, created, origin, "");
    always(&[known[0].clone(), known[1].clone(), fetched.clone()], &active, false);
    // Another snapshot of that second turns up: newer than the fetch or older, nobody knows; the second fetch does.
    let late = change(subscription("active", 3), None, 5);
    let all = [known[0].clone(), known[1].clone(), fetched, late.clone()];
    assert!(merge(&all).resolve().ambiguous);
    let (origin, created) = merge(&all).fetch_origin(2, None);
    let again = Snapshot::new(late.value.clone(), None, created, origin, "");
    always(&[all[0].clone(), all[1].clone(), all[2].clone(), late.clone(), again], &late.value, false);
}

// W31
#[test]
fn of_two_fetches_the_later_one_counts_even_if_its_answer_came_first() {
    let (first, second) = (subscription("active", 1), subscription("past_due", 1));
    let known = merge(&[change(first.clone(), None, 5)]);
    let fetched = |value: &Subscription, sequence| {
        let (origin, created) = known.fetch_origin(sequence, Some(at(9)));
        Snapshot::new(value.clone(), None, created, origin, "")
    };
    always(&[change(first.clone(), None, 5), fetched(&first, 1), fetched(&second, 2)], &second, false);
}

// W7
#[test]
fn nothing_revives_what_has_ended() {
    let (ended, active) = (subscription("canceled", 0), subscription("active", 0));
    for late in [-5, 0, 5] {
        always(&[change(ended.clone(), None, 100), change(active.clone(), None, 100 + late)], &ended, false);
    }
}

// D1, D12
#[test]
fn an_invoice_never_goes_back() {
    let snapshot = |status, attempts, seconds| change(invoice(status, attempts), None, seconds);
    let paid = invoice("paid", 2);
    always(&[snapshot("paid", 2, 10), snapshot("open", 1, 5), snapshot("open", 1, 15)], &paid, false);
    always(&[snapshot("uncollectible", 2, 10), snapshot("paid", 2, 10)], &paid, false);
    always(&[snapshot("draft", 0, 1), snapshot("open", 0, 1), snapshot("paid", 2, 1)], &paid, false);
    // Two attempts in one second are told apart by their number.
    always(&[snapshot("open", 2, 5), snapshot("open", 1, 5)], &invoice("open", 2), false);
}

// D2
#[test]
fn the_first_failure_is_kept_whatever_arrives_first() {
    let failed = |attempts, day: i64| {
        Snapshot::new(invoice("open", attempts), None, at(day * 86_400), Origin::Change, "invoice.payment_failed")
    };
    permute(&[failed(1, 0), failed(2, 3), failed(3, 5)], |order| {
        assert_eq!(merge(order).history().first_decline(), Some(at(0)));
    });
}

#[test]
fn more_reports_of_arrears_than_are_kept_still_join_in_any_order() {
    let behind = (0..600).map(|second| change(subscription("past_due", 0), None, second));
    let paid = change(subscription("active", 0), None, 450);
    let reports: Vec<_> = behind.chain([paid]).collect();
    let straight = merge(&reports);
    assert_eq!(straight.history().behind_since(), Some(at(450)));
    let back: Vec<_> = reports.iter().rev().cloned().collect();
    assert_eq!(merge(&back), straight);
    let (left, right) = reports.split_at(300);
    assert_eq!(merge(right).join(merge(left)), straight);
}

#[test]
fn more_than_is_kept_of_one_second_asks_for_a_fetch_that_settles_it() {
    let many: Vec<_> = (0..100).map(|field| change(subscription("active", field), None, 5)).collect();
    let (forwards, backwards) =
        (merge(&many), many.iter().rev().cloned().map(Merged::of).reduce(Merged::join).unwrap());
    assert_eq!(forwards, backwards);
    assert!(forwards.resolve().ambiguous);
    let (origin, created) = forwards.fetch_origin(1, None);
    let fetched = Snapshot::new(subscription("active", 7), None, created, origin, "");
    let settled = forwards.join(Merged::of(fetched.clone()));
    assert_eq!(settled.resolve(), Resolution { value: &fetched.value, ambiguous: false });
}

fn any_snapshot() -> impl Strategy<Value = Snapshot<Subscription>> {
    let status = prop::sample::select(vec!["incomplete", "active", "past_due", "canceled"]);
    let value = (status, 0..3_i64).prop_map(|(status, field)| subscription(status, field));
    let origin = prop_oneof![
        1 => Just(None),
        4 => Just(Some(None)),
        2 => (1..4_u64, prop::collection::vec((0..3_i64, 0..2_i64), 0..3)).prop_map(Some).prop_map(Some),
    ];
    (value.clone(), prop::option::of(value), 0..2_i64, origin).prop_map(|(value, before, seconds, origin)| match origin
    {
        None => creation(value, seconds),
        Some(None) => change(value, before, seconds),
        Some(Some((sequence, covered))) => {
            let hash = |(field, _)| {
                let candidate = snapshot::Candidate::from(change(subscription("active", field), None, 0));
                ContentHash::of(&candidate)
            };
            let covers: BTreeSet<_> = covered.into_iter().map(hash).collect();
            let origin = Origin::Fetch { sequence, covers, covers_overflow: false };
            Snapshot::new(value, None, at(seconds), origin, "")
        }
    })
}

proptest! {
    #[test]
    fn join_is_commutative_associative_and_idempotent(a in any_snapshot(), b in any_snapshot(), c in any_snapshot()) {
        let [a, b, c] = [a, b, c].map(Merged::of);
        let join = |x: &Merged<_>, y: &Merged<_>| x.clone().join(y.clone());
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        prop_assert_eq!(join(&a, &a), a.clone());
        let all = join(&join(&a, &b), &c);
        prop_assert_eq!(join(&all, &b), all);
    }

    #[test]
    fn any_order_with_any_repetition_is_the_same(
        snapshots in prop::collection::vec(any_snapshot(), 1..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..120),
    ) {
        // One after the other, against: a random walk with repeats, then whatever that has missed.
        let straight = merge(&snapshots);
        let mut walk: Vec<_> = order.iter().map(|index| index.get(&snapshots).clone()).collect();
        walk.extend(snapshots.iter().rev().cloned());
        let walked = merge(&walk);
        prop_assert_eq!(&walked, &straight);
        // Grouped: a worker may join what two others have joined.
        let (left, right) = walk.split_at(walk.len() / 2);
        let grouped = if left.is_empty() { merge(right) } else { merge(left).join(merge(right)) };
        prop_assert_eq!(grouped.resolve(), straight.resolve());
        prop_assert_eq!(grouped, straight);
    }

    #[test]
    fn the_stored_form_is_read_back(snapshots in prop::collection::vec(any_snapshot(), 1..6)) {
        let merged = merge(&snapshots);
        let stored = serde_json::to_value(&merged).unwrap();
        prop_assert_eq!(serde_json::from_value::<Merged<Subscription>>(stored).unwrap(), merged);
    }
}
