//! Reads features.

use super::{
    FailPolicy, Feature, FeatureId, FeatureKind, Meter, Rollout,
    compile::{key, limited, read_min_access},
    document::{Section, shorten, type_of},
    fault::Faults,
};
use crate::{FeatureKey, subscription::AccessLevel};

pub(super) fn read_features(root: &mut Section<'_, '_>, meters: &[Meter], faults: &mut Faults<'_>) -> Vec<Feature> {
    let mut features = Vec::new();
    for entry in limited(root.entries(faults, "features"), "features", faults) {
        let key = key::<FeatureKey>(&entry.path, entry.name, &entry.at, faults);
        let entry_at = entry.at.clone();
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let kind = read_kind(&mut section, meters, faults);
        let fail = [("open", FailPolicy::Open), ("closed", FailPolicy::Closed)];
        section.missing(faults, "fail", "decide what it answers in an outage: \"open\" or \"closed\"");
        let fail = section.choice(faults, "fail", &fail);
        let declared = read_min_access(&mut section, faults);
        let options = read_options(&mut section, kind, faults);
        let rollout = read_rollout(&mut section, faults);
        if let (Some(FeatureKind::Metered { meter }), Some(declared)) = (kind, declared)
            && meters.get(meter.index()).is_some_and(|meter| declared < meter.min_access)
        {
            let why = "lets it work where its meter denies every use";
            faults.add(entry_at, section.path_of("min_access"), why, "give both the same `min_access`");
        }
        section.finish(faults);
        if let (Some(key), Some(kind), Some(fail), Ok(id)) = (key, kind, fail, u16::try_from(features.len())) {
            let min_access = declared.unwrap_or(match kind {
                FeatureKind::Boolean | FeatureKind::Metered { .. } => AccessLevel::Full,
                FeatureKind::Integer | FeatureKind::Text | FeatureKind::OneOf | FeatureKind::Json => {
                    AccessLevel::Suspended
                }
            });
            features.push(Feature { id: FeatureId(id), key, kind, fail: fail.value, min_access, options, rollout });
        }
    }
    features
}

fn read_kind(section: &mut Section<'_, '_>, meters: &[Meter], faults: &mut Faults<'_>) -> Option<FeatureKind> {
    /// The kinds, before the meter of a metered one is known.
    const KINDS: [(&str, Option<FeatureKind>); 6] = [
        ("boolean", Some(FeatureKind::Boolean)),
        ("integer", Some(FeatureKind::Integer)),
        ("text", Some(FeatureKind::Text)),
        ("one-of", Some(FeatureKind::OneOf)),
        ("json", Some(FeatureKind::Json)),
        ("metered", None),
    ];
    section.missing(faults, "kind", "write \"boolean\", \"integer\", \"text\", \"one-of\", \"json\" or \"metered\"");
    let kind = section.choice(faults, "kind", &KINDS)?.value;
    let remedy = "name an entry of `meters`";
    let meter = section.text(faults, "meter", remedy, |text| {
        let known = meters.iter().find(|meter| meter.key.as_str() == text);
        known.map(|meter| meter.id).ok_or_else(|| format!("names {:?}, which is no meter", shorten(text)))
    });
    match (kind, meter) {
        (None, Some(meter)) => Some(FeatureKind::Metered { meter: meter.value }),
        (None, None) => {
            section.missing(faults, "meter", remedy);
            None
        }
        (Some(_), Some(meter)) => {
            let why = "is given for a feature that is not metered";
            faults.add(meter.span, section.path_of("meter"), why, "remove it, or write kind = \"metered\"");
            None
        }
        (Some(kind), None) => Some(kind),
    }
}

/// The values of a one-of feature.
fn read_options(section: &mut Section<'_, '_>, kind: Option<FeatureKind>, faults: &mut Faults<'_>) -> Box<[Box<str>]> {
    let remedy = "list the texts to choose from, each once";
    let is_one_of = kind == Some(FeatureKind::OneOf);
    let listed = section.texts(faults, "options", remedy);
    if is_one_of {
        section.missing(faults, "options", remedy);
        if section.has("options") && listed.is_empty() {
            faults.add(section.span(), section.path_of("options"), "is empty", remedy);
        }
    } else if kind.is_some() && section.has("options") {
        let why = "is given for a feature that is not one of several";
        faults.add(section.span(), section.path_of("options"), why, "remove it, or write kind = \"one-of\"");
    }
    listed
}

/// `rollout = { percent = 25, cohorts = ["beta"] }`, the percentage with one place after the point.
fn read_rollout(section: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Option<Rollout> {
    let mut rollout = section.table(faults, "rollout")?;
    rollout.missing(faults, "percent", "say which share of the tenants gets it, 0 for the cohorts alone");
    let permille = rollout.field("percent").and_then(|(span, value)| {
        let percent = match value {
            toml::de::DeValue::Integer(digits) => {
                i64::from_str_radix(digits.as_str(), digits.radix()).ok().map(|n| n * 10)
            }
            toml::de::DeValue::Float(text) => text.as_str().parse::<f64>().ok().and_then(permille),
            _ => None,
        };
        let permille = percent.and_then(|n| u16::try_from(n).ok()).filter(|n| *n <= 1000);
        if permille.is_none() {
            let why = format!("is {}, which is no such share", type_of(value));
            faults.add(span, rollout.path_of("percent"), why, "write 0 to 100, with at most one place after the point");
        }
        permille
    });
    let cohorts = rollout.texts(faults, "cohorts", "list names of cohorts, each once");
    rollout.finish(faults);
    Some(Rollout { permille: permille?, cohorts })
}

/// Thousandths, where they are whole.
fn permille(percent: f64) -> Option<i64> {
    let exact = percent * 10.0;
    let whole = exact.round();
    // Between 0 and 1000 the conversion is exact.
    #[expect(clippy::cast_possible_truncation, reason = "checked to be a whole number from 0 to 1000")]
    ((exact - whole).abs() < 1e-9 && (0.0..=1000.0).contains(&whole)).then_some(whole as i64)
}
