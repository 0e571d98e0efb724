//! Reads meters.

use std::ops::Range;

use super::{
    Aggregation, Credit, Meter, MeterId,
    compile::{key, limited, read_min_access},
    document::{Section, shorten},
    fault::Faults,
};
use crate::{MeterKey, subscription::AccessLevel};

/// The most hours for which a window stays open to late events: 35 days, as long as payment providers take them.
const MAX_LATE_HOURS: u64 = 35 * 24;
/// The most that one unit may cost in another meter's units.
const MAX_COST: u64 = 1_000_000_000;

pub(super) fn read_meters(root: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Vec<Meter> {
    let entries = limited(root.entries(faults, "meters"), "meters", faults);
    let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
    let (mut meters, mut spans) = (Vec::new(), Vec::new());
    for entry in entries {
        let key = key::<MeterKey>(&entry.path, entry.name, &entry.at, faults);
        let at = entry.at.clone();
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let aggregation = read_aggregation(&mut section, faults);
        let min_access = read_min_access(&mut section, faults).unwrap_or(AccessLevel::Full);
        let late_hours = section.number(faults, "late_hours", 0, MAX_LATE_HOURS).map_or(0, |hours| hours.value);
        let credit = read_credit(&mut section, &names, faults);
        if late_hours > 0 && credit.is_some() {
            let why = "is given for a meter that counts in the windows of the one that pays";
            faults.add(section.span(), section.path_of("late_hours"), why, "write it there");
        }
        section.finish(faults);
        if let (Some(key), Some(aggregation), Ok(id), Ok(late_hours)) =
            (key, aggregation, u16::try_from(meters.len()), u16::try_from(late_hours))
        {
            meters.push(Meter { id: MeterId(id), key, aggregation, min_access, credit, late_hours });
            spans.push(at);
        }
    }
    // Ids are places in the list only if none was left out.
    if meters.len() == names.len() {
        check_credits(&meters, &spans, faults);
    }
    meters
}

fn read_aggregation(section: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Option<Aggregation> {
    let known = [Aggregation::Sum, Aggregation::Count, Aggregation::Max, Aggregation::Unique, Aggregation::Latest]
        .map(|a| (a.as_str(), a));
    section.missing(faults, "aggregation", "write \"sum\", \"count\", \"max\", \"unique\" or \"latest\"");
    Some(section.choice(faults, "aggregation", &known)?.value)
}

/// `credit = { of = "ai-credits", cost = 40 }`
fn read_credit(section: &mut Section<'_, '_>, names: &[&str], faults: &mut Faults<'_>) -> Option<Credit> {
    let mut credit = section.table(faults, "credit")?;
    let remedy = "name the entry of `meters` that holds the balance";
    credit.missing(faults, "of", remedy);
    let of = credit.text(faults, "of", remedy, |text| {
        let place = names.iter().position(|name| *name == text).and_then(|place| u16::try_from(place).ok());
        place.map(MeterId).ok_or_else(|| format!("names {:?}, which is no meter", shorten(text)))
    });
    credit.missing(faults, "cost", "say how many of its units one unit costs");
    let cost = credit.number(faults, "cost", 1, MAX_COST);
    credit.finish(faults);
    Some(Credit { of: of?.value, cost: cost?.value })
}

/// A balance is a sum with a limit of its own: no chains, no peaks.
fn check_credits(meters: &[Meter], spans: &[Range<usize>], faults: &mut Faults<'_>) {
    for (meter, span) in meters.iter().zip(spans) {
        let Some(credit) = meter.credit else { continue };
        let path = format!("meters.{}.credit", meter.key);
        if !meter.aggregation.is_additive() {
            let remedy = "remove it, or count with \"sum\" or \"count\"";
            faults.add(span.clone(), path, "is given for a meter whose uses do not add up", remedy);
            continue;
        }
        match meters.get(credit.of.index()) {
            Some(balance) if balance.credit.is_some() => {
                let why = format!("draws on `{}`, which itself draws on another", balance.key);
                faults.add(span.clone(), path, why, "name the meter that holds the balance");
            }
            Some(balance) if balance.aggregation != Aggregation::Sum => {
                let why = format!("draws on `{}`, which is not a sum", balance.key);
                faults.add(span.clone(), path, why, "give that meter aggregation = \"sum\"");
            }
            Some(_) | None => {}
        }
    }
}
