//! What every [`LeaseStore`] must do, as tests that any implementation runs with
//! [`lease_store_conformance!`](crate::lease_store_conformance).

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a panic is how they report")]

use std::{any::Any, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    IdempotencyKey, LeaseToken, Limit, MeterKey, RequestContext, Revision,
    plan::{Aggregation, Window},
};

use super::{Ask, Balance, Borrowed, LeaseStore, Report, Reported};
use crate::{Draw, DrawKind, Period, Threshold};

const CALLS: MeterKey = MeterKey::from_static("calls");
const LIFE: Duration = Duration::from_secs(600);

/// A store to be tested, empty, with two tenants at the same revision.
#[derive(Debug)]
pub struct Fixture {
    store: Arc<dyn LeaseStore>,
    tenants: [RequestContext; 2],
    revision: Revision,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A fixture; `kept` lives as long as it, such as the database behind the store.
    pub fn new(
        store: Arc<dyn LeaseStore>,
        tenants: [RequestContext; 2],
        revision: Revision,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { store, tenants, revision, _kept: Box::new(kept) }
    }

    /// Of a limit of `cap` that warns at 80 % and at its end.
    fn ask(&self, need: u64, want: u64, cap: u64) -> Ask {
        let lease = LeaseToken::mint_at(now());
        Ask {
            draw: Draw {
                kind: DrawKind::Consume,
                meter: CALLS,
                counter: CALLS,
                aggregation: Aggregation::Sum,
                amount: need,
                units: need,
                key: IdempotencyKey::try_from(lease.to_string()).unwrap(),
                item: None,
                member: None,
                at: now(),
                window: Window::Day,
                period: day(),
                cap,
                member_cap: None,
                limit: Limit::Max(cap),
                thresholds: [80, 100].map(|percent| Threshold::of(cap, percent)).into(),
                carry: None,
                revision: self.revision,
            },
            cost: 1,
            lease,
            number: 0,
            spent: 0,
            holder: "test".into(),
            exposed: cap,
            want,
            life: LIFE,
        }
    }

    async fn borrow(&self, ask: &Ask) -> Borrowed {
        self.store.borrow(&self.tenants[0], ask, now()).await.unwrap()
    }

    async fn lent(&self, ask: &Ask) -> u64 {
        match self.borrow(ask).await {
            Borrowed::Lent { units, .. } => units,
            other @ (Borrowed::Refused { .. } | Borrowed::Fenced | Borrowed::Outdated { .. }) => panic!("{other:?}"),
        }
    }

    async fn announced(&self, ask: &Ask) -> Vec<u16> {
        self.store.announce(&self.tenants[0], &ask.draw, now()).await.unwrap()
    }

    async fn report(&self, lease: LeaseToken, number: u64, spent: u64, ending: bool) -> Reported {
        let report = Report { lease, number, spent, ending, life: LIFE };
        self.store.report(&self.tenants[0], &report, now()).await.unwrap()
    }

    async fn balance(&self, tenant: usize) -> (u64, u64) {
        let found = self.store.balance(&self.tenants[tenant], &CALLS, Window::Day, day()).await.unwrap();
        let Balance { used, held } = found;
        (used, held)
    }
}

/// The next ask of a lease, after so many units of it were spent.
fn refill(of: &Ask, spent: u64) -> Ask {
    let mut next = of.clone();
    next.number += 1;
    next.spent = spent;
    next.draw.key = IdempotencyKey::try_from(format!("{}:{}", of.lease, next.number)).unwrap();
    next
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_770_000_000, 0).unwrap_or_default()
}

fn day() -> Period {
    let start = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
    Period { start, end: Some(start + TimeDelta::days(1)) }
}

/// C1, C11: 16 borrowers at once are lent and count exactly the cap, the end of it one by one.
pub async fn contention_lends_exactly_the_cap(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let borrow_all = |fixture: Arc<Fixture>| async move {
        let mut total = 0;
        while let Borrowed::Lent { units, .. } = fixture.borrow(&fixture.ask(1, 40, 1_000)).await {
            total += 1 + units;
        }
        total
    };
    let tasks: Vec<_> = (0..16).map(|_| tokio::spawn(borrow_all(Arc::clone(&fixture)))).collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    let (used, held) = fixture.balance(0).await;
    assert_eq!((total, used + held), (1_000, 1_000));
    assert!(held > 0, "nothing was lent");
}

/// What is out never exceeds what may be exposed.
pub async fn exposure_is_bounded(fixture: Fixture) {
    let mut out = 0;
    let mut asks: Vec<_> = (0..20).map(|_| Ask { exposed: 100, ..fixture.ask(1, 80, 100_000) }).collect();
    for ask in &asks {
        out += fixture.lent(ask).await;
        assert!(out <= 100, "{out}");
    }
    assert_eq!(fixture.balance(0).await, (20, out));
    assert!(out >= 90, "what may be exposed is lent: {out}");
    // The first spends 10 and asks for more: others still have theirs.
    let first = refill(&asks.swap_remove(0), 10);
    out = out - 10 + fixture.lent(&first).await;
    assert!(out <= 100, "{out}");
    assert_eq!(fixture.balance(0).await, (31, out));
}

/// C4: reports count once, in order; the last gives the rest back.
pub async fn reports_count_once_and_the_last_gives_back(fixture: Fixture) {
    let ask = fixture.ask(5, 100, 1_000);
    assert_eq!(fixture.lent(&ask).await, 100);
    assert_eq!(fixture.report(ask.lease, 1, 30, false).await, Reported::Kept { wanted: false, used: 35 });
    assert_eq!(fixture.balance(0).await, (35, 70));
    assert_eq!(fixture.report(ask.lease, 1, 30, false).await, Reported::Kept { wanted: false, used: 35 });
    assert_eq!(fixture.balance(0).await, (35, 70), "a repeat");
    assert_eq!(fixture.report(ask.lease, 3, 60, true).await, Reported::Settled { used: 65 });
    assert_eq!(fixture.report(ask.lease, 3, 60, true).await, Reported::Settled { used: 65 }, "a repeat");
    assert_eq!(fixture.report(ask.lease, 2, 50, false).await, Reported::Fenced, "it came too late");
    assert_eq!(fixture.balance(0).await, (65, 0));
}

/// C11, C17, Q3: what an overdue holder had not reported counts as used, and its reports count no more.
pub async fn an_overdue_lease_counts_as_used_and_is_fenced(fixture: Fixture) {
    let ask = Ask { life: Duration::ZERO, ..fixture.ask(1, 100, 1_000) };
    assert_eq!(fixture.lent(&ask).await, 100);
    let report = Report { lease: ask.lease, number: 1, spent: 40, ending: false, life: Duration::ZERO };
    // Late, but nobody has ended it: the truth is better than the worst case.
    let reported = fixture.store.report(&fixture.tenants[0], &report, now()).await.unwrap();
    assert_eq!(reported, Reported::Kept { wanted: false, used: 41 });
    assert_eq!(fixture.balance(0).await, (41, 60));
    assert_eq!(fixture.store.reclaim(&fixture.tenants[0], now()).await.unwrap(), 60);
    assert_eq!(fixture.balance(0).await, (101, 0));
    assert_eq!(fixture.report(ask.lease, 2, 100, true).await, Reported::Fenced);
    assert_eq!(fixture.store.reclaim(&fixture.tenants[0], now()).await.unwrap(), 0);
    assert_eq!(fixture.balance(0).await, (101, 0));
}

/// A borrower ends overdue leases of its counter itself.
pub async fn borrowing_reclaims(fixture: Fixture) {
    let lost = Ask { life: Duration::ZERO, exposed: 20, ..fixture.ask(1, 100, 1_000) };
    assert_eq!(fixture.lent(&lost).await, 10);
    let next = Ask { exposed: 20, ..fixture.ask(1, 100, 1_000) };
    assert_eq!(fixture.lent(&next).await, 10, "all of the exposure is free again");
    assert_eq!(fixture.balance(0).await, (12, 10));
}

/// C20: all or nothing; who holds units hears that somebody was refused.
pub async fn a_refusal_leaves_nothing_but_the_wish(fixture: Fixture) {
    let holder = fixture.ask(1, 5, 20);
    assert_eq!(fixture.lent(&holder).await, 5);
    let refused = fixture.ask(15, 0, 20);
    assert_eq!(fixture.borrow(&refused).await, Borrowed::Refused { used: 1, held: 5 });
    assert_eq!(fixture.balance(0).await, (1, 5));
    // A wish is one for a second.
    assert_eq!(fixture.borrow(&refused).await, Borrowed::Refused { used: 1, held: 5 });
    assert_eq!(fixture.report(holder.lease, 1, 2, false).await, Reported::Kept { wanted: true, used: 3 });
    assert_eq!(fixture.report(holder.lease, 2, 2, true).await, Reported::Settled { used: 3 });
    assert_eq!(fixture.lent(&fixture.ask(15, 5, 20)).await, 0, "what is wanted elsewhere is not lent");
    assert_eq!(fixture.balance(0).await, (18, 0));
}

/// What would not fit if all holders gave back is no wish: nobody gives back for it, and lending goes on.
pub async fn a_refusal_that_no_return_could_prevent_leaves_nothing(fixture: Fixture) {
    let holder = fixture.ask(1, 5, 20);
    assert_eq!(fixture.lent(&holder).await, 5);
    assert_eq!(fixture.borrow(&fixture.ask(20, 0, 20)).await, Borrowed::Refused { used: 1, held: 5 });
    assert_eq!(fixture.report(holder.lease, 1, 2, false).await, Reported::Kept { wanted: false, used: 3 });
    let next = fixture.ask(1, 4, 20);
    assert_eq!(fixture.lent(&next).await, 4, "still lent");
    assert_eq!(fixture.balance(0).await, (4, 7));
    assert_eq!(fixture.borrow(&fixture.ask(16, 0, 20)).await, Borrowed::Refused { used: 4, held: 7 });
    assert_eq!(fixture.report(next.lease, 1, 1, false).await, Reported::Kept { wanted: true, used: 5 });
}

/// A refill counts what was spent and what is needed, and lends on top, in one step.
pub async fn a_refill_reports_and_tops_up_in_one_step(fixture: Fixture) {
    let first = fixture.ask(1, 100, 10_000);
    assert_eq!(fixture.lent(&first).await, 100);
    let second = refill(&first, 100);
    let Borrowed::Lent { units: 100, used: 102, .. } = fixture.borrow(&second).await else { panic!("not topped up") };
    assert_eq!(fixture.balance(0).await, (102, 100));
    // Half of it is left.
    let third = refill(&second, 150);
    assert_eq!(fixture.lent(&third).await, 100);
    assert_eq!(fixture.balance(0).await, (153, 150));
    assert_eq!(fixture.report(first.lease, 3, 300, true).await, Reported::Settled { used: 303 });
    assert_eq!(fixture.balance(0).await, (303, 0), "the whole of one lease");
}

/// A lease is topped up before it is used up, and counts what was used of it until then.
pub async fn a_lease_is_topped_up_ahead(fixture: Fixture) {
    let first = fixture.ask(1, 100, 1_000);
    assert_eq!(fixture.lent(&first).await, 100);
    let mut ahead = refill(&first, 30);
    ahead.draw.units = 0;
    let Borrowed::Lent { units: 100, used: 31, relimited } = fixture.borrow(&ahead).await else { panic!("not lent") };
    assert!(relimited || fixture.announced(&ahead).await.is_empty());
    assert_eq!(fixture.balance(0).await, (31, 170));
    assert_eq!(fixture.report(first.lease, 2, 200, true).await, Reported::Settled { used: 201 });
    assert_eq!(fixture.balance(0).await, (201, 0));
}

/// C4: of reports and refills only one with a higher number than all before counts, so one that comes too late moves nothing.
pub async fn a_refill_that_was_overtaken_moves_nothing(fixture: Fixture) {
    let first = fixture.ask(1, 100, 10_000);
    assert_eq!(fixture.lent(&first).await, 100);
    assert_eq!(fixture.borrow(&first).await, Borrowed::Fenced, "the same lease twice");
    let second = refill(&first, 60);
    assert_eq!(fixture.lent(&second).await, 100);
    assert_eq!(fixture.borrow(&second).await, Borrowed::Fenced, "a repeat");
    let third = refill(&second, 160);
    // Its answer was lost, or it never came: the last report settles both cases.
    assert_eq!(fixture.report(first.lease, 3, 160, true).await, Reported::Settled { used: 162 });
    assert_eq!(fixture.borrow(&third).await, Borrowed::Fenced, "the lease has ended");
    assert_eq!(fixture.balance(0).await, (162, 0));
    let unknown = Ask { number: 1, ..fixture.ask(1, 10, 10_000) };
    assert_eq!(fixture.borrow(&unknown).await, Borrowed::Fenced, "nobody made it");
    assert_eq!(fixture.balance(0).await, (162, 0));
}

/// Units that the holder does not know to have are given back with its last report.
pub async fn what_an_unanswered_refill_lent_is_given_back(fixture: Fixture) {
    let first = fixture.ask(1, 100, 10_000);
    assert_eq!(fixture.lent(&first).await, 100);
    assert_eq!(fixture.lent(&refill(&first, 100)).await, 100);
    assert_eq!(fixture.report(first.lease, 2, 100, true).await, Reported::Settled { used: 102 });
    assert_eq!(fixture.balance(0).await, (102, 0));
}

/// C20: a refill that does not fit leaves the lease as it was; what was spent of it is no longer in the way of others.
pub async fn a_refill_that_is_refused_changes_nothing(fixture: Fixture) {
    let first = fixture.ask(1, 20, 100);
    assert_eq!(fixture.lent(&first).await, 20);
    let mut greedy = refill(&first, 20);
    greedy.draw.units = 80;
    assert_eq!(fixture.borrow(&greedy).await, Borrowed::Refused { used: 21, held: 0 });
    assert_eq!(fixture.balance(0).await, (1, 20));
    let mut exact = refill(&greedy, 20);
    exact.draw.units = 79;
    assert_eq!(fixture.lent(&exact).await, 0);
    assert_eq!(fixture.balance(0).await, (100, 0));
}

/// C11, C17, Q3: a holder that was late is topped up while nobody has ended its lease, and fenced after that.
pub async fn a_late_refill_counts_until_the_lease_is_ended(fixture: Fixture) {
    let first = Ask { life: Duration::ZERO, ..fixture.ask(1, 100, 1_000) };
    assert_eq!(fixture.lent(&first).await, 100);
    let second = refill(&first, 100);
    assert_eq!(fixture.lent(&second).await, 100, "its own borrow does not end it");
    assert_eq!(fixture.balance(0).await, (102, 100));
    assert_eq!(fixture.store.reclaim(&fixture.tenants[0], now()).await.unwrap(), 100);
    assert_eq!(fixture.borrow(&refill(&second, 200)).await, Borrowed::Fenced);
    assert_eq!(fixture.balance(0).await, (202, 0));
}

/// C1, C11: holders that refill, report and end at once are lent and count exactly the cap.
pub async fn refills_at_once_count_exactly_the_cap(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let spend_all = |fixture: Arc<Fixture>| async move {
        let (mut ask, mut lent, mut total) = (fixture.ask(1, 40, 3_000), 0, 0);
        while let Borrowed::Lent { units, .. } = fixture.borrow(&ask).await {
            (total, lent) = (total + 1 + units, lent + units);
            // What is not lent any more is asked for one by one.
            ask = if lent > 0 { refill(&ask, lent) } else { fixture.ask(1, 40, 3_000) };
        }
        if lent > 0 {
            let Reported::Settled { .. } = fixture.report(ask.lease, ask.number + 1, lent, true).await else {
                panic!("the lease was ended")
            };
        }
        total
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(spend_all(Arc::clone(&fixture)))).collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    let (used, held) = fixture.balance(0).await;
    assert_eq!((used, held), (total, 0));
    let mut rest = 0;
    while let Borrowed::Lent { .. } = fixture.borrow(&fixture.ask(1, 0, 3_000)).await {
        rest += 1;
    }
    assert_eq!(total + rest, 3_000);
}

/// Each threshold is announced once, by whoever says so first; another limit announces for itself.
pub async fn a_threshold_is_announced_once(fixture: Fixture) {
    let first = fixture.ask(1, 50, 100);
    let Borrowed::Lent { units: 49, used: 1, relimited: true } = fixture.borrow(&first).await else {
        panic!("not lent")
    };
    assert!(fixture.announced(&first).await.is_empty());
    let mut second = refill(&first, 49);
    second.draw.units = 30;
    let Borrowed::Lent { used: 80, relimited: false, .. } = fixture.borrow(&second).await else { panic!("not lent") };
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (fixture, ask) = (Arc::clone(&fixture), second.clone());
            tokio::spawn(async move { fixture.announced(&ask).await })
        })
        .collect();
    let mut announced = Vec::new();
    for task in tasks {
        announced.extend(task.await.unwrap());
    }
    assert_eq!(announced, [80]);
    assert_eq!(fixture.lent(&fixture.ask(10, 0, 100)).await, 0);
    let wider = fixture.ask(1, 0, 110);
    let Borrowed::Lent { relimited: true, .. } = fixture.borrow(&wider).await else { panic!("not lent") };
    assert_eq!(fixture.announced(&wider).await, [80]);
    let [_, other] = &fixture.tenants;
    assert!(fixture.store.announce(other, &wider.draw, now()).await.unwrap().is_empty(), "of another tenant");
}

/// No tenant sees or ends what another one has.
pub async fn tenants_are_separate(fixture: Fixture) {
    let ask = Ask { life: Duration::ZERO, ..fixture.ask(1, 10, 100) };
    assert_eq!(fixture.lent(&ask).await, 10);
    let [_, other] = &fixture.tenants;
    let report = Report { lease: ask.lease, number: 1, spent: 10, ending: true, life: LIFE };
    assert_eq!(fixture.store.report(other, &report, now()).await.unwrap(), Reported::Fenced);
    assert_eq!(fixture.store.borrow(other, &refill(&ask, 10), now()).await.unwrap(), Borrowed::Fenced);
    assert_eq!(fixture.store.reclaim(other, now()).await.unwrap(), 0);
    assert_eq!((fixture.balance(0).await, fixture.balance(1).await), ((1, 10), (0, 0)));
}

/// Tests a lease store: `lease_store_conformance!(name, async || fixture)` makes a module of one test per promise.
#[macro_export]
macro_rules! lease_store_conformance {
    ($name:ident, $fixture:expr) => {
        $crate::lease_store_conformance!(
            @tests $name, $fixture;
            contention_lends_exactly_the_cap, exposure_is_bounded, reports_count_once_and_the_last_gives_back,
            an_overdue_lease_counts_as_used_and_is_fenced, borrowing_reclaims, a_refusal_leaves_nothing_but_the_wish,
            a_refusal_that_no_return_could_prevent_leaves_nothing,
            a_refill_reports_and_tops_up_in_one_step, a_lease_is_topped_up_ahead, a_refill_that_was_overtaken_moves_nothing,
            what_an_unanswered_refill_lent_is_given_back, a_refill_that_is_refused_changes_nothing,
            a_late_refill_counts_until_the_lease_is_ended, refills_at_once_count_exactly_the_cap,
            a_threshold_is_announced_once, tenants_are_separate,
        );
    };
    (@tests $name:ident, $fixture:expr; $($test:ident),+ $(,)?) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    $crate::lease_conformance::$test(($fixture)().await).await;
                }
            )+
        }
    };
}
