//! Reads plans, their versions and their limits.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use super::{
    FeatureKind, Limit, Plan, PlanVersion, PlanVersionRef, VersionId, VersionState,
    compile::{Names, key, limited},
    document::{Located, Section},
    fault::Faults,
    grants::{Prices, read_grants, read_prices, switch_on},
    limits::read_limits,
};
use crate::PlanKey;

/// All plans by name, each with where it stands.
pub(super) fn read_plans(
    root: &mut Section<'_, '_>,
    names: &Names,
    prices: &mut Prices,
    faults: &mut Faults<'_>,
) -> BTreeMap<String, (Range<usize>, Plan)> {
    root.missing(faults, "plans", "declare at least one plan");
    let (mut plans, mut ranks) = (BTreeMap::new(), HashMap::new());
    for entry in limited(root.entries(faults, "plans"), "plans", faults) {
        let (name, at) = (entry.name.to_owned(), entry.at.clone());
        let key = key::<PlanKey>(&entry.path, entry.name, &entry.at, faults);
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let rank = read_rank(&mut section, &mut ranks, faults);
        let offered = section.flag(faults, "offered").unwrap_or(true);
        let key_or_stand_in = key.clone().unwrap_or_else(|| PlanKey::from_static("unnamed"));
        let versions = read_versions(&mut section, &key_or_stand_in, rank.unwrap_or(0), names, prices, faults);
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
    prices: &mut Prices,
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
        let states =
            [("draft", VersionState::Draft), ("active", VersionState::Active), ("archived", VersionState::Archived)];
        let state = version.choice(faults, "state", &states).map_or(VersionState::Active, |state| state.value);
        let trial_days = version.number(faults, "trial_days", 0, 730).map_or(0, |days| days.value);
        let prices = read_prices(&mut version, prices, faults);
        let mut granted = vec![0; names.features.len().div_ceil(64)];
        let values = read_grants(&mut version, names, &mut granted, faults);
        let limits = read_limits(&mut version, names, faults);
        for feature in &names.features {
            if let FeatureKind::Metered { meter } = feature.kind
                && limits.iter().any(|(id, rule)| *id == names.paying(meter) && rule.limit != Limit::Max(0))
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
                state,
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
