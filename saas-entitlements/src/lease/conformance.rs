//! What every [`LeaseStore`] must do, as tests that any implementation runs with
//! [`lease_store_conformance!`](crate::lease_store_conformance).

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a panic is how they report")]

use std::{any::Any, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{LeaseToken, MeterKey, RequestContext, Revision, plan::Window};

use super::{Ask, Balance, Borrowed, LeaseStore, Report, Reported};
use crate::Period;

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

    fn ask(&self, need: u64, want: u64, cap: u64) -> Ask {
        Ask {
            lease: LeaseToken::mint_at(now()),
            holder: "test".into(),
            meter: MeterKey::from_static("calls"),
            counter: MeterKey::from_static("calls"),
            cost: 1,
            window: Window::Day,
            period: day(),
            cap,
            exposed: cap,
            need,
            want,
            life: LIFE,
            revision: self.revision,
            settle: None,
        }
    }

    async fn borrow(&self, ask: &Ask) -> Borrowed {
        self.store.borrow(&self.tenants[0], ask, now()).await.unwrap()
    }

    async fn lent(&self, ask: &Ask) -> u64 {
        match self.borrow(ask).await {
            Borrowed::Lent { units } => units,
            other @ (Borrowed::Refused { .. } | Borrowed::Outdated { .. }) => panic!("{other:?}"),
        }
    }

    async fn report(&self, lease: LeaseToken, number: u64, spent: u64, ending: bool) -> Reported {
        let report = Report { lease, number, spent, ending, life: LIFE };
        self.store.report(&self.tenants[0], &report, now()).await.unwrap()
    }

    async fn balance(&self, tenant: usize) -> (u64, u64) {
        let meter = MeterKey::from_static("calls");
        let found = self.store.balance(&self.tenants[tenant], &meter, Window::Day, day()).await.unwrap();
        let Balance { used, held } = found;
        (used, held)
    }
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
        while let Borrowed::Lent { units } = fixture.borrow(&fixture.ask(1, 40, 1_000)).await {
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
    for _ in 0..20 {
        let ask = Ask { exposed: 100, ..fixture.ask(1, 80, 100_000) };
        out += fixture.lent(&ask).await;
        assert!(out <= 100, "{out}");
    }
    assert_eq!(fixture.balance(0).await, (20, out));
    assert!(out >= 90, "what may be exposed is lent: {out}");
}

/// C4: reports count once, in order; the last gives the rest back.
pub async fn reports_count_once_and_the_last_gives_back(fixture: Fixture) {
    let ask = fixture.ask(5, 100, 1_000);
    assert_eq!(fixture.lent(&ask).await, 100);
    assert_eq!(fixture.report(ask.lease, 1, 30, false).await, Reported::Kept { wanted: false });
    assert_eq!(fixture.balance(0).await, (35, 70));
    assert_eq!(fixture.report(ask.lease, 1, 30, false).await, Reported::Kept { wanted: false });
    assert_eq!(fixture.balance(0).await, (35, 70), "a repeat");
    assert_eq!(fixture.report(ask.lease, 3, 60, true).await, Reported::Settled);
    assert_eq!(fixture.report(ask.lease, 3, 60, true).await, Reported::Settled, "a repeat");
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
    assert_eq!(reported, Reported::Kept { wanted: false });
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
    assert_eq!(fixture.borrow(&fixture.ask(15, 0, 20)).await, Borrowed::Refused { used: 1, held: 5 });
    assert_eq!(fixture.balance(0).await, (1, 5));
    assert_eq!(fixture.report(holder.lease, 1, 2, false).await, Reported::Kept { wanted: true });
    assert_eq!(fixture.report(holder.lease, 2, 2, true).await, Reported::Settled);
    assert_eq!(fixture.lent(&fixture.ask(15, 5, 20)).await, 0, "what is wanted elsewhere is not lent");
    assert_eq!(fixture.balance(0).await, (18, 0));
}

/// The end of a former lease goes with the borrowing, also when that is refused.
pub async fn a_former_lease_is_settled_in_the_same_step(fixture: Fixture) {
    let former = fixture.ask(1, 50, 100);
    assert_eq!(fixture.lent(&former).await, 49);
    let settle = Report { lease: former.lease, number: 1, spent: 20, ending: true, life: LIFE };
    let refused = Ask { settle: Some(settle.clone()), ..fixture.ask(80, 0, 100) };
    assert_eq!(fixture.borrow(&refused).await, Borrowed::Refused { used: 21, held: 0 });
    let again = Ask { settle: Some(settle), ..fixture.ask(79, 0, 100) };
    assert_eq!(fixture.lent(&again).await, 0, "settled once");
    assert_eq!(fixture.balance(0).await, (100, 0));
}

/// No tenant sees or ends what another one has.
pub async fn tenants_are_separate(fixture: Fixture) {
    let ask = Ask { life: Duration::ZERO, ..fixture.ask(1, 10, 100) };
    assert_eq!(fixture.lent(&ask).await, 10);
    let [_, other] = &fixture.tenants;
    let report = Report { lease: ask.lease, number: 1, spent: 10, ending: true, life: LIFE };
    assert_eq!(fixture.store.report(other, &report, now()).await.unwrap(), Reported::Fenced);
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
            a_former_lease_is_settled_in_the_same_step, tenants_are_separate,
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
