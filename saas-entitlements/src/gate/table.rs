//! The published answers: a fixed table that readers search without a lock, a reference count or an allocation.
//!
//! One slot per tenant: the tenant's id, a deadline and the bits of its features, on one cache line for up to 256
//! features. A tenant's slot lies within [`WINDOW`] places of where its hash points, so a lookup touches one or two
//! neighbouring lines; a full window gives up the tenant that was loaded longest ago. Slots change in place under a
//! sequence lock made of plain atomics (Boehm, "Can Seqlocks Get Along With Programming Language Memory Models?", 2012):
//! a reader that meets a writer answers "ask the slow path", never a mixture.
//!
//! Writers are serialised by whoever holds the one [`Pen`].

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use arc_swap::ArcSwapOption;
use saas_core::TenantId;

use crate::snapshot::{Origin, Snapshot};

/// How many places from its hash a tenant may lie.
const WINDOW: usize = 16;
/// Words of a slot before its bits: sequence, id (two), deadline.
const HEAD: usize = 4;
/// Words of a cache line.
const LINE: usize = 8;

/// The deadline of a slot that must not be read.
pub(crate) const EXPIRED: u64 = 0;
/// The time at which every slot has expired: before the clock runs and after it stopped.
pub(crate) const NO_TIME: u64 = u64::MAX;

/// The right to write. There is one per table, behind the gate's lock.
#[derive(Debug)]
pub(crate) struct Pen(());

#[repr(align(64))]
#[derive(Debug)]
struct Line([AtomicU64; LINE]);

#[derive(Debug)]
pub(crate) struct Table {
    /// The gate's time in ticks; see `coarse.rs`.
    pub(crate) now: AtomicU64,
    lines: Box<[Line]>,
    lines_per_slot: usize,
    homes: u64,
    hasher: foldhash::fast::RandomState,
    /// The whole snapshot of each slot, for questions beyond a bit. Also tells which slots are taken.
    held: Box<[ArcSwapOption<Snapshot>]>,
}

impl Table {
    /// A table for about `capacity` tenants and exactly `features` features.
    pub(crate) fn new(capacity: usize, features: usize) -> (Self, Pen) {
        let lines_per_slot = (HEAD + features.div_ceil(64)).div_ceil(LINE);
        // Two thirds full at capacity: windows rarely overflow before it is reached.
        let homes = capacity.max(1).saturating_mul(3) / 2 + 1;
        let slots = homes + WINDOW;
        let table = Self {
            now: AtomicU64::new(NO_TIME),
            lines: (0..slots * lines_per_slot).map(|_| Line(Default::default())).collect(),
            lines_per_slot,
            homes: homes as u64,
            hasher: foldhash::fast::RandomState::default(),
            held: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
        };
        (table, Pen(()))
    }

    /// A feature's bit, if the tenant is published and its deadline has not passed. Waits for nothing.
    #[inline]
    pub(crate) fn read(&self, tenant: TenantId, feature: usize) -> Option<bool> {
        let (high, low) = halves(tenant);
        let (line, word) = place_of(HEAD + feature / 64);
        let home = self.home(high, low) * self.lines_per_slot;
        let mut at = home;
        while at < home + WINDOW * self.lines_per_slot {
            let head = &self.lines.get(at)?.0;
            let sequence = head[0].load(Ordering::Acquire);
            if head[2].load(Ordering::Relaxed) == low && head[1].load(Ordering::Relaxed) == high {
                let deadline = head[3].load(Ordering::Relaxed);
                let bits = self.lines.get(at + line)?.0[word].load(Ordering::Relaxed);
                fence(Ordering::Acquire);
                let whole = sequence & 1 == 0 && head[0].load(Ordering::Relaxed) == sequence;
                let alive = self.now.load(Ordering::Relaxed) < deadline;
                return (whole && alive).then_some(bits >> (feature % 64) & 1 == 1);
            }
            at += self.lines_per_slot;
        }
        None
    }

    /// The whole snapshot, on the same conditions.
    pub(crate) fn read_held(&self, tenant: TenantId) -> Option<Arc<Snapshot>> {
        let slot = self.find(tenant)?;
        let deadline = self.lines.get(slot * self.lines_per_slot)?.0[3].load(Ordering::Acquire);
        if self.now.load(Ordering::Relaxed) >= deadline {
            return None;
        }
        self.held(slot).filter(|held| held.tenant == tenant)
    }

    /// The slot that a tenant has. Without the pen the answer may be outdated at once.
    pub(crate) fn find(&self, tenant: TenantId) -> Option<usize> {
        let (high, low) = halves(tenant);
        self.window(high, low).find(|slot| self.is_of(*slot, high, low) && self.held(*slot).is_some())
    }

    /// What a slot holds.
    pub(crate) fn held(&self, slot: usize) -> Option<Arc<Snapshot>> {
        self.held.get(slot)?.load_full()
    }

    /// Publishes a snapshot until `deadline`. Returns whether another tenant had to give way.
    pub(crate) fn publish(&self, pen: &mut Pen, snapshot: Arc<Snapshot>, deadline: u64) -> bool {
        let tenant = snapshot.tenant;
        let (slot, evicts) = self.place(tenant);
        let (high, low) = halves(tenant);
        let start = slot * self.lines_per_slot;
        let Some(lines) = self.lines.get(start..start + self.lines_per_slot) else { return false };
        let word = |index: usize| {
            let (line, word) = place_of(index);
            &lines[line].0[word]
        };
        let sequence = word(0).load(Ordering::Relaxed);
        word(0).store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        word(1).store(high, Ordering::Relaxed);
        word(2).store(low, Ordering::Relaxed);
        word(3).store(deadline, Ordering::Relaxed);
        for (index, bits) in snapshot.enabled.iter().enumerate() {
            word(HEAD + index).store(*bits, Ordering::Relaxed);
        }
        if let Some(held) = self.held.get(slot) {
            held.store(Some(snapshot));
        }
        word(0).store(sequence.wrapping_add(2), Ordering::Release);
        let _ = pen;
        evicts
    }

    /// Sends readers of a slot to the slow path. What it holds stays, as last known state.
    pub(crate) fn expire(&self, _: &mut Pen, slot: usize) {
        if let Some(line) = self.lines.get(slot * self.lines_per_slot) {
            line.0[3].store(EXPIRED, Ordering::Release);
        }
    }

    /// Replaces what a slot holds by the same state with other book-keeping.
    pub(crate) fn amend(&self, _: &mut Pen, slot: usize, snapshot: Arc<Snapshot>) {
        if let Some(held) = self.held.get(slot) {
            held.store(Some(snapshot));
        }
    }

    /// The slot for a tenant: its own, a free one, or the one that was loaded longest ago.
    fn place(&self, tenant: TenantId) -> (usize, bool) {
        if let Some(slot) = self.find(tenant) {
            return (slot, false);
        }
        let (high, low) = halves(tenant);
        let mut oldest = None;
        for slot in self.window(high, low) {
            let Some(held) = self.held(slot) else { return (slot, false) };
            // Tenants that do not exist go first.
            let age = (held.origin != Origin::UnknownTenant, held.life.fresh_until);
            if oldest.as_ref().is_none_or(|(_, least)| age < *least) {
                oldest = Some((slot, age));
            }
        }
        (oldest.map_or(0, |(slot, _)| slot), true)
    }

    fn is_of(&self, slot: usize, high: u64, low: u64) -> bool {
        self.lines
            .get(slot * self.lines_per_slot)
            .is_some_and(|line| line.0[2].load(Ordering::Relaxed) == low && line.0[1].load(Ordering::Relaxed) == high)
    }

    fn window(&self, high: u64, low: u64) -> std::ops::Range<usize> {
        let home = self.home(high, low);
        home..home + WINDOW
    }

    /// Spreads the hash over the homes (Lemire, "Fast Random Integer Generation in an Interval", 2019).
    #[inline]
    fn home(&self, high: u64, low: u64) -> usize {
        let hash = self.hasher.hash_one((u128::from(high) << 64) | u128::from(low));
        ((u128::from(hash) * u128::from(self.homes)) >> 64) as usize
    }
}

#[inline]
fn halves(tenant: TenantId) -> (u64, u64) {
    tenant.as_uuid().as_u64_pair()
}

#[inline]
const fn place_of(word: usize) -> (usize, usize) {
    (word / LINE, word % LINE)
}
