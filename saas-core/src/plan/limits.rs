//! Reads limits: how much, per which time, and what happens beyond it.

use std::ops::Range;

use chrono_tz::Tz;
use toml::de::DeValue;

use super::{
    Aggregation, Limit, Meter, MeterId, MeterLimit, OverLimit, Overage, PlanChange, Rollover, Window, WindowAnchor,
    compile::Names,
    document::{Section, number_within, shorten},
    fault::Faults,
};

/// The most units that the database can count.
const MAX_UNITS: u64 = i64::MAX as u64;
/// The most windows for which units are carried over: every use looks at so many ends of windows.
const MAX_ROLLOVER_WINDOWS: u64 = 100;

/// The most days for which a tenant may stay beyond the limit of its new plan.
const MAX_GRACE_DAYS: u64 = 366;

const MAX_REMEDY: &str = "write a whole number, or \"unlimited\"";

pub(super) fn read_limits(
    section: &mut Section<'_, '_>,
    names: &Names,
    faults: &mut Faults<'_>,
) -> Box<[(MeterId, MeterLimit)]> {
    let mut limits = Vec::new();
    for entry in section.entries(faults, "limits") {
        let meter = names.meter(entry.name);
        if let Some(balance) =
            meter.and_then(|meter| meter.credit).and_then(|credit| names.meters.get(credit.of.index()))
        {
            let why = format!("is paid in `{}`, whose limit it has", balance.key);
            faults.add(entry.at.clone(), entry.path.clone(), why, "remove it, and limit that meter");
        }
        if meter.is_none() {
            let remedy = "declare it in `meters`, or correct the name";
            faults.add(entry.at.clone(), entry.path.clone(), "is no meter", remedy);
        }
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let limit = read_limit(&mut section, meter, faults);
        section.finish(faults);
        if let (Some(meter), Some(limit)) = (meter, limit) {
            limits.push((meter.id, limit));
        }
    }
    limits.sort_by_key(|(id, _)| *id);
    limits.into()
}

fn read_limit(section: &mut Section<'_, '_>, meter: Option<&Meter>, faults: &mut Faults<'_>) -> Option<MeterLimit> {
    const WINDOWS: [(&str, Window); 6] = [
        ("hour", Window::Hour),
        ("day", Window::Day),
        ("week", Window::Week),
        ("month", Window::Month),
        ("year", Window::Year),
        ("lifetime", Window::Lifetime),
    ];
    section.missing(faults, "max", MAX_REMEDY);
    let limit = section.field("max").and_then(|(span, value)| read_max(&section.path_of("max"), span, value, faults));
    section.missing(faults, "window", "say per which time it holds");
    let window = section.choice(faults, "window", &WINDOWS);
    if let (Some(Aggregation::Latest), Some(window)) = (meter.map(|meter| meter.aggregation), &window)
        && window.value != Window::Lifetime
    {
        let why = "is given for a meter whose level stays when a window ends";
        let remedy = "write window = \"lifetime\", or limit the peak of a window with aggregation \"max\"";
        faults.add(window.span.clone(), section.path_of("window"), why, remedy);
    }
    let time_zone = read_time_zone(section, window.as_ref().map(|window| window.value), faults);
    let anchors = [("calendar", WindowAnchor::Calendar), ("billing", WindowAnchor::Billing)];
    let anchor = section.choice(faults, "anchor", &anchors);
    let overages = [("block", Overage::Block), ("allow", Overage::Allow), ("bill", Overage::Bill)];
    let overage = section.choice(faults, "overage", &overages);
    if let (Some(Limit::Unlimited), Some(overage)) = (limit, &overage) {
        let why = "is given for an unlimited meter, which nothing exceeds";
        faults.add(overage.span.clone(), section.path_of("overage"), why, "remove it");
    }
    if matches!(limit, Some(Limit::Max(_))) {
        section.missing(faults, "overage", "decide what happens beyond it: \"block\", \"allow\" or \"bill\"");
    }
    if let (Some(Window::Lifetime), Some(anchor)) = (window.as_ref().map(|w| w.value), &anchor) {
        let why = "is given for a window that never starts again";
        faults.add(anchor.span.clone(), section.path_of("anchor"), why, "remove it");
    }
    let overage = overage.map_or(Overage::Block, |overage| overage.value);
    let warn = read_warn(section, limit, overage, faults);
    let anchor = anchor.map_or(WindowAnchor::Calendar, |anchor| anchor.value);
    let changes = [PlanChange::Keep, PlanChange::Prorate, PlanChange::Reset].map(|change| (change.as_str(), change));
    let on_plan_change = section.choice(faults, "on_plan_change", &changes);
    if let Some(change) = &on_plan_change {
        let window = window.as_ref().map(|window| window.value);
        let why = match (change.value, limit, window, meter.map(|meter| meter.aggregation)) {
            (PlanChange::Prorate | PlanChange::Reset, _, _, Some(Aggregation::Latest)) => {
                Some("is not \"keep\" for a meter whose level stays when the plan changes")
            }
            (PlanChange::Prorate, _, _, Some(Aggregation::Max)) => {
                Some("is \"prorate\" for a meter of peaks, which have no part")
            }
            (PlanChange::Prorate, Some(Limit::Unlimited), _, _) => {
                Some("is \"prorate\" for an unlimited meter, which has no part")
            }
            (PlanChange::Prorate, _, Some(Window::Lifetime), _) => Some("is \"prorate\" for a window that never ends"),
            (PlanChange::Keep | PlanChange::Prorate | PlanChange::Reset, _, _, _) => None,
        };
        if let Some(why) = why {
            faults.add(change.span.clone(), section.path_of("on_plan_change"), why, "write \"keep\"");
        }
    }
    let on_plan_change = on_plan_change.map_or(PlanChange::Keep, |change| change.value);
    let over_limit = read_over_limit(section, limit, faults);
    let rollover = read_rollover(section, limit, meter, window.as_ref().map(|window| window.value), faults);
    let per_member = read_per_member(section, meter, faults);
    let overage_max = read_overage_max(section, overage, faults);
    Some(MeterLimit {
        limit: limit?,
        window: window?.value,
        anchor,
        time_zone,
        overage,
        overage_max,
        rollover,
        on_plan_change,
        over_limit,
        per_member,
        warn,
    })
}

/// How much, or `"unlimited"`.
pub(super) fn read_max(path: &str, span: Range<usize>, value: &DeValue<'_>, faults: &mut Faults<'_>) -> Option<Limit> {
    match value {
        DeValue::String(word) if word == "unlimited" => Some(Limit::Unlimited),
        DeValue::String(_) => {
            faults.add(span, path, "is another text than \"unlimited\"", MAX_REMEDY);
            None
        }
        value => number_within(faults, path, span, value, 0, MAX_UNITS).map(Limit::Max),
    }
}

fn read_time_zone(section: &mut Section<'_, '_>, window: Option<Window>, faults: &mut Faults<'_>) -> Tz {
    let remedy = "write a name of the IANA database, such as \"Europe/Berlin\"";
    let Some(zone) = section.text(faults, "time_zone", remedy, |text| {
        text.parse::<Tz>().map_err(|_| format!("is {:?}, which is no time zone", shorten(text)))
    }) else {
        return Tz::UTC;
    };
    let why = match window {
        Some(Window::Lifetime) => Some("is given for a window that never starts again"),
        Some(Window::Hour) => Some("is given for a window of 60 minutes, which no zone moves"),
        Some(Window::Day | Window::Week | Window::Month | Window::Year) | None => None,
    };
    if let Some(why) = why {
        faults.add(zone.span, section.path_of("time_zone"), why, "remove it");
    }
    zone.value
}

/// `over_limit = "block"`, `"read_only"` or `{ grace_days = 14 }`
fn read_over_limit(section: &mut Section<'_, '_>, limit: Option<Limit>, faults: &mut Faults<'_>) -> OverLimit {
    let Some((span, value)) = section.field("over_limit") else { return OverLimit::Block };
    if limit == Some(Limit::Unlimited) {
        let why = "is given for an unlimited meter, which nothing exceeds";
        faults.add(span, section.path_of("over_limit"), why, "remove it");
        return OverLimit::Block;
    }
    if let DeValue::Table(_) = value {
        let grace = section.table(faults, "over_limit").and_then(|mut grace| {
            grace.missing(faults, "grace_days", "say for how many days the plan before goes on");
            let days = grace.number(faults, "grace_days", 1, MAX_GRACE_DAYS);
            grace.finish(faults);
            u16::try_from(days?.value).ok()
        });
        return grace.map_or(OverLimit::Block, |days| OverLimit::Grace { days });
    }
    let words = [("block", OverLimit::Block), ("read_only", OverLimit::ReadOnly)];
    section.choice(faults, "over_limit", &words).map_or(OverLimit::Block, |word| word.value)
}

/// `rollover = { max = 500, windows = 1 }`
fn read_rollover(
    section: &mut Section<'_, '_>,
    limit: Option<Limit>,
    meter: Option<&Meter>,
    window: Option<Window>,
    faults: &mut Faults<'_>,
) -> Option<Rollover> {
    let mut rollover = section.table(faults, "rollover")?;
    let why = match (limit, window) {
        (Some(Limit::Unlimited), _) => Some("is given for an unlimited meter, of which nothing is ever left"),
        (_, Some(Window::Lifetime)) => Some("is given for a window that never ends"),
        (_, _) if meter.is_some_and(|meter| !meter.aggregation.is_additive()) => {
            Some("is given for a meter whose uses do not add up")
        }
        (_, _) => None,
    };
    if let Some(why) = why {
        faults.add(rollover.span(), section.path_of("rollover"), why, "remove it");
    }
    rollover.missing(faults, "max", "say how many units are carried over at most");
    rollover.missing(faults, "windows", "say for how many windows");
    let max = rollover.number(faults, "max", 1, MAX_UNITS);
    let windows = rollover.number(faults, "windows", 1, MAX_ROLLOVER_WINDOWS);
    rollover.finish(faults);
    Some(Rollover { max: max?.value, windows: u16::try_from(windows?.value).ok()? })
}

/// What one member may use: a share of a sum.
fn read_per_member(section: &mut Section<'_, '_>, meter: Option<&Meter>, faults: &mut Faults<'_>) -> Option<u64> {
    let units = section.number(faults, "per_member", 0, MAX_UNITS)?;
    if meter.is_some_and(|meter| !meter.aggregation.is_additive()) {
        let why = "is given for a meter whose uses do not add up";
        faults.add(units.span.clone(), section.path_of("per_member"), why, "remove it");
    }
    Some(units.value)
}

/// The cap on overage: `overage_max` in units, or `spend_cap = { unit_price = "0.02", max = 5000 }` in the smallest unit of
/// the currency, of which the units that fit are counted.
fn read_overage_max(section: &mut Section<'_, '_>, overage: Overage, faults: &mut Faults<'_>) -> Option<u64> {
    let units = section.number(faults, "overage_max", 0, MAX_UNITS);
    let spend = section.table(faults, "spend_cap").map(|mut spend| {
        let price_remedy = "write the price of one unit as a decimal text above 0, such as \"0.02\"";
        spend.missing(faults, "unit_price", price_remedy);
        spend.missing(faults, "max", "say how much may be spent beyond the limit");
        let price = spend.text(faults, "unit_price", price_remedy, decimal);
        let max = spend.number(faults, "max", 0, MAX_UNITS);
        let span = spend.span();
        spend.finish(faults);
        (span, price, max)
    });
    for (name, span) in
        [("overage_max", units.as_ref().map(|u| u.span.clone())), ("spend_cap", spend.as_ref().map(|s| s.0.clone()))]
    {
        if let (Overage::Block, Some(span)) = (overage, span) {
            let why = "is given for a limit that lets nothing through";
            faults.add(span, section.path_of(name), why, "remove it, or write overage = \"allow\" or \"bill\"");
        }
    }
    match (units, spend) {
        (Some(_), Some((span, ..))) => {
            let why = "is given beside `overage_max`";
            faults.add(span, section.path_of("spend_cap"), why, "write one of the two");
            None
        }
        (Some(units), None) => Some(units.value),
        (None, Some((_, price, max))) => {
            let ((digits, scale), max) = (price?.value, max?.value);
            let units = u128::from(max) * 10_u128.pow(scale) / u128::from(digits);
            Some(u64::try_from(units).unwrap_or(MAX_UNITS).min(MAX_UNITS))
        }
        (None, None) => None,
    }
}

/// The digits of a decimal above 0, and how many of them stand behind the point, at most 12.
fn decimal(text: &str) -> Result<(u64, u32), String> {
    let refuse = || format!("is {:?}, which is no such price", shorten(text));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{part}");
    if whole.is_empty() || part.len() > 12 || digits.len() > 18 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let scale = u32::try_from(part.len()).map_err(|_| refuse())?;
    digits.parse().ok().filter(|digits| *digits > 0).map(|digits| (digits, scale)).ok_or_else(refuse)
}

fn read_warn(
    section: &mut Section<'_, '_>,
    limit: Option<Limit>,
    overage: Overage,
    faults: &mut Faults<'_>,
) -> Box<[u16]> {
    let mut warn: Vec<u16> = Vec::new();
    for value in section.array(faults, "warn") {
        let path = section.path_of("warn");
        if matches!(limit, Some(Limit::Unlimited | Limit::Max(0))) {
            faults.add(value.span(), path, "is given for a limit that has no part", "remove `warn`");
            break;
        }
        let most = if overage == Overage::Block { 100 } else { 1_000 };
        let Some(percent) = number_within(faults, &path, value.span(), value.get_ref(), 1, most) else { continue };
        let Ok(percent) = u16::try_from(percent) else { continue };
        if warn.last().is_some_and(|last| *last >= percent) {
            faults.add(value.span(), path, "is not ascending", "list each percentage once, lowest first");
            continue;
        }
        warn.push(percent);
    }
    warn.into()
}
