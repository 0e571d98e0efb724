//! Turns the text of a catalogue file into checked data, or into the list of everything that is wrong with it.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Aggregation, CatalogError, FailPolicy, Feature, FeatureId, FeatureKind, Meter, MeterId, Plan, StaticValue,
    document::{Section, shorten, type_of},
    fault::Faults,
    plans,
};
use crate::{FeatureKey, MeterKey, PlanKey, subscription::AccessLevel};

/// The largest file that is read.
const MAX_BYTES: usize = 1 << 20;
/// The most entries of one kind: bounds the ids and the memory of a snapshot.
const MAX_ENTRIES: usize = 4_096;

const KEY_REMEDY: &str = "use 1 to 64 of a-z 0-9 . - _, starting with a letter and not ending in a separator";

/// Checked contents of a file, features and meters by id, plans by rank.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) features: Vec<Feature>,
    pub(super) meters: Vec<Meter>,
    pub(super) plans: Vec<Plan>,
    pub(super) default_plan: PlanKey,
}

/// What names in the file mean, while plans are read.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) features: Vec<Feature>,
    pub(super) meters: Vec<Meter>,
}

impl Names {
    pub(super) fn feature(&self, name: &str) -> Option<&Feature> {
        let at = self.features.binary_search_by(|feature| feature.key.as_str().cmp(name)).ok()?;
        self.features.get(at)
    }

    pub(super) fn meter(&self, name: &str) -> Option<&Meter> {
        let at = self.meters.binary_search_by(|meter| meter.key.as_str().cmp(name)).ok()?;
        self.meters.get(at)
    }
}

pub(super) fn compile_bytes(bytes: &[u8]) -> Result<Compiled, CatalogError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => compile(text),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let valid = String::from_utf8_lossy(valid);
            let mut faults = Faults::of(&valid);
            faults.add(valid.len()..valid.len(), "the file", "is not UTF-8 from here on", "save it as UTF-8");
            Err(faults.into_error())
        }
    }
}

pub(super) fn compile(text: &str) -> Result<Compiled, CatalogError> {
    let mut faults = Faults::of(text);
    if text.len() > MAX_BYTES {
        let why = format!("has {} bytes, more than {MAX_BYTES}", text.len());
        faults.add(0..0, "the file", why, "split plans that are no longer sold into a file of their own");
        return Err(faults.into_error());
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            faults.add(span, "the file", format!("is not TOML: {}", error.message()), "correct the syntax (toml.io)");
        }
        // What a parser guesses after a syntax error would only add faults that are not there.
        return Err(faults.into_error());
    }
    let mut root = Section::root(document.get_ref());
    let meters = read_meters(&mut root, &mut faults);
    let features = read_features(&mut root, &meters, &mut faults);
    let names = Names { features, meters };
    let plans = plans::read_plans(&mut root, &names, &mut faults);
    let default_plan = read_default_plan(&mut root, &plans, &mut faults);
    root.finish(&mut faults);
    let plans = plans.into_values().map(|(_, plan)| plan).collect();
    match (faults.is_empty(), default_plan) {
        (true, Some(default_plan)) => {
            Ok(Compiled { features: names.features, meters: names.meters, plans, default_plan })
        }
        (_, _) => Err(faults.into_error()),
    }
}

fn read_default_plan(
    root: &mut Section<'_, '_>,
    plans: &BTreeMap<String, (Range<usize>, Plan)>,
    faults: &mut Faults<'_>,
) -> Option<PlanKey> {
    let remedy = "name the plan of tenants that bought nothing";
    root.missing(faults, "default_plan", remedy);
    let name = root.text(faults, "default_plan", remedy, |text| Ok::<_, String>(text.to_owned()))?;
    let Some((_, plan)) = plans.get(&name.value) else {
        faults.add(name.span, "default_plan", format!("names {:?}, which is no plan", shorten(&name.value)), remedy);
        return None;
    };
    Some(plan.key.clone())
}

fn read_meters(root: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Vec<Meter> {
    let mut meters = Vec::new();
    for entry in limited(root.entries(faults, "meters"), "meters", faults) {
        let key = key::<MeterKey>(&entry.path, entry.name, &entry.at, faults);
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        let aggregation = read_aggregation(&mut section, faults);
        let min_access = read_min_access(&mut section, faults).unwrap_or(AccessLevel::Full);
        section.finish(faults);
        if let (Some(key), Some(aggregation), Ok(id)) = (key, aggregation, u16::try_from(meters.len())) {
            meters.push(Meter { id: MeterId(id), key, aggregation, min_access });
        }
    }
    meters
}

fn read_aggregation(section: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Option<Aggregation> {
    /// Names of the field that this version would count wrongly, so it does not take them.
    const LATER: [&str; 3] = ["max", "unique", "latest"];
    let remedy = "write \"sum\" (amounts are added) or \"count\" (every use counts one)";
    section.missing(faults, "aggregation", remedy);
    let parse = |text: &str| match text {
        "sum" => Ok(Aggregation::Sum),
        "count" => Ok(Aggregation::Count),
        text if LATER.contains(&text) => Err(format!("is {text:?}, which this version does not support")),
        text => Err(format!("is {:?}, which is none of its values", shorten(text))),
    };
    Some(section.text(faults, "aggregation", remedy, parse)?.value)
}

fn read_features(root: &mut Section<'_, '_>, meters: &[Meter], faults: &mut Faults<'_>) -> Vec<Feature> {
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
                FeatureKind::Integer | FeatureKind::Text => AccessLevel::Suspended,
            });
            features.push(Feature { id: FeatureId(id), key, kind, fail: fail.value, min_access });
        }
    }
    features
}

fn read_kind(section: &mut Section<'_, '_>, meters: &[Meter], faults: &mut Faults<'_>) -> Option<FeatureKind> {
    /// The kinds, before the meter of a metered one is known.
    const KINDS: [(&str, Option<FeatureKind>); 4] = [
        ("boolean", Some(FeatureKind::Boolean)),
        ("integer", Some(FeatureKind::Integer)),
        ("text", Some(FeatureKind::Text)),
        ("metered", None),
    ];
    section.missing(faults, "kind", "write \"boolean\", \"integer\", \"text\" or \"metered\"");
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

fn read_min_access(section: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Option<AccessLevel> {
    let levels =
        [("full", AccessLevel::Full), ("restricted", AccessLevel::Restricted), ("suspended", AccessLevel::Suspended)];
    Some(section.choice(faults, "min_access", &levels)?.value)
}

/// The value that a plan gives to a static or boolean feature; `None` where it was reported.
pub(super) fn read_grant(
    feature: &Feature,
    path: &str,
    value: &Spanned<DeValue<'_>>,
    faults: &mut Faults<'_>,
) -> Option<Grant> {
    let mut refuse = |why: String, remedy: &str| {
        faults.add(value.span(), path, why, remedy);
        None
    };
    match (feature.kind, value.get_ref()) {
        (FeatureKind::Boolean, DeValue::Boolean(on)) => Some(Grant::Switch(*on)),
        (FeatureKind::Integer, DeValue::Integer(digits)) => {
            match i64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(number) => Some(Grant::Value(StaticValue::Integer(number))),
                Err(_) => refuse("is out of range".to_owned(), "write a whole number of 64 bits"),
            }
        }
        (FeatureKind::Text, DeValue::String(text)) => Some(Grant::Value(StaticValue::Text(text.as_ref().into()))),
        (FeatureKind::Metered { .. }, _) => {
            refuse("is metered, so its limit grants it".to_owned(), "remove it here and write an entry in `limits`")
        }
        (FeatureKind::Boolean, other) => refuse(format!("is {}, not a boolean", type_of(other)), "write true or false"),
        (FeatureKind::Integer, other) => {
            refuse(format!("is {}, not a whole number", type_of(other)), "write a whole number")
        }
        (FeatureKind::Text, other) => refuse(format!("is {}, not text", type_of(other)), "write text in quotes"),
    }
}

/// What a plan's entry for a feature says.
#[derive(Debug)]
pub(super) enum Grant {
    Switch(bool),
    Value(StaticValue),
}

pub(super) fn key<K: std::str::FromStr>(
    path: &str,
    name: &str,
    at: &Range<usize>,
    faults: &mut Faults<'_>,
) -> Option<K> {
    let key = name.parse().ok();
    if key.is_none() {
        faults.add(at.clone(), path, "is not a key", KEY_REMEDY);
    }
    key
}

/// Reports and drops what exceeds [`MAX_ENTRIES`].
pub(super) fn limited<T>(mut entries: Vec<T>, what: &str, faults: &mut Faults<'_>) -> Vec<T> {
    if entries.len() > MAX_ENTRIES {
        let why = format!("has {} entries, more than {MAX_ENTRIES}", entries.len());
        faults.add(0..0, what, why, "remove what is no longer sold");
        entries.truncate(MAX_ENTRIES);
    }
    entries
}
