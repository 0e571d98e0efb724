//! Add-ons: what is sold beside a plan.

use super::{FeatureId, Limit, MeterId, StaticValue};
use crate::AddOnKey;

/// How an add-on meets what the plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddOnMode {
    /// Its units are added to the plan's, once for each that was bought; so are its integers. Other values replace.
    Stack,
    /// Its limits and values replace the plan's.
    Override,
}

/// Something that is sold beside a plan.
#[derive(Debug, Clone)]
pub struct AddOn {
    pub(super) key: AddOnKey,
    pub(super) mode: AddOnMode,
    pub(super) max_quantity: u32,
    pub(super) prices: Box<[Box<str>]>,
    /// One bit per feature, by [`FeatureId`].
    pub(super) granted: Box<[u64]>,
    /// Ascending by id.
    pub(super) values: Box<[(FeatureId, StaticValue)]>,
    /// Ascending by id.
    pub(super) limits: Box<[(MeterId, Limit)]>,
}

impl AddOn {
    /// Its name in code and in the file.
    #[must_use]
    pub const fn key(&self) -> &AddOnKey {
        &self.key
    }

    /// How it meets what the plan says.
    #[must_use]
    pub const fn mode(&self) -> AddOnMode {
        self.mode
    }

    /// How many of it a tenant can have, from 1.
    #[must_use]
    pub const fn max_quantity(&self) -> u32 {
        self.max_quantity
    }

    /// The payment provider's price ids; each belongs to this add-on only.
    pub fn prices(&self) -> impl Iterator<Item = &str> {
        self.prices.iter().map(AsRef::as_ref)
    }

    /// Whether it switches the feature on.
    #[must_use]
    pub fn grants(&self, feature: FeatureId) -> bool {
        let index = feature.index();
        self.granted.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// The value that it gives to a static feature.
    #[must_use]
    pub fn value(&self, feature: FeatureId) -> Option<&StaticValue> {
        let at = self.values.binary_search_by_key(&feature, |(id, _)| *id).ok()?;
        self.values.get(at).map(|(_, value)| value)
    }

    /// How much of a meter one of it gives. Window and all the rest are the plan's.
    #[must_use]
    pub fn limit(&self, meter: MeterId) -> Option<Limit> {
        let at = self.limits.binary_search_by_key(&meter, |(id, _)| *id).ok()?;
        self.limits.get(at).map(|(_, limit)| *limit)
    }

    /// All its limits, by meter.
    pub fn limits(&self) -> impl Iterator<Item = (MeterId, Limit)> {
        self.limits.iter().copied()
    }
}
