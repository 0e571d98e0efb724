//! What every [`ReservationStore`] must do, as tests that any implementation runs with
//! [`reservation_conformance!`](macro@crate::reservation_conformance).

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a panic is how they report")]

use std::{any::Any, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    CoreError, Limit, MeterKey, RequestContext, Revision, UsageGrantId, UsageReservationId,
    plan::{Aggregation, Window},
};

use super::{
    Draw, DrawKind, Drawn, GrantSource, Hold, Holding, Ledger, NewGrant, ReservationStore, Settled, Threshold,
};
use crate::{EntitlementsError, Period};

const LIFE: Duration = Duration::from_secs(600);
const CALLS: MeterKey = MeterKey::from_static("calls");

/// A store to be tested, empty, with two tenants at the same revision.
#[derive(Debug)]
pub struct Fixture {
    store: Arc<dyn ReservationStore>,
    ledger: Arc<dyn Ledger>,
    tenants: [RequestContext; 2],
    revision: Revision,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A fixture; `kept` lives as long as it, such as the database behind the store.
    pub fn new(
        store: Arc<impl ReservationStore + Ledger>,
        tenants: [RequestContext; 2],
        revision: Revision,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { store: store.clone(), ledger: store, tenants, revision, _kept: Box::new(kept) }
    }

    fn draw(&self, amount: u64, key: &str, cap: u64) -> Draw {
        Draw {
            kind: DrawKind::Consume,
            meter: CALLS,
            counter: CALLS,
            aggregation: Aggregation::Sum,
            amount,
            units: amount,
            key: key.replace(' ', "-").parse().unwrap(),
            item: None,
            member: None,
            at: start(),
            window: Window::Day,
            period: day(),
            cap,
            member_cap: None,
            limit: Limit::Max(cap),
            thresholds: [80, 100]
                .map(|percent| Threshold { percent, units: (cap * u64::from(percent)).div_ceil(100) })
                .into(),
            carry: None,
            revision: self.revision,
        }
    }

    async fn hold_for(&self, draw: Draw, life: Duration) -> Result<Holding, EntitlementsError> {
        let hold = Hold { reservation: UsageReservationId::mint_at(start()), draw, life };
        self.store.hold(&self.tenants[0], &hold, start()).await
    }

    async fn hold(&self, amount: u64, key: &str, cap: u64) -> Holding {
        self.hold_for(self.draw(amount, key, cap), LIFE).await.unwrap()
    }

    /// Reserves, and answers with the name.
    async fn held(&self, amount: u64, key: &str, cap: u64) -> UsageReservationId {
        name_of(self.hold(amount, key, cap).await)
    }

    /// Reserves for no time at all.
    async fn overdue(&self, amount: u64, key: &str, cap: u64) -> UsageReservationId {
        name_of(self.hold_for(self.draw(amount, key, cap), Duration::ZERO).await.unwrap())
    }

    async fn commit(&self, id: UsageReservationId, actual: u64, key: &str, cap: u64) -> Settled {
        self.store.commit(&self.tenants[0], id, &self.draw(actual, key, cap), start()).await.unwrap()
    }

    async fn release(&self, id: UsageReservationId) -> Settled {
        self.store.release(&self.tenants[0], id, start()).await.unwrap()
    }

    async fn consume(&self, amount: u64, key: &str, cap: u64) -> Drawn {
        self.store.consume(&self.tenants[0], &self.draw(amount, key, cap), start()).await.unwrap()
    }

    /// What is used and held, as a hold that never fits is told.
    async fn balance(&self) -> (u64, u64) {
        let draw = Draw { thresholds: Box::default(), ..self.draw(1, "never", 0) };
        match self.hold_for(Draw { amount: MOST, units: MOST, cap: MOST - 1, ..draw }, LIFE).await.unwrap() {
            Holding::Refused { used, held, .. } => (used, held),
            other @ (Holding::Held { .. } | Holding::AlreadyCounted { .. } | Holding::Outdated { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    async fn give(&self, units: u64) -> UsageGrantId {
        let id = UsageGrantId::mint_at(start());
        let new = NewGrant::new(id, CALLS, units, GrantSource::Bought, "a test").unwrap();
        self.ledger.give(&self.tenants[0], &new, start()).await.unwrap().id
    }

    /// What was burnt of grants that have units left.
    async fn burnt(&self) -> Vec<u64> {
        let grants = self.ledger.list_grants(&self.tenants[0], &CALLS, start()).await.unwrap();
        grants.into_iter().map(|grant| grant.burnt).collect()
    }
}

const MOST: u64 = i64::MAX.unsigned_abs();

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_770_000_000, 0).unwrap_or_default()
}

fn day() -> Period {
    let start = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
    Period { start, end: Some(start + TimeDelta::days(1)) }
}

fn name_of(holding: Holding) -> UsageReservationId {
    match holding {
        Holding::Held { reservation, .. } => reservation,
        other @ (Holding::Refused { .. } | Holding::AlreadyCounted { .. } | Holding::Outdated { .. }) => {
            panic!("{other:?}")
        }
    }
}

fn counted(before: u64, after: u64) -> Settled {
    Settled::Counted { before, after, burnt: 0, beyond: 0, late: false, crossed: vec![] }
}

/// C1, C20: what is held is nobody else's; it is held whole or not at all; what was not used is free again.
pub async fn what_is_held_counts_against_everybody(fixture: Fixture) {
    let first = fixture.held(60, "first", 100).await;
    assert_eq!(fixture.hold(41, "second", 100).await, Holding::Refused { used: 0, held: 60, room: 40 });
    assert_eq!(fixture.consume(41, "use", 100).await, Drawn::Refused { used: 0, room: 40 });
    let second = fixture.held(40, "second", 100).await;
    assert_eq!(fixture.commit(first, 25, "first", 100).await, counted(0, 25));
    assert_eq!(fixture.balance().await, (25, 40));
    assert_eq!(fixture.release(second).await, Settled::Released);
    assert_eq!(fixture.balance().await, (25, 0));
    assert!(matches!(fixture.consume(75, "use", 100).await, Drawn::Counted { after: 100, .. }));
}

/// What it took beyond what was reserved has happened: it is counted, of the plan and beyond it.
pub async fn what_it_took_beyond_is_counted(fixture: Fixture) {
    let first = fixture.held(10, "first", 100).await;
    let other = fixture.held(70, "other", 100).await;
    // 10 reserved, 20 left of the plan, 5 beyond.
    let beyond = Settled::Counted { before: 0, after: 35, burnt: 0, beyond: 25, late: false, crossed: vec![] };
    assert_eq!(fixture.commit(first, 35, "first", 100).await, beyond);
    assert_eq!(fixture.balance().await, (35, 70));
    let last = Settled::Counted { before: 35, after: 105, burnt: 0, beyond: 0, late: false, crossed: vec![80, 100] };
    assert_eq!(fixture.commit(other, 70, "other", 100).await, last, "what was reserved is there all the same");
}

/// C2: a repeat answers with the same reservation; another amount is refused; what was given back can be reserved anew.
pub async fn a_key_has_one_open_reservation(fixture: Fixture) {
    let first = fixture.held(60, "same", 100).await;
    assert_eq!(fixture.held(60, "same", 100).await, first);
    assert_eq!(fixture.balance().await, (0, 60));
    let error = fixture.hold_for(fixture.draw(50, "same", 100), LIFE).await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "{error}");
    assert_eq!(fixture.release(first).await, Settled::Released);
    let again = fixture.held(50, "same", 100).await;
    assert_ne!(again, first);
    assert_eq!(fixture.commit(again, 50, "same", 100).await, counted(0, 50));
    assert_eq!(fixture.hold(50, "same", 100).await, Holding::AlreadyCounted { amount: 50 });
    assert!(matches!(fixture.consume(50, "same", 100).await, Drawn::AlreadyCounted), "a use with the key is the same");
    assert_eq!(fixture.balance().await, (50, 0));
}

/// C2: ten holds with one key at the same time are one reservation.
pub async fn one_key_at_the_same_time_is_held_once(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.held(7, "same", 10).await })
        })
        .collect();
    let mut names = Vec::new();
    for task in tasks {
        names.push(task.await.unwrap());
    }
    names.dedup();
    assert_eq!((names.len(), fixture.balance().await), (1, (0, 7)));
}

/// C2: whatever is done to a reservation again, and in whatever order, counts once.
pub async fn an_end_counts_once(fixture: Fixture) {
    let first = fixture.held(10, "first", 100).await;
    assert_eq!(fixture.commit(first, 4, "first", 100).await, counted(0, 4));
    assert_eq!(fixture.commit(first, 4, "first", 100).await, Settled::AlreadyCounted { amount: 4 });
    assert_eq!(fixture.commit(first, 9, "first", 100).await, Settled::AlreadyCounted { amount: 4 });
    assert_eq!(fixture.release(first).await, Settled::AlreadyCounted { amount: 4 });
    let second = fixture.held(10, "second", 100).await;
    assert_eq!(fixture.release(second).await, Settled::Released);
    assert_eq!(fixture.release(second).await, Settled::Released);
    assert_eq!(fixture.balance().await, (4, 0));
    // It has happened, and its units were free by then.
    let late = Settled::Counted { before: 4, after: 10, burnt: 0, beyond: 6, late: true, crossed: vec![] };
    assert_eq!(fixture.commit(second, 6, "second", 100).await, late);
    assert_eq!(fixture.commit(second, 6, "second", 100).await, Settled::AlreadyCounted { amount: 6 });
    assert_eq!(fixture.balance().await, (10, 0));
}

/// Work that cost nothing is done, too.
pub async fn nothing_is_an_amount(fixture: Fixture) {
    let id = fixture.held(10, "free", 10).await;
    assert_eq!(fixture.commit(id, 0, "free", 10).await, counted(0, 0));
    assert_eq!(fixture.commit(id, 0, "free", 10).await, Settled::AlreadyCounted { amount: 0 });
    assert_eq!(fixture.hold(10, "free", 10).await, Holding::AlreadyCounted { amount: 0 });
    assert_eq!(fixture.balance().await, (0, 0));
}

/// C16: what a dead process held is there for the next use and the next hold that need it, and nobody has to ask for it.
pub async fn overdue_reservations_are_not_in_the_way(fixture: Fixture) {
    fixture.overdue(60, "dead", 100).await;
    fixture.overdue(40, "dead too", 100).await;
    assert!(matches!(fixture.consume(100, "use", 100).await, Drawn::Counted { after: 100, .. }));
    assert_eq!(fixture.balance().await, (100, 0));
    fixture.overdue(50, "dead again", 150).await;
    assert!(matches!(fixture.hold(50, "next", 150).await, Holding::Held { used: 100, held: 50, .. }));
}

/// C17: work that took longer than its reservation is counted once: of its own units as long as nobody took them back, and
/// beyond them after that.
pub async fn a_late_commit_is_counted_once(fixture: Fixture) {
    let slow = fixture.overdue(60, "slow", 100).await;
    assert_eq!(fixture.commit(slow, 50, "slow", 100).await, counted(0, 50), "late, but nobody was in need of them");
    let slower = fixture.overdue(50, "slower", 100).await;
    assert!(matches!(fixture.consume(50, "use", 100).await, Drawn::Counted { after: 100, .. }));
    let late = Settled::Counted { before: 100, after: 130, burnt: 0, beyond: 30, late: true, crossed: vec![] };
    assert_eq!(fixture.commit(slower, 30, "slower", 100).await, late);
    assert_eq!(fixture.commit(slower, 30, "slower", 100).await, Settled::AlreadyCounted { amount: 30 });
    assert_eq!(fixture.balance().await, (130, 0));
}

/// C17: a repeat in the place of one that was slow is the same use: whichever comes first counts.
pub async fn a_key_that_was_reserved_twice_counts_once(fixture: Fixture) {
    let slow = fixture.overdue(60, "same", 100).await;
    assert!(matches!(fixture.consume(50, "use", 100).await, Drawn::Counted { .. }));
    let again = fixture.held(50, "same", 100).await;
    let late = Settled::Counted { before: 50, after: 90, burnt: 0, beyond: 40, late: true, crossed: vec![80] };
    assert_eq!(fixture.commit(slow, 40, "same", 100).await, late);
    assert_eq!(fixture.commit(again, 45, "same", 100).await, Settled::AlreadyCounted { amount: 40 });
    assert_eq!(fixture.balance().await, (90, 0), "and what it held is free");
}

/// Grants are held like the plan's own, in the order in which they burn, and are burnt by what was held of them.
pub async fn grants_are_held_too(fixture: Fixture) {
    fixture.give(30).await;
    let first = fixture.hold(120, "first", 100).await;
    assert!(matches!(first, Holding::Held { held: 100, of_grants: 20, .. }), "{first:?}");
    assert_eq!(fixture.consume(11, "use", 100).await, Drawn::Refused { used: 0, room: 10 });
    assert_eq!(fixture.burnt().await, [0]);
    // 105 of 120: the plan's 100, and 5 of the 20.
    let all = Settled::Counted { before: 0, after: 100, burnt: 5, beyond: 0, late: false, crossed: vec![80, 100] };
    assert_eq!(fixture.commit(name_of(first), 105, "first", 100).await, all);
    assert_eq!((fixture.balance().await, fixture.burnt().await), ((100, 0), vec![5]));
    let second = fixture.held(20, "second", 100).await;
    assert_eq!(fixture.consume(6, "use", 100).await, Drawn::Refused { used: 100, room: 5 });
    // 20 held of the grant, its last 5, and 3 beyond all.
    let beyond = Settled::Counted { before: 100, after: 103, burnt: 25, beyond: 8, late: false, crossed: vec![] };
    assert_eq!(fixture.commit(second, 28, "second", 100).await, beyond);
    assert_eq!((fixture.balance().await, fixture.burnt().await), ((103, 0), vec![]));
}

/// What is held of a grant is not taken back with it, and is free of it once it is released.
pub async fn a_grant_that_ends_keeps_what_is_held_of_it(fixture: Fixture) {
    let grant = fixture.give(30).await;
    let id = fixture.held(20, "held", 0).await;
    let revoked = fixture.ledger.revoke(&fixture.tenants[0], grant, "a test", start()).await.unwrap();
    assert_eq!(revoked, Some(10));
    assert_eq!(fixture.hold(1, "more", 0).await, Holding::Refused { used: 0, held: 0, room: 0 });
    let all = Settled::Counted { before: 0, after: 0, burnt: 15, beyond: 0, late: false, crossed: vec![] };
    let draw = Draw { thresholds: Box::default(), ..fixture.draw(15, "held", 0) };
    assert_eq!(fixture.store.commit(&fixture.tenants[0], id, &draw, start()).await.unwrap(), all);
}

/// C18: commits announce each threshold once, and what is only held announces none.
pub async fn a_threshold_is_announced_by_what_is_used(fixture: Fixture) {
    let [first, second] = [fixture.held(80, "first", 100).await, fixture.held(20, "second", 100).await];
    let crossing = Settled::Counted { before: 0, after: 80, burnt: 0, beyond: 0, late: false, crossed: vec![80] };
    assert_eq!(fixture.commit(first, 80, "first", 100).await, crossing);
    assert_eq!(fixture.commit(second, 19, "second", 100).await, counted(80, 99));
}

/// C12: the largest amounts are held or refused, never wrapped.
pub async fn sums_do_not_overflow(fixture: Fixture) {
    let draw = |amount, key: &str| Draw { thresholds: Box::default(), cap: MOST, ..fixture.draw(amount, key, 0) };
    let unlimited = |amount, key: &str| Draw { limit: Limit::Unlimited, ..draw(amount, key) };
    let id = name_of(fixture.hold_for(unlimited(MOST - 1, "nearly all"), LIFE).await.unwrap());
    let refused = fixture.hold_for(unlimited(2, "more"), LIFE).await.unwrap();
    assert_eq!(refused, Holding::Refused { used: 0, held: MOST - 1, room: 1 });
    let last = name_of(fixture.hold_for(unlimited(1, "last"), LIFE).await.unwrap());
    let too_much = fixture.store.commit(&fixture.tenants[0], last, &unlimited(2, "last"), start()).await;
    assert_eq!(too_much.unwrap_err().kind(), saas_core::ErrorKind::Invalid);
    let all = fixture.store.commit(&fixture.tenants[0], id, &unlimited(MOST - 1, "nearly all"), start()).await;
    assert_eq!(all.unwrap(), counted(0, MOST - 1));
}

/// No tenant sees or ends what another one has.
pub async fn tenants_are_separate(fixture: Fixture) {
    let id = fixture.held(10, "mine", 10).await;
    let [_, other] = &fixture.tenants;
    assert_eq!(fixture.store.commit(other, id, &fixture.draw(5, "mine", 10), start()).await.unwrap(), Settled::Unknown);
    assert_eq!(fixture.store.release(other, id, start()).await.unwrap(), Settled::Unknown);
    let hold =
        Hold { reservation: UsageReservationId::mint_at(start()), draw: fixture.draw(10, "mine", 10), life: LIFE };
    assert!(matches!(fixture.store.hold(other, &hold, start()).await.unwrap(), Holding::Held { held: 10, .. }));
    assert_eq!(fixture.balance().await, (0, 10));
}

/// C1, C16: tasks that reserve, commit, release, forget and use at the same time never pass the cap, and what is used and
/// held is what they were told.
pub async fn contention_keeps_used_and_held_within_the_cap(fixture: Fixture) {
    const CAP: u64 = 1_000;
    let fixture = Arc::new(fixture);
    let work = |task: u64, fixture: Arc<Fixture>| async move {
        let (mut used, mut open) = (0, 0);
        let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(task + 1);
        for step in 0..40 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let (amount, key) = (1 + state % 9, format!("{task}-{step}"));
            if state.is_multiple_of(4) {
                used +=
                    if matches!(fixture.consume(amount, &key, CAP).await, Drawn::Counted { .. }) { amount } else { 0 };
                continue;
            }
            let Holding::Held { reservation, used: total, held, .. } = fixture.hold(amount, &key, CAP).await else {
                continue;
            };
            assert!(total + held <= CAP, "{total} + {held}");
            match state % 16 {
                1 => open += amount,
                2 | 3 => assert_eq!(fixture.release(reservation).await, Settled::Released),
                _ => {
                    let actual = amount - amount % 3;
                    match fixture.commit(reservation, actual, &key, CAP).await {
                        Settled::Counted { after, beyond: 0, late: false, .. } => assert!(after <= CAP, "{after}"),
                        other => panic!("{other:?}"),
                    }
                    used += actual;
                }
            }
        }
        (used, open)
    };
    let tasks: Vec<_> = (0..16).map(|task| tokio::spawn(work(task, Arc::clone(&fixture)))).collect();
    let (mut used, mut open) = (0, 0);
    for task in tasks {
        let (counted, left_open) = task.await.unwrap();
        used += counted;
        open += left_open;
    }
    assert_eq!(fixture.balance().await, (used, open));
    assert!(used + open <= CAP && open > 0, "{used} + {open}");
}

/// f-M10: what a member's work took is what that member used, whenever a limit for each member came.
pub async fn what_was_reserved_counts_for_its_member(fixture: Fixture) {
    let by_ada = |amount, key| Draw { member: Some("ada".into()), ..fixture.draw(amount, key, 100) };
    let used = async || fixture.store.used_by(&fixture.tenants[0], "ada", &CALLS, Window::Day, day()).await.unwrap();
    let work = async |most, actual, key| {
        let id = name_of(fixture.hold_for(by_ada(most, key), LIFE).await.unwrap());
        let settled = fixture.commit(id, actual, key, 100).await;
        assert!(matches!(settled, Settled::Counted { .. }), "{settled:?}");
    };
    work(5, 4, "before").await;
    assert_eq!(used().await, 4);
    let limited = Draw { member_cap: Some(5), ..by_ada(2, "limited") };
    let refused = fixture.store.consume(&fixture.tenants[0], &limited, start()).await.unwrap();
    assert_eq!(refused, Drawn::MemberRefused { used: 4, room: 1 });
    work(1, 3, "after").await;
    assert_eq!(used().await, 7);
}

/// Tests a reservation store: `reservation_conformance!(name, async || fixture)` makes a module of one test per promise.
#[macro_export]
macro_rules! reservation_conformance {
    ($name:ident, $fixture:expr) => {
        $crate::reservation_conformance!(
            @tests $name, $fixture;
            what_is_held_counts_against_everybody, what_it_took_beyond_is_counted, a_key_has_one_open_reservation,
            one_key_at_the_same_time_is_held_once, an_end_counts_once, nothing_is_an_amount,
            overdue_reservations_are_not_in_the_way, a_late_commit_is_counted_once,
            a_key_that_was_reserved_twice_counts_once, grants_are_held_too, a_grant_that_ends_keeps_what_is_held_of_it,
            a_threshold_is_announced_by_what_is_used, sums_do_not_overflow, tenants_are_separate,
            contention_keeps_used_and_held_within_the_cap, what_was_reserved_counts_for_its_member,
        );
    };
    (@tests $name:ident, $fixture:expr; $($test:ident),+ $(,)?) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    $crate::reservation_conformance::$test(($fixture)().await).await;
                }
            )+
        }
    };
}
