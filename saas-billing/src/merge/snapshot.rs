//! One report about an object: what it said, when, and what was before.

use std::collections::BTreeSet;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use super::{ContentHash, History, StripeObject, arrears::Arrears, tenure::Tenure};

/// How a snapshot came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An event that says the object is new: nothing can have been before it.
    Creation,
    /// Any other event.
    Change,
    /// A read of Stripe's API.
    Fetch {
        /// Which read of this object: later ones supersede earlier ones of the same second.
        sequence: u64,
        /// The snapshots that were known when the read began; it supersedes them.
        covers: BTreeSet<ContentHash>,
        /// Whether there were more than are kept.
        covers_overflow: bool,
    },
}

/// One report about an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot<T> {
    /// The object as it was reported.
    pub value: T,
    /// The object as it was before the change, if the report says.
    pub before: Option<T>,
    /// When, by Stripe's clock, in whole seconds.
    pub created: DateTime<Utc>,
    /// How the report came about.
    pub origin: Origin,
    facts: Vec<super::Fact>,
}

/// What orders snapshots before anything else is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// How far along its life.
    stage: u8,
    /// The second.
    pub(super) created: DateTime<Utc>,
    /// Not the first report of the object.
    follows: bool,
    /// A counter of the object.
    progress: u32,
}

impl<T: StripeObject> Snapshot<T> {
    /// A report by an event of `event_type` (empty for a fetch).
    #[must_use]
    pub fn new(value: T, before: Option<T>, created: DateTime<Utc>, origin: Origin, event_type: &str) -> Self {
        let facts = value.facts(event_type);
        Self { value, before, created: created.trunc_subsecs(0), origin, facts }
    }

    pub(super) fn key(&self) -> Key {
        Key {
            stage: self.value.stage(),
            created: self.created,
            follows: self.origin != Origin::Creation,
            progress: self.value.progress(),
        }
    }

    pub(super) fn history(&self) -> History {
        let before = self.before.as_ref().and_then(StripeObject::is_behind);
        let arrears = Arrears::of(self.created, self.value.is_behind(), before);
        let charged_before = self.before.as_ref().and_then(StripeObject::charged_by);
        let tenure = Tenure::of(self.created, self.value.charged_by(), charged_before);
        History::new(self.created, self.facts.clone(), self.value.prices(), (arrears, tenure))
    }
}

/// A snapshot that may be the newest: its key is the greatest seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "T: StripeObject")]
pub(super) struct Candidate<T> {
    pub(super) value: T,
    /// What it replaced; only where that differs.
    pub(super) before: Option<T>,
    pub(super) fetch: Option<Fetch>,
}

/// What a fetched candidate supersedes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fetch {
    pub(super) sequence: u64,
    pub(super) covers: BTreeSet<ContentHash>,
    pub(super) covers_overflow: bool,
}

impl<T: StripeObject> Candidate<T> {
    /// What is kept longest when there are too many, and believed first when nothing decides.
    pub(super) fn weight<'a>(&self, hash: &'a ContentHash) -> (u64, u8, &'a ContentHash) {
        (self.fetch.as_ref().map_or(0, |fetch| fetch.sequence), self.value.rank(), hash)
    }
}

impl<T: StripeObject> From<Snapshot<T>> for Candidate<T> {
    fn from(snapshot: Snapshot<T>) -> Self {
        let before = snapshot.before.filter(|before| *before != snapshot.value);
        let fetch = match snapshot.origin {
            Origin::Creation | Origin::Change => None,
            Origin::Fetch { sequence, covers, covers_overflow } => Some(Fetch { sequence, covers, covers_overflow }),
        };
        Self { value: snapshot.value, before, fetch }
    }
}
