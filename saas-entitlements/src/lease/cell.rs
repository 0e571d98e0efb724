//! What one process holds of one meter of one tenant.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use saas_core::{LeaseToken, MeterKey, RequestContext};
use tokio::sync::Mutex;

use super::{Report, rule::Rule};

/// Units to be spent, and where they come from.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) ctx: RequestContext,
    pub(super) meter: MeterKey,
    /// Units of the counter per unit of the meter; of the catalogue, so it does not change.
    cost: u64,
    /// The most that may be used at once: 1 for a meter that counts uses.
    most: u64,
    budget: AtomicU64,
    /// Held while the store is asked: one refill at a time.
    pub(super) state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) held: Option<Held>,
    /// Last reports that the store may not have.
    pub(super) endings: Vec<Report>,
    /// What to borrow next time, in units of the meter.
    pub(super) size: u64,
    /// Ticks since a unit was used.
    pub(super) idle: u32,
    /// Taken out of the map: whoever still has it looks again.
    pub(super) retired: bool,
}

/// A lease, as its holder knows it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease: LeaseToken,
    pub(super) lent: u64,
    pub(super) rule: Rule,
    pub(super) reports: u64,
    pub(super) reported: u64,
    /// When it was lent or last prolonged, from before the store was asked.
    pub(super) since: Instant,
    pub(super) lent_at: Instant,
}

impl Cell {
    pub(super) fn new(ctx: RequestContext, meter: MeterKey, cost: u64, most: u64, size: u64) -> Self {
        let state = State { held: None, endings: Vec::new(), size, idle: 0, retired: false };
        Self { ctx, meter, cost, most, budget: AtomicU64::new(0), state: Mutex::new(state) }
    }

    /// Spends units for `amount` uses, if there are enough.
    #[inline]
    pub(super) fn take(&self, amount: u64) -> bool {
        // 0 wraps around to more than any bound.
        if amount.wrapping_sub(1) >= self.most {
            return false;
        }
        let Some(units) = amount.checked_mul(self.cost) else { return false };
        // Never below 0, not even for a moment: what `drain` finds is exactly what nobody has spent.
        let mut left = self.budget.load(Ordering::Relaxed);
        while let Some(rest) = left.checked_sub(units) {
            match self.budget.compare_exchange_weak(left, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => left = now,
            }
        }
        false
    }

    /// Makes freshly lent units spendable. Only after [`drain`](Self::drain), under the lock of the state.
    pub(super) fn fill(&self, units: u64) {
        self.budget.store(units, Ordering::Relaxed);
    }

    /// Spent of a lease so far.
    pub(super) fn spent(&self, held: &Held) -> u64 {
        held.lent.saturating_sub(self.budget.load(Ordering::Relaxed))
    }

    /// Stops the spending of what is held; answers the last report, which is owed to the store from here on.
    pub(super) fn drain(&self, state: &mut State, life: Duration) -> Option<Report> {
        let held = state.held.take()?;
        let spent = held.lent.saturating_sub(self.budget.swap(0, Ordering::Relaxed));
        Some(Report { lease: held.lease, number: held.reports + 1, spent, ending: true, life })
    }
}
