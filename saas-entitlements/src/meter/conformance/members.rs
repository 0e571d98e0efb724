//! Limits of members within a tenant's.

use std::{collections::HashMap, sync::Arc};

use saas_core::plan::Window;

use super::{Adjustment, Corrected, Draw, Drawn, Fixture, counted, day, grant, start};

impl Fixture {
    /// A draw of a member who may use `most`, of a tenant that may use `cap`.
    fn by(&self, member: &str, most: Option<u64>, amount: u64, key: &str, cap: u64) -> Draw {
        let draw = self.draw(amount, key, cap);
        Draw { member: Some(member.into()), member_cap: most, thresholds: Box::default(), ..draw }
    }

    async fn used_by(&self, member: &str) -> u64 {
        let draw = self.draw(1, "any", 1);
        self.store.used_by(&self.tenants[0], member, &draw.counter, Window::Day, day(0)).await.unwrap()
    }
}

/// f-M18: tenant and member both have room, or nothing is counted; the answer is about the one with less.
pub async fn a_member_uses_no_more_than_its_own_limit(fixture: Fixture) {
    let used =
        async |member, amount, key| fixture.consume(&fixture.by(member, Some(4), amount, key, 10)).await.unwrap();
    let step = |before, after| Drawn::Counted { before, after, burnt: 0, crossed: Vec::new() };
    assert_eq!(used("ada", 3, "a").await, step(0, 3));
    assert_eq!(used("ada", 2, "b").await, Drawn::MemberRefused { used: 3, room: 1 });
    assert_eq!((fixture.used(&fixture.tenants[0], day(0)).await, fixture.used_by("ada").await), (3, 3));
    assert_eq!(used("ada", 1, "b").await, step(3, 4), "the key of a refused one is free");
    assert_eq!(used("ada", 1, "b").await, Drawn::AlreadyCounted, "though the limit is reached by now");
    assert_eq!(used("bob", 4, "c").await, step(4, 8));
    assert_eq!(used("cyd", 3, "d").await, Drawn::Refused { used: 8, room: 2 }, "the tenant has less than the member");
    assert_eq!(used("ada", 3, "e").await, Drawn::MemberRefused { used: 4, room: 0 }, "the member has less");
    assert_eq!(used("cyd", 2, "d").await, step(8, 10));
    // What a grant gives to the tenant is used by a member all the same.
    fixture.give(grant(10)).await;
    assert_eq!(used("cyd", 3, "f").await, Drawn::MemberRefused { used: 2, room: 2 });
    let drawn = used("cyd", 2, "f").await;
    assert_eq!(drawn, Drawn::Counted { before: 10, after: 10, burnt: 2, crossed: Vec::new() });
    assert_eq!(fixture.used_by("cyd").await, 4);
    // What has happened has happened, and counts.
    let record = Draw { member: Some("dan".into()), ..fixture.record(9, "g", 10) };
    assert!(counted(fixture.consume(&record).await));
    let more = fixture.consume(&fixture.by("dan", Some(4), 1, "h", 100)).await.unwrap();
    assert_eq!(more, Drawn::MemberRefused { used: 9, room: 0 });
    assert_eq!((fixture.used_by("dan").await, fixture.used_by("nobody").await), (9, 0));
}

/// What a member used before there was a limit for each, or while there was none, is not forgotten.
pub async fn what_a_member_used_counts_whenever_its_limit_came(fixture: Fixture) {
    let used = async |most, amount, key| fixture.consume(&fixture.by("ada", most, amount, key, 100)).await.unwrap();
    assert!(matches!(used(None, 3, "a").await, Drawn::Counted { .. }));
    assert_eq!(fixture.used_by("ada").await, 3);
    assert_eq!(used(Some(4), 2, "b").await, Drawn::MemberRefused { used: 3, room: 1 });
    assert!(matches!(used(None, 2, "c").await, Drawn::Counted { .. }), "on a plan without such a limit");
    assert!(matches!(used(Some(6), 1, "d").await, Drawn::Counted { .. }));
    assert_eq!(used(Some(6), 1, "e").await, Drawn::MemberRefused { used: 6, room: 0 });
    let other = fixture.by("bob", Some(6), 6, "f", 100);
    assert!(counted(fixture.consume(&other).await));
    assert_eq!((fixture.used_by("ada").await, fixture.used_by("bob").await), (6, 6));
}

/// C1, f-M18: many tasks of several members pass neither limit, and reach the one that is nearer.
pub async fn contention_exceeds_neither_the_members_limits_nor_the_tenants(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    // Four members of 20 are less than the tenant's 100 of the first day; eight are more than those of the second.
    for (number, members, expected) in [(0, 4_u64, 80), (1, 8, 100)] {
        let tasks: Vec<_> = (0..24_u64)
            .map(|task| {
                let fixture = Arc::clone(&fixture);
                tokio::spawn(async move {
                    let (member, mut total) = (format!("member-{}", task % members), 0);
                    for use_ in 0..10 {
                        let amount = 1 + (task + use_) % 2;
                        let draw = fixture.by(&member, Some(20), amount, &format!("{number}-{task}-{use_}"), 100);
                        if counted(fixture.consume(&Draw { period: day(number), ..draw }).await) {
                            total += amount;
                        }
                    }
                    (member, total)
                })
            })
            .collect();
        let mut of_member: HashMap<String, u64> = HashMap::new();
        for task in tasks {
            let (member, total) = task.await.unwrap();
            *of_member.entry(member).or_default() += total;
        }
        let total: u64 = of_member.values().sum();
        assert!(of_member.values().all(|used| *used <= 20), "{of_member:?}");
        assert_eq!((total, fixture.used(&fixture.tenants[0], day(number)).await), (expected, expected));
    }
}

/// A member of that name of another tenant, and in another window, is another one.
pub async fn members_of_tenants_and_windows_are_separate(fixture: Fixture) {
    let draw = fixture.by("ada", Some(4), 4, "a", 10);
    assert!(counted(fixture.consume(&draw).await));
    assert!(counted(fixture.store.consume(&fixture.tenants[1], &draw, start()).await));
    assert!(counted(fixture.consume(&Draw { period: day(1), ..fixture.by("ada", Some(4), 4, "b", 10) }).await));
    assert_eq!(fixture.used_by("ada").await, 4);
}

/// C15: a correction gives back to its member no more than that used.
pub async fn a_correction_takes_no_more_than_its_member_used(fixture: Fixture) {
    assert!(counted(fixture.consume(&fixture.by("ada", Some(4), 3, "a", 10)).await));
    assert!(counted(fixture.consume(&fixture.by("bob", Some(4), 4, "b", 10)).await));
    let correct = async |amount, key: &str| {
        let adjustment = Adjustment { member: Some("ada".into()), ..fixture.adjustment(amount, key) };
        fixture.adjust(adjustment).await.unwrap()
    };
    assert_eq!(correct(-5, "c").await, Corrected::Counted { before: 7, after: 4 });
    assert_eq!((fixture.used_by("ada").await, fixture.used_by("bob").await), (0, 4));
    assert_eq!(correct(2, "d").await, Corrected::Counted { before: 4, after: 6 });
    let refused = fixture.consume(&fixture.by("ada", Some(4), 3, "e", 10)).await.unwrap();
    assert_eq!(refused, Drawn::MemberRefused { used: 2, room: 2 });
}
