//! Features and meters: what a plan can grant and what can be counted.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::fnv::Fnv1a;
use crate::{FeatureKey, MeterKey, TenantId, subscription::AccessLevel};

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
    /// One of the feature's [`options`](Feature::options), such as a region.
    OneOf,
    /// Structured data, such as the colours of a theme.
    Json,
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
    /// Of a text feature, or the option of a one-of feature.
    Text(Box<str>),
    /// Of a JSON feature: an object or an array.
    Json(serde_json::Value),
}

impl fmt::Display for StaticValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Json(value) => value.fmt(f),
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
    pub(super) options: Box<[Box<str>]>,
    pub(super) rollout: Option<Rollout>,
}

/// Who of those whose plan has a feature gets it, while it is rolled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Tenants in thousandths: 250 is a quarter of them. The same tenants stay in as it grows.
    pub permille: u16,
    /// Tenants in one of these cohorts get it whatever the share.
    pub cohorts: Box<[Box<str>]>,
}

impl Rollout {
    /// Whether a tenant in these cohorts gets the feature. The same answer in every process and every version.
    #[must_use]
    pub fn includes(&self, feature: &FeatureKey, tenant: TenantId, cohorts: &[Box<str>]) -> bool {
        cohorts.iter().any(|cohort| self.cohorts.contains(cohort)) || place(feature, tenant) < u64::from(self.permille)
    }
}

/// Where a tenant stands in the queue for a feature, from 0 to 999. Features have different queues.
fn place(feature: &FeatureKey, tenant: TenantId) -> u64 {
    let tenant = tenant.as_uuid().into_bytes();
    let mut hash = Fnv1a::START;
    feature.as_str().bytes().chain([0]).chain(tenant).for_each(|byte| hash.write(byte));
    // The low bits of FNV are its weak ones.
    (hash.get() >> 20) % 1000
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

    /// The values that a one-of feature can have; empty for other kinds.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.options.iter().map(AsRef::as_ref)
    }

    /// Who gets it; `None` for everyone whose plan has it.
    #[must_use]
    pub const fn rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref()
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
pub enum Aggregation {
    /// Amounts are added up.
    Sum,
    /// Every use counts one.
    Count,
    /// The largest amount of the window, such as a peak of parallel jobs.
    Max,
    /// How many different items were used in the window, such as active users.
    Unique,
    /// The latest amount, such as gigabytes stored. It does not start again, so its limit is one of a lifetime.
    Latest,
}

impl Aggregation {
    /// The name in the file and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Count => "count",
            Self::Max => "max",
            Self::Unique => "unique",
            Self::Latest => "latest",
        }
    }

    /// Whether every use adds its amount: only such a meter can be reserved, leased or paid in credits.
    #[must_use]
    pub const fn is_additive(self) -> bool {
        matches!(self, Self::Sum | Self::Count)
    }
}

/// How a meter is paid for out of the balance of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// The meter whose balance it is.
    pub of: MeterId,
    /// Units of that meter for one of this, from 1.
    pub cost: u64,
}

/// One meter of the catalogue.
#[derive(Debug, Clone)]
pub struct Meter {
    pub(super) id: MeterId,
    pub(super) key: MeterKey,
    pub(super) aggregation: Aggregation,
    pub(super) min_access: AccessLevel,
    pub(super) credit: Option<Credit>,
    pub(super) late_hours: u16,
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

    /// The balance that it draws on, in place of a limit of its own.
    #[must_use]
    pub const fn credit(&self) -> Option<Credit> {
        self.credit
    }

    /// How many hours after the end of a window a use of that window still counts in it.
    #[must_use]
    pub const fn late_hours(&self) -> u16 {
        self.late_hours
    }

    /// The lowest access level at which it may be consumed.
    #[must_use]
    pub const fn min_access(&self) -> AccessLevel {
        self.min_access
    }
}
