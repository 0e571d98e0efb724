//! By which prices an object was charged since when, from whatever reports have come in.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::object::ObjectId;

/// Changes, and lists of prices, that are kept: the latest.
const MAX_ENTRIES: usize = 64;

/// A report that prices changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Change {
    at: DateTime<Utc>,
    from: Vec<ObjectId>,
    to: Vec<ObjectId>,
}

/// The latest report of a list of prices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Report {
    at: DateTime<Utc>,
    prices: Vec<ObjectId>,
}

/// The changes that were reported as such, and when each list of prices was last reported at all.
///
/// Joining unites the changes and keeps the latest report of each list; both are cut from below. So it is commutative,
/// associative and idempotent. A change has the instant that its own report says. Where that report is lost, the change
/// counts from the last report of what was before: that does not move while reports of what came after it come in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tenure {
    changes: BTreeSet<Change>,
    reports: BTreeSet<Report>,
}

impl Tenure {
    /// What one report at `at` says: the prices then, and just before.
    pub(super) fn of(at: DateTime<Utc>, prices: Option<Vec<ObjectId>>, before: Option<Vec<ObjectId>>) -> Self {
        let Some(prices) = prices else { return Self::default() };
        let change = before.filter(|before| *before != prices).map(|from| Change { at, from, to: prices.clone() });
        Self { changes: change.into_iter().collect(), reports: BTreeSet::from([Report { at, prices }]) }
    }

    pub(super) fn join(mut self, other: Self) -> Self {
        self.changes.extend(other.changes);
        while self.changes.len() > MAX_ENTRIES {
            self.changes.pop_first();
        }
        let mut latest: BTreeMap<Vec<ObjectId>, DateTime<Utc>> = BTreeMap::new();
        for Report { at, prices } in self.reports.into_iter().chain(other.reports) {
            latest.entry(prices).and_modify(|known| *known = at.max(*known)).or_insert(at);
        }
        self.reports = latest.into_iter().map(|(prices, at)| Report { at, prices }).collect();
        while self.reports.len() > MAX_ENTRIES {
            self.reports.pop_first();
        }
        self
    }

    /// The lists of prices up to the `present` one, the earliest first, each with the instant since when; `None`: since it
    /// began, or longer than is known.
    pub(super) fn steps(&self, present: &[ObjectId]) -> Vec<(Option<DateTime<Utc>>, Vec<ObjectId>)> {
        let mut steps: Vec<(Option<DateTime<Utc>>, Vec<ObjectId>)> = Vec::new();
        let mut changes: Vec<&Change> = self.changes.iter().collect();
        in_their_order(&mut changes);
        if let Some(first) = changes.first() {
            steps.push((None, first.from.clone()));
        }
        steps.extend(changes.iter().map(|change| (Some(change.at), change.to.clone())));
        let other = self.reports.iter().rev().find(|report| report.prices != present);
        if steps.is_empty()
            && let Some(other) = other
        {
            steps.push((None, other.prices.clone()));
        }
        let (changed_at, last) = steps.last().map_or((None, None), |(at, prices)| (*at, Some(prices)));
        let is_last = last.is_some_and(|last| last == present);
        match other.filter(|other| changed_at.is_some_and(|at| other.at > at)) {
            // It changed again, twice, and nobody reported it.
            Some(other) if is_last => {
                steps.push((changed_at, other.prices.clone()));
                steps.push((Some(other.at), present.to_vec()));
            }
            Some(_) | None if !is_last => {
                steps.push((other.map(|other| other.at).max(changed_at), present.to_vec()));
            }
            Some(_) | None => {}
        }
        steps
    }
}

/// Changes of one second follow each other from what one led to; the first of them from what none led to.
fn in_their_order(changes: &mut [&Change]) {
    for place in 0..changes.len() {
        let before = place.checked_sub(1).map(|before| changes[before]);
        let rest = &changes[place..];
        let same = || rest.iter().take_while(|change| change.at == rest[0].at);
        let follows = |change: &&Change| before.is_some_and(|before| change.from == before.to);
        let leads = |change: &&Change| same().all(|other| other.to != change.from);
        let next = same().position(follows).or_else(|| same().position(leads)).unwrap_or(0);
        changes[place..=place + next].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    fn by(price: u8) -> Vec<ObjectId> {
        vec![format!("price_{price}").parse().unwrap()]
    }

    /// A report: when, the price, and the one before where it says.
    fn told(second: i64, price: u8, before: Option<u8>) -> Tenure {
        Tenure::of(at(second), Some(by(price)), before.map(by))
    }

    fn all(reports: &[(i64, u8, Option<u8>)]) -> Tenure {
        reports
            .iter()
            .fold(Tenure::default(), |known, (second, price, before)| known.join(told(*second, *price, *before)))
    }

    fn since(tenure: &Tenure, present: u8) -> Option<DateTime<Utc>> {
        let steps = tenure.steps(&by(present));
        let (since, prices) = steps.last().unwrap();
        assert_eq!(*prices, by(present));
        *since
    }

    #[test]
    fn a_change_has_the_instant_that_its_own_report_says() {
        let tenure = all(&[(0, 1, None), (10, 2, Some(1)), (20, 2, None), (30, 2, Some(2))]);
        assert_eq!(tenure.steps(&by(2)), [(None, by(1)), (Some(at(10)), by(2))]);
        assert_eq!(since(&tenure.join(told(5, 1, None)), 2), Some(at(10)), "an older report that comes late");
    }

    #[test]
    fn a_change_that_nobody_reported_counts_from_the_last_report_of_what_was_before() {
        let tenure = all(&[(0, 1, None), (5, 1, None), (20, 2, None)]);
        assert_eq!(since(&tenure, 2), Some(at(5)));
        let tenure = tenure.join(told(30, 2, None));
        assert_eq!(since(&tenure, 2), Some(at(5)), "what comes after it moves nothing");
        assert_eq!(since(&tenure.join(told(12, 2, Some(1))), 2), Some(at(12)), "its report came late");
        // There and back, and only the way there was reported.
        let tenure = all(&[(0, 1, None), (10, 2, Some(1)), (20, 1, None)]);
        assert_eq!(tenure.steps(&by(1)), [(None, by(1)), (Some(at(10)), by(2)), (Some(at(10)), by(1))]);
        // Told to be something else after the change to it.
        assert_eq!(since(&all(&[(10, 2, Some(1)), (15, 1, None), (20, 2, None)]), 2), Some(at(15)));
    }

    #[test]
    fn changes_of_one_second_follow_from_each_other() {
        for (first, second, third) in [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3), (3, 1, 2), (1, 3, 2)] {
            let tenure = all(&[(5, second, Some(first)), (10, third, Some(second)), (10, 4, Some(third))]);
            let prices: Vec<_> = tenure.steps(&by(4)).into_iter().map(|(_, prices)| prices).collect();
            assert_eq!(prices, [by(first), by(second), by(third), by(4)]);
            let alone = all(&[(10, third, Some(second)), (10, second, Some(first))]);
            let prices: Vec<_> = alone.steps(&by(third)).into_iter().map(|(_, prices)| prices).collect();
            assert_eq!(prices, [by(first), by(second), by(third)]);
        }
    }

    fn reports() -> impl Strategy<Value = Vec<(i64, u8, Option<u8>)>> {
        proptest::collection::vec((0..40_i64, 0..5_u8, proptest::option::of(0..5_u8)), 0..80)
    }

    proptest! {
        // D1: whatever the order, the repetition and the grouping.
        #[test]
        fn joining_is_commutative_associative_and_idempotent(one in reports(), two in reports(), three in reports()) {
            let (a, b, c) = (all(&one), all(&two), all(&three));
            prop_assert_eq!(a.clone().join(b.clone()), b.clone().join(a.clone()));
            prop_assert_eq!(a.clone().join(b.clone()).join(c.clone()), a.clone().join(b.join(c)));
            prop_assert_eq!(a.clone().join(a.clone()), a);
        }

        #[test]
        fn the_last_step_is_the_present_one_and_steps_are_in_order(reports in reports(), present in 0..5_u8) {
            let steps = all(&reports).steps(&by(present));
            prop_assert_eq!(&steps.last().unwrap().1, &by(present));
            let instants: Vec<_> = steps.iter().map(|(since, _)| *since).collect();
            prop_assert!(instants.is_sorted(), "{:?}", instants);
        }
    }
}
