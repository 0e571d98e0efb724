//! What is to be done so that Stripe has what the list says: as data and in words. Pure.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    amount::shown,
    fault::{Faults, PriceListError},
    found::{Found, FoundPrice, FoundProduct, KnownPrice, NAME, PER, SAID, Terms},
    list::{PriceList, WantedPrice, WantedProduct},
};
use crate::{
    money::Currency,
    object::ObjectId,
    provider::{Aggregation, NewFeature, NewMeter, NewProduct, PricedBy, Tier},
};

/// What becomes of a price that another has taken the place of, or that is sold no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OldPrices {
    /// It stays: pages and links that name it go on selling it.
    #[default]
    Keep,
    /// It is archived: nobody can buy it. Who pays by it goes on doing so.
    Archive,
}

/// What differs, and what is to be done about it, in the order in which it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SyncPlan {
    /// What differs; empty when Stripe has it all.
    pub differences: Vec<Difference>,
    /// Every price that was ever sold under a name of the file, as Stripe has it now.
    pub known: Vec<KnownPrice>,
}

/// One object that is not as the list says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is.
    pub kind: SubjectKind,
    /// Its lookup key, or its name in the file.
    pub name: String,
    /// Why it differs.
    pub cause: Cause,
    /// In what; empty for an object that is not there.
    pub fields: Vec<FieldDifference>,
    /// What is done.
    pub step: Step,
}

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// A usage meter.
    Meter,
    /// A feature of Stripe's entitlements.
    Feature,
    /// A product, or what it gives.
    Product,
    /// A price.
    Price,
}

/// Why an object differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It is not there.
    Missing,
    /// The text says something else than when it was applied.
    Changed,
    /// Somebody has edited it at Stripe.
    Drift,
    /// The text says nothing of it any more.
    Leftover,
}

/// Both sides of a field, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldDifference {
    /// Which.
    pub field: &'static str,
    /// What the list says.
    pub ours: String,
    /// What Stripe has.
    pub theirs: String,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Makes a meter.
    CreateMeter(NewMeter),
    /// Says its name anew.
    RenameMeter {
        /// `mtr_…`
        meter: ObjectId,
        /// For people.
        name: String,
    },
    /// Counts again.
    ReactivateMeter(ObjectId),
    /// Makes a feature.
    CreateFeature(NewFeature),
    /// Says its name anew, and has it in force.
    ChangeFeature {
        /// `feat_…`
        feature: ObjectId,
        /// For people.
        name: String,
    },
    /// Makes a product.
    CreateProduct(NewProduct),
    /// Says its name anew, and offers it.
    ChangeProduct(NewProduct),
    /// Gives a feature to who buys it.
    AttachFeature {
        /// `prod_…`
        product: ObjectId,
        /// The feature.
        lookup_key: String,
    },
    /// Not any more.
    DetachFeature {
        /// `prod_…`
        product: ObjectId,
        /// `prodft_…`
        attachment: ObjectId,
    },
    /// Makes a price.
    CreatePrice {
        /// Which.
        price: Box<WantedPrice>,
        /// The one whose key it takes over. It stays what it is for whoever pays by it.
        replaces: Option<ObjectId>,
    },
    /// Sells a price again that is there.
    OfferPrice {
        /// Which.
        price: Box<WantedPrice>,
        /// `price_…`
        id: ObjectId,
    },
    /// Sells a price no more.
    ArchivePrice(ObjectId),
}

impl SyncPlan {
    /// Whether Stripe has what the list says.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.differences.is_empty()
    }

    /// What somebody has edited at Stripe.
    pub fn drift(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| difference.cause == Cause::Drift)
    }

    /// Compares.
    ///
    /// # Errors
    /// When Stripe has something that cannot be changed into what the list says.
    pub(super) fn of(list: &PriceList, found: &Found, old: OldPrices) -> Result<Self, PriceListError> {
        let mut faults = Faults::default();
        let mut plan = Self { differences: Vec::new(), known: Vec::new() };
        list.meters.iter().for_each(|meter| plan.meter(meter, found, &mut faults));
        list.features.iter().for_each(|feature| plan.feature(feature, found));
        list.products.iter().for_each(|product| plan.product(product, list, found));
        let mut current = Vec::new();
        for price in &list.prices {
            current.extend(plan.price(price, found));
        }
        for price in found.prices.values() {
            let is_current = current.contains(&price.id);
            plan.known.extend(price.known(is_current));
            if price.active && !is_current && old == OldPrices::Archive && price.metadata.contains_key(NAME) {
                let step = Step::ArchivePrice(price.id.clone());
                plan.add(SubjectKind::Price, price.id.as_str(), Cause::Leftover, Vec::new(), step);
            }
        }
        faults.or(plan)
    }

    fn add(&mut self, kind: SubjectKind, name: &str, cause: Cause, fields: Vec<FieldDifference>, step: Step) {
        self.differences.push(Difference { kind, name: name.to_owned(), cause, fields, step });
    }

    fn meter(&mut self, wanted: &NewMeter, found: &Found, faults: &mut Faults) {
        let (kind, name) = (SubjectKind::Meter, wanted.event_name.as_str());
        let Some(meter) = found.meter(name) else {
            return self.add(kind, name, Cause::Missing, Vec::new(), Step::CreateMeter(wanted.clone()));
        };
        let formula = formula(wanted.aggregation);
        if meter.default_aggregation.formula != formula {
            let why = format!("is {} at Stripe, and is to be {formula}", meter.default_aggregation.formula);
            let remedy = "meters cannot be changed: charge for a meter of another name";
            return faults.add(format!("meters.{name}"), why, remedy);
        }
        if meter.status != "active" {
            let fields = vec![field("status", "active", &meter.status)];
            self.add(kind, name, Cause::Drift, fields, Step::ReactivateMeter(meter.id.clone()));
        }
        if meter.display_name != wanted.name {
            let step = Step::RenameMeter { meter: meter.id.clone(), name: wanted.name.clone() };
            self.add(kind, name, Cause::Drift, vec![field("name", &wanted.name, &meter.display_name)], step);
        }
    }

    fn feature(&mut self, name: &str, found: &Found) {
        let kind = SubjectKind::Feature;
        let Some(feature) = found.feature(name) else {
            let metadata = BTreeMap::from([(SAID.to_owned(), name.to_owned())]);
            let new = NewFeature { lookup_key: name.to_owned(), name: name.to_owned(), metadata };
            return self.add(kind, name, Cause::Missing, Vec::new(), Step::CreateFeature(new));
        };
        let fields = differing([("name", name, &feature.name), ("active", "true", yes(feature.active))]);
        if !fields.is_empty() {
            let step = Step::ChangeFeature { feature: feature.id.clone(), name: name.to_owned() };
            self.add(kind, name, Cause::Drift, fields, step);
        }
    }

    fn product(&mut self, wanted: &WantedProduct, list: &PriceList, found: &Found) {
        let (kind, name) = (SubjectKind::Product, wanted.id.as_str());
        let metadata = BTreeMap::from([(SAID.to_owned(), wanted.name.clone())]);
        let new = NewProduct { id: wanted.id.clone(), name: wanted.name.clone(), metadata };
        let present = found.products.iter().find(|product| product.id == wanted.id);
        match present {
            None => self.add(kind, name, Cause::Missing, Vec::new(), Step::CreateProduct(new)),
            Some(product) => {
                let fields =
                    differing([("name", &wanted.name, &product.name), ("active", "true", yes(product.active))]);
                if !fields.is_empty() {
                    self.add(kind, name, said_by(product), fields, Step::ChangeProduct(new));
                }
            }
        }
        let attached = present.map(|product| product.features.as_slice()).unwrap_or_default();
        for feature in &wanted.features {
            if !attached.iter().any(|one| one.entitlement_feature.lookup_key == *feature) {
                let step = Step::AttachFeature { product: wanted.id.clone(), lookup_key: feature.clone() };
                self.add(kind, name, Cause::Missing, vec![field("feature", feature, "none")], step);
            }
        }
        // What the catalogue does not know is none of its business.
        let foreign = |one: &str| !wanted.features.contains(one) && list.features.contains(one);
        for one in attached.iter().filter(|one| foreign(&one.entitlement_feature.lookup_key)) {
            let step = Step::DetachFeature { product: wanted.id.clone(), attachment: one.id.clone() };
            let fields = vec![field("feature", "none", &one.entitlement_feature.lookup_key)];
            self.add(kind, name, Cause::Leftover, fields, step);
        }
    }

    /// Says which price is, or stays, what is sold; `None` while it has to be made.
    fn price(&mut self, wanted: &WantedPrice, found: &Found) -> Option<ObjectId> {
        let (kind, name, terms) = (SubjectKind::Price, wanted.lookup_key.as_str(), Terms::of(wanted));
        let terms_of = |price: &FoundPrice| price.terms(|id| found.meter_name(id));
        let holder = found.with_key(name);
        let price = Box::new(wanted.clone());
        if let Some(holder) = holder.filter(|holder| terms_of(holder) == terms) {
            let ours = [(NAME, wanted.name.as_str()), (PER, wanted.per.as_str())];
            let theirs = |name: &str| holder.metadata.get(name).map_or("none", String::as_str);
            let [first, second] = ours.map(|(name, ours)| (name, ours, theirs(name)));
            let fields = differing([("active", "true", yes(holder.active)), first, second]);
            if !fields.is_empty() {
                self.add(kind, name, Cause::Drift, fields, Step::OfferPrice { price, id: holder.id.clone() });
            }
            return Some(holder.id.clone());
        }
        // One that was sold before on the same terms is sold again, rather than a second one made.
        let is_same = |price: &&FoundPrice| {
            price.metadata.get(NAME) == Some(&wanted.name)
                && price.metadata.get(PER).map(String::as_str) == Some(wanted.per.as_str())
                && terms_of(price) == terms
        };
        let again = found.prices.values().filter(is_same).max_by_key(|price| (price.active, price.id.clone()));
        let fields = holder.map(|holder| differences(&terms, &terms_of(holder))).unwrap_or_default();
        let is_ours = holder.is_none_or(|holder| holder.metadata.contains_key(NAME));
        let cause = match (holder, again) {
            (Some(_), _) if is_ours => Cause::Changed,
            (None, None) => Cause::Missing,
            (_, _) => Cause::Drift,
        };
        match again {
            Some(again) => {
                let fields = if fields.is_empty() { vec![field("lookup_key", name, "none")] } else { fields };
                self.add(kind, name, cause, fields, Step::OfferPrice { price, id: again.id.clone() });
                Some(again.id.clone())
            }
            None => {
                let replaces = holder.map(|holder| holder.id.clone());
                self.add(kind, name, cause, fields, Step::CreatePrice { price, replaces });
                None
            }
        }
    }
}

/// Whether a product was edited at Stripe, or is called otherwise in the text than before.
fn said_by(product: &FoundProduct) -> Cause {
    let is_as_said = product.active && product.metadata.get(SAID) == Some(&product.name);
    if is_as_said { Cause::Changed } else { Cause::Drift }
}

pub(super) const fn formula(aggregation: Aggregation) -> &'static str {
    match aggregation {
        Aggregation::Sum => "sum",
        Aggregation::Count => "count",
        Aggregation::Last => "last",
    }
}

const fn yes(is: bool) -> &'static str {
    if is { "true" } else { "false" }
}

fn field(field: &'static str, ours: &str, theirs: &str) -> FieldDifference {
    FieldDifference { field, ours: ours.to_owned(), theirs: theirs.to_owned() }
}

fn differing<const N: usize>(fields: [(&'static str, &str, &str); N]) -> Vec<FieldDifference> {
    let differing = fields.into_iter().filter(|(_, ours, theirs)| ours != theirs);
    differing.map(|(name, ours, theirs)| field(name, ours, theirs)).collect()
}

fn differences(ours: &Terms, theirs: &Terms) -> Vec<FieldDifference> {
    let every =
        |terms: &Terms| terms.every.as_ref().map_or_else(|| "other".to_owned(), |every| every.as_str().to_owned());
    let by = |terms: &Terms| terms.by.as_ref().map_or_else(|| "other".to_owned(), |by| words(by, terms.currency));
    let meter = |terms: &Terms| terms.meter.clone().unwrap_or_else(|| "none".to_owned());
    differing([
        ("product", ours.product.as_str(), theirs.product.as_str()),
        ("currency", ours.currency.as_str(), theirs.currency.as_str()),
        ("interval", &every(ours), &every(theirs)),
        ("amount", &by(ours), &by(theirs)),
        ("meter", &meter(ours), &meter(theirs)),
    ])
}

fn words(by: &PricedBy, currency: Currency) -> String {
    let tiers = |mode: &str, tiers: &[Tier]| {
        let tier = |tier: &Tier| {
            let to = tier.up_to.map_or_else(|| "any".to_owned(), |to| format!("to {to}"));
            let flat = Some(tier.flat_amount).filter(|flat| *flat > 0);
            let flat = flat.map_or_else(String::new, |flat| format!(" + {}", shown(flat, currency)));
            format!("{to}: {}{flat}", shown(tier.unit_amount, currency))
        };
        format!("{mode} ({})", tiers.iter().map(tier).collect::<Vec<_>>().join(", "))
    };
    match by {
        PricedBy::Unit(amount) => shown(*amount, currency),
        PricedBy::Graduated(of) => tiers("graduated", of),
        PricedBy::Volume(of) => tiers("volume", of),
    }
}

/// One line for each difference.
impl fmt::Display for SyncPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("Stripe has what the catalogue says");
        }
        for (n, difference) in self.differences.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{difference}")?;
        }
        Ok(())
    }
}

/// Such as `price pro-monthly-eur: amount 20.00 EUR → 25.00 EUR; made anew, price_1 stays for whoever pays by it`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SubjectKind::Meter => "meter",
            SubjectKind::Feature => "feature",
            SubjectKind::Product => "product",
            SubjectKind::Price => "price",
        };
        write!(f, "{kind} {}: ", self.name)?;
        for FieldDifference { field, ours, theirs } in &self.fields {
            write!(f, "{field} {theirs} → {ours}, ")?;
        }
        match self.cause {
            Cause::Missing => f.write_str("not there; ")?,
            Cause::Changed => f.write_str("changed in the catalogue; ")?,
            Cause::Drift => f.write_str("edited at Stripe; ")?,
            Cause::Leftover => f.write_str("no longer in the catalogue; ")?,
        }
        match &self.step {
            Step::CreatePrice { price, replaces: None } => {
                write!(f, "made, {} per {}", words(&price.by, price.currency), price.interval.as_str())
            }
            Step::CreatePrice { replaces: Some(old), .. } => {
                write!(f, "made anew, {old} stays for whoever pays by it")
            }
            Step::CreateMeter(_) | Step::CreateFeature(_) | Step::CreateProduct(_) => f.write_str("made"),
            Step::RenameMeter { .. } | Step::ChangeFeature { .. } | Step::ChangeProduct(_) => f.write_str("said anew"),
            Step::ReactivateMeter(_) => f.write_str("counts again"),
            Step::AttachFeature { .. } => f.write_str("attached"),
            Step::DetachFeature { .. } => f.write_str("detached"),
            Step::OfferPrice { id, .. } => write!(f, "{id} is sold again"),
            Step::ArchivePrice(_) => f.write_str("archived, and stays for whoever pays by it"),
        }
    }
}
