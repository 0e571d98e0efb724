//! Reads plans, their versions and their limits.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use toml::de::DeValue;

use super::{
    FeatureId, FeatureKind, Limit, MeterId, MeterLimit, Overage, Plan, PlanVersion, PlanVersionRef, StaticValue,
    VersionId, Window, WindowAnchor,
    compile::{Grant, Names, key, limited, read_grant},
    document::{Located, Section, number_within, shorten, type_of},
    fault::Faults,
};
use crate::PlanKey;

/// The most units that the database can count.
const MAX_UNITS: u64 = i64::MAX as u64;

/// All plans by name, each with where it stands.
pub(super) fn read_plans(
    root: &mut Section<'_, '_>,
    names: &Names,
    faults: &mut Faults<'_>,
) -> BTreeMap<String, (Range<usize>, Plan)> {
    root.missing(faults, "plans", "declare at least one plan");
    let (mut plans, mut ranks, mut prices) = (BTreeMap::new(), HashMap::new(), HashMap::new());
    for entry in limited(root.entries(faults, "plans"), "plans", faults) {
        let (name, at) = (entry.name.to_owned(), entry.at.clone());
        let key = key::<PlanKey>(&entry.path, entry.name, &entry.at, faults);
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let rank = read_rank(&mut section, &mut ranks, faults);
        let offered = section.flag(faults, "offered").unwrap_or(true);
        let key_or_stand_in = key.clone().unwrap_or_else(|| PlanKey::from_static("unnamed"));
        let versions = read_versions(&mut section, &key_or_stand_in, rank.unwrap_or(0), names, &mut prices, faults);
        section.finish(faults);
        if let (Some(key), Some(rank)) = (key, rank) {
            plans.insert(name, (at, Plan { key, rank, offered, versions: versions.into() }));
        }
    }
    plans
}

fn read_rank(section: &mut Section<'_, '_>, ranks: &mut HashMap<u64, usize>, faults: &mut Faults<'_>) -> Option<u32> {
    section.missing(faults, "rank", "give it a place in the upgrade order, such as 10");
    let rank = section.number(faults, "rank", 0, u64::from(u32::MAX))?;
    if let Some(other) = ranks.insert(rank.value, rank.span.start) {
        let why = format!("is {}, which another plan has (line {})", rank.value, faults.line(other));
        faults.add(rank.span, section.path_of("rank"), why, "give every plan its own rank");
    }
    u32::try_from(rank.value).ok()
}

fn read_versions(
    section: &mut Section<'_, '_>,
    plan: &PlanKey,
    rank: u32,
    names: &Names,
    prices: &mut HashMap<String, usize>,
    faults: &mut Faults<'_>,
) -> Vec<PlanVersion> {
    let mut versions: Vec<PlanVersion> = Vec::new();
    let listed = section.array(faults, "versions");
    if listed.is_empty() {
        let path = section.path_of("versions");
        faults.add(section.span(), path, "has no entry", "declare [[plans.….versions]] with version = 1");
    }
    for (index, value) in limited(listed, "versions", faults).into_iter().enumerate() {
        let path = format!("{}[{index}]", section.path_of("versions"));
        let Some(mut version) = Section::of(path, value.span(), value, faults) else { continue };
        version.missing(faults, "version", "number the versions from 1 in the order of the file");
        let number = version.number(faults, "version", 1, u64::from(u32::MAX));
        let trial_days = version.number(faults, "trial_days", 0, 730).map_or(0, |days| days.value);
        let prices = read_prices(&mut version, prices, faults);
        let mut granted = vec![0; names.features.len().div_ceil(64)];
        let values = read_grants(&mut version, names, &mut granted, faults);
        let limits = read_limits(&mut version, names, faults);
        for feature in &names.features {
            if let FeatureKind::Metered { meter } = feature.kind
                && limits.iter().any(|(id, rule)| *id == meter && rule.limit != Limit::Max(0))
            {
                switch_on(&mut granted, feature.id);
            }
        }
        let number = number.and_then(|at| ascending(&version, &versions, at, faults));
        version.finish(faults);
        if let (Some(number), Ok(trial_days)) = (number, u16::try_from(trial_days)) {
            versions.push(PlanVersion {
                id: VersionId(0), // numbered once all plans are read
                reference: PlanVersionRef { plan: plan.clone(), version: number },
                rank,
                trial_days,
                prices,
                granted: granted.into(),
                values,
                limits,
            });
        }
    }
    versions
}

/// The number of a version, which must be higher than the one before.
fn ascending(
    section: &Section<'_, '_>,
    earlier: &[PlanVersion],
    number: Located<u64>,
    faults: &mut Faults<'_>,
) -> Option<u32> {
    let found = u32::try_from(number.value).ok()?;
    match earlier.last() {
        Some(last) if last.reference.version >= found => {
            let why = format!("is {found}, after {}", last.reference.version);
            faults.add(number.span, section.path_of("version"), why, "list versions once each, oldest first");
            None
        }
        Some(_) | None => Some(found),
    }
}

fn read_prices(
    section: &mut Section<'_, '_>,
    seen: &mut HashMap<String, usize>,
    faults: &mut Faults<'_>,
) -> Box<[Box<str>]> {
    let mut prices: Vec<Box<str>> = Vec::new();
    for value in section.array(faults, "prices") {
        let path = section.path_of("prices");
        let DeValue::String(price) = value.get_ref() else {
            faults.add(value.span(), path, format!("holds {}, not text", type_of(value.get_ref())), "write price ids");
            continue;
        };
        if !(1..=255).contains(&price.len()) || !price.bytes().all(|b| b.is_ascii_graphic()) {
            faults.add(
                value.span(),
                path,
                format!("holds {:?}", shorten(price)),
                "write 1 to 255 visible ASCII characters",
            );
            continue;
        }
        if let Some(other) = seen.insert(price.to_string(), value.span().start) {
            let why = format!("holds {price:?}, which line {} already has", faults.line(other));
            faults.add(
                value.span(),
                path,
                why,
                "give each price to one plan version; make a new price for a new version",
            );
            continue;
        }
        prices.push(price.as_ref().into());
    }
    prices.into()
}

fn read_grants(
    section: &mut Section<'_, '_>,
    names: &Names,
    granted: &mut [u64],
    faults: &mut Faults<'_>,
) -> Box<[(FeatureId, StaticValue)]> {
    let mut values = Vec::new();
    for entry in section.entries(faults, "grants") {
        let Some(feature) = names.feature(entry.name) else {
            faults.add(entry.at, entry.path, "is no feature", "declare it in `features`, or correct the name");
            continue;
        };
        match read_grant(feature, &entry.path, entry.value, faults) {
            Some(Grant::Switch(true)) => switch_on(granted, feature.id),
            Some(Grant::Switch(false)) | None => {}
            Some(Grant::Value(value)) => {
                switch_on(granted, feature.id);
                values.push((feature.id, value));
            }
        }
    }
    values.sort_by_key(|(id, _)| *id);
    values.into()
}

fn read_limits(section: &mut Section<'_, '_>, names: &Names, faults: &mut Faults<'_>) -> Box<[(MeterId, MeterLimit)]> {
    let mut limits = Vec::new();
    for entry in section.entries(faults, "limits") {
        let meter = names.meter(entry.name);
        if meter.is_none() {
            let remedy = "declare it in `meters`, or correct the name";
            faults.add(entry.at.clone(), entry.path.clone(), "is no meter", remedy);
        }
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let limit = read_limit(&mut section, faults);
        section.finish(faults);
        if let (Some(meter), Some(limit)) = (meter, limit) {
            limits.push((meter.id, limit));
        }
    }
    limits.sort_by_key(|(id, _)| *id);
    limits.into()
}

fn read_limit(section: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Option<MeterLimit> {
    const WINDOWS: [(&str, Window); 6] = [
        ("hour", Window::Hour),
        ("day", Window::Day),
        ("week", Window::Week),
        ("month", Window::Month),
        ("year", Window::Year),
        ("lifetime", Window::Lifetime),
    ];
    let max_remedy = "write a whole number, or \"unlimited\"";
    section.missing(faults, "max", max_remedy);
    let limit = match section.field("max") {
        None => None,
        Some((_, DeValue::String(word))) if word == "unlimited" => Some(Limit::Unlimited),
        Some((span, DeValue::String(_))) => {
            faults.add(span, section.path_of("max"), "is another text than \"unlimited\"", max_remedy);
            None
        }
        Some((span, value)) => {
            number_within(faults, &section.path_of("max"), span, value, 0, MAX_UNITS).map(Limit::Max)
        }
    };
    section.missing(faults, "window", "say per which time it holds");
    let window = section.choice(faults, "window", &WINDOWS);
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
    Some(MeterLimit { limit: limit?, window: window?.value, anchor, overage, warn })
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

fn switch_on(granted: &mut [u64], feature: FeatureId) {
    let index = feature.index();
    if let Some(word) = granted.get_mut(index / 64) {
        *word |= 1 << (index % 64);
    }
}
