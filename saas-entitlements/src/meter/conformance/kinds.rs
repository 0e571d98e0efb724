//! Peaks, items and levels.

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{CoreError, plan::Aggregation};

use super::{Adjustment, Corrected, Draw, Drawn, Fixture, counted, day, start};
use crate::EntitlementsError;

impl Fixture {
    fn peak(&self, level: u64, key: &str, cap: u64) -> Draw {
        Draw { aggregation: Aggregation::Max, ..self.draw(level, key, cap) }
    }

    fn level(&self, level: u64, key: &str, cap: u64, at: DateTime<Utc>) -> Draw {
        Draw { aggregation: Aggregation::Latest, at, ..self.draw(level, key, cap) }
    }

    fn item(&self, item: &str, key: &str, cap: u64) -> Draw {
        Draw { aggregation: Aggregation::Unique, item: Some(item.into()), ..self.draw(1, key, cap) }
    }
}

fn step(before: u64, after: u64, crossed: &[u16]) -> Drawn {
    Drawn::Counted { before, after, burnt: 0, crossed: crossed.to_vec() }
}

/// f-M3: a level that is no new peak costs nothing and is counted whatever the cap; one that would be above it is refused.
pub async fn a_peak_counts_what_it_is_above_the_one_before(fixture: Fixture) {
    let used = async |draw: Draw| fixture.consume(&draw).await.unwrap();
    assert_eq!(used(fixture.peak(4, "a", 10)).await, step(0, 4, &[]));
    assert_eq!(used(fixture.peak(3, "b", 10)).await, step(4, 4, &[]));
    assert_eq!(used(fixture.peak(0, "c", 10)).await, step(4, 4, &[]));
    assert_eq!(used(fixture.peak(11, "d", 10)).await, Drawn::Refused { used: 4, room: 6 });
    assert_eq!(used(fixture.peak(9, "d", 10)).await, step(4, 9, &[80]), "the key of a refused one is free");
    assert_eq!(used(fixture.peak(9, "d", 10)).await, Drawn::AlreadyCounted);
    let error = fixture.consume(&fixture.peak(8, "d", 10)).await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "{error}");
    assert!(counted(fixture.consume(&fixture.peak(9, "e", 5)).await), "no new peak, under a limit that was lowered");
    assert_eq!(used(fixture.peak(10, "f", 5)).await, Drawn::Refused { used: 9, room: 0 });
    let beyond = Draw { cap: 12, ..fixture.peak(12, "g", 10) };
    assert_eq!(used(beyond).await, step(9, 12, &[100]), "as overage");
    let recorded = Draw { cap: i64::MAX.unsigned_abs(), ..fixture.peak(50, "h", 10) };
    assert_eq!(used(recorded).await, step(12, 50, &[]));
    let tomorrow = Draw { period: day(1), ..fixture.peak(2, "i", 10) };
    assert_eq!(used(tomorrow).await, step(0, 2, &[]), "a window has its own peak");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 50);
}

/// f-M3: the same item again costs nothing and is counted whatever the cap; a new one beyond it is refused.
pub async fn an_item_counts_once_in_its_window(fixture: Fixture) {
    let used = async |draw: Draw| fixture.consume(&draw).await.unwrap();
    assert_eq!(used(fixture.item("ada", "a", 2)).await, step(0, 1, &[]));
    assert_eq!(used(fixture.item("ada", "b", 2)).await, step(1, 1, &[]));
    assert_eq!(used(fixture.item("bob", "c", 2)).await, step(1, 2, &[80, 100]));
    assert_eq!(used(fixture.item("cyd", "d", 2)).await, Drawn::Refused { used: 2, room: 0 });
    assert_eq!(used(fixture.item("ada", "d", 2)).await, step(2, 2, &[]), "the key of a refused one is free");
    assert!(counted(fixture.consume(&fixture.item("bob", "e", 1)).await), "known, under a limit that was lowered");
    assert_eq!(used(fixture.item("ada", "a", 2)).await, Drawn::AlreadyCounted);
    let error = fixture.consume(&fixture.item("bob", "a", 2)).await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "another item: {error}");
    let tomorrow = Draw { period: day(1), ..fixture.item("cyd", "f", 2) };
    assert_eq!(used(tomorrow).await, step(0, 1, &[]), "a window has its own items");
    let elsewhere = fixture.store.consume(&fixture.tenants[1], &fixture.item("ada", "a", 2), start()).await.unwrap();
    assert_eq!(elsewhere, step(0, 1, &[]), "and so has a tenant");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 2);
}

/// f-M3: up as far as the cap, down always; a report that comes late changes nothing.
pub async fn a_level_takes_the_place_of_the_one_before(fixture: Fixture) {
    let at = |minutes| start() + TimeDelta::minutes(minutes);
    let used = async |draw: Draw| fixture.consume(&draw).await.unwrap();
    assert_eq!(used(fixture.level(8, "a", 10, at(0))).await, step(0, 8, &[80]));
    assert_eq!(used(fixture.level(3, "b", 10, at(5))).await, step(8, 3, &[]));
    assert_eq!(used(fixture.level(9, "c", 10, at(4))).await, step(3, 3, &[]), "of an instant before the last report");
    assert_eq!(used(fixture.level(11, "d", 10, at(6))).await, Drawn::Refused { used: 3, room: 7 });
    assert_eq!(used(fixture.level(10, "d", 10, at(6))).await, step(3, 10, &[80, 100]), "once more");
    assert_eq!(
        used(fixture.level(7, "e", 5, at(7))).await,
        step(10, 7, &[80, 100]),
        "down, though still above the cap"
    );
    assert_eq!(used(fixture.level(8, "f", 5, at(8))).await, Drawn::Refused { used: 7, room: 0 });
    assert_eq!(used(fixture.level(0, "g", 5, at(8))).await, step(7, 0, &[]));
    assert_eq!(used(fixture.level(0, "g", 5, at(8))).await, Drawn::AlreadyCounted);
    let recorded = Draw { cap: i64::MAX.unsigned_abs(), ..fixture.level(50, "h", 5, at(8)) };
    assert_eq!(used(recorded).await, step(0, 50, &[80, 100]), "of two at one instant, the one that comes last");
    assert_eq!(fixture.used(&fixture.tenants[0], day(0)).await, 50);
}

/// C18: a level comes back to a warning in the one window that it has, and is announced each time; a peak is not.
pub async fn a_level_that_fell_warns_again(fixture: Fixture) {
    let used = async |draw: Draw| fixture.consume(&draw).await.unwrap();
    let level = |units, key, cap| fixture.level(units, key, cap, start());
    assert_eq!(used(level(8, "a", 10)).await, step(0, 8, &[80]));
    assert_eq!(used(level(9, "b", 10)).await, step(8, 9, &[]), "it held all the time");
    assert_eq!(used(level(7, "c", 10)).await, step(9, 7, &[]));
    assert_eq!(used(level(10, "d", 10)).await, step(7, 10, &[80, 100]));
    assert_eq!(used(level(9, "e", 10)).await, step(10, 9, &[]));
    assert_eq!(used(level(10, "f", 10)).await, step(9, 10, &[100]), "only what fell below it");
    assert_eq!(used(level(10, "g", 100)).await, step(10, 10, &[]));
    assert_eq!(used(level(10, "h", 10)).await, step(10, 10, &[80, 100]), "a higher limit takes them back, too");
}

/// C1: at the same time, too, each item counts once, and neither items nor peaks pass the cap.
pub async fn contention_counts_each_item_once_and_no_peak_above_the_cap(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..16_u64)
        .map(|task| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move {
                let (mut seen, mut peak) = (Vec::new(), 0);
                for use_ in 0..10_u64 {
                    let (name, level) =
                        (format!("item-{}", (task * 7 + use_ * 3) % 40), 1 + (task * 13 + use_ * 5) % 60);
                    let item = fixture.item(&name, &format!("item-{task}-{use_}"), 25);
                    if counted(fixture.consume(&item).await) {
                        seen.push(name);
                    }
                    let draw = Draw { period: day(1), ..fixture.peak(level, &format!("peak-{task}-{use_}"), 45) };
                    if counted(fixture.consume(&draw).await) {
                        peak = level.max(peak);
                    }
                }
                (seen, peak)
            })
        })
        .collect();
    let (mut seen, mut peak) = (HashSet::new(), 0);
    for task in tasks {
        let (names, level) = task.await.unwrap();
        seen.extend(names);
        peak = peak.max(level);
    }
    assert_eq!((seen.len(), fixture.used(&fixture.tenants[0], day(0)).await), (25, 25));
    assert_eq!((peak, fixture.used(&fixture.tenants[0], day(1)).await), (45, 45));
}

/// C12: the largest levels are counted or refused, never wrapped.
pub async fn levels_do_not_overflow(fixture: Fixture) {
    let most = i64::MAX.unsigned_abs();
    let open = |draw| Draw { cap: most, thresholds: Box::default(), ..draw };
    let used = async |draw: Draw| fixture.consume(&draw).await.unwrap();
    assert_eq!(used(open(fixture.peak(most - 1, "a", 0))).await, step(0, most - 1, &[]));
    assert_eq!(used(open(fixture.peak(most, "b", 0))).await, step(most - 1, most, &[]));
    let tomorrow = |draw| Draw { period: day(1), ..open(draw) };
    assert_eq!(used(tomorrow(fixture.level(most, "c", 0, start()))).await, step(0, most, &[]));
    assert_eq!(used(tomorrow(fixture.level(0, "d", 0, start()))).await, step(most, 0, &[]));
    assert_eq!(used(tomorrow(fixture.level(most, "e", 0, start()))).await, step(0, most, &[]));
    let full = Draw { aggregation: Aggregation::Unique, item: Some("x".into()), ..open(fixture.draw(1, "f", 0)) };
    assert_eq!(used(full).await, Drawn::Refused { used: most, room: 0 });
}

/// C15: a peak is moved, an item that was counted wrongly is taken out and may come again.
pub async fn peaks_and_items_are_corrected(fixture: Fixture) {
    assert!(counted(fixture.consume(&fixture.peak(900, "a", 1_000)).await));
    assert_eq!(fixture.correct(-850, "b").await.unwrap(), Corrected::Counted { before: 900, after: 50 });
    assert_eq!(fixture.consume(&fixture.peak(60, "c", 1_000)).await.unwrap(), step(50, 60, &[]));

    let tomorrow = |draw| Draw { period: day(1), ..draw };
    for (item, key) in [("ada", "d"), ("robot", "e")] {
        assert!(counted(fixture.consume(&tomorrow(fixture.item(item, key, 2))).await));
    }
    let correct = async |item: &str, amount, key: &str| {
        let adjustment = Adjustment { item: Some(item.into()), period: day(1), ..fixture.adjustment(amount, key) };
        fixture.adjust(adjustment).await
    };
    let moved = |before, after| Corrected::Counted { before, after };
    assert_eq!(correct("robot", -1, "f").await.unwrap(), moved(2, 1));
    assert_eq!(correct("robot", -1, "f").await.unwrap(), Corrected::AlreadyCounted);
    let error = correct("ada", -1, "f").await.unwrap_err();
    assert!(matches!(error, EntitlementsError::Core(CoreError::KeyReused { .. })), "another item: {error}");
    assert_eq!(correct("robot", -1, "g").await.unwrap(), moved(1, 1), "it is out");
    assert_eq!(correct("nobody", -1, "h").await.unwrap(), moved(1, 1), "it never was in");
    assert_eq!(correct("ada", 1, "i").await.unwrap(), moved(1, 1), "it is in");
    assert_eq!(correct("bob", 1, "j").await.unwrap(), moved(1, 2));
    assert_eq!(fixture.consume(&tomorrow(fixture.item("bob", "k", 2))).await.unwrap(), step(2, 2, &[]));
    let again = fixture.consume(&tomorrow(fixture.item("robot", "l", 2))).await.unwrap();
    assert_eq!(again, Drawn::Refused { used: 2, room: 0 }, "what was taken out is new");
}

/// f-M2: 300 random reports are answered as by three lines of set, maximum and assignment.
pub async fn random_levels_and_items_keep_to_a_simple_model(fixture: Fixture) {
    const CAP: u64 = 12;
    // Xorshift: the same numbers in every run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % most
    };
    let (mut peak, mut items, mut level) = (0_u64, HashSet::new(), (0_u64, start()));
    let mut refused = [0; 3];
    for number in 0..300 {
        let (key, value, kind) = (format!("step-{number}"), below(16), below(3));
        let at = start() + TimeDelta::seconds(i64::try_from(below(600)).unwrap());
        let (draw, before, after) = match kind {
            0 => (Draw { period: day(1), ..fixture.peak(value, &key, CAP) }, peak, peak.max(value)),
            1 => {
                let name = format!("item-{value}");
                let before = items.len() as u64;
                let after = before + u64::from(!items.contains(&name));
                (Draw { period: day(2), ..fixture.item(&name, &key, CAP) }, before, after)
            }
            _ => {
                let after = if at < level.1 { level.0 } else { value };
                (Draw { period: day(3), ..fixture.level(value, &key, CAP, at) }, level.0, after)
            }
        };
        let drawn = fixture.consume(&draw).await.unwrap();
        if after > before && after > CAP {
            assert_eq!(drawn, Drawn::Refused { used: before, room: CAP - before }, "step {number}");
            refused[usize::try_from(kind).unwrap()] += 1;
            continue;
        }
        let Drawn::Counted { before: was, after: is, .. } = drawn else { panic!("step {number}: {drawn:?}") };
        assert_eq!((was, is), (before, after), "step {number}");
        match kind {
            0 => peak = after,
            1 => drop(items.insert(format!("item-{value}"))),
            _ => level = (after, level.1.max(at)),
        }
    }
    assert!(refused.iter().all(|times| *times > 0), "the walk came to every refusal: {refused:?}");
    for (number, used) in [(1, peak), (2, items.len() as u64), (3, level.0)] {
        assert_eq!(fixture.used(&fixture.tenants[0], day(number)).await, used);
    }
}
