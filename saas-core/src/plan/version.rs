//! Plans and their versions.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{FeatureId, Limit, MeterId, MeterLimit, StaticValue};
use crate::PlanKey;

/// Names one version of one plan; displayed as `pro@2`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PlanVersionRef {
    /// The plan.
    pub plan: PlanKey,
    /// Its version, from 1.
    pub version: u32,
}

impl fmt::Display for PlanVersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.plan, self.version)
    }
}

/// A plan version's place in one catalogue, dense from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(pub(super) u32);

impl VersionId {
    /// The position, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A plan with all its versions.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) key: PlanKey,
    pub(super) rank: u32,
    pub(super) offered: bool,
    pub(super) versions: Box<[PlanVersion]>,
}

impl Plan {
    /// Its name in code and in the file.
    #[must_use]
    pub const fn key(&self) -> &PlanKey {
        &self.key
    }

    /// Its place in the upgrade order; unique in the catalogue, higher is more.
    #[must_use]
    pub const fn rank(&self) -> u32 {
        self.rank
    }

    /// Whether it may be named in an upgrade hint. `false` for plans made for one customer.
    #[must_use]
    pub const fn is_offered(&self) -> bool {
        self.offered
    }

    /// Its versions, oldest first; at least one.
    #[must_use]
    pub fn versions(&self) -> &[PlanVersion] {
        &self.versions
    }

    /// One version; the newest that is active for `None`.
    #[must_use]
    pub fn version(&self, number: Option<u32>) -> Option<&PlanVersion> {
        match number {
            None => self.versions.iter().rfind(|version| version.state == VersionState::Active),
            Some(number) => self.versions.iter().find(|version| version.reference.version == number),
        }
    }
}

/// Where a version is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// Not sold yet: no tenant is moved to it by "the newest".
    Draft,
    /// Sold.
    Active,
    /// No longer sold; tenants that have it keep it.
    Archived,
}

/// What one version of a plan grants.
#[derive(Debug, Clone)]
pub struct PlanVersion {
    pub(super) id: VersionId,
    pub(super) reference: PlanVersionRef,
    pub(super) state: VersionState,
    pub(super) rank: u32,
    pub(super) trial_days: u16,
    pub(super) prices: Box<[Box<str>]>,
    /// One bit per feature, by [`FeatureId`].
    pub(super) granted: Box<[u64]>,
    /// Ascending by id; only static features that the plan grants.
    pub(super) values: Box<[(FeatureId, StaticValue)]>,
    /// Ascending by id; only meters that the plan includes.
    pub(super) limits: Box<[(MeterId, MeterLimit)]>,
}

impl PlanVersion {
    /// Its place in the catalogue.
    #[must_use]
    pub const fn id(&self) -> VersionId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub const fn reference(&self) -> &PlanVersionRef {
        &self.reference
    }

    /// The upgrade order of its plan.
    #[must_use]
    pub const fn rank(&self) -> u32 {
        self.rank
    }

    /// Where it is in its life.
    #[must_use]
    pub const fn state(&self) -> VersionState {
        self.state
    }

    /// Days of trial, 0 for none.
    #[must_use]
    pub const fn trial_days(&self) -> u16 {
        self.trial_days
    }

    /// The payment provider's price ids; each belongs to this version only.
    pub fn prices(&self) -> impl Iterator<Item = &str> {
        self.prices.iter().map(AsRef::as_ref)
    }

    /// Whether the feature is on: granted, given a value, or metered with a limit above zero.
    #[must_use]
    pub fn grants(&self, feature: FeatureId) -> bool {
        let index = feature.index();
        self.granted.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// One bit per feature, by [`FeatureId`], 64 to a word, lowest bit first.
    #[must_use]
    pub fn granted_words(&self) -> &[u64] {
        &self.granted
    }

    /// The value of a static feature; `None` where the plan gives none.
    #[must_use]
    pub fn value(&self, feature: FeatureId) -> Option<&StaticValue> {
        let at = self.values.binary_search_by_key(&feature, |(id, _)| *id).ok()?;
        self.values.get(at).map(|(_, value)| value)
    }

    /// The limit for a meter; `None` where the plan does not include it, which is not a limit of 0 and not unlimited.
    #[must_use]
    pub fn limit(&self, meter: MeterId) -> Option<&MeterLimit> {
        let at = self.limits.binary_search_by_key(&meter, |(id, _)| *id).ok()?;
        self.limits.get(at).map(|(_, limit)| limit)
    }

    /// All limits, by meter.
    pub fn limits(&self) -> impl Iterator<Item = (MeterId, &MeterLimit)> {
        self.limits.iter().map(|(id, limit)| (*id, limit))
    }

    /// Whether anything of the meter may be used.
    #[must_use]
    pub fn includes(&self, meter: MeterId) -> bool {
        self.limit(meter).is_some_and(|rule| rule.limit != Limit::Max(0))
    }
}
