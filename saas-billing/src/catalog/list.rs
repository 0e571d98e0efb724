//! What is to be at Stripe, from the text of the catalogue: checked as a whole, and against the plans.

use std::collections::{BTreeMap, BTreeSet};

use saas_core::{
    MeterKey, PlanCatalog,
    plan::{Aggregation as Counted, VersionState},
};
use serde::Serialize;

use super::{
    amount::minor_units,
    document::{Amounts, Document, Every, Per, PriceText, TierMode},
    fault::{Faults, PriceListError},
};
use crate::{
    money::Currency,
    object::{Interval, ObjectId},
    provider::{Aggregation, NewMeter, PricedBy, Tier},
};

/// The most tiers of a price.
const MAX_STEPS: usize = 100;

/// Everything that is sold, as it is to be at Stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceList {
    pub(super) meters: Vec<NewMeter>,
    /// Lookup keys; a feature has the catalogue's name.
    pub(super) features: BTreeSet<String>,
    pub(super) products: Vec<WantedProduct>,
    pub(super) prices: Vec<WantedPrice>,
}

/// A product that is to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WantedProduct {
    /// `prod_` and its name in the file.
    pub id: ObjectId,
    /// What stands on invoices.
    pub name: String,
    /// What it gives: of a plan, what its newest active version does.
    pub features: BTreeSet<String>,
}

/// A price that is to be there: one currency of an entry of `prices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WantedPrice {
    /// The entry, which is what the catalogue's plans and add-ons call it.
    pub name: String,
    /// The entry and the currency, such as `pro-monthly-eur`.
    pub lookup_key: String,
    /// Of what.
    pub product: ObjectId,
    /// In what.
    pub currency: Currency,
    /// How often.
    pub interval: Interval,
    /// For what.
    pub per: Per,
    /// How much.
    pub by: PricedBy,
    /// The event name of the meter whose total is charged.
    pub meter: Option<String>,
}

impl PriceList {
    /// Reads the tables `products` and `prices` of a catalogue's file. Prices of versions that are archived are no longer sold
    /// and not in the list.
    ///
    /// # Errors
    /// With every mistake at once, also where Stripe cannot express what is written; a file that cannot be read as one with
    /// the first.
    pub fn from_toml(text: &str, catalog: &PlanCatalog) -> Result<Self, PriceListError> {
        let mut faults = Faults::default();
        let document = match toml::from_str::<Document>(text) {
            Ok(document) => document,
            Err(why) => {
                let remedy = "amounts are texts such as \"20.00\"; `per` is flat, seat or usage";
                faults.add("the file", format!("cannot be read: {}", why.to_string().trim_end()), remedy);
                return faults.or(()).map(|()| Self::empty());
            }
        };
        let sellers = sellers(catalog);
        let mut list = Self::empty();
        for (name, product) in &document.products {
            let Some(id) = product_id(name, &mut faults) else { continue };
            let features = features_of(name, catalog);
            list.features.extend(features.iter().cloned());
            if product.name.trim().is_empty() || product.name.len() > 250 {
                faults.add(format!("products.{name}.name"), "is empty or longer than 250", "write what invoices say");
            }
            list.products.push(WantedProduct { id, name: product.name.clone(), features });
        }
        let mut meters = BTreeMap::new();
        for (name, price) in &document.prices {
            match sellers.get(name.as_str()) {
                Some(seller) if !seller.sold => {}
                seller => {
                    let owner = seller.map(|seller| seller.owner);
                    list.read_price((name, price), (owner, &document), (catalog, &mut meters), &mut faults);
                }
            }
        }
        for (name, seller) in &sellers {
            if seller.sold && !document.prices.contains_key(*name) && !name.starts_with("price_") {
                let why = format!("is sold by `{}` and not in `prices`", seller.owner);
                faults.add(format!("prices.{name}"), why, "add it, or name an id of Stripe's (price_…)");
            }
        }
        list.meters = meters.into_values().collect();
        faults.or(list)
    }

    /// The prices, by entry and currency.
    #[must_use]
    pub fn prices(&self) -> &[WantedPrice] {
        &self.prices
    }

    /// The products, by name.
    #[must_use]
    pub fn products(&self) -> &[WantedProduct] {
        &self.products
    }

    /// The meters whose usage is charged: what Stripe is told of.
    #[must_use]
    pub fn meters(&self) -> &[NewMeter] {
        &self.meters
    }

    const fn empty() -> Self {
        Self { meters: Vec::new(), features: BTreeSet::new(), products: Vec::new(), prices: Vec::new() }
    }

    fn read_price(
        &mut self,
        (name, price): (&str, &PriceText),
        (owner, document): (Option<&str>, &Document),
        (catalog, meters): (&PlanCatalog, &mut BTreeMap<String, NewMeter>),
        faults: &mut Faults,
    ) {
        let place = format!("prices.{name}");
        if owner.is_none() {
            faults.add(&place, "is sold by no plan and no add-on", "name it in `prices` of a version or an add-on");
        }
        if name.len() > 60 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            faults.add(&place, "is no name for a price", "use up to 60 letters, digits, and - _ .");
        }
        let product = price.product.as_deref().or(owner).unwrap_or(name);
        if !document.products.contains_key(product) {
            faults.add(&place, format!("is of `{product}`, which is not in `products`"), "add the product");
        }
        let meter = read_meter(&place, price, catalog, meters, faults);
        let Some(product) = product_id(product, faults) else { return };
        for (currency, by) in read_amounts(&place, price, faults) {
            self.prices.push(WantedPrice {
                name: name.to_owned(),
                lookup_key: format!("{name}-{}", currency.as_str()),
                product: product.clone(),
                currency,
                interval: interval(price.interval),
                per: price.per,
                by,
                meter: meter.clone(),
            });
        }
    }
}

/// Who sells a price.
struct Seller<'a> {
    owner: &'a str,
    sold: bool,
}

fn sellers(catalog: &PlanCatalog) -> BTreeMap<&str, Seller<'_>> {
    let mut sellers = BTreeMap::new();
    for plan in catalog.plans() {
        for version in plan.versions() {
            let sold = version.state() != VersionState::Archived;
            sellers.extend(version.prices().map(|price| (price, Seller { owner: plan.key().as_str(), sold })));
        }
    }
    for addon in catalog.addons() {
        sellers.extend(addon.prices().map(|price| (price, Seller { owner: addon.key().as_str(), sold: true })));
    }
    sellers
}

/// What the plan or the add-on of that name gives.
fn features_of(name: &str, catalog: &PlanCatalog) -> BTreeSet<String> {
    let plan = name.parse().ok().and_then(|key| catalog.plan(&key)).and_then(|plan| plan.version(None));
    let addon = name.parse().ok().and_then(|key| catalog.addon(&key));
    let gives = |id| plan.is_some_and(|plan| plan.grants(id)) || addon.is_some_and(|addon| addon.grants(id));
    let features = catalog.features().iter().filter(|feature| gives(feature.id()));
    features.map(|feature| feature.key().to_string()).collect()
}

fn product_id(name: &str, faults: &mut Faults) -> Option<ObjectId> {
    let fits = name.len() <= 60 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let id = format!("prod_{name}").parse().ok().filter(|_| fits);
    if id.is_none() {
        faults.add(format!("products.{name}"), "is no name for a product", "use up to 60 letters, digits, and - _ .");
    }
    id
}

/// The meter of a usage price. Stripe adds up, counts and takes the last; what else we count, it cannot.
fn read_meter(
    place: &str,
    price: &PriceText,
    catalog: &PlanCatalog,
    meters: &mut BTreeMap<String, NewMeter>,
    faults: &mut Faults,
) -> Option<String> {
    let name = match (price.per, &price.meter) {
        (Per::Usage, Some(name)) => name,
        (Per::Usage, None) => {
            faults.add(
                place,
                "is charged by usage, and of no meter",
                "add `meter`, a name of the catalogue's `meters`",
            );
            return None;
        }
        (Per::Flat | Per::Seat, Some(_)) => {
            faults.add(place, "has a meter, and is not charged by usage", "remove `meter`, or write per = \"usage\"");
            return None;
        }
        (Per::Flat | Per::Seat, None) => return None,
    };
    let Some(meter) = name.parse::<MeterKey>().ok().and_then(|key| catalog.meter(&key)) else {
        faults.add(
            place,
            format!("is of the meter {name:?}, which there is not"),
            "name one of the catalogue's `meters`",
        );
        return None;
    };
    if meter.credit().is_some() {
        let why = format!("is of `{name}`, which is paid from another meter's balance");
        faults.add(place, why, "charge for the meter that holds the balance");
    }
    let aggregation = match meter.aggregation() {
        // What is handed over is what was counted: leased uses come together, and are not one.
        Counted::Sum | Counted::Count => Aggregation::Sum,
        Counted::Latest => Aggregation::Last,
        of @ (Counted::Max | Counted::Unique) => {
            let why = format!("is of `{name}`, counted by {}, which Stripe's meters cannot", of.as_str());
            faults.add(place, why, "charge for a meter of sum, count or latest");
            return None;
        }
    };
    let new = NewMeter { name: name.clone(), event_name: name.clone(), aggregation };
    meters.insert(name.clone(), new);
    Some(name.clone())
}

fn interval(every: Every) -> Interval {
    match every {
        Every::Day => Interval::Day,
        Every::Week => Interval::Week,
        Every::Month => Interval::Month,
        Every::Year => Interval::Year,
    }
}

fn read_amounts(place: &str, price: &PriceText, faults: &mut Faults) -> BTreeMap<Currency, PricedBy> {
    match (&price.amounts, price.tiers) {
        (Some(amounts), None) if price.steps.is_empty() => {
            let read = read_money(&format!("{place}.amounts"), amounts, faults);
            read.into_iter().map(|(currency, minor)| (currency, PricedBy::Unit(minor))).collect()
        }
        (None, Some(_)) if price.per == Per::Flat => {
            faults.add(place, "has tiers and one price for everything", "write per = \"seat\" or \"usage\"");
            BTreeMap::new()
        }
        (None, Some(mode)) => read_tiers(place, price, mode, faults),
        (_, _) => {
            let remedy = "write `amounts`, or `tiers` (graduated or volume) with `steps`";
            faults.add(place, "has neither one amount nor tiers, or both", remedy);
            BTreeMap::new()
        }
    }
}

fn read_money(place: &str, amounts: &Amounts, faults: &mut Faults) -> BTreeMap<Currency, u64> {
    let mut read = BTreeMap::new();
    if amounts.is_empty() {
        faults.add(place, "names no currency", "write such as { eur = \"20.00\" }");
    }
    for (code, text) in amounts {
        let place = format!("{place}.{code}");
        match code.parse::<Currency>() {
            Ok(currency) if currency.as_str() == code => match minor_units(text, currency) {
                Ok(minor) => drop(read.insert(currency, minor)),
                Err((why, remedy)) => faults.add(place, why, remedy),
            },
            _ => faults.add(place, "is no currency", "write three lower-case letters, such as eur"),
        }
    }
    read
}

fn read_tiers(place: &str, price: &PriceText, mode: TierMode, faults: &mut Faults) -> BTreeMap<Currency, PricedBy> {
    let steps = &price.steps;
    let ends = steps.iter().map(|step| step.up_to).collect::<Vec<_>>();
    let (last, before) = ends.split_last().unwrap_or((&None, &[]));
    let ascends = before.first().is_none_or(|first| first.is_some_and(|units| units > 0))
        && before.windows(2).all(|pair| pair[0] < pair[1])
        && before.iter().all(Option::is_some);
    if steps.is_empty() || steps.len() > MAX_STEPS || last.is_some() || !ascends {
        let remedy = "write up to 100 steps, each with a greater `up_to`, and the last without one";
        faults.add(format!("{place}.steps"), "do not cover every quantity once", remedy);
    }
    let mut tiers: BTreeMap<Currency, Vec<Tier>> = BTreeMap::new();
    for (n, step) in steps.iter().enumerate() {
        let at = format!("{place}.steps[{n}]");
        let units = read_money(&format!("{at}.unit"), &step.unit, faults);
        let flats =
            if step.flat.is_empty() { BTreeMap::new() } else { read_money(&format!("{at}.flat"), &step.flat, faults) };
        if flats.keys().any(|currency| !units.contains_key(currency)) {
            faults.add(format!("{at}.flat"), "has a currency that `unit` has not", "write both in the same currencies");
        }
        for (currency, unit_amount) in units {
            let flat_amount = flats.get(&currency).copied().unwrap_or(0);
            tiers.entry(currency).or_default().push(Tier { up_to: step.up_to, unit_amount, flat_amount });
        }
    }
    if tiers.values().any(|tiers| tiers.len() != steps.len()) {
        faults.add(format!("{place}.steps"), "have different currencies", "write each step in the same currencies");
    }
    let by = |tiers| match mode {
        TierMode::Graduated => PricedBy::Graduated(tiers),
        TierMode::Volume => PricedBy::Volume(tiers),
    };
    tiers.into_iter().map(|(currency, tiers)| (currency, by(tiers))).collect()
}
