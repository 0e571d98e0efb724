//! Reads add-ons.

use super::{
    AddOn, AddOnMode, Limit, MeterId,
    compile::{Names, key, limited},
    document::Section,
    fault::Faults,
    grants::{Prices, read_grants, read_prices},
    limits::read_max,
};
use crate::AddOnKey;

/// The most of one add-on that a tenant can have.
const MAX_QUANTITY: u64 = 1_000_000;

/// Ascending by name.
pub(super) fn read_addons(
    root: &mut Section<'_, '_>,
    names: &Names,
    prices: &mut Prices,
    faults: &mut Faults<'_>,
) -> Vec<AddOn> {
    let mut addons = Vec::new();
    for entry in limited(root.entries(faults, "addons"), "addons", faults) {
        let key = key::<AddOnKey>(&entry.path, entry.name, &entry.at, faults);
        let Some(mut section) = Section::of(entry.path, entry.at, entry.value, faults) else { continue };
        section.missing(
            faults,
            "mode",
            "write \"stack\" (adds to the plan) or \"override\" (replaces what the plan says)",
        );
        let mode = section.choice(faults, "mode", &[("stack", AddOnMode::Stack), ("override", AddOnMode::Override)]);
        let max_quantity = section.number(faults, "max_quantity", 1, MAX_QUANTITY).map_or(1, |most| most.value);
        let prices = read_prices(&mut section, prices, faults);
        let mut granted = vec![0; names.features.len().div_ceil(64)];
        let values = read_grants(&mut section, names, &mut granted, faults);
        let limits = read_more(&mut section, names, faults);
        section.finish(faults);
        if let (Some(key), Some(mode), Ok(max_quantity)) = (key, mode, u32::try_from(max_quantity)) {
            addons.push(AddOn { key, mode: mode.value, max_quantity, prices, granted: granted.into(), values, limits });
        }
    }
    addons
}

/// `limits = { api-calls = 1_000, seats = "unlimited" }`
fn read_more(section: &mut Section<'_, '_>, names: &Names, faults: &mut Faults<'_>) -> Box<[(MeterId, Limit)]> {
    let mut limits = Vec::new();
    for entry in section.entries(faults, "limits") {
        let Some(meter) = names.meter(entry.name) else {
            faults.add(entry.at, entry.path, "is no meter", "declare it in `meters`, or correct the name");
            continue;
        };
        if meter.credit.is_some() {
            let why = "is paid in another meter, whose limit it has";
            faults.add(entry.at, entry.path, why, "remove it, and limit that meter");
            continue;
        }
        if let Some(limit) = read_max(&entry.path, entry.value.span(), entry.value.get_ref(), faults) {
            limits.push((meter.id, limit));
        }
    }
    limits.sort_by_key(|(id, _)| *id);
    limits.into()
}
