//! Turns the text of a catalogue file into checked data, or into the list of everything that is wrong with it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use toml::de::DeTable;

use super::{
    AddOn, CatalogError, Feature, Meter, MeterId, Plan, addons,
    document::{Section, shorten},
    fault::Faults,
    features, meters, plans,
};
use crate::{PlanKey, subscription::AccessLevel};

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
    pub(super) addons: Vec<AddOn>,
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

    /// The meter whose limit a use of the meter falls under.
    pub(super) fn paying(&self, meter: MeterId) -> MeterId {
        self.meters.get(meter.index()).and_then(|meter| meter.credit).map_or(meter, |credit| credit.of)
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
    let meters = meters::read_meters(&mut root, &mut faults);
    let features = features::read_features(&mut root, &meters, &mut faults);
    let names = Names { features, meters };
    // A price names one thing that is sold, a plan's version or an add-on.
    let mut prices = HashMap::new();
    let plans = plans::read_plans(&mut root, &names, &mut prices, &mut faults);
    let addons = addons::read_addons(&mut root, &names, &mut prices, &mut faults);
    let default_plan = read_default_plan(&mut root, &plans, &mut faults);
    // What is charged is for whoever charges it to read.
    root.leave("products");
    root.leave("prices");
    root.finish(&mut faults);
    let plans = plans.into_values().map(|(_, plan)| plan).collect();
    match (faults.is_empty(), default_plan) {
        (true, Some(default_plan)) => {
            Ok(Compiled { features: names.features, meters: names.meters, plans, addons, default_plan })
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
    if plan.version(None).is_none() {
        let why = format!("names {:?}, which has no active version", shorten(&name.value));
        faults.add(name.span, "default_plan", why, remedy);
        return None;
    }
    Some(plan.key.clone())
}

pub(super) fn read_min_access(section: &mut Section<'_, '_>, faults: &mut Faults<'_>) -> Option<AccessLevel> {
    let levels =
        [("full", AccessLevel::Full), ("restricted", AccessLevel::Restricted), ("suspended", AccessLevel::Suspended)];
    Some(section.choice(faults, "min_access", &levels)?.value)
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
