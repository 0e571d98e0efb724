//! When usage starts again from 0: pure calendar arithmetic.
//!
//! A window anchored to billing has its boundaries at `anchor + n × window`, each counted from the anchor itself. Adding a
//! month to the previous boundary instead would turn 31 January into 29 February and then 29 March for ever.

use chrono::{DateTime, Datelike, Months, TimeDelta, Utc};
use saas_core::plan::{Window, WindowAnchor};

/// One window of counting: from `start`, inclusive, to `end`, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Period {
    /// The first instant.
    pub start: DateTime<Utc>,
    /// When usage starts again from 0; `None` for never.
    pub end: Option<DateTime<Utc>>,
}

/// The window that holds `now`.
///
/// `anchor` is the tenant's billing anchor; without one, windows anchored to billing follow the calendar. All boundaries
/// are UTC.
#[must_use]
pub fn period_at(window: Window, anchoring: WindowAnchor, anchor: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Period {
    let anchor = match anchoring {
        WindowAnchor::Calendar => calendar_anchor(window),
        WindowAnchor::Billing => anchor.unwrap_or_else(|| calendar_anchor(window)),
    };
    match window {
        Window::Hour => by_time(anchor, TimeDelta::hours(1), now),
        Window::Day => by_time(anchor, TimeDelta::days(1), now),
        Window::Week => by_time(anchor, TimeDelta::weeks(1), now),
        Window::Month => by_months(anchor, 1, now),
        Window::Year => by_months(anchor, 12, now),
        Window::Lifetime => Period { start: DateTime::UNIX_EPOCH, end: None },
    }
}

/// An instant at which every calendar window of that length starts. 5 January 1970 was a Monday.
fn calendar_anchor(window: Window) -> DateTime<Utc> {
    match window {
        Window::Week => DateTime::UNIX_EPOCH + TimeDelta::days(4),
        Window::Hour | Window::Day | Window::Month | Window::Year | Window::Lifetime => DateTime::UNIX_EPOCH,
    }
}

fn by_time(anchor: DateTime<Utc>, length: TimeDelta, now: DateTime<Utc>) -> Period {
    let n = (now - anchor).num_seconds().div_euclid(length.num_seconds());
    let boundary = |n: i64| anchor + TimeDelta::seconds(n.saturating_mul(length.num_seconds()));
    // Whole seconds are enough to find the window: a fraction moves `now` only forward inside its second.
    let n = if boundary(n) > now { n - 1 } else { n };
    Period { start: boundary(n), end: Some(boundary(n + 1)) }
}

fn by_months(anchor: DateTime<Utc>, months: u32, now: DateTime<Utc>) -> Period {
    let apart = (now.year() - anchor.year()) * 12 + now.month0().cast_signed() - anchor.month0().cast_signed();
    let mut n = apart.div_euclid(months.cast_signed());
    if boundary(anchor, months, n) > now {
        n -= 1;
    }
    Period { start: boundary(anchor, months, n), end: Some(boundary(anchor, months, n + 1)) }
}

/// `anchor + n × months`, at the last day of a month that is too short.
fn boundary(anchor: DateTime<Utc>, months: u32, n: i32) -> DateTime<Utc> {
    let distance = Months::new(n.unsigned_abs().saturating_mul(months));
    let moved = if n < 0 { anchor.checked_sub_months(distance) } else { anchor.checked_add_months(distance) };
    // Out of chrono's 260,000 years: one endless window.
    moved.unwrap_or(if n < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC })
}

/// The first instant of a day, for tests and examples.
#[cfg(test)]
fn day(year: i32, month: u32, day: u32) -> DateTime<Utc> {
    chrono::NaiveDate::from_ymd_opt(year, month, day)
        .and_then(|day| day.and_hms_opt(0, 0, 0))
        .map(|day| day.and_utc())
        .unwrap()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn billed(window: Window, anchor: DateTime<Utc>, now: DateTime<Utc>) -> Period {
        period_at(window, WindowAnchor::Billing, Some(anchor), now)
    }

    // f-M8
    #[test]
    fn monthly_boundaries_are_counted_from_the_anchor_so_month_ends_come_back() {
        let anchor = day(2024, 1, 31);
        let starts: Vec<_> = (0..6)
            .scan(anchor, |now, _| {
                let period = billed(Window::Month, anchor, *now);
                *now = period.end.unwrap();
                Some(period.start)
            })
            .collect();
        let expected = [(1, 31), (2, 29), (3, 31), (4, 30), (5, 31), (6, 30)].map(|(m, d)| day(2024, m, d));
        assert_eq!(starts, expected);
        let before = billed(Window::Month, anchor, day(2024, 1, 30));
        assert_eq!((before.start, before.end), (day(2023, 12, 31), Some(anchor)));
    }

    #[test]
    fn a_leap_day_anchor_comes_back_in_leap_years() {
        let anchor = day(2024, 2, 29);
        assert_eq!(billed(Window::Year, anchor, day(2027, 12, 1)).start, day(2027, 2, 28));
        assert_eq!(billed(Window::Year, anchor, day(2028, 12, 1)).start, day(2028, 2, 29));
    }

    // C8
    #[test]
    fn the_boundary_itself_belongs_to_the_new_window() {
        let midnight = day(2026, 3, 1);
        let just_before = midnight - TimeDelta::microseconds(1);
        for window in [Window::Hour, Window::Day, Window::Month] {
            let calendar = |now| period_at(window, WindowAnchor::Calendar, None, now);
            assert_eq!(calendar(midnight).start, midnight, "{window}");
            assert_eq!(calendar(just_before).end, Some(midnight), "{window}");
        }
    }

    #[test]
    fn calendar_weeks_start_on_monday() {
        let wednesday = day(2026, 11, 18);
        let week = period_at(Window::Week, WindowAnchor::Calendar, None, wednesday);
        assert_eq!((week.start, week.end), (day(2026, 11, 16), Some(day(2026, 11, 23))));
    }

    #[test]
    fn without_an_anchor_billing_windows_follow_the_calendar() {
        let now = day(2026, 5, 17);
        let period = period_at(Window::Month, WindowAnchor::Billing, None, now);
        assert_eq!((period.start, period.end), (day(2026, 5, 1), Some(day(2026, 6, 1))));
        assert_eq!(period_at(Window::Lifetime, WindowAnchor::Billing, Some(now), now).end, None);
    }

    proptest! {
        #[test]
        fn windows_hold_their_instant_and_tile_the_time(
            anchor in -2_000_000_000_i64..4_000_000_000,
            now in -2_000_000_000_000_000_i64..4_000_000_000_000_000,
            window in prop::sample::select(vec![Window::Hour, Window::Day, Window::Week, Window::Month, Window::Year]),
        ) {
            let anchor = DateTime::from_timestamp(anchor, 0).unwrap();
            let now = DateTime::from_timestamp_micros(now).unwrap();
            let period = billed(window, anchor, now);
            let end = period.end.unwrap();
            prop_assert!(period.start <= now && now < end, "{period:?} {now}");
            prop_assert_eq!(billed(window, anchor, end).start, end);
            prop_assert_eq!(billed(window, anchor, end - TimeDelta::microseconds(1)), period);
        }
    }
}
