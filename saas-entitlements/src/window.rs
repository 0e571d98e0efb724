//! When usage starts again from 0: pure calendar arithmetic.
//!
//! A window anchored to billing has its boundaries at `anchor + n × window`, each counted from the anchor itself. Adding a
//! month to the previous boundary instead would turn 31 January into 29 February and then 29 March for ever.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc, Weekday};
use chrono_tz::Tz;
use saas_core::plan::{MeterLimit, Window, WindowAnchor};

/// One window of counting: from `start`, inclusive, to `end`, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Period {
    /// The first instant.
    pub start: DateTime<Utc>,
    /// When usage starts again from 0; `None` for never.
    pub end: Option<DateTime<Utc>>,
}

/// The window of a limit that holds `now`.
///
/// `anchor` is the tenant's billing anchor; without one, windows anchored to billing follow the calendar of the limit's time
/// zone. An hour is 60 minutes and a billing window counts in UTC, as payment providers do, whatever the zone.
#[must_use]
pub fn period_at(rule: &MeterLimit, anchor: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Period {
    let anchor = anchor.filter(|_| rule.anchor == WindowAnchor::Billing);
    match (rule.window, anchor) {
        (Window::Lifetime, _) => Period { start: DateTime::UNIX_EPOCH, end: None },
        (Window::Hour, anchor) => by_time(anchor.unwrap_or(DateTime::UNIX_EPOCH), TimeDelta::hours(1), now),
        (Window::Day, Some(anchor)) => by_time(anchor, TimeDelta::days(1), now),
        (Window::Week, Some(anchor)) => by_time(anchor, TimeDelta::weeks(1), now),
        (Window::Month, Some(anchor)) => by_months(anchor, 1, now),
        (Window::Year, Some(anchor)) => by_months(anchor, 12, now),
        (Window::Day | Window::Week | Window::Month | Window::Year, None) => {
            by_calendar(rule.window, rule.time_zone, now)
        }
    }
}

/// From midnight to midnight of a zone's clocks, so a day can have 23 or 25 hours.
fn by_calendar(window: Window, zone: Tz, now: DateTime<Utc>) -> Period {
    let today = day_of(zone, now);
    let (first, next) = match window {
        Window::Week => {
            let monday = today.week(Weekday::Mon).checked_first_day();
            (monday, monday.and_then(|day| day.checked_add_days(Days::new(7))))
        }
        Window::Month => (today.with_day(1), today.with_day(1).and_then(|day| day.checked_add_months(Months::new(1)))),
        Window::Year => {
            let first = today.with_ordinal(1);
            (first, first.and_then(|day| day.checked_add_months(Months::new(12))))
        }
        Window::Hour | Window::Day | Window::Lifetime => (Some(today), today.succ_opt()),
    };
    // Out of chrono's 260,000 years: one endless window.
    Period {
        start: first.map_or(DateTime::<Utc>::MIN_UTC, |day| midnight(zone, day)),
        end: Some(next.map_or(DateTime::<Utc>::MAX_UTC, |day| midnight(zone, day))),
    }
}

/// The day that holds an instant. Not always the date that clocks show: where they are put back over midnight, a day begins
/// when they show it first.
fn day_of(zone: Tz, now: DateTime<Utc>) -> NaiveDate {
    let shown = now.with_timezone(&zone).date_naive();
    shown.succ_opt().filter(|next| midnight(zone, *next) <= now).unwrap_or(shown)
}

/// The first instant of a day: where clocks skip midnight, the instant at which they do; where they show it twice, the
/// first.
fn midnight(zone: Tz, day: NaiveDate) -> DateTime<Utc> {
    /// A zone has skipped a whole day, once (Samoa, 2011).
    const LONGEST_GAP: u32 = 26 * 60;
    let midnight = day.and_time(NaiveTime::MIN);
    let shown = (0..=LONGEST_GAP).find_map(|minutes| {
        let clock = midnight.checked_add_signed(TimeDelta::minutes(i64::from(minutes)))?;
        zone.from_local_datetime(&clock).earliest()
    });
    shown.map_or_else(|| midnight.and_utc(), |shown| shown.to_utc())
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
    use chrono_tz::{America, Europe, Pacific};
    use proptest::prelude::*;
    use saas_core::plan::{Limit, OverLimit, Overage, PlanChange};

    use super::*;

    fn rule(window: Window, anchor: WindowAnchor, time_zone: Tz) -> MeterLimit {
        MeterLimit {
            limit: Limit::Unlimited,
            window,
            anchor,
            time_zone,
            overage: Overage::Block,
            overage_max: None,
            rollover: None,
            on_plan_change: PlanChange::Keep,
            over_limit: OverLimit::Block,
            per_member: None,
            warn: Box::default(),
        }
    }

    fn billed(window: Window, anchor: DateTime<Utc>, now: DateTime<Utc>) -> Period {
        period_at(&rule(window, WindowAnchor::Billing, Tz::UTC), Some(anchor), now)
    }

    fn calendar(window: Window, zone: Tz, now: DateTime<Utc>) -> Period {
        period_at(&rule(window, WindowAnchor::Calendar, zone), None, now)
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
            assert_eq!(calendar(window, Tz::UTC, midnight).start, midnight, "{window}");
            assert_eq!(calendar(window, Tz::UTC, just_before).end, Some(midnight), "{window}");
        }
    }

    #[test]
    fn calendar_weeks_start_on_monday() {
        let wednesday = day(2026, 11, 18);
        let week = calendar(Window::Week, Tz::UTC, wednesday);
        assert_eq!((week.start, week.end), (day(2026, 11, 16), Some(day(2026, 11, 23))));
    }

    #[test]
    fn without_an_anchor_billing_windows_follow_the_calendar() {
        let now = day(2026, 5, 17);
        let period = period_at(&rule(Window::Month, WindowAnchor::Billing, Tz::UTC), None, now);
        assert_eq!((period.start, period.end), (day(2026, 5, 1), Some(day(2026, 6, 1))));
        assert_eq!(billed(Window::Lifetime, now, now).end, None);
    }

    #[test]
    fn a_day_lasts_as_long_as_the_clocks_say() {
        let hours = |zone, now: DateTime<Utc>| {
            let period = calendar(Window::Day, zone, now);
            (period.start, (period.end.unwrap() - period.start).num_hours())
        };
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let berlin = |text| hours(Europe::Berlin, at(text));
        assert_eq!(berlin("2026-03-29T12:00:00Z"), (at("2026-03-28T23:00:00Z"), 23));
        assert_eq!(berlin("2026-10-25T12:00:00Z"), (at("2026-10-24T22:00:00Z"), 25));
        assert_eq!(berlin("2026-10-25T23:00:00Z"), (at("2026-10-25T23:00:00Z"), 24));
        // Clocks that skip midnight, that show it twice, and that skipped a day.
        assert_eq!(hours(America::Sao_Paulo, at("2018-11-04T12:00:00Z")), (at("2018-11-04T03:00:00Z"), 23));
        assert_eq!(hours(America::Havana, at("2026-11-01T05:30:00Z")), (at("2026-11-01T04:00:00Z"), 25));
        assert_eq!(hours(Pacific::Apia, at("2011-12-30T09:59:59Z")), (at("2011-12-29T10:00:00Z"), 24));
        assert_eq!(hours(Pacific::Apia, at("2011-12-30T10:00:00Z")), (at("2011-12-30T10:00:00Z"), 24));
    }

    // Clocks went back from 00:01 to 23:01 of the day before.
    #[test]
    fn a_day_begins_once_also_where_clocks_go_back_over_midnight() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let before = calendar(Window::Day, America::St_Johns, at("2010-11-07T02:29:59Z"));
        let between = calendar(Window::Day, America::St_Johns, at("2010-11-07T03:00:00Z"));
        assert_eq!(before.end, Some(at("2010-11-07T02:30:00Z")));
        assert_eq!((between.start, between.end), (at("2010-11-07T02:30:00Z"), Some(at("2010-11-08T03:30:00Z"))));
    }

    /// Half hours, three quarters, two hours, changes at midnight, changes for Ramadan.
    const ODD: [Tz; 16] = [
        Tz::Australia__Lord_Howe,
        Tz::Asia__Kathmandu,
        Tz::Pacific__Chatham,
        Tz::Pacific__Apia,
        Tz::Pacific__Kiritimati,
        Tz::Antarctica__Troll,
        Tz::America__St_Johns,
        Tz::America__Havana,
        Tz::America__Santiago,
        Tz::America__Asuncion,
        Tz::America__Nuuk,
        Tz::America__Scoresbysund,
        Tz::Asia__Beirut,
        Tz::Asia__Gaza,
        Tz::Africa__Cairo,
        Tz::Africa__Casablanca,
    ];

    // f-M8
    #[test]
    fn every_calendar_window_of_nine_years_follows_the_one_before_in_the_oddest_zones() {
        for zone in ODD.into_iter().chain([Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York, Tz::Asia__Kolkata]) {
            for (window, fewest) in [(Window::Day, 3_287), (Window::Week, 468), (Window::Month, 107), (Window::Year, 8)]
            {
                let (mut period, mut walked) = (calendar(window, zone, day(2024, 1, 2)), 0);
                while period.start < day(2033, 1, 1) {
                    let local = period.start.with_timezone(&zone);
                    let starts = match window {
                        Window::Week => local.weekday() == Weekday::Mon,
                        Window::Month => local.day() == 1,
                        Window::Year => local.ordinal() == 1,
                        Window::Hour | Window::Day | Window::Lifetime => true,
                    };
                    let just_before = (period.start - TimeDelta::microseconds(1)).with_timezone(&zone);
                    let new_day = just_before.date_naive() < local.date_naive();
                    assert!(starts && new_day, "{zone} {window}: {local}");
                    let next = calendar(window, zone, period.end.unwrap());
                    assert_eq!(Some(next.start), period.end, "{zone} {window}");
                    assert!(next.start > period.start, "{zone} {window}");
                    (period, walked) = (next, walked + 1);
                }
                assert!(walked >= fewest, "{zone} {window}: {walked}");
            }
        }
    }

    proptest! {
        // Show 4. Every kind of window, by the calendar of every zone and from any anchor.
        #[test]
        fn windows_hold_their_instant_and_tile_the_time(
            anchor in prop::option::of(-2_000_000_000_000_000_i64..4_000_000_000_000_000),
            // 2024 to 2032, in microseconds.
            now in 1_704_067_200_000_000_i64..1_988_150_400_000_000,
            zone in prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
            window in prop::sample::select(vec![Window::Hour, Window::Day, Window::Week, Window::Month, Window::Year]),
        ) {
            let anchor = anchor.map(|anchor| DateTime::from_timestamp_micros(anchor).unwrap());
            let now = DateTime::from_timestamp_micros(now).unwrap();
            let at = |now| period_at(&rule(window, WindowAnchor::Billing, zone), anchor, now);
            let period = at(now);
            let end = period.end.unwrap();
            prop_assert!(period.start <= now && now < end, "{period:?} {now}");
            prop_assert_eq!(at(end).start, end);
            prop_assert_eq!(at(end - TimeDelta::microseconds(1)), period);
            prop_assert_eq!(at(period.start), period);
            prop_assert_eq!(at(period.start - TimeDelta::microseconds(1)).end, Some(period.start));
        }

        // Show 4. A boundary is the anchor's day and time of its month, or the last day of a month that is too short,
        // whatever month came before.
        #[test]
        fn month_end_anchors_never_drift(
            (year, month, day) in (1990_i32..2033, 1_u32..13, 26_u32..32),
            time in 0_i64..86_400_000_000,
            now in 1_704_067_200_000_000_i64..1_988_150_400_000_000,
            window in prop::sample::select(vec![Window::Month, Window::Year]),
        ) {
            let last_of = |of: DateTime<Utc>| {
                let first = of.date_naive().with_day(1).unwrap();
                (first + Months::new(1)).pred_opt().unwrap().day()
            };
            let date = NaiveDate::from_ymd_opt(year, month, day).or_else(|| NaiveDate::from_ymd_opt(year, month, 26));
            let anchor = date.unwrap().and_time(NaiveTime::MIN).and_utc() + TimeDelta::microseconds(time);
            let mut period = billed(window, anchor, DateTime::from_timestamp_micros(now).unwrap());
            for _ in 0..14 {
                let start = period.start;
                prop_assert_eq!(start.day(), anchor.day().min(last_of(start)));
                prop_assert_eq!(start.time(), anchor.time());
                if window == Window::Year {
                    prop_assert_eq!(start.month(), anchor.month());
                }
                let next = billed(window, anchor, period.end.unwrap());
                prop_assert_eq!(Some(next.start), period.end);
                period = next;
            }
        }

        // What the rules of the zones say of any year, not only of those to come.
        #[test]
        fn calendar_windows_tile_the_time_of_eighty_years(
            now in 0_i64..2_524_608_000,
            zone in prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
            window in prop::sample::select(vec![Window::Day, Window::Week, Window::Month, Window::Year]),
        ) {
            let now = DateTime::from_timestamp(now, 0).unwrap();
            let period = calendar(window, zone, now);
            let end = period.end.unwrap();
            prop_assert!(period.start <= now && now < end, "{period:?} {now}");
            prop_assert_eq!(calendar(window, zone, end).start, end);
            prop_assert_eq!(calendar(window, zone, period.start), period);
            prop_assert_eq!(calendar(window, zone, end - TimeDelta::microseconds(1)), period);
        }
    }
}
