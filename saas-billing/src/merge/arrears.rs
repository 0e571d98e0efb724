//! Since when an object has been behind with its payments, from whatever reports have come in.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Reports of arrears that are kept. Stripe sends a few in each of the weeks that it tries to collect.
const MAX_REPORTS: usize = 256;

/// The reports of arrears that no later report of payment has made past.
///
/// Joining keeps the latest payment and, of the union, the latest reports not before it. Both cut from below, so the order
/// of the cuts does not matter: commutative, associative, idempotent. Only the earliest report that is left is ever asked
/// for, and a report of payment that comes late still ends the arrears before it and none after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrears {
    paid_at: Option<DateTime<Utc>>,
    behind_at: BTreeSet<DateTime<Utc>>,
}

impl Arrears {
    /// What one report at `at` says: whether payments were behind then, and whether they were not just before.
    pub(super) fn of(at: DateTime<Utc>, behind: Option<bool>, behind_before: Option<bool>) -> Self {
        Self {
            paid_at: (behind == Some(false) || behind_before == Some(false)).then_some(at),
            behind_at: (behind == Some(true)).then_some(at).into_iter().collect(),
        }
    }

    pub(super) fn join(mut self, other: Self) -> Self {
        self.paid_at = self.paid_at.max(other.paid_at);
        self.behind_at.extend(other.behind_at);
        // A renewal and its failure often share a second: a report of that second is about what came after.
        if let Some(paid_at) = self.paid_at {
            self.behind_at = self.behind_at.split_off(&paid_at);
        }
        while self.behind_at.len() > MAX_REPORTS {
            self.behind_at.pop_first();
        }
        self
    }

    pub(super) fn since(&self) -> Option<DateTime<Utc>> {
        self.behind_at.first().copied()
    }

    pub(super) const fn paid_at(&self) -> Option<DateTime<Utc>> {
        self.paid_at
    }
}
