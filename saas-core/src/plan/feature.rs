//! Features and meters: what a plan can grant and what can be counted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{FeatureKey, MeterKey, subscription::AccessLevel};

/// A feature's place in one catalogue: a bit position.
///
/// Dense from 0 in the order of the keys, so the same key can have another id in another catalogue
/// (see [`PlanCatalog::fingerprint`](super::PlanCatalog::fingerprint)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureId(pub(super) u16);

impl FeatureId {
    /// The position, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A meter's place in one catalogue, dense from 0 in the order of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterId(pub(super) u16);

impl MeterId {
    /// The position, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a feature answers when nothing is known about the tenant and nothing can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailPolicy {
    /// On: an outage must not stop reading, signing in, working.
    Open,
    /// Off: an outage must not give away what costs money or cannot be undone.
    Closed,
}

/// What a feature's grant consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureKind {
    /// On or off.
    Boolean,
    /// A whole number, such as days of retention.
    Integer,
    /// A text, such as a support level.
    Text,
    /// On where the plan's limit for the meter lets anything through. Whether some is *left* is the meter's answer.
    Metered {
        /// What is counted.
        meter: MeterId,
    },
}

/// The value that a plan or an override gives to a static feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StaticValue {
    /// Of an integer feature.
    Integer(i64),
    /// Of a text feature.
    Text(Box<str>),
}

impl fmt::Display for StaticValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// One feature of the catalogue.
#[derive(Debug, Clone)]
pub struct Feature {
    pub(super) id: FeatureId,
    pub(super) key: FeatureKey,
    pub(super) kind: FeatureKind,
    pub(super) fail: FailPolicy,
    pub(super) min_access: AccessLevel,
}

impl Feature {
    /// Its bit position.
    #[must_use]
    pub const fn id(&self) -> FeatureId {
        self.id
    }

    /// Its name in code and in the file.
    #[must_use]
    pub const fn key(&self) -> &FeatureKey {
        &self.key
    }

    /// What a grant of it consists of.
    #[must_use]
    pub const fn kind(&self) -> FeatureKind {
        self.kind
    }

    /// What it answers in an outage.
    #[must_use]
    pub const fn fail_policy(&self) -> FailPolicy {
        self.fail
    }

    /// The lowest access level at which it works: `Full` unless the file says otherwise, `Suspended` (always) for
    /// static values, because a retention that falls to nothing deletes data.
    #[must_use]
    pub const fn min_access(&self) -> AccessLevel {
        self.min_access
    }
}

/// How recorded uses become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Aggregation {
    /// Amounts are added up.
    Sum,
    /// Every use counts one.
    Count,
}

/// One meter of the catalogue.
#[derive(Debug, Clone)]
pub struct Meter {
    pub(super) id: MeterId,
    pub(super) key: MeterKey,
    pub(super) aggregation: Aggregation,
    pub(super) min_access: AccessLevel,
}

impl Meter {
    /// Its place in the catalogue.
    #[must_use]
    pub const fn id(&self) -> MeterId {
        self.id
    }

    /// Its name in code and in the file.
    #[must_use]
    pub const fn key(&self) -> &MeterKey {
        &self.key
    }

    /// How uses become a number.
    #[must_use]
    pub const fn aggregation(&self) -> Aggregation {
        self.aggregation
    }

    /// The lowest access level at which it may be consumed.
    #[must_use]
    pub const fn min_access(&self) -> AccessLevel {
        self.min_access
    }
}
