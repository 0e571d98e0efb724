//! Every interleaving of the gate's protocol, weak memory included, within a bound of preemptions.
//!
//! The real `core.rs`, `flight.rs`, `shelf.rs` and `table.rs` are compiled a second time here, with
//! [loom](https://docs.rs/loom)'s atomics, locks and threads in the place of the standard ones. Loom rather than a random
//! scheduler: the table is a sequence lock of relaxed atomics and fences, so what must be explored is not only who runs when
//! but also which stores a load may see.
//!
//! # What is modelled
//! - The hot read, the held read, and questions that look again, join a load or start one.
//! - Loads, each in a task of its own, from what was heard as they began to the end of their flight.
//! - Beside them: a change and its announcement, a flush, another tenant that takes the place, a source that fails.
//!
//! A task is a thread, and what waits holds its thread up; the channel that tells of a landing is a lock and a condition
//! variable, and `arc_swap` an index that is released and acquired (`model/sync.rs`). So tokio and `arc_swap` are relied
//! upon, not checked.
//!
//! # What is not
//! - Time stands still and nothing times out: no ends, no refreshes, no deadline of a load.
//! - Numbers that the source does not have, erased tenants, floors that are forgotten, `reread`.
//! - Tasks that are dropped, and callers that go away.
//! - While the source fails, the last known state may be older than what was heard, and says so. Whose it is is modelled.

use std::sync::{Arc, atomic};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use loom::thread;
use saas_core::{PlanCatalog, PlanKey, Revision, TenantId, TestClock, subscription::PlanAssignment};
use uuid::Uuid;

use self::{
    core::Core,
    sync::{AtomicU64, Ordering, run, spawn},
};
use super::{GateOptions, staleness, stats};
use crate::{
    EntitlementsError, SnapshotSource, TenantState,
    resolve::resolve,
    snapshot::{ShelfLife, Snapshot},
};

#[expect(clippy::duplicate_mod, dead_code, reason = "the real code on instrumented parts")]
#[path = "core.rs"]
mod core;
#[expect(clippy::duplicate_mod, reason = "the real code on instrumented parts")]
#[path = "flight.rs"]
mod flight;
#[expect(clippy::duplicate_mod, reason = "the real code on instrumented parts")]
#[path = "shelf.rs"]
mod shelf;
mod sync;
#[expect(clippy::duplicate_mod, reason = "the real code on instrumented parts")]
#[path = "table.rs"]
mod table;

/// The last of 65 features: its bit lies in the array beside the slot.
const LAST: usize = 64;
const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// Everything is off in the one plan and on in the other.
fn catalog() -> PlanCatalog {
    let mut text = "default_plan = \"off\"\n[plans.off]\nrank = 0\n[[plans.off.versions]]\nversion = 1\n\
        [plans.on]\nrank = 1\n[[plans.on.versions]]\nversion = 1\n"
        .to_owned();
    for feature in 0..=LAST {
        text += &format!("grants.f{feature:02} = true\n");
    }
    for feature in 0..=LAST {
        text += &format!("[features.f{feature:02}]\nkind = \"boolean\"\nfail = \"closed\"\n");
    }
    PlanCatalog::from_toml(&text).unwrap()
}

fn tenant(number: u128) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(number << 64 | number))
}

/// Features are on from revision 2.
fn state(revision: u64) -> TenantState {
    let plan = PlanKey::from_static(if revision > 1 { "on" } else { "off" });
    let assignment = PlanAssignment::active(plan);
    TenantState { revision: Revision::new(revision), assignment, overrides: Vec::new(), cohorts: Vec::new() }
}

/// Answers with the revision that is committed, for every tenant.
#[derive(Debug)]
struct Source {
    committed: AtomicU64,
    /// Reads of a revision below this fail. Set before anything is explored.
    fails_below: atomic::AtomicU64,
    /// Looked at when all is over.
    reads: atomic::AtomicU64,
}

#[async_trait]
impl SnapshotSource for Source {
    async fn load(&self, _: TenantId, _: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let revision = self.committed.load(Ordering::Acquire);
        match revision < self.fails_below.load(Ordering::Relaxed) {
            true => Err(EntitlementsError::Unavailable { cause: None }),
            false => Ok(Some(state(revision))),
        }
    }
}

struct Gate {
    core: Arc<Core>,
    source: Arc<Source>,
    heard: AtomicU64,
}

impl Gate {
    fn new(catalog: &PlanCatalog) -> Arc<Self> {
        let source = Arc::new(Source {
            committed: AtomicU64::new(1),
            fails_below: atomic::AtomicU64::default(),
            reads: atomic::AtomicU64::default(),
        });
        let options = GateOptions::default().with_capacity(1);
        let clock = Arc::new(TestClock::at(NOW));
        let core = Core::new(catalog.clone(), Arc::<Source>::clone(&source), clock, options);
        core.tick();
        Arc::new(Self { core: Arc::new(core), source, heard: AtomicU64::new(1) })
    }

    /// A load without a flight, for what is there beforehand. Returns whether another tenant had to give way.
    fn put(&self, of: TenantId, revision: u64) -> bool {
        let mut shelf = self.core.lock();
        let (epoch, news) = shelf.mark();
        let end = NOW + TimeDelta::minutes(1);
        let life =
            ShelfLife { epoch, news, read_at: NOW, refresh_from: end, fresh_until: end, retry_at: NOW, failed: (0, 0) };
        let snapshot = Snapshot { life, ..resolve(&self.core.catalog, of, state(revision), NOW).unwrap() };
        shelf.land(&self.core.table, &Arc::new(snapshot), 0).unwrap().evicts
    }

    fn commit(&self) {
        self.source.committed.store(2, Ordering::Release);
    }

    /// Commits revision 2 and hears of it.
    fn change(&self, of: TenantId) {
        self.commit();
        self.core.hear(of, Revision::new(2));
        self.heard.store(2, Ordering::Release);
    }

    /// The hot read, whose answer is not older than what had been heard before.
    fn peek(&self, of: TenantId) -> Option<bool> {
        let heard = self.heard.load(Ordering::Acquire);
        let answer = self.core.table.read(of, LAST);
        assert!(heard == 1 || answer != Some(false), "revision {heard} was heard");
        answer
    }

    /// The held read, on the same condition.
    fn peek_held(&self, of: TenantId) -> Option<Arc<Snapshot>> {
        let heard = self.heard.load(Ordering::Acquire);
        let answer = self.core.table.read_held(of)?;
        assert_eq!(answer.tenant, of, "the snapshot of another tenant");
        assert!(answer.facts.revision >= Revision::new(heard), "revision {heard} was heard");
        Some(answer)
    }

    /// What `Entitlements::snapshot` does: the held read, else the slow path, which looks again, joins a flight or starts one.
    fn ask(&self, of: TenantId) -> Arc<Snapshot> {
        let heard = self.heard.load(Ordering::Acquire);
        if let Some(held) = self.peek_held(of) {
            return held;
        }
        let answer = run(Arc::clone(&self.core).snapshot(of));
        assert_eq!(answer.tenant, of, "the snapshot of another tenant");
        let is_excused = self.source.fails_below.load(Ordering::Relaxed) == u64::MAX;
        assert!(is_excused || answer.facts.revision >= Revision::new(heard), "revision {heard} was heard");
        answer
    }
}

fn explore(preemptions: usize, protocol: impl Fn(&PlanCatalog) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 10_000;
    let catalog = catalog();
    model.check(move || protocol(&catalog));
}

/// Runs a part of the protocol beside the rest.
fn beside(gate: &Arc<Gate>, part: impl FnOnce(&Gate) + Send + 'static) -> thread::JoinHandle<()> {
    let gate = Arc::clone(gate);
    spawn(move || part(&gate))
}

// G1
#[test]
fn a_load_beside_a_change_never_brings_the_old_answer_back() {
    explore(3, |catalog| {
        let (gate, of) = (Gate::new(catalog), tenant(1));
        let early = beside(&gate, move |gate| _ = gate.ask(of));
        gate.change(of);
        gate.peek(of);
        gate.ask(of);
        early.join().unwrap();
        assert_eq!(gate.peek(of), Some(true), "the change shows");
    });
}

#[test]
fn a_reader_that_knows_of_a_change_never_gets_the_answer_before_it() {
    beside_a_change(|gate, of| _ = gate.peek(of));
}

#[test]
fn a_reader_that_knows_of_a_change_never_gets_the_snapshot_before_it() {
    beside_a_change(|gate, of| _ = gate.peek_held(of));
}

fn beside_a_change(read: fn(&Gate, TenantId)) {
    explore(3, move |catalog| {
        let (gate, of) = (Gate::new(catalog), tenant(1));
        gate.put(of, 1);
        assert_eq!(gate.peek(of), Some(false));
        let reader = beside(&gate, move |gate| read(gate, of));
        gate.change(of);
        gate.put(of, 2);
        reader.join().unwrap();
        assert_eq!(gate.peek(of), Some(true), "the change shows");
        assert!(gate.peek_held(of).is_some());
    });
}

// G4
#[test]
fn a_flush_ends_what_was_read_before_it_whenever_that_lands() {
    explore(3, |catalog| {
        let (gate, of) = (Gate::new(catalog), tenant(1));
        let early = beside(&gate, move |gate| _ = gate.ask(of));
        // The announcement is lost, and the loss is noticed.
        gate.commit();
        gate.core.flush();
        gate.heard.store(2, Ordering::Release);
        gate.peek(of);
        gate.ask(of);
        early.join().unwrap();
        gate.peek(of);
    });
}

// G6
#[test]
fn misses_that_meet_are_one_read() {
    explore(3, |catalog| {
        let (gate, of) = (Gate::new(catalog), tenant(1));
        let other = beside(&gate, move |gate| _ = gate.ask(of));
        gate.ask(of);
        other.join().unwrap();
        assert_eq!(gate.source.reads.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn the_end_of_a_flight_leaves_the_next_one_its_place() {
    explore(2, |catalog| {
        let (gate, of) = (Gate::new(catalog), tenant(1));
        let other = beside(&gate, move |gate| {
            gate.change(of);
            gate.ask(of);
        });
        gate.ask(of);
        gate.ask(of);
        other.join().unwrap();
        let reads = gate.source.reads.load(Ordering::Relaxed);
        assert!(reads <= 2, "one before the change and one after it, not {reads}");
    });
}

#[test]
fn a_tenant_that_gives_way_to_another_never_answers_with_its_bits() {
    explore(2, |catalog| {
        let (gate, [has_it, other, new]) = (Gate::new(catalog), [1, 2, 3].map(tenant));
        assert!(!gate.put(has_it, 2) && !gate.put(other, 1), "there is room for two");
        let reader = beside(&gate, move |gate| {
            for feature in [0, LAST] {
                assert_ne!(gate.core.table.read(has_it, feature), Some(false), "the bits of another tenant");
                assert_ne!(gate.core.table.read(new, feature), Some(true), "the bits of another tenant");
            }
        });
        assert!(gate.put(new, 1));
        reader.join().unwrap();
        assert_eq!(gate.core.table.read(new, 0), Some(false));
    });
}

#[test]
fn a_tenant_that_gives_way_to_another_never_answers_with_its_snapshot() {
    explore(3, |catalog| {
        let (gate, [first, other, new]) = (Gate::new(catalog), [1, 2, 3].map(tenant));
        assert!(!gate.put(first, 1) && !gate.put(other, 1), "there is room for two");
        let reader = beside(&gate, move |gate| {
            gate.peek_held(first);
            gate.peek_held(new);
        });
        assert!(gate.put(new, 1));
        reader.join().unwrap();
        assert!(gate.peek_held(new).is_some());
    });
}

#[test]
fn the_last_known_state_is_the_tenants_own() {
    explore(3, |catalog| {
        let (gate, [first, other, new]) = (Gate::new(catalog), [1, 2, 3].map(tenant));
        assert!(!gate.put(first, 1) && !gate.put(other, 1), "there is room for two");
        gate.core.flush();
        gate.source.fails_below.store(u64::MAX, Ordering::Relaxed);
        let asker = beside(&gate, move |gate| _ = gate.ask(first));
        assert!(gate.put(new, 1));
        asker.join().unwrap();
    });
}

// G11: `ask` requires what was heard.
#[test]
fn a_load_that_fails_says_nothing_of_what_was_heard_since_it_began() {
    explore(3, |catalog| {
        let (gate, of) = (Gate::new(catalog), tenant(1));
        gate.put(of, 1);
        gate.core.flush();
        // Back with the change.
        gate.source.fails_below.store(2, Ordering::Relaxed);
        let early = beside(&gate, move |gate| _ = gate.ask(of));
        gate.change(of);
        gate.ask(of);
        early.join().unwrap();
    });
}
