//! What every [`CounterStore`](super::CounterStore) and [`Ledger`] must do, as tests that any implementation runs with
//! [`counter_store_conformance!`](crate::counter_store_conformance).

#![expect(clippy::unwrap_used, clippy::panic, reason = "these are tests: a panic is how they report")]

mod kinds;
mod members;

use std::{any::Any, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    CoreError, IdempotencyKey, Limit, MeterKey, RequestContext, Revision, TenantContext, UsageGrantId,
    plan::{Aggregation, Window},
};

pub use self::{
    kinds::{
        a_level_takes_the_place_of_the_one_before, a_level_that_fell_warns_again,
        a_peak_counts_what_it_is_above_the_one_before, an_item_counts_once_in_its_window,
        contention_counts_each_item_once_and_no_peak_above_the_cap, levels_do_not_overflow,
        peaks_and_items_are_corrected, random_levels_and_items_keep_to_a_simple_model,
    },
    members::{
        a_correction_takes_no_more_than_its_member_used, a_member_uses_no_more_than_its_own_limit,
        contention_exceeds_neither_the_members_limits_nor_the_tenants, members_of_tenants_and_windows_are_separate,
        what_a_member_used_counts_whenever_its_limit_came,
    },
};

use super::{Adjustment, Corrected, Draw, DrawKind, Drawn, GrantSource, Ledger, NewGrant, Threshold};
use crate::{Carry, Ended, EntitlementsError, Period};

/// A store to be tested, empty, with two tenants at the same revision.
#[derive(Debug)]
pub struct Fixture {
    store: Arc<dyn Ledger>,
    tenants: [RequestContext; 2],
    revision: Revision,
    _kept: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A fixture; `kept` lives as long as it, such as the database behind the store.
    pub fn new(
        store: Arc<dyn Ledger>,
        tenants: [RequestContext; 2],
        revision: Revision,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { store, tenants, revision, _kept: Box::new(kept) }
    }

    /// A draw of `amount` with `key` against a cap of `cap`, in the first window.
    fn draw(&self, amount: u64, key: &str, cap: u64) -> Draw {
        Draw {
            kind: DrawKind::Consume,
            meter: MeterKey::from_static("calls"),
            counter: MeterKey::from_static("calls"),
            aggregation: Aggregation::Sum,
            amount,
            units: amount,
            key: key_of(key),
            item: None,
            member: None,
            at: start(),
            window: Window::Day,
            period: day(0),
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

    async fn consume(&self, draw: &Draw) -> Result<Drawn, EntitlementsError> {
        self.store.consume(&self.tenants[0], draw, start()).await
    }

    /// A draw that has happened.
    fn record(&self, amount: u64, key: &str, limit: u64) -> Draw {
        Draw { kind: DrawKind::Record, cap: i64::MAX.unsigned_abs(), ..self.draw(amount, key, limit) }
    }

    /// Gives units and returns the grant's name.
    async fn give(&self, new: NewGrant) -> UsageGrantId {
        self.give_at(new, start()).await
    }

    async fn give_at(&self, new: NewGrant, now: DateTime<Utc>) -> UsageGrantId {
        self.store.give(&self.tenants[0], &new, now).await.unwrap().id
    }

    async fn correct(&self, amount: i64, key: &str) -> Result<Corrected, EntitlementsError> {
        self.adjust(self.adjustment(amount, key)).await
    }

    fn adjustment(&self, amount: i64, key: &str) -> Adjustment {
        let calls = MeterKey::from_static("calls");
        Adjustment {
            meter: calls.clone(),
            counter: calls,
            amount,
            units: amount,
            key: key_of(key),
            item: None,
            member: None,
            window: Window::Day,
            period: day(0),
            limit: Limit::Unlimited,
            thresholds: Box::default(),
            at: start(),
            reason: "a test".to_owned(),
        }
    }

    async fn adjust(&self, adjustment: Adjustment) -> Result<Corrected, EntitlementsError> {
        self.store.correct(&self.tenants[0], &adjustment, start()).await
    }

    /// What was burnt of grants that have units left, in their order.
    async fn burnt(&self) -> Vec<(UsageGrantId, u64)> {
        let calls = MeterKey::from_static("calls");
        let grants = self.store.list_grants(&self.tenants[0], &calls, start()).await.unwrap();
        grants.into_iter().map(|grant| (grant.id, grant.burnt)).collect()
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

fn grant(units: u64) -> NewGrant {
    let id = UsageGrantId::mint_at(start());
    NewGrant::new(id, MeterKey::from_static("calls"), units, GrantSource::Bought, "a test").unwrap()
}

fn counted(drawn: Result<Drawn, EntitlementsError>) -> bool {
    matches!(drawn.unwrap(), Drawn::Counted { .. })
}

/// C1, C18, G17: 64 tasks of 50 uses against a cap of 1,000 count exactly 1,000, and each threshold is announced once.
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
                        Drawn::Refused { used, room } => {
                            assert_eq!((used, room), (1_000, 0), "refused although something was left")
                        }
                        other @ (Drawn::MemberRefused { .. } | Drawn::AlreadyCounted | Drawn::Outdated { .. }) => {
                            panic!("{other:?}")
                        }
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
    assert_eq!(drawn, Drawn::Counted { before: 0, after: 100, burnt: 0, crossed: vec![80, 100] });
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
            other @ (Drawn::Refused { .. } | Drawn::MemberRefused { .. } | Drawn::Outdated { .. }) => {
                panic!("{other:?}")
            }
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
    assert_eq!(refused, Drawn::Refused { used: 7, room: 3 });
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 7);
    assert!(counted(fixture.consume(&fixture.draw(5, "second", 12)).await), "with more room, the same key counts");
}

/// C12: the largest amounts are counted or refused, never wrapped.
pub async fn sums_do_not_overflow(fixture: Fixture) {
    let most = i64::MAX.unsigned_abs();
    let draw = |amount, key: &str| Draw { thresholds: Box::default(), ..fixture.draw(amount, key, 0) };
    let draw = |amount, key: &str| Draw { cap: most, ..draw(amount, key) };
    assert!(counted(fixture.consume(&draw(most - 1, "nearly-all")).await));
    assert_eq!(fixture.consume(&draw(most, "all")).await.unwrap(), Drawn::Refused { used: most - 1, room: 1 });
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
        other => panic!("{other:?}"),
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
    assert_eq!(fixture.consume(&fixture.draw(1, "f", 5)).await.unwrap(), Drawn::Refused { used: 16, room: 0 });
}

/// f-M10, f-M6: the plan's units first, then grants by priority, end and age, then overage up to its cap.
pub async fn grants_burn_in_their_order_between_plan_and_overage(fixture: Fixture) {
    let soon = start() + TimeDelta::hours(1);
    let last = fixture.give(grant(10).with_priority(1).with_expiry(soon)).await;
    // Of one instant they would come in the order of their ids, which others mint meanwhile.
    let oldest = fixture.give_at(grant(10), start() - TimeDelta::milliseconds(1)).await;
    let younger = fixture.give(grant(10)).await;
    let ending = fixture.give(grant(10).with_expiry(soon)).await;
    assert_eq!(fixture.burnt().await, [(ending, 0), (oldest, 0), (younger, 0), (last, 0)]);
    let drawn = |draw: Draw| {
        let fixture = &fixture;
        async move { fixture.consume(&Draw { cap: 105, thresholds: Box::default(), ..draw }).await.unwrap() }
    };
    let counted = |before, after, burnt| Drawn::Counted { before, after, burnt, crossed: Vec::new() };
    assert_eq!(drawn(fixture.draw(90, "a", 100)).await, counted(0, 90, 0));
    assert_eq!(drawn(fixture.draw(25, "b", 100)).await, counted(90, 100, 15));
    assert_eq!(fixture.burnt().await, [(oldest, 5), (younger, 0), (last, 0)]);
    assert_eq!(drawn(fixture.draw(31, "c", 100)).await, Drawn::Refused { used: 100, room: 30 });
    assert_eq!(fixture.burnt().await, [(oldest, 5), (younger, 0), (last, 0)], "refused whole");
    assert_eq!(drawn(fixture.draw(28, "d", 100)).await, counted(100, 103, 25));
    assert_eq!(fixture.burnt().await, []);
    assert_eq!(drawn(fixture.draw(3, "e", 100)).await, Drawn::Refused { used: 103, room: 2 });
    assert_eq!(drawn(fixture.draw(2, "e", 100)).await, counted(103, 105, 0));
}

/// A grant that is over or taken back is not burnt; what was burnt of it stays counted.
pub async fn a_grant_that_is_over_is_not_burnt(fixture: Fixture) {
    let soon = start() + TimeDelta::hours(1);
    fixture.give(grant(10).with_expiry(soon)).await;
    let taken = fixture.give(grant(10)).await;
    let drawn = fixture.consume(&fixture.draw(12, "a", 0)).await.unwrap();
    assert!(matches!(drawn, Drawn::Counted { after: 0, burnt: 12, .. }), "{drawn:?}");
    let revoke = || fixture.store.revoke(&fixture.tenants[0], taken, "a test", start());
    assert_eq!((revoke().await.unwrap(), revoke().await.unwrap()), (Some(8), None));
    assert_eq!(fixture.consume(&fixture.draw(1, "b", 0)).await.unwrap(), Drawn::Refused { used: 0, room: 0 });
    let late = fixture.give(grant(10).with_expiry(soon)).await;
    let draw = fixture.draw(1, "c", 0);
    let at = |now| fixture.store.consume(&fixture.tenants[0], &draw, now);
    assert_eq!(at(soon).await.unwrap(), Drawn::Refused { used: 0, room: 0 }, "its end is exclusive");
    assert!(counted(at(soon - TimeDelta::microseconds(1)).await));
    assert_eq!(fixture.burnt().await, [(late, 1)]);
}

/// C2: a grant is one, however often it is given; another one by its id is refused. It is of one tenant.
pub async fn a_grant_is_given_once(fixture: Fixture) {
    let new = grant(10);
    for _ in 0..2 {
        fixture.give(new.clone()).await;
    }
    assert!(counted(fixture.consume(&fixture.draw(10, "a", 0)).await));
    assert_eq!(fixture.store.give(&fixture.tenants[0], &new, start()).await.unwrap().burnt, 10);
    assert_eq!(fixture.consume(&fixture.draw(1, "b", 0)).await.unwrap(), Drawn::Refused { used: 0, room: 0 });
    let other = NewGrant { units: 11, ..new.clone() };
    let error = fixture.store.give(&fixture.tenants[0], &other, start()).await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "{error}");
    let elsewhere = fixture.store.consume(&fixture.tenants[1], &fixture.draw(1, "a", 0), start()).await.unwrap();
    assert_eq!(elsewhere, Drawn::Refused { used: 0, room: 0 });
}

/// C1: 32 tasks on plan and grants together count exactly what both have.
pub async fn contention_never_exceeds_plan_and_grants(fixture: Fixture) {
    for _ in 0..3 {
        fixture.give(grant(50)).await;
    }
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..32)
        .map(|task| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move {
                let (mut counted, mut from_grants) = (0, 0);
                for use_ in 0..5 {
                    let draw = fixture.draw(3, &format!("{task}-{use_}"), 100);
                    if let Drawn::Counted { burnt, .. } = fixture.consume(&draw).await.unwrap() {
                        counted += 3;
                        from_grants += burnt;
                    }
                }
                (counted, from_grants)
            })
        })
        .collect();
    let mut total = (0, 0);
    for task in tasks {
        let (counted, from_grants) = task.await.unwrap();
        total = (total.0 + counted, total.1 + from_grants);
    }
    // 250 units are 83 uses of 3, and one unit that none fits into.
    assert_eq!(total.0, 249);
    assert_eq!(total.1 + fixture.used(&fixture.tenants[0], day(0)).await, 249);
}

/// What has happened is counted whatever the limit: plan, then grants, then beyond; never past the largest number.
pub async fn recording_is_not_refused_by_a_limit(fixture: Fixture) {
    fixture.give(grant(10)).await;
    let recorded = fixture.consume(&fixture.record(130, "a", 100)).await.unwrap();
    assert_eq!(recorded, Drawn::Counted { before: 0, after: 120, burnt: 10, crossed: vec![80, 100] });
    assert_eq!(fixture.consume(&fixture.record(130, "a", 100)).await.unwrap(), Drawn::AlreadyCounted);
    assert_eq!(fixture.consume(&fixture.draw(1, "b", 100)).await.unwrap(), Drawn::Refused { used: 120, room: 0 });
    let most = i64::MAX.unsigned_abs();
    let refused = fixture.consume(&fixture.record(most, "c", 100)).await.unwrap();
    assert_eq!(refused, Drawn::Refused { used: 120, room: most - 120 });
    fixture.give(grant(5)).await;
    let drawn = fixture.consume(&fixture.draw(5, "d", 100)).await.unwrap();
    assert_eq!(drawn, Drawn::Counted { before: 120, after: 120, burnt: 5, crossed: Vec::new() }, "beyond, but bought");
}

/// C15: a correction of more than there is leaves 0, and gives nothing beyond the limit to later uses.
pub async fn a_correction_never_raises_the_quota(fixture: Fixture) {
    assert!(counted(fixture.consume(&fixture.draw(3, "a", 10)).await));
    assert_eq!(fixture.correct(-5, "fix").await.unwrap(), Corrected::Counted { before: 3, after: 0 });
    assert_eq!(fixture.correct(-5, "fix").await.unwrap(), Corrected::AlreadyCounted);
    let error = fixture.correct(-4, "fix").await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "{error}");
    assert_eq!(fixture.consume(&fixture.draw(11, "b", 10)).await.unwrap(), Drawn::Refused { used: 0, room: 10 });
    assert!(counted(fixture.consume(&fixture.draw(6, "c", 10)).await));
    assert_eq!(fixture.consume(&fixture.draw(5, "d", 10)).await.unwrap(), Drawn::Refused { used: 6, room: 4 });
    assert_eq!(fixture.correct(7, "more").await.unwrap(), Corrected::Counted { before: 6, after: 13 });
    let error = fixture.correct(i64::MAX, "overflow").await.unwrap_err();
    assert_eq!(error.code(), "invalid_input");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 13);
}

/// f-M4, f-M6, f-M10: 300 random uses, records, corrections, grants and revocations are answered as by a model that takes
/// one unit at a time, and nothing is lost or made: what was counted is what is used and what is burnt.
pub async fn random_operations_keep_to_a_simple_model(fixture: Fixture) {
    let mut model = Model { limit: 40, cap: 50, ..Model::default() };
    // Xorshift: the same numbers in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % most
    };
    let mut counted = 0;
    for step in 0..300 {
        let key = format!("step-{step}");
        match below(10) {
            0..=4 => {
                let amount = 1 + below(12);
                let draw = Draw { cap: model.cap, ..fixture.draw(amount, &key, model.limit) };
                let drawn = fixture.consume(&draw).await.unwrap();
                counted += i128::from(model.expect(&drawn, amount, model.cap, step));
            }
            5 => {
                let amount = 1 + below(6);
                let drawn = fixture.consume(&fixture.record(amount, &key, model.limit)).await.unwrap();
                counted += i128::from(model.expect(&drawn, amount, u64::MAX, step));
            }
            6 => {
                let amount = i64::try_from(below(60)).unwrap() - 50;
                let before = model.used;
                model.used = before.saturating_add_signed(amount);
                counted += i128::from(model.used) - i128::from(before);
                let expected = Corrected::Counted { before, after: model.used };
                assert_eq!(fixture.correct(amount, &key).await.unwrap(), expected, "step {step}");
            }
            7 | 8 => {
                let (units, priority) = (1 + below(15), i16::try_from(below(3)).unwrap());
                let id = fixture.give(grant(units).with_priority(priority)).await;
                model.grants.push((priority, id, units));
                model.grants.sort_unstable();
            }
            _ => {
                if let Some((_, id, left)) = model.grants.pop() {
                    let revoked = fixture.store.revoke(&fixture.tenants[0], id, "a test", start()).await.unwrap();
                    assert_eq!(revoked, Some(left), "step {step}");
                }
            }
        }
        let used = fixture.used(&fixture.tenants[0], day(0)).await;
        assert_eq!((used, i128::from(used) + i128::from(model.burnt)), (model.used, counted), "step {step}");
    }
    let left: Vec<_> = model.grants.iter().filter(|grant| grant.2 > 0).map(|grant| grant.1).collect();
    let listed: Vec<_> = fixture.burnt().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(listed, left);
    let reached = (model.refused > 0, model.burnt > 0, model.over > 0);
    assert_eq!(reached, (true, true, true), "the walk came to every part: {model:?}");
}

/// f-M9: what earlier windows left is there before the first use, once, and no more in all than it may be.
pub async fn what_is_left_is_carried_over_before_the_first_use(fixture: Fixture) {
    let ended = |number, until| {
        let (Period { start, end }, expiry) = (day(number), day(until).end);
        Ended { start, end: end.unwrap(), limit: 100, expires_at: expiry.unwrap() }
    };
    // The window of `start`, and the two before it.
    let carry = Some(Carry { max: 150, ended: [ended(484, 486), ended(485, 487)].into() });
    let yesterday = Draw { period: day(485), ..fixture.draw(10, "yesterday", 100) };
    assert!(counted(fixture.consume(&yesterday).await));
    let draw = |amount, key: &str| Draw { period: day(486), carry: carry.clone(), ..fixture.draw(amount, key, 100) };
    let refused = fixture.consume(&draw(251, "too-much")).await.unwrap();
    assert_eq!(refused, Drawn::Refused { used: 0, room: 250 });
    assert!(counted(fixture.consume(&draw(120, "some")).await));
    // It is not made again, and what it was made from is gone from there: of 90, 50 were carried over.
    let late = Draw { period: day(485), ..fixture.draw(45, "late", 100) };
    let late = fixture.consume(&late).await.unwrap();
    assert_eq!(late, Drawn::Counted { before: 10, after: 50, burnt: 5, crossed: vec![] });
    let all = fixture.consume(&draw(125, "all")).await.unwrap();
    assert_eq!(all, Drawn::Counted { before: 100, after: 100, burnt: 125, crossed: vec![] });
    let late = Draw { period: day(485), ..fixture.draw(1, "later", 100) };
    assert_eq!(fixture.consume(&late).await.unwrap(), Drawn::Refused { used: 50, room: 0 });
    assert_eq!(fixture.consume(&draw(1, "more")).await.unwrap(), Drawn::Refused { used: 100, room: 0 });
}

/// What a store has to answer, one unit at a time.
#[derive(Debug, Clone, Default)]
struct Model {
    limit: u64,
    cap: u64,
    used: u64,
    /// Priority, name and units left, in the order in which they burn.
    grants: Vec<(i16, UsageGrantId, u64)>,
    burnt: u64,
    over: u64,
    refused: u32,
}

impl Model {
    /// Compares an answer, and returns the units that were counted.
    fn expect(&mut self, drawn: &Drawn, amount: u64, cap: u64, step: i32) -> u64 {
        let before = self.clone();
        for _ in 0..amount {
            if self.used < self.limit {
                self.used += 1;
            } else if let Some(grant) = self.grants.iter_mut().find(|grant| grant.2 > 0) {
                grant.2 -= 1;
                self.burnt += 1;
            } else if self.used < cap {
                self.used += 1;
                self.over += 1;
            } else {
                let room = before.grants.iter().map(|grant| grant.2).sum::<u64>() + cap.saturating_sub(before.used);
                let used = before.used;
                *self = Self { refused: before.refused + 1, ..before };
                assert_eq!(*drawn, Drawn::Refused { used, room }, "step {step}");
                return 0;
            }
        }
        let Drawn::Counted { before: was, after, burnt, .. } = drawn else { panic!("step {step}: {drawn:?}") };
        let expected = (before.used, self.used, self.burnt - before.burnt);
        assert_eq!((*was, *after, *burnt), expected, "step {step}");
        amount
    }
}

/// Runs the conformance suite of [`CounterStore`](crate::CounterStore) and [`Ledger`] against an implementation.
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
            another_limit_keeps_the_count_and_warns_for_itself, grants_burn_in_their_order_between_plan_and_overage,
            a_grant_that_is_over_is_not_burnt, a_grant_is_given_once, contention_never_exceeds_plan_and_grants,
            recording_is_not_refused_by_a_limit, a_correction_never_raises_the_quota,
            random_operations_keep_to_a_simple_model, what_is_left_is_carried_over_before_the_first_use,
            a_peak_counts_what_it_is_above_the_one_before, an_item_counts_once_in_its_window,
            a_level_takes_the_place_of_the_one_before, a_level_that_fell_warns_again,
            contention_counts_each_item_once_and_no_peak_above_the_cap, levels_do_not_overflow,
            peaks_and_items_are_corrected, random_levels_and_items_keep_to_a_simple_model,
            a_member_uses_no_more_than_its_own_limit, what_a_member_used_counts_whenever_its_limit_came,
            contention_exceeds_neither_the_members_limits_nor_the_tenants, members_of_tenants_and_windows_are_separate,
            a_correction_takes_no_more_than_its_member_used,
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
