//! The published answers: a fixed table that readers search without a lock, a reference count or an allocation.
//!
//! One slot per tenant: the tenant's id, a deadline and the bits of its first 64 features; further bits lie in an array
//! beside. Two slots make a bucket, which is one cache line. A tenant lies in the bucket that its hash names or, rarely,
//! in one of the [`WINDOW`] after it; when all of these are taken, the tenant that was loaded longest ago gives way.
//!
//! Slots change in place under a sequence lock made of plain atomics (Boehm, "Can Seqlocks Get Along With Programming
//! Language Memory Models?", 2012). A reader that meets a writer answers "ask the slow path", never a mixture. Deadline
//! and sequence share a word, so a mixture would need 32,768 publications of one tenant within one read.
//!
//! Writers are serialised by whoever holds the one [`Pen`].

use std::{hash::BuildHasher, sync::Arc};

use saas_core::TenantId;

use super::sync::{ArcSwapOption, AtomicU64, Ordering, WINDOW, fence};
use crate::snapshot::{Origin, Snapshot};

/// Slots of a bucket.
pub(super) const PAIR: usize = 2;
/// Words of a slot: deadline and sequence, id (two), bits.
const SLOT: usize = 4;

/// Bits of the sequence; the deadline has the other 48.
const SEQUENCE_BITS: u32 = 16;
const SEQUENCE: u64 = (1 << SEQUENCE_BITS) - 1;

/// The time at which every slot has expired: before the clock runs and after it stopped.
pub(crate) const NO_TIME: u64 = u64::MAX;

/// The right to write. There is one per table, behind the gate's lock.
#[derive(Debug)]
pub(crate) struct Pen(());

#[repr(align(64))]
#[derive(Debug, Default)]
struct Bucket([AtomicU64; PAIR * SLOT]);

#[derive(Debug)]
pub(crate) struct Table {
    /// The gate's time in ticks; see [`Coarse`](super::shelf::Coarse).
    pub(crate) now: AtomicU64,
    buckets: Box<[Bucket]>,
    /// Buckets that a hash can name.
    homes: u64,
    seeds: [u64; 2],
    /// Bits beyond the first 64 features, by slot.
    more: Box<[AtomicU64]>,
    more_words: usize,
    /// The whole snapshot of each slot, for questions beyond a bit. Also tells which slots are taken.
    held: Box<[ArcSwapOption<Snapshot>]>,
}

impl Table {
    /// A table for about `capacity` tenants and exactly `features` features.
    pub(crate) fn new(capacity: usize, features: usize) -> (Self, Pen) {
        // Half full at capacity: nine tenants in ten then lie in the bucket that their hash names.
        let homes = capacity.max(1);
        let buckets = homes + WINDOW;
        let more_words = features.div_ceil(64).saturating_sub(1);
        let random = foldhash::fast::RandomState::default();
        let table = Self {
            now: AtomicU64::new(NO_TIME),
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            homes: homes as u64,
            seeds: [random.hash_one(0), random.hash_one(1)],
            more: (0..buckets * PAIR * more_words).map(|_| AtomicU64::default()).collect(),
            more_words,
            held: (0..buckets * PAIR).map(|_| ArcSwapOption::empty()).collect(),
        };
        (table, Pen(()))
    }

    /// A feature's bit, if the tenant is published and its deadline has not passed. Waits for nothing.
    #[inline(always)]
    pub(crate) fn read(&self, tenant: TenantId, feature: usize) -> Option<bool> {
        let (high, low) = halves(tenant);
        let home = self.home(high, low);
        match self.read_in(home, high, low, feature) {
            Some(answer) => answer,
            None => self.read_after(home, high, low, feature),
        }
    }

    /// The answer of the buckets after the one that the hash names: not part of what callers inline.
    #[inline(never)]
    fn read_after(&self, home: usize, high: u64, low: u64, feature: usize) -> Option<bool> {
        (home + 1..home + WINDOW).find_map(|bucket| self.read_in(bucket, high, low, feature))?
    }

    /// The answer of one bucket; `None` when the tenant is not in it.
    #[inline(always)]
    fn read_in(&self, bucket: usize, high: u64, low: u64, feature: usize) -> Option<Option<bool>> {
        let Bucket(words) = self.buckets.get(bucket)?;
        // Which of the two is computed, not branched on: the processor could only guess.
        let second = (words[SLOT + 1].load(Ordering::Relaxed) ^ high) | (words[SLOT + 2].load(Ordering::Relaxed) ^ low);
        let at = usize::from(second == 0) * SLOT;
        let stamp = words[at].load(Ordering::Acquire);
        let other = (words[at + 1].load(Ordering::Relaxed) ^ high) | (words[at + 2].load(Ordering::Relaxed) ^ low);
        if other != 0 {
            return None;
        }
        let bits = match feature / 64 {
            0 => words[at + 3].load(Ordering::Relaxed),
            word => match self.more_bits(bucket * PAIR + at / SLOT, word) {
                Some(bits) => bits,
                None => return Some(None),
            },
        };
        fence(Ordering::Acquire);
        let torn = (stamp & 1) | (words[at].load(Ordering::Relaxed) ^ stamp);
        let alive = torn == 0 && self.now.load(Ordering::Relaxed) < stamp >> SEQUENCE_BITS;
        Some(alive.then_some(bits >> (feature % 64) & 1 == 1))
    }

    fn more_bits(&self, slot: usize, word: usize) -> Option<u64> {
        Some(self.more.get(slot * self.more_words + word - 1)?.load(Ordering::Relaxed))
    }

    /// The whole snapshot, on the same conditions.
    pub(crate) fn read_held(&self, tenant: TenantId) -> Option<Arc<Snapshot>> {
        let slot = self.find(tenant)?;
        let stamp = self.word(slot, 0)?.load(Ordering::Acquire);
        if self.now.load(Ordering::Relaxed) >= stamp >> SEQUENCE_BITS {
            return None;
        }
        self.held(slot).filter(|held| held.tenant == tenant)
    }

    /// The slot that a tenant has. Without the pen the answer may be outdated at once.
    pub(crate) fn find(&self, tenant: TenantId) -> Option<usize> {
        let (high, low) = halves(tenant);
        self.window(high, low).find(|slot| {
            let is = |word, half| self.word(*slot, word).is_some_and(|word| word.load(Ordering::Relaxed) == half);
            is(1, high) && is(2, low) && self.held.get(*slot).is_some_and(|held| held.load().is_some())
        })
    }

    /// What a slot holds.
    pub(crate) fn held(&self, slot: usize) -> Option<Arc<Snapshot>> {
        self.held.get(slot)?.load_full()
    }

    /// Publishes a snapshot until `deadline`. Returns whether another tenant had to give way.
    pub(crate) fn publish(&self, pen: &mut Pen, snapshot: Arc<Snapshot>, deadline: u64) -> bool {
        let (slot, evicts) = self.place(snapshot.tenant);
        let (high, low) = halves(snapshot.tenant);
        // Before the deadline: whoever finds the slot alive finds this snapshot or a later one in it.
        self.amend(pen, slot, Arc::clone(&snapshot));
        self.change(pen, slot, deadline, |store| {
            store(1, high);
            store(2, low);
            for (index, bits) in snapshot.enabled.iter().enumerate() {
                store(SLOT - 1 + index, *bits);
            }
        });
        evicts
    }

    /// Sends readers of a slot to the slow path. What it holds stays, as last known state.
    pub(crate) fn expire(&self, pen: &mut Pen, slot: usize) {
        self.change(pen, slot, 0, |_| {});
    }

    /// Replaces what a slot holds by the same state with other book-keeping.
    pub(crate) fn amend(&self, _: &mut Pen, slot: usize, snapshot: Arc<Snapshot>) {
        if let Some(held) = self.held.get(slot) {
            held.store(Some(snapshot));
        }
    }

    /// Changes a slot so that readers see all of it or notice.
    fn change(&self, _: &mut Pen, slot: usize, deadline: u64, change: impl FnOnce(&dyn Fn(usize, u64))) {
        let Some(stamp) = self.word(slot, 0) else { return };
        let sequence = stamp.load(Ordering::Relaxed) & SEQUENCE;
        stamp.store(sequence.wrapping_add(1) & SEQUENCE, Ordering::Relaxed);
        fence(Ordering::Release);
        change(&|word, value| {
            if let Some(word) = self.word(slot, word) {
                word.store(value, Ordering::Relaxed);
            }
        });
        let deadline = deadline.min(u64::MAX >> SEQUENCE_BITS) << SEQUENCE_BITS;
        stamp.store(deadline | (sequence.wrapping_add(2) & SEQUENCE), Ordering::Release);
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

    fn window(&self, high: u64, low: u64) -> std::ops::Range<usize> {
        let home = self.home(high, low) * PAIR;
        home..home + WINDOW * PAIR
    }

    /// The bucket of an id: one folded multiplication by secret seeds (as foldhash), spread over the homes (Lemire, "Fast
    /// Random Integer Generation in an Interval", 2019).
    #[inline(always)]
    fn home(&self, high: u64, low: u64) -> usize {
        let product = u128::from(high ^ self.seeds[0]) * u128::from(low ^ self.seeds[1]);
        let hash = (product >> 64) as u64 ^ product as u64;
        ((u128::from(hash) * u128::from(self.homes)) >> 64) as usize
    }

    /// A word of a slot; those beyond its four are in the array beside.
    fn word(&self, slot: usize, word: usize) -> Option<&AtomicU64> {
        match word.checked_sub(SLOT) {
            None => self.buckets.get(slot / PAIR)?.0.get(slot % PAIR * SLOT + word),
            Some(further) if further < self.more_words => self.more.get(slot * self.more_words + further),
            Some(_) => None,
        }
    }
}

/// An id as two words, in whatever order this machine has bytes: they never leave it.
#[inline(always)]
fn halves(tenant: TenantId) -> (u64, u64) {
    let id = u128::from_ne_bytes(tenant.as_uuid().into_bytes());
    ((id >> 64) as u64, id as u64)
}
