//! Every interleaving of the gate's protocol, weak memory included, within a bound of preemptions.
//!
//! The real `table.rs` and `shelf.rs` are compiled a second time here, with [loom](https://docs.rs/loom)'s atomics in the
//! place of the standard ones. Loom rather than a random scheduler: the table is a sequence lock of relaxed atomics and
//! fences, so what must be explored is not only who runs when but also which stores a load may see.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use loom::thread;
use saas_core::{PlanCatalog, Revision, TenantId};
use uuid::Uuid;

use self::{
    shelf::{Coarse, Shelf},
    sync::{AtomicU64, Ordering},
    table::Table,
};
use crate::snapshot::{Origin, ShelfLife, Snapshot};

#[expect(clippy::duplicate_mod, dead_code, reason = "the real code on instrumented parts; flights are not modelled")]
#[path = "shelf.rs"]
mod shelf;
#[expect(
    clippy::duplicate_mod,
    dead_code,
    reason = "the real code on instrumented parts; only the hot read is modelled"
)]
#[path = "table.rs"]
mod table;

mod sync {
    use std::sync::Arc;

    pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    use loom::sync::{Mutex, MutexGuard};

    /// One bucket, so that three tenants are too many.
    pub(super) const WINDOW: usize = 1;

    /// `arc_swap`'s, as atomic as it promises.
    #[derive(Debug)]
    pub(super) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

    impl<T> ArcSwapOption<T> {
        pub(super) fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub(super) fn load(&self) -> MutexGuard<'_, Option<Arc<T>>> {
            self.0.lock().unwrap()
        }

        pub(super) fn load_full(&self) -> Option<Arc<T>> {
            self.load().clone()
        }

        pub(super) fn store(&self, new: Option<Arc<T>>) {
            *self.load() = new;
        }
    }
}

/// The last of 65 features: its bit lies in the array beside the slot.
const LAST: usize = 64;
const NOW: DateTime<chrono::Utc> = DateTime::UNIX_EPOCH;
const TTL: TimeDelta = TimeDelta::hours(1);

fn catalog() -> PlanCatalog {
    let mut text = "default_plan = \"p\"\n[plans.p]\nrank = 0\n[[plans.p.versions]]\nversion = 1\n".to_owned();
    for feature in 0..=LAST {
        text += &format!("[features.f{feature:02}]\nkind = \"boolean\"\nfail = \"closed\"\n");
    }
    PlanCatalog::from_toml(&text).unwrap()
}

fn tenant(number: u128) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(number << 64 | number))
}

/// The gate's parts as `Core` puts them together, and a source whose answer is the revision that is committed.
struct Gate {
    table: Table,
    shelf: loom::sync::Mutex<Shelf>,
    committed: AtomicU64,
    heard: AtomicU64,
}

impl Gate {
    fn new() -> Arc<Self> {
        let (table, pen) = Table::new(1, LAST + 1);
        let mut shelf = Shelf::new(pen, Coarse::new(NOW, TTL), 1_024, TTL + TTL);
        assert!(shelf.time.show(&table, NOW));
        Arc::new(Self {
            table,
            shelf: loom::sync::Mutex::new(shelf),
            committed: AtomicU64::new(1),
            heard: AtomicU64::new(1),
        })
    }

    /// What a load does. Features are on from revision 2.
    fn load(&self, catalog: &PlanCatalog, of: TenantId) {
        for overtaken in 0.. {
            let (epoch, news) = self.shelf.lock().unwrap().mark();
            let revision = self.committed.load(Ordering::Acquire);
            let loaded = snapshot(catalog, of, revision, (epoch, news));
            if self.shelf.lock().unwrap().land(&self.table, &loaded, overtaken).is_some() {
                return;
            }
            assert!(overtaken < 2, "one change overtakes a load once");
        }
    }

    /// Commits revision 2 and hears of it.
    fn change(&self, of: TenantId) {
        self.committed.store(2, Ordering::Release);
        self.shelf.lock().unwrap().hear(&self.table, of, Revision::new(2), NOW);
        self.heard.store(2, Ordering::Release);
    }

    /// Asks, and requires that the answer is not older than what had been heard before.
    fn ask(&self, of: TenantId) {
        let heard = self.heard.load(Ordering::Acquire);
        let answer = self.table.read(of, LAST);
        assert!(heard == 1 || answer != Some(false), "revision {heard} was heard");
    }
}

fn snapshot(catalog: &PlanCatalog, of: TenantId, revision: u64, (epoch, news): (u64, u64)) -> Arc<Snapshot> {
    let blank = Snapshot::by_fail_policy(catalog, of, NOW);
    let on = if revision > 1 { !0 } else { 0 };
    let life = ShelfLife {
        epoch,
        news,
        read_at: NOW,
        refresh_from: NOW + TTL,
        fresh_until: NOW + TTL,
        retry_at: NOW,
        failed: (0, 0),
    };
    let facts = crate::snapshot::Facts { revision: Revision::new(revision), ..blank.facts.clone() };
    Arc::new(Snapshot { origin: Origin::Loaded, enabled: [on, on].into(), facts, life, ..blank })
}

fn explore(preemptions: usize, protocol: impl Fn(&PlanCatalog) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 10_000;
    let catalog = catalog();
    model.check(move || protocol(&catalog));
}

// G1
#[test]
fn a_load_beside_a_change_never_brings_the_old_answer_back() {
    explore(2, |catalog| {
        let (gate, of) = (Gate::new(), tenant(1));
        let loader = thread::spawn({
            let (gate, catalog) = (Arc::clone(&gate), catalog.clone());
            move || gate.load(&catalog, of)
        });
        gate.change(of);
        gate.ask(of);
        loader.join().unwrap();
        gate.ask(of);
        gate.load(catalog, of);
        assert_eq!(gate.table.read(of, LAST), Some(true), "the next one shows the change");
    });
}

#[test]
fn a_reader_that_knows_of_a_change_never_gets_the_answer_before_it() {
    explore(2, |catalog| {
        let (gate, of) = (Gate::new(), tenant(1));
        gate.load(catalog, of);
        assert_eq!(gate.table.read(of, LAST), Some(false));
        let reader = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.ask(of)
        });
        gate.change(of);
        gate.load(catalog, of);
        reader.join().unwrap();
        gate.ask(of);
    });
}

// G4
#[test]
fn a_flush_ends_what_was_read_before_it_whenever_that_lands() {
    explore(2, |catalog| {
        let (gate, of) = (Gate::new(), tenant(1));
        let loader = thread::spawn({
            let (gate, catalog) = (Arc::clone(&gate), catalog.clone());
            move || gate.load(&catalog, of)
        });
        // The announcement is lost, and the loss is noticed.
        gate.committed.store(2, Ordering::Release);
        gate.shelf.lock().unwrap().distrust_all(&gate.table);
        gate.heard.store(2, Ordering::Release);
        gate.ask(of);
        loader.join().unwrap();
        gate.ask(of);
    });
}

#[test]
fn a_tenant_that_gives_way_to_another_never_answers_with_its_bits() {
    explore(2, |catalog| {
        let (gate, [has_it, other, new]) = (Gate::new(), [1, 2, 3].map(tenant));
        let publish = |of, revision| {
            let loaded = snapshot(catalog, of, revision, (0, 0));
            gate.shelf.lock().unwrap().land(&gate.table, &loaded, 0).unwrap().evicts
        };
        assert!(!publish(has_it, 2) && !publish(other, 1), "there is room for two");
        let reader = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                for feature in [0, LAST] {
                    assert_ne!(gate.table.read(has_it, feature), Some(false), "the bits of another tenant");
                    assert_ne!(gate.table.read(new, feature), Some(true), "the bits of another tenant");
                }
            }
        });
        assert!(publish(new, 1));
        reader.join().unwrap();
        assert_eq!(gate.table.read(new, 0), Some(false));
    });
}
