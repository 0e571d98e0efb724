//! Which of the snapshots of one second is the newest: a pure function of their set.

use std::collections::BTreeMap;

use super::{ContentHash, StripeObject, snapshot::Candidate};

/// The newest value, and whether that is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Resolution<'a, T> {
    /// What to go by.
    pub value: &'a T,
    /// Nothing decides between several values: fetch the object.
    pub ambiguous: bool,
}

pub(super) fn resolve<T: StripeObject>(
    candidates: &BTreeMap<ContentHash, Candidate<T>>,
    overflowed: bool,
) -> Resolution<'_, T> {
    let all: Vec<(&ContentHash, &Candidate<T>)> = candidates.iter().collect();
    let superseded_by = |c: usize, d: usize| c != d && supersedes(all[d].1, all[c]);
    let newest: Vec<usize> = (0..all.len()).filter(|c| !(0..all.len()).any(|d| superseded_by(*c, d))).collect();

    // Everything must lead to the newest; a circle beside it (a change and its undoing) could have come after it.
    let mut leads = vec![false; all.len()];
    let mut reached = newest.clone();
    while let Some(d) = reached.pop() {
        if !std::mem::replace(&mut leads[d], true) {
            reached.extend((0..all.len()).filter(|c| !leads[*c] && superseded_by(*c, d)));
        }
    }
    let one_value = newest.windows(2).all(|pair| all[pair[0]].1.value == all[pair[1]].1.value);
    let overflow_settled =
        !overflowed || all.iter().any(|(_, c)| c.fetch.as_ref().is_some_and(|fetch| fetch.covers_overflow));
    let certain = !newest.is_empty() && one_value && leads.iter().all(|leads| *leads) && overflow_settled;

    let pool = if newest.is_empty() { (0..all.len()).collect() } else { newest };
    let best = pool.into_iter().max_by_key(|index| all[*index].1.weight(all[*index].0)).unwrap_or(0);
    Resolution { value: &all[best].1.value, ambiguous: !certain }
}

/// Whether `d` is known to be newer than `c`.
fn supersedes<T: StripeObject>(d: &Candidate<T>, (hash, c): (&ContentHash, &Candidate<T>)) -> bool {
    let replaced = d.before.as_ref() == Some(&c.value);
    let fetched_later = d.fetch.as_ref().is_some_and(|fetch| {
        fetch.covers.contains(hash) || c.fetch.as_ref().is_some_and(|earlier| earlier.sequence < fetch.sequence)
    });
    replaced || fetched_later
}
