//! The tables `products` and `prices` of the file, as they are written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Other tables are the plan catalogue's.
#[derive(Debug, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) products: BTreeMap<String, ProductText>,
    #[serde(default)]
    pub(super) prices: BTreeMap<String, PriceText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProductText {
    pub(super) name: String,
}

/// Amounts by currency, as decimal text: a number of TOML would be a binary fraction.
pub(super) type Amounts = BTreeMap<String, String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PriceText {
    pub(super) product: Option<String>,
    pub(super) per: Per,
    pub(super) interval: Every,
    pub(super) meter: Option<String>,
    pub(super) amounts: Option<Amounts>,
    pub(super) tiers: Option<TierMode>,
    #[serde(default)]
    pub(super) steps: Vec<StepText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepText {
    pub(super) up_to: Option<u64>,
    pub(super) unit: Amounts,
    #[serde(default)]
    pub(super) flat: Amounts,
}

/// What a price is charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// The subscription.
    Flat,
    /// Each seat: the quantity of the subscription's item.
    Seat,
    /// What a meter has counted, after the period.
    Usage,
}

impl Per {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Seat => "seat",
            Self::Usage => "usage",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Every {
    Day,
    Week,
    Month,
    Year,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TierMode {
    Graduated,
    Volume,
}
