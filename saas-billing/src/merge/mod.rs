//! What is known about one Stripe object, as a function of the *set* of snapshots seen, whatever their order.
//!
//! # The rule
//! Each snapshot has a [`Key`]: its stage (final states absorb), the second it was created in, whether it is the object's
//! first, and a counter that only grows. The snapshots with the greatest key are kept, all of them, without duplicates;
//! everything below is dropped. Keeping the maxima of a set is commutative, associative and idempotent, and so is keeping
//! the facts ever seen, so [`Merged::join`] is a join of a semilattice: order, repetition and grouping cannot matter.
//!
//! Which of the kept snapshots is the newest is decided when somebody asks, by a pure function of the kept set
//! ([`Merged::resolve`]): comparing them in pairs on arrival would not be associative. Snapshot *d* supersedes *c* when
//! what was before *d* is what *c* says, or when *d* was fetched after *c* was known. If one value remains and every other
//! leads to it, that is the newest. If not, the answer is the highest rank, then the highest hash, *and* the object must be
//! fetched; what is fetched supersedes all that was known when the fetch began, which ends the ambiguity.

mod arrears;
mod charge;
mod checkout;
mod credit_note;
mod customer;
mod dispute;
mod hash;
mod history;
mod invoice;
mod object;
mod refund;
mod resolve;
mod snapshot;
mod subscription;
mod tenure;

pub use hash::ContentHash;
pub use history::{Fact, History};
pub use object::StripeObject;
pub use resolve::Resolution;
pub use snapshot::{Key, Origin, Snapshot};

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use snapshot::Candidate;

/// Different snapshots of one object in one second that are kept. Stripe sends a handful; more is a fault, and a fetch
/// settles it.
const MAX_CANDIDATES: usize = 32;

/// All that is known about one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "T: StripeObject")]
pub struct Merged<T> {
    key: Key,
    /// The snapshots with that key, by the hash of their content.
    candidates: BTreeMap<ContentHash, Candidate<T>>,
    /// There were more than are kept.
    overflowed: bool,
    history: History,
}

impl<T: StripeObject> Merged<T> {
    /// What one snapshot says.
    #[must_use]
    pub fn of(snapshot: Snapshot<T>) -> Self {
        let key = snapshot.key();
        let history = snapshot.history();
        let candidate = Candidate::from(snapshot);
        Self { key, candidates: BTreeMap::from([(ContentHash::of(&candidate), candidate)]), overflowed: false, history }
    }

    /// What both say together. Commutative, associative, idempotent.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let history = self.history.join(other.history);
        let (mut high, low) = if self.key >= other.key {
            ((self.key, self.candidates, self.overflowed), (other.key, other.candidates, other.overflowed))
        } else {
            ((other.key, other.candidates, other.overflowed), (self.key, self.candidates, self.overflowed))
        };
        if high.0 == low.0 {
            high.1.extend(low.1);
            high.2 |= low.2;
        }
        let mut merged = Self { key: high.0, candidates: high.1, overflowed: high.2, history };
        merged.bound();
        merged
    }

    /// Keeps the greatest [`MAX_CANDIDATES`] under one fixed total order, which is associative too.
    fn bound(&mut self) {
        while self.candidates.len() > MAX_CANDIDATES {
            self.overflowed = true;
            let least = self
                .candidates
                .iter()
                .min_by_key(|(hash, candidate)| candidate.weight(hash))
                .map(|(hash, _)| hash.clone());
            least.and_then(|hash| self.candidates.remove(&hash));
        }
    }

    /// Whether a stored form is one that this type could have written.
    pub(crate) fn is_sound(&self) -> bool {
        (1..=MAX_CANDIDATES).contains(&self.candidates.len())
    }

    /// The newest value, and whether that is certain.
    pub fn resolve(&self) -> Resolution<'_, T> {
        resolve::resolve(&self.candidates, self.overflowed)
    }

    /// The newest value.
    #[must_use]
    pub fn value(&self) -> &T {
        self.resolve().value
    }

    /// Whether the newest value is as a read of Stripe found it: to read it again would say no more.
    #[must_use]
    pub fn was_read(&self) -> bool {
        let newest = self.value();
        self.candidates.values().any(|candidate| candidate.fetch.is_some() && candidate.value == *newest)
    }

    /// The second that the newest snapshot was created in.
    #[must_use]
    pub const fn as_of(&self) -> DateTime<Utc> {
        self.key.created
    }

    /// What ever happened to the object.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The origin and the instant of a snapshot that is about to be fetched: it supersedes all that is known now.
    ///
    /// `sequence` grows with every fetch of the object. `as_of` is an instant of Stripe's clock not later than the read,
    /// if one is known.
    #[must_use]
    pub fn fetch_origin(&self, sequence: u64, as_of: Option<DateTime<Utc>>) -> (Origin, DateTime<Utc>) {
        let covers = self.candidates.keys().cloned().collect();
        let origin = Origin::Fetch { sequence, covers, covers_overflow: self.overflowed };
        (origin, as_of.map_or(self.key.created, |as_of| as_of.max(self.key.created)))
    }
}

#[cfg(test)]
mod tests;
