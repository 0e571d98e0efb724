//! What Stripe has of it, read tolerantly.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{document::Per, list::WantedPrice};
use crate::{
    mode::Mode,
    money::Currency,
    object::{Interval, ObjectId},
    provider::{PageLimit, PaymentProvider, PricedBy, ProviderError, Query, Tier},
};

/// The entry of the file that a price was made for.
pub(super) const NAME: &str = "saas_price";
/// What a price is charged for.
pub(super) const PER: &str = "saas_per";
/// What a product was called when it was last said from here.
pub(super) const SAID: &str = "saas_name";

/// Pages of a list of the account's: 10,000 objects.
const MAX_PAGES: usize = 100;

#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) meters: Vec<FoundMeter>,
    pub(super) features: Vec<FoundFeature>,
    /// Those of the list.
    pub(super) products: Vec<FoundProduct>,
    /// Of those products, and whatever has one of the list's keys.
    pub(super) prices: BTreeMap<ObjectId, FoundPrice>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FoundMeter {
    pub(super) id: ObjectId,
    pub(super) livemode: bool,
    pub(super) display_name: String,
    pub(super) event_name: String,
    pub(super) status: String,
    pub(super) default_aggregation: Formula,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Formula {
    pub(super) formula: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FoundFeature {
    pub(super) id: ObjectId,
    pub(super) livemode: bool,
    pub(super) lookup_key: String,
    pub(super) name: String,
    pub(super) active: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FoundProduct {
    pub(super) id: ObjectId,
    pub(super) livemode: bool,
    pub(super) name: String,
    pub(super) active: bool,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    #[serde(skip)]
    pub(super) features: Vec<FoundAttachment>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FoundAttachment {
    pub(super) id: ObjectId,
    pub(super) entitlement_feature: FoundFeature,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FoundPrice {
    pub(super) id: ObjectId,
    pub(super) livemode: bool,
    pub(super) active: bool,
    pub(super) product: ObjectId,
    pub(super) currency: Currency,
    pub(super) lookup_key: Option<String>,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    recurring: Option<FoundRecurring>,
    unit_amount: Option<i64>,
    tiers_mode: Option<String>,
    #[serde(default)]
    tiers: Option<Vec<FoundTier>>,
    #[serde(default)]
    transform_quantity: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
struct FoundRecurring {
    interval: Interval,
    #[serde(default = "one")]
    interval_count: u32,
    #[serde(default)]
    meter: Option<String>,
    #[serde(default)]
    usage_type: Option<String>,
}

const fn one() -> u32 {
    1
}

#[derive(Debug, Clone, Deserialize)]
struct FoundTier {
    up_to: Option<u64>,
    unit_amount: Option<u64>,
    flat_amount: Option<u64>,
}

/// A price that was ever sold under a name of the file: what `saas.billing_price` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownPrice {
    /// `price_…`
    pub id: ObjectId,
    /// The entry of the file.
    pub name: String,
    /// In what.
    pub currency: Currency,
    /// What it is charged for, where that is known.
    pub per: Option<Per>,
    /// How often, where it is once in an interval.
    pub interval: Option<Interval>,
    /// The meter whose usage it charges, `mtr_…`.
    pub meter: Option<String>,
    /// Whether it is what is sold under the name now.
    pub is_current: bool,
}

impl FoundPrice {
    /// What of it a price of the list settles, field by field, in words that can be compared.
    pub(super) fn terms(&self, meter_name: impl Fn(&str) -> Option<String>) -> Terms {
        let recurring = self.recurring.as_ref();
        let tiers = || -> Option<Vec<Tier>> {
            let tier = |tier: &FoundTier| {
                let (unit_amount, flat_amount) = (tier.unit_amount.unwrap_or(0), tier.flat_amount.unwrap_or(0));
                Tier { up_to: tier.up_to, unit_amount, flat_amount }
            };
            Some(self.tiers.as_ref()?.iter().map(tier).collect())
        };
        let by = match self.tiers_mode.as_deref() {
            Some("graduated") => tiers().map(PricedBy::Graduated),
            Some("volume") => tiers().map(PricedBy::Volume),
            Some(_) => None,
            None => self.unit_amount.and_then(|amount| u64::try_from(amount).ok()).map(PricedBy::Unit),
        };
        let is_metered = recurring.is_some_and(|recurring| recurring.usage_type.as_deref() == Some("metered"));
        let meter = recurring.and_then(|recurring| recurring.meter.as_deref());
        Terms {
            product: self.product.clone(),
            currency: self.currency,
            // What we never write compares as different.
            by: by.filter(|_| self.transform_quantity.is_none()),
            every: self.every(),
            meter: meter.map(|id| meter_name(id).unwrap_or_else(|| id.to_owned())).filter(|_| is_metered),
        }
    }

    fn every(&self) -> Option<Interval> {
        let recurring = self.recurring.as_ref().filter(|recurring| recurring.interval_count == 1);
        recurring.map(|recurring| recurring.interval.clone())
    }

    /// What remembers that it was made for an entry of the file.
    pub(super) fn known(&self, is_current: bool) -> Option<KnownPrice> {
        let name = self.metadata.get(NAME)?.clone();
        let per = match self.metadata.get(PER).map(String::as_str) {
            Some("flat") => Some(Per::Flat),
            Some("seat") => Some(Per::Seat),
            Some("usage") => Some(Per::Usage),
            _ => None,
        };
        let (id, currency, interval) = (self.id.clone(), self.currency, self.every());
        let meter = self.recurring.as_ref().and_then(|recurring| recurring.meter.clone());
        Some(KnownPrice { id, name, currency, per, interval, meter, is_current })
    }
}

/// What cannot be changed of a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) product: ObjectId,
    pub(super) currency: Currency,
    pub(super) every: Option<Interval>,
    pub(super) by: Option<PricedBy>,
    pub(super) meter: Option<String>,
}

impl Terms {
    pub(super) fn of(wanted: &WantedPrice) -> Self {
        Self {
            product: wanted.product.clone(),
            currency: wanted.currency,
            every: Some(wanted.interval.clone()),
            by: Some(wanted.by.clone()),
            meter: wanted.meter.clone(),
        }
    }
}

/// Why the account could not be read.
pub(super) enum Unread {
    Provider(ProviderError),
    OtherMode,
}

impl From<ProviderError> for Unread {
    fn from(why: ProviderError) -> Self {
        Self::Provider(why)
    }
}

impl Found {
    /// Reads what the list is to be compared with.
    pub(super) async fn read(
        provider: &dyn PaymentProvider,
        list: &super::PriceList,
        mode: Mode,
    ) -> Result<Self, Unread> {
        let mut found = Self::default();
        if !list.meters.is_empty() {
            found.meters = all(provider, &Query::Meters).await?;
        }
        if !list.features.is_empty() {
            found.features = all(provider, &Query::Features { lookup_key: None }).await?;
        }
        let mut products: Vec<FoundProduct> = all(provider, &Query::Products).await?;
        products.retain(|product| list.products.iter().any(|wanted| wanted.id == product.id));
        for mut product in products {
            let query = Query::ProductFeatures { product: product.id.clone() };
            product.features = all(provider, &query).await?;
            let query = Query::PricesOf { product: product.id.clone() };
            let prices: Vec<FoundPrice> = all(provider, &query).await?;
            found.prices.extend(prices.into_iter().map(|price| (price.id.clone(), price)));
            found.products.push(product);
        }
        for wanted in list.prices.chunks(10) {
            let lookup_keys = wanted.iter().map(|price| price.lookup_key.clone()).collect();
            let prices: Vec<FoundPrice> = all(provider, &Query::Prices { lookup_keys }).await?;
            found.prices.extend(prices.into_iter().map(|price| (price.id.clone(), price)));
        }
        if found.modes().any(|livemode| livemode != (mode == Mode::Live)) {
            return Err(Unread::OtherMode);
        }
        Ok(found)
    }

    fn modes(&self) -> impl Iterator<Item = bool> {
        let meters = self.meters.iter().map(|one| one.livemode);
        let features = self.features.iter().map(|one| one.livemode);
        let products = self.products.iter().map(|one| one.livemode);
        meters.chain(features).chain(products).chain(self.prices.values().map(|one| one.livemode))
    }

    /// The meter that readings of this name go to.
    pub(super) fn meter(&self, event_name: &str) -> Option<&FoundMeter> {
        let mut named = self.meters.iter().filter(|meter| meter.event_name == event_name);
        let first = named.clone().next();
        named.find(|meter| meter.status == "active").or(first)
    }

    pub(super) fn meter_name(&self, id: &str) -> Option<String> {
        self.meters.iter().find(|meter| meter.id.as_str() == id).map(|meter| meter.event_name.clone())
    }

    pub(super) fn feature(&self, lookup_key: &str) -> Option<&FoundFeature> {
        self.features.iter().find(|feature| feature.lookup_key == lookup_key)
    }

    pub(super) fn with_key(&self, lookup_key: &str) -> Option<&FoundPrice> {
        self.prices.values().find(|price| price.lookup_key.as_deref() == Some(lookup_key))
    }
}

async fn all<T: DeserializeOwned>(provider: &dyn PaymentProvider, query: &Query) -> Result<Vec<T>, ProviderError> {
    let (mut objects, mut after) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let page = provider.list(query, after.as_ref(), PageLimit::MAX).await?;
        for object in &page.objects {
            objects.push(read(object)?);
        }
        after = page.next;
        if after.is_none() {
            return Ok(objects);
        }
    }
    Err(ProviderError::Unreadable { what: "a list of the account's catalogue with more than 10,000 objects" })
}

fn read<T: DeserializeOwned>(object: &RawValue) -> Result<T, ProviderError> {
    let unreadable = |_| ProviderError::Unreadable { what: "an object of the account's catalogue" };
    serde_json::from_str(object.get()).map_err(unreadable)
}
