//! Reads what a plan's version or an add-on gives: its prices, and its features with their values.

use std::collections::HashMap;

use toml::{Spanned, de::DeValue};

use super::{
    Feature, FeatureId, FeatureKind, StaticValue,
    compile::Names,
    document::{Section, shorten, type_of},
    fault::Faults,
};

/// Each price of the file, and where it stands.
pub(super) type Prices = HashMap<String, usize>;

pub(super) fn read_prices(
    section: &mut Section<'_, '_>,
    seen: &mut Prices,
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
                "give each price to one plan version or add-on; make a new price for a new version",
            );
            continue;
        }
        prices.push(price.as_ref().into());
    }
    prices.into()
}

pub(super) fn read_grants(
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

/// The value that a plan gives to a static or boolean feature; `None` where it was reported.
fn read_grant(feature: &Feature, path: &str, value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<Grant> {
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
        (FeatureKind::OneOf, DeValue::String(text)) if feature.options().any(|option| option == text.as_ref()) => {
            Some(Grant::Value(StaticValue::Text(text.as_ref().into())))
        }
        (FeatureKind::OneOf, DeValue::String(text)) => {
            let options: Vec<_> = feature.options().map(|option| format!("{option:?}")).collect();
            let why = format!("is {:?}, which is none of its options", shorten(text));
            refuse(why, &format!("write {}", options.join(" or ")))
        }
        (FeatureKind::Json, DeValue::Table(_) | DeValue::Array(_)) => match json(value.get_ref()) {
            Some(json) => Some(Grant::Value(StaticValue::Json(json))),
            None => refuse("holds what JSON has not".to_owned(), "write tables, lists, texts, numbers and booleans"),
        },
        (FeatureKind::Metered { .. }, _) => {
            refuse("is metered, so its limit grants it".to_owned(), "remove it here and write an entry in `limits`")
        }
        (FeatureKind::Boolean, other) => refuse(format!("is {}, not a boolean", type_of(other)), "write true or false"),
        (FeatureKind::Integer, other) => {
            refuse(format!("is {}, not a whole number", type_of(other)), "write a whole number")
        }
        (FeatureKind::Text | FeatureKind::OneOf, other) => {
            refuse(format!("is {}, not text", type_of(other)), "write text in quotes")
        }
        (FeatureKind::Json, other) => {
            refuse(format!("is {}, not a table or a list", type_of(other)), "write a table or a list")
        }
    }
}

/// What a plan's entry for a feature says.
#[derive(Debug)]
enum Grant {
    Switch(bool),
    Value(StaticValue),
}

/// The same value as JSON. `None` for dates, for numbers beyond 64 bits and for those that are not finite.
fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok()?.into(),
        DeValue::Float(text) => serde_json::Number::from_f64(text.as_str().parse().ok()?)?.into(),
        DeValue::Boolean(on) => (*on).into(),
        DeValue::Datetime(_) => return None,
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect::<Option<Vec<_>>>()?.into(),
        DeValue::Table(table) => {
            let fields = table.iter().map(|(key, value)| Some((key.get_ref().to_string(), json(value.get_ref())?)));
            serde_json::Value::Object(fields.collect::<Option<_>>()?)
        }
    })
}

pub(super) fn switch_on(granted: &mut [u64], feature: FeatureId) {
    let index = feature.index();
    if let Some(word) = granted.get_mut(index / 64) {
        *word |= 1 << (index % 64);
    }
}
