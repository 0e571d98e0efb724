//! What one tenant may do at one instant: immutable, and asked without waiting.

use std::fmt;

use chrono::{DateTime, Utc};
use saas_core::{
    FeatureKey, Limit, MeterKey, Revision, TenantId,
    plan::{
        AddOn, Aggregation, FeatureId, MeterId, MeterLimit, PlanCatalog, PlanVersion, StaticValue, VersionId, Window,
    },
    subscription::{AccessLevel, Standing},
};

use crate::{Excess, Override, OverrideGrant, Watched, layers, resolve::with_limit, terms::Former};

/// A feature that was looked up once: a bit position and the catalogue that it belongs to.
///
/// A handle of another catalogue answers `false` instead of another feature's bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureHandle {
    pub(crate) id: FeatureId,
    pub(crate) catalog: u64,
}

impl FeatureHandle {
    /// Looks a feature up.
    #[must_use]
    pub fn of(catalog: &PlanCatalog, key: &FeatureKey) -> Option<Self> {
        Some(Self { id: catalog.feature(key)?.id(), catalog: catalog.fingerprint() })
    }
}

/// How much the answers of a snapshot can be relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Read from the source, within the staleness bound.
    Loaded,
    /// The source has no such tenant: everything is off.
    UnknownTenant,
    /// The source cannot be read: the last known state, which is this old.
    LastKnown {
        /// When it was read.
        read_at: DateTime<Utc>,
    },
    /// The source cannot be read and nothing is known: each feature answers by its fail policy.
    FailPolicy,
}

/// What decides about a tenant, with names resolved against the catalogue.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) revision: Revision,
    pub(crate) bought: VersionId,
    /// By place in the catalogue, ascending, and how many of each.
    pub(crate) addons: Box<[(u16, u32)]>,
    /// Values that are others than the plan's, because of the add-ons; ascending by feature.
    pub(crate) values: Box<[(FeatureId, StaticValue)]>,
    pub(crate) cohorts: Box<[Box<str>]>,
    pub(crate) standing: Standing,
    pub(crate) anchor: Option<DateTime<Utc>>,
    pub(crate) ends_at: Option<DateTime<Utc>>,
    /// Since when the version that was bought is in force.
    pub(crate) since: Option<DateTime<Utc>>,
    /// The plans before it, the latest first.
    pub(crate) before: Box<[Former]>,
    pub(crate) overrides: Box<[(Target, Override)]>,
    /// The windows whose usage was read, because it decides whether the tenant may only read.
    pub(crate) watched: Box<[Watched]>,
    /// What is beyond a limit that lets the tenant only read, in force or not.
    pub(crate) excess: Box<[Excess]>,
}

/// What an override is about, by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Feature(FeatureId),
    Meter(MeterId),
}

/// How long the gate may use a snapshot. Instants are whole microseconds of the gate's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShelfLife {
    /// The gate's flush count when the load began.
    pub(crate) epoch: u64,
    /// The gate's count of announcements when the load began.
    pub(crate) news: u64,
    pub(crate) read_at: DateTime<Utc>,
    pub(crate) refresh_from: DateTime<Utc>,
    pub(crate) fresh_until: DateTime<Utc>,
    /// No load is tried before this, while the last known state serves.
    pub(crate) retry_at: DateTime<Utc>,
    /// The gate's flush count and count of announcements as the last read that failed began.
    pub(crate) failed: (u64, u64),
}

/// What one tenant may do at one instant.
///
/// Hold it for the length of a request: every question is a memory read of a few nanoseconds, and all answers are of the
/// same revision. It does not follow later changes.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) catalog: PlanCatalog,
    pub(crate) fingerprint: u64,
    pub(crate) tenant: TenantId,
    pub(crate) origin: Origin,
    /// The instant that it is true for.
    pub(crate) at: DateTime<Utc>,
    pub(crate) facts: Facts,
    /// The version in force at the instant: the one that was bought, or the default once that has ended.
    pub(crate) version: VersionId,
    pub(crate) access: AccessLevel,
    pub(crate) next_boundary: Option<DateTime<Utc>>,
    pub(crate) enabled: Box<[u64]>,
    pub(crate) life: ShelfLife,
}

impl Snapshot {
    /// Whether a feature is on: a bit test.
    #[must_use]
    #[inline]
    pub fn is_enabled(&self, feature: FeatureHandle) -> bool {
        let index = feature.id.index();
        let word = self.enabled.get(index / 64).copied().unwrap_or(0);
        feature.catalog == self.fingerprint && word >> (index % 64) & 1 == 1
    }

    /// Whether a feature is on, by name; `false` for a name that the catalogue does not have.
    #[must_use]
    pub fn is_feature_enabled(&self, feature: &FeatureKey) -> bool {
        FeatureHandle::of(&self.catalog, feature).is_some_and(|handle| self.is_enabled(handle))
    }

    /// The value of a static feature; `None` where the tenant has none.
    #[must_use]
    pub fn value(&self, feature: &FeatureKey) -> Option<&StaticValue> {
        let id = self.catalog.feature(feature)?.id();
        if !self.is_enabled(FeatureHandle { id, catalog: self.fingerprint }) {
            return None;
        }
        match self.override_of(Target::Feature(id)).map(|found| &found.grant) {
            Some(OverrideGrant::Value { value, .. }) => Some(value),
            Some(OverrideGrant::Switch { .. } | OverrideGrant::Limit { .. }) | None => {
                let of_addons = self.facts.values.binary_search_by_key(&id, |(feature, _)| *feature).ok();
                match of_addons.filter(|_| !self.has_ended()).and_then(|at| self.facts.values.get(at)) {
                    Some((_, value)) => Some(value),
                    None => self.plan_version()?.value(id),
                }
            }
        }
    }

    /// The number that an integer feature has.
    #[must_use]
    pub fn integer(&self, feature: &FeatureKey) -> Option<i64> {
        match self.value(feature)? {
            StaticValue::Integer(number) => Some(*number),
            StaticValue::Text(_) | StaticValue::Json(_) => None,
        }
    }

    /// The text that a text feature has.
    #[must_use]
    pub fn text(&self, feature: &FeatureKey) -> Option<&str> {
        match self.value(feature)? {
            StaticValue::Text(text) => Some(text),
            StaticValue::Integer(_) | StaticValue::Json(_) => None,
        }
    }

    /// The structured data that a JSON feature has.
    #[must_use]
    pub fn json(&self, feature: &FeatureKey) -> Option<&serde_json::Value> {
        match self.value(feature)? {
            StaticValue::Json(value) => Some(value),
            StaticValue::Integer(_) | StaticValue::Text(_) => None,
        }
    }

    /// The limit of a meter, overrides included; `None` where the tenant does not have the meter.
    ///
    /// It says how much the tenant has, not how much is left: only [`Meter::consume`](crate::Meter::consume) can say
    /// that without a race.
    #[must_use]
    pub fn limit(&self, meter: &MeterKey) -> Option<MeterLimit> {
        self.limit_of(self.catalog.meter(meter)?.id())
    }

    pub(crate) fn limit_of(&self, meter: MeterId) -> Option<MeterLimit> {
        let bought = self.plan_version().and_then(|version| layers::limit(version, self.addons(), meter));
        let rule = match self.override_of(Target::Meter(meter)).map(|found| &found.grant) {
            Some(OverrideGrant::Limit { limit, .. }) => Some(with_limit(bought.as_ref(), *limit)),
            Some(OverrideGrant::Switch { .. } | OverrideGrant::Value { .. }) | None => bought,
        };
        let stays = self.catalog.meter_by_id(meter).is_some_and(|meter| meter.aggregation() == Aggregation::Latest);
        // Also where no plan says so, but an add-on or an override gives the limit alone.
        if stays { rule.map(|rule| MeterLimit { window: Window::Lifetime, ..rule }) } else { rule }
    }

    /// The add-ons in force, and how many of each.
    pub fn addons(&self) -> impl Iterator<Item = (&AddOn, u32)> + Clone {
        let ended = self.has_ended();
        layers::addons(&self.catalog, &self.facts).filter(move |_| !ended)
    }

    /// Whether what was bought has ended, and the default plan has taken its place.
    fn has_ended(&self) -> bool {
        self.facts.ends_at.is_some_and(|end| end <= self.at)
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The revision of the state behind it.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.facts.revision
    }

    /// What the answers rest on.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// The plan version in force; `None` while nothing is known about the tenant.
    #[must_use]
    pub fn plan_version(&self) -> Option<&PlanVersion> {
        match self.origin {
            Origin::Loaded | Origin::LastKnown { .. } => self.catalog.version_by_id(self.version),
            Origin::UnknownTenant | Origin::FailPolicy => None,
        }
    }

    /// What the tenant's standing lets it do: nothing for a tenant that does not exist. Under
    /// [`Origin::FailPolicy`] it is full, because nothing is known that would take anything away.
    #[must_use]
    pub const fn access(&self) -> AccessLevel {
        self.access
    }

    /// Whether the plan is paid for: suspended for a tenant that does not exist, and active under
    /// [`Origin::FailPolicy`].
    #[must_use]
    pub const fn standing(&self) -> &Standing {
        &self.facts.standing
    }

    /// The next instant at which an answer changes by itself: the end of a grace period, a trial or an override.
    #[must_use]
    pub const fn next_boundary(&self) -> Option<DateTime<Utc>> {
        self.next_boundary
    }

    /// The instant from which billing windows are counted.
    pub(crate) const fn anchor(&self) -> Option<DateTime<Utc>> {
        self.facts.anchor
    }

    /// The meter that counts uses of a meter: the one whose units pay for it, or itself.
    pub(crate) fn paying<'a>(&'a self, meter: &'a MeterKey) -> &'a MeterKey {
        let declared = self.catalog.meter(meter).map(|meter| self.catalog.paying(meter.id()));
        declared.and_then(|id| self.catalog.meter_by_id(id)).map_or(meter, saas_core::plan::Meter::key)
    }

    /// All limits that the tenant has.
    pub fn limits(&self) -> impl Iterator<Item = (&MeterKey, Limit)> {
        let meters = self.catalog.meters().iter();
        meters.filter_map(|meter| Some((meter.key(), self.limit_of(meter.id())?.limit)))
    }

    pub(crate) fn override_of(&self, target: Target) -> Option<&Override> {
        let live = |found: &&(Target, Override)| found.0 == target && found.1.expires_at > self.at;
        self.facts.overrides.iter().find(live).map(|(_, found)| found)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("tenant", &self.tenant)
            .field("origin", &self.origin)
            .field("revision", &self.facts.revision)
            .field("plan", &self.plan_version().map(|version| version.reference().to_string()))
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
