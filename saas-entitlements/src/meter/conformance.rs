//! What every [`CounterStore`] must do, as tests that any implementation runs with
//! [`counter_store_conformance!`](crate::counter_store_conformance).

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a panic is how they report")]

use std::{any::Any, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{CoreError, IdempotencyKey, Limit, MeterKey, RequestContext, Revision, TenantContext, plan::Window};

use super::{CounterStore, Draw, Drawn, Threshold};
use crate::{EntitlementsError, Period};

/// A store to be tested, empty, with two tenants at the same revision.
#[derive(Debug)]
pub struct Fixture {
    store: Arc<dyn CounterStore>,
    tenants: [RequestContext; 2],
    revision: Revision,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A fixture; `kept` lives as long as it, such as the database behind the store.
    pub fn new(
        store: Arc<dyn CounterStore>,
        tenants: [RequestContext; 2],
        revision: Revision,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { store, tenants, revision, _kept: Box::new(kept) }
    }

    /// A draw of `amount` with `key` against a cap of `cap`, in the first window.
    fn draw(&self, amount: u64, key: &str, cap: u64) -> Draw {
        Draw {
            meter: MeterKey::from_static("calls"),
            counter: MeterKey::from_static("calls"),
            amount,
            units: amount,
            key: key_of(key),
            window: Window::Day,
            period: day(0),
            cap,
            limit: Limit::Max(cap),
            thresholds: [80, 100]
                .map(|percent| Threshold { percent, units: (cap * u64::from(percent)).div_ceil(100) })
                .into(),
            revision: self.revision,
        }
    }

    async fn consume(&self, draw: &Draw) -> Result<Drawn, EntitlementsError> {
        self.store.consume(&self.tenants[0], draw, start()).await
    }

    async fn used(&self, ctx: &dyn TenantContext, period: Period) -> u64 {
        let meter = MeterKey::from_static("calls");
        self.store.used(ctx, &meter, Window::Day, period).await.unwrap()
    }
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_770_000_000, 0).unwrap_or_default()
}

fn day(number: i64) -> Period {
    let start = DateTime::UNIX_EPOCH + TimeDelta::days(20_000 + number);
    Period { start, end: Some(start + TimeDelta::days(1)) }
}

fn key_of(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

fn counted(drawn: Result<Drawn, EntitlementsError>) -> bool {
    matches!(drawn.unwrap(), Drawn::Counted { .. })
}

/// C1, C18: 64 tasks of 50 uses against a cap of 1,000 count exactly 1,000, and each threshold is announced once.
pub async fn contention_never_exceeds_the_cap(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move {
                let (mut counted, mut announced) = (0, Vec::new());
                for use_ in 0..50 {
                    let draw = fixture.draw(1, &format!("{task}-{use_}"), 1_000);
                    match fixture.consume(&draw).await.unwrap() {
                        Drawn::Counted { crossed, .. } => {
                            counted += 1;
                            announced.extend(crossed);
                        }
                        Drawn::Refused { used } => assert_eq!(used, 1_000, "refused although something was left"),
                        other @ (Drawn::AlreadyCounted | Drawn::Outdated { .. }) => panic!("{other:?}"),
                    }
                }
                (counted, announced)
            })
        })
        .collect();
    let (mut total, mut announced) = (0, Vec::new());
    for task in tasks {
        let (counted, crossed) = task.await.unwrap();
        total += counted;
        announced.extend(crossed);
    }
    announced.sort_unstable();
    assert_eq!((total, announced), (1_000, vec![80, 100]));
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 1_000);
}

/// C18: one large step announces every threshold that it passes.
pub async fn one_step_over_two_thresholds_announces_both(fixture: Fixture) {
    let drawn = fixture.consume(&fixture.draw(100, "all", 100)).await.unwrap();
    assert_eq!(drawn, Drawn::Counted { before: 0, after: 100, crossed: vec![80, 100] });
}

/// C2: a repeated key moves nothing, at once and later, also when the limit is reached by then.
pub async fn replaying_a_key_moves_nothing(fixture: Fixture) {
    let draw = fixture.draw(10, "same", 10);
    assert!(counted(fixture.consume(&draw).await));
    for _ in 0..3 {
        assert_eq!(fixture.consume(&draw).await.unwrap(), Drawn::AlreadyCounted);
    }
    let tomorrow = Draw { period: day(1), ..draw };
    assert_eq!(fixture.consume(&tomorrow).await.unwrap(), Drawn::AlreadyCounted, "in another window too");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 10);
}

/// C2: ten calls with one key at the same time count once, the others find it counted.
pub async fn one_key_at_the_same_time_counts_once(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { fixture.consume(&fixture.draw(7, "same", 7)).await.unwrap() })
        })
        .collect();
    let mut once = 0;
    for task in tasks {
        match task.await.unwrap() {
            Drawn::Counted { .. } => once += 1,
            Drawn::AlreadyCounted => {}
            other @ (Drawn::Refused { .. } | Drawn::Outdated { .. }) => panic!("{other:?}"),
        }
    }
    assert_eq!((once, fixture.used(&fixture.tenants[0], day(0)).await), (1, 7));
}

/// C2: a key names one use; with another amount it is refused.
pub async fn a_key_with_another_amount_is_refused(fixture: Fixture) {
    assert!(counted(fixture.consume(&fixture.draw(2, "same", 10)).await));
    let error = fixture.consume(&fixture.draw(3, "same", 10)).await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "{error}");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 2);
}

/// C20: what does not fit is refused whole, changes nothing, and its key is free again.
pub async fn a_draw_is_counted_whole_or_not_at_all(fixture: Fixture) {
    assert!(counted(fixture.consume(&fixture.draw(7, "first", 10)).await));
    let refused = fixture.consume(&fixture.draw(5, "second", 10)).await.unwrap();
    assert_eq!(refused, Drawn::Refused { used: 7 });
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 7);
    assert!(counted(fixture.consume(&fixture.draw(5, "second", 12)).await), "with more room, the same key counts");
}

/// C12: the largest amounts are counted or refused, never wrapped.
pub async fn sums_do_not_overflow(fixture: Fixture) {
    let most = i64::MAX.unsigned_abs();
    let draw = |amount, key: &str| Draw { thresholds: Box::default(), ..fixture.draw(amount, key, 0) };
    let draw = |amount, key: &str| Draw { cap: most, ..draw(amount, key) };
    assert!(counted(fixture.consume(&draw(most - 1, "nearly-all")).await));
    assert_eq!(fixture.consume(&draw(most, "all")).await.unwrap(), Drawn::Refused { used: most - 1 });
    assert!(counted(fixture.consume(&draw(1, "the-last")).await));
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, most);
}

/// C8: each window counts for itself.
pub async fn windows_are_separate(fixture: Fixture) {
    assert!(counted(fixture.consume(&fixture.draw(10, "today", 10)).await));
    let tomorrow = Draw { period: day(1), ..fixture.draw(10, "tomorrow", 10) };
    assert!(counted(fixture.consume(&tomorrow).await));
    let hourly = Draw { window: Window::Hour, ..fixture.draw(10, "hour", 10) };
    assert!(counted(fixture.consume(&hourly).await), "an hour that starts with the day is another window");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 10);
}

/// A tenant neither sees nor uses up what another has, not even with the same key.
pub async fn tenants_are_separate(fixture: Fixture) {
    let draw = fixture.draw(10, "same", 10);
    assert!(counted(fixture.consume(&draw).await));
    assert_eq!(fixture.used(&fixture.tenants[1], day(0)).await, 0);
    assert!(counted(fixture.store.consume(&fixture.tenants[1], &draw, start()).await));
    assert_eq!(fixture.used(&fixture.tenants[1], day(0)).await, 10);
}

/// Another limit does not start the count again, and each limit gives its warnings once, a lowered one at once.
pub async fn another_limit_keeps_the_count_and_warns_for_itself(fixture: Fixture) {
    let crossed = |drawn: Drawn| match drawn {
        Drawn::Counted { crossed, .. } => crossed,
        other @ (Drawn::Refused { .. } | Drawn::AlreadyCounted | Drawn::Outdated { .. }) => panic!("{other:?}"),
    };
    assert_eq!(crossed(fixture.consume(&fixture.draw(9, "a", 10)).await.unwrap()), [80]);
    assert_eq!(crossed(fixture.consume(&fixture.draw(1, "b", 100)).await.unwrap()), [0; 0]);
    assert_eq!(crossed(fixture.consume(&fixture.draw(4, "c", 15)).await.unwrap()), [80], "14 of 15");
    assert_eq!(crossed(fixture.consume(&fixture.draw(1, "d", 15)).await.unwrap()), [100], "80 % was announced before");
    assert_eq!(
        crossed(fixture.consume(&fixture.draw(1, "e", 18)).await.unwrap()),
        [80],
        "16 of 18, by the limit alone"
    );
    assert_eq!(fixture.consume(&fixture.draw(1, "f", 5)).await.unwrap(), Drawn::Refused { used: 16 });
}

/// Runs the conformance suite of [`CounterStore`] against an implementation.
///
/// Takes a name for the module and an async closure that makes a [`Fixture`]. Needs `tokio` with `macros` and
/// `rt-multi-thread` among the caller's dev-dependencies.
#[macro_export]
macro_rules! counter_store_conformance {
    ($name:ident, $fixture:expr) => {
        $crate::counter_store_conformance!(
            @tests $name, $fixture;
            contention_never_exceeds_the_cap, one_step_over_two_thresholds_announces_both, replaying_a_key_moves_nothing,
            one_key_at_the_same_time_counts_once, a_key_with_another_amount_is_refused,
            a_draw_is_counted_whole_or_not_at_all, sums_do_not_overflow, windows_are_separate, tenants_are_separate,
            another_limit_keeps_the_count_and_warns_for_itself,
        );
    };
    (@tests $name:ident, $fixture:expr; $($test:ident),+ $(,)?) => {
        mod $name {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    $crate::conformance::$test(($fixture)().await).await;
                }
            )+
        }
    };
}
