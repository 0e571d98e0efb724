//! What one process holds of one meter of one tenant.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use saas_core::{LeaseToken, MeterKey, RequestContext};
use tokio::sync::Mutex;

use super::{Report, rule::Rule};

/// Units to be spent, and where they come from. All that a use from memory looks at is in one cache line, and those of other
/// tenants lie close to it: the rest is elsewhere.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Cell {
    budget: AtomicU64,
    /// Units of the counter per unit of the meter; of the catalogue, so it does not change.
    cost: u64,
    /// The most that may be used at once: 1 for a meter that counts uses.
    most: u64,
    /// Below so much more is borrowed ahead; 0 for never.
    low: AtomicU64,
    meter: MeterKey,
    rest: Box<Rest>,
}

const _: () = assert!(size_of::<Cell>() == 64, "a cell is one cache line");

#[derive(Debug)]
struct Rest {
    ctx: RequestContext,
    state: Mutex<State>,
}

/// What became of a use from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Not,
    Yes,
    /// Yes, and it is time to borrow more.
    Low,
}

/// The cells of one tenant: mostly one. Two words, so that two tenants are in a cache line of the map.
#[derive(Debug, Clone)]
pub(super) struct Cells {
    first: Arc<Cell>,
    others: Option<Box<Others>>,
}

#[derive(Debug, Clone)]
struct Others(Box<[Arc<Cell>]>);

impl Cells {
    pub(super) fn new(first: Arc<Cell>) -> Self {
        Self { first, others: None }
    }

    #[inline]
    pub(super) fn find(&self, meter: &MeterKey) -> Option<&Arc<Cell>> {
        if self.first.is_of(meter) {
            return Some(&self.first);
        }
        self.others().find(|cell| cell.is_of(meter))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Cell>> {
        std::iter::once(&self.first).chain(self.others())
    }

    fn others(&self) -> impl Iterator<Item = &Arc<Cell>> {
        self.others.iter().flat_map(|others| &others.0)
    }

    fn of(first: Arc<Cell>, others: impl Iterator<Item = Arc<Cell>>) -> Self {
        let others: Box<[_]> = others.collect();
        Self { first, others: (!others.is_empty()).then(|| Box::new(Others(others))) }
    }

    pub(super) fn with(&self, cell: Arc<Cell>) -> Self {
        Self::of(Arc::clone(&self.first), self.others().cloned().chain([cell]))
    }

    /// `None` when none is left.
    pub(super) fn without(&self, meter: &MeterKey) -> Option<Self> {
        let mut left = self.iter().filter(|cell| !cell.is_of(meter)).cloned();
        Some(Self::of(left.next()?, left))
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) held: Option<Held>,
    /// Last reports that the store may not have.
    pub(super) endings: Vec<Ending>,
    /// The rule of the last use, and the usage at which something is to be announced that may not have been.
    pub(super) told: Option<(Arc<Rule>, u64)>,
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
    pub(super) rule: Arc<Rule>,
    pub(super) reports: u64,
    pub(super) reported: u64,
    /// When it was lent or last prolonged, from before the store was asked.
    pub(super) since: Instant,
    pub(super) lent_at: Instant,
}

/// The last report of a lease, and what it was lent under.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) report: Report,
    pub(super) rule: Arc<Rule>,
    /// The usage at which something is to be announced.
    pub(super) due_from: u64,
}

impl State {
    /// The usage at which something is to be announced that may not have been.
    pub(super) fn due_from(&mut self, rule: &Arc<Rule>) -> u64 {
        match &self.told {
            Some((told, from)) if told == rule => *from,
            Some(_) | None => {
                let from = rule.next_threshold(0);
                self.told = Some((Arc::clone(rule), from));
                from
            }
        }
    }
}

impl Cell {
    pub(super) fn new(ctx: RequestContext, meter: MeterKey, cost: u64, most: u64, size: u64) -> Self {
        let state = State { held: None, endings: Vec::new(), told: None, size, idle: 0, retired: false };
        let rest = Box::new(Rest { ctx, state: Mutex::new(state) });
        Self { budget: AtomicU64::new(0), cost, most, low: AtomicU64::new(0), meter, rest }
    }

    pub(super) fn ctx(&self) -> &RequestContext {
        &self.rest.ctx
    }

    /// Held while the store is asked: one refill at a time.
    pub(super) fn state(&self) -> &Mutex<State> {
        &self.rest.state
    }

    pub(super) const fn meter(&self) -> &MeterKey {
        &self.meter
    }

    /// Keys of one constant are the same text in memory, which spares looking at it.
    #[inline]
    fn is_of(&self, meter: &MeterKey) -> bool {
        std::ptr::eq(self.meter.as_str(), meter.as_str()) || self.meter == *meter
    }

    /// Spends units for `amount` uses, if there are enough.
    #[inline]
    pub(super) fn take(&self, amount: u64) -> Taken {
        // 0 wraps around to more than any bound.
        let Self { budget, cost, most, low, .. } = self;
        if amount.wrapping_sub(1) >= *most {
            return Taken::Not;
        }
        match amount.checked_mul(*cost).and_then(|units| Self::spend(budget, units)) {
            None => Taken::Not,
            Some(rest) if rest < low.load(Ordering::Relaxed) => Taken::Low,
            Some(_) => Taken::Yes,
        }
    }

    /// Spends units of the counter, if there are enough.
    pub(super) fn take_units(&self, units: u64) -> bool {
        Self::spend(&self.budget, units).is_some()
    }

    #[inline]
    fn spend(budget: &AtomicU64, units: u64) -> Option<u64> {
        // Never below 0, not even for a moment: what `take_rest` finds is exactly what nobody has spent.
        let mut left = budget.load(Ordering::Relaxed);
        while let Some(rest) = left.checked_sub(units) {
            match budget.compare_exchange_weak(left, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(rest),
                Err(now) => left = now,
            }
        }
        None
    }

    /// Makes freshly lent units spendable.
    pub(super) fn add(&self, units: u64) {
        self.budget.fetch_add(units, Ordering::Relaxed);
    }

    /// Has it said when less than so much is left.
    pub(super) fn watch(&self, low: u64) {
        self.low.store(low, Ordering::Relaxed);
    }

    /// Stops watching; whether it was watched.
    pub(super) fn unwatch(&self) -> bool {
        self.low.swap(0, Ordering::Relaxed) > 0
    }

    /// Takes all that is left.
    pub(super) fn take_rest(&self) -> u64 {
        self.budget.swap(0, Ordering::Relaxed)
    }

    /// Spent of a lease so far.
    pub(super) fn spent(&self, held: &Held) -> u64 {
        held.lent.saturating_sub(self.budget.load(Ordering::Relaxed))
    }

    /// Stops the spending of what is held; its last report is owed to the store from here on.
    pub(super) fn end(&self, state: &mut State, life: Duration) {
        self.watch(0);
        let rest = self.take_rest();
        let Some(held) = state.held.take() else { return };
        let spent = held.lent.saturating_sub(rest);
        let report = Report { lease: held.lease, number: held.reports + 1, spent, ending: true, life };
        let due_from = state.due_from(&held.rule);
        state.endings.push(Ending { report, rule: held.rule, due_from });
    }
}
