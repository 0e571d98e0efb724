//! The rules that turn a plan, a standing and overrides into answers. Pure: values and an instant in, a snapshot out.
//!
//! For each feature, in this order:
//! 1. The plan version in force grants it or not. Once a plan has ended, that is the default plan's newest version.
//! 2. Add-ons that were bought beside the plan grant more, or replace what the plan says. They end with the plan.
//! 3. A feature that is being rolled out is off for tenants that are neither in the share nor in a cohort.
//! 4. An override that has not expired replaces the answer so far.
//! 5. The standing can only take away: a feature is off while the access level is below its `min_access`, override or not.
//!    A customer who is suspended gets nothing back by an old exception; an exception *to the suspension* is billing's
//!    (extend the grace period).
//! 6. Usage can take away as well: a tenant that came to its plan with more than a limit that says so allows may only read,
//!    until it has less or the window is over ([`Snapshot::excess`]).
//!
//! A metered feature follows the limit of the meter that pays for it, override included: on where anything above zero may be
//! used.

use chrono::{DateTime, SubsecRound, Utc};
use chrono_tz::Tz;
use saas_core::{
    Limit, Revision, TenantId,
    plan::{
        FailPolicy, Feature, FeatureId, FeatureKind, MeterLimit, OverLimit, Overage, PlanCatalog, PlanChange,
        PlanVersion, VersionId, Window, WindowAnchor,
    },
    subscription::{AccessLevel, PastPlan, Standing},
};

use crate::{
    EntitlementsError, Excess, OverrideGrant, OverrideSubject, TenantState, layers,
    snapshot::{Facts, FeatureHandle, Origin, ShelfLife, Snapshot, Target},
};

/// What a tenant may do at `now`.
///
/// Overrides of features and meters that the catalogue no longer has are left out.
///
/// # Errors
/// [`UnknownPlan`](EntitlementsError::UnknownPlan) and [`UnknownAddOn`](EntitlementsError::UnknownAddOn) when the catalogue
/// lacks what the tenant has. The default plan would be a wrong answer that looks right.
pub fn resolve(
    catalog: &PlanCatalog,
    tenant: TenantId,
    state: TenantState,
    now: DateTime<Utc>,
) -> Result<Snapshot, EntitlementsError> {
    let TenantState { revision, assignment, overrides, cohorts } = state;
    let Some(bought) = catalog.version(&assignment.plan, assignment.version) else {
        return Err(EntitlementsError::UnknownPlan { plan: assignment.plan, version: assignment.version });
    };
    let target = |subject: &OverrideSubject| match subject {
        OverrideSubject::Feature(key) => catalog.feature(key).map(|feature| Target::Feature(feature.id())),
        OverrideSubject::Meter(key) => catalog.meter(key).map(|meter| Target::Meter(meter.id())),
    };
    let overrides = overrides.into_iter().filter_map(|found| Some((target(&found.grant.subject())?, found))).collect();
    let mut addons = Vec::with_capacity(assignment.addons.len());
    for (key, quantity) in assignment.addons {
        let place = catalog.addons().binary_search_by(|addon| addon.key().cmp(&key)).ok();
        let found = place.and_then(|place| Some((u16::try_from(place).ok()?, catalog.addons().get(place)?)));
        let Some((place, addon)) = found else { return Err(EntitlementsError::UnknownAddOn { key }) };
        addons.push((place, quantity.min(addon.max_quantity())));
    }
    addons.retain(|(_, quantity)| *quantity > 0);
    addons.sort_unstable();
    let former = |past: &PastPlan| {
        let version = catalog.version(&past.plan, past.version);
        (past.since.map(stored), version.map(PlanVersion::id))
    };
    let mut facts = Facts {
        revision,
        bought: bought.id(),
        addons: addons.into(),
        values: Box::default(),
        cohorts: cohorts.into(),
        standing: assignment.standing,
        anchor: assignment.anchor,
        ends_at: assignment.ends_at,
        since: assignment.since.map(stored),
        before: assignment.before.iter().map(former).collect(),
        overrides,
        watched: Box::default(),
        excess: Box::default(),
    };
    let features = catalog.features().iter().map(Feature::id);
    facts.values = layers::values(bought, layers::addons(catalog, &facts), features);
    Ok(settle(catalog, tenant, Origin::Loaded, facts, now, ShelfLife::starting(now)))
}

impl Snapshot {
    /// The same state at another instant: what the passing of time alone changes.
    #[must_use]
    pub fn at(&self, now: DateTime<Utc>) -> Self {
        match self.origin {
            Origin::Loaded | Origin::LastKnown { .. } => {
                settle(&self.catalog, self.tenant, self.origin, self.facts.clone(), now, self.life)
            }
            Origin::UnknownTenant | Origin::FailPolicy => Self { at: now, ..self.clone() },
        }
    }

    /// The same state, had this version of the same catalogue been bought at its instant.
    pub(crate) fn on_version(&self, version: &PlanVersion) -> Self {
        let mut facts = self.facts.clone();
        let before = self.facts.before.iter().copied();
        facts.before = [(facts.since, Some(facts.bought))].into_iter().chain(before).collect();
        (facts.bought, facts.since) = (version.id(), Some(self.at));
        (facts.watched, facts.excess) = Default::default();
        let features = self.catalog.features().iter().map(Feature::id);
        facts.values = layers::values(version, layers::addons(&self.catalog, &facts), features);
        settle(&self.catalog, self.tenant, self.origin, facts, self.at, self.life)
    }

    /// The same state for as long as the source cannot be read.
    pub(crate) fn as_last_known(&self, now: DateTime<Utc>) -> Self {
        let origin = match self.origin {
            Origin::Loaded => Origin::LastKnown { read_at: self.life.read_at },
            other => other,
        };
        Self { origin, ..self.at(now) }
    }

    /// A tenant that does not exist: everything is off.
    pub(crate) fn unknown(catalog: &PlanCatalog, tenant: TenantId, now: DateTime<Utc>) -> Self {
        Self::blank(catalog, tenant, Origin::UnknownTenant, now, vec![0; words(catalog)].into())
    }

    /// Nothing is known: each feature answers by its fail policy.
    pub(crate) fn by_fail_policy(catalog: &PlanCatalog, tenant: TenantId, now: DateTime<Utc>) -> Self {
        let mut enabled = vec![0; words(catalog)];
        for feature in catalog.features() {
            set(&mut enabled, feature.id(), feature.fail_policy() == FailPolicy::Open);
        }
        Self::blank(catalog, tenant, Origin::FailPolicy, now, enabled.into())
    }

    fn blank(catalog: &PlanCatalog, tenant: TenantId, origin: Origin, now: DateTime<Utc>, enabled: Box<[u64]>) -> Self {
        let version = catalog.default_version().id();
        let unknown = origin == Origin::UnknownTenant;
        let facts = Facts {
            revision: Revision::NONE,
            bought: version,
            addons: Box::default(),
            values: Box::default(),
            cohorts: Box::default(),
            standing: if unknown { Standing::Suspended { since: now } } else { Standing::Active },
            anchor: None,
            ends_at: None,
            since: None,
            before: Box::default(),
            overrides: Box::default(),
            watched: Box::default(),
            excess: Box::default(),
        };
        Self {
            catalog: catalog.clone(),
            fingerprint: catalog.fingerprint(),
            tenant,
            origin,
            at: now,
            facts,
            version,
            access: if unknown { AccessLevel::Suspended } else { AccessLevel::Full },
            next_boundary: None,
            enabled,
            life: ShelfLife::starting(now),
        }
    }
}

impl ShelfLife {
    /// A life that ends as it starts.
    pub(crate) const fn starting(now: DateTime<Utc>) -> Self {
        Self { epoch: 0, news: 0, read_at: now, refresh_from: now, fresh_until: now, retry_at: now, failed: (0, 0) }
    }
}

/// An instant as the database stores it: it names windows.
fn stored(instant: DateTime<Utc>) -> DateTime<Utc> {
    instant.trunc_subsecs(6)
}

/// The plan's rule with another limit; a blocking calendar month where the plan has no rule.
pub(crate) fn with_limit(planned: Option<&MeterLimit>, limit: Limit) -> MeterLimit {
    let warn =
        |warn: &[u16]| if matches!(limit, Limit::Unlimited | Limit::Max(0)) { Box::default() } else { warn.into() };
    match planned {
        Some(rule) => {
            // Nothing is ever left of what has no end.
            let rollover = rule.rollover.filter(|_| limit != Limit::Unlimited);
            MeterLimit { limit, warn: warn(&rule.warn), rollover, ..rule.clone() }
        }
        None => MeterLimit {
            limit,
            window: Window::Month,
            anchor: WindowAnchor::Calendar,
            time_zone: Tz::UTC,
            overage: Overage::Block,
            overage_max: None,
            rollover: None,
            on_plan_change: PlanChange::Keep,
            over_limit: OverLimit::Block,
            per_member: None,
            warn: warn(&[80, 100]),
        },
    }
}

fn settle(
    catalog: &PlanCatalog,
    tenant: TenantId,
    origin: Origin,
    facts: Facts,
    now: DateTime<Utc>,
    life: ShelfLife,
) -> Snapshot {
    let version = version_in_force(catalog, &facts, now);
    let access = facts.standing.access(now);
    let mut snapshot = Snapshot {
        catalog: catalog.clone(),
        fingerprint: catalog.fingerprint(),
        tenant,
        origin,
        at: now,
        version: version.id(),
        access,
        next_boundary: next_boundary(&facts, now),
        facts,
        enabled: version.granted_words().into(),
        life,
    };
    let mut enabled = std::mem::take(&mut snapshot.enabled);
    let access = left(&snapshot);
    for feature in catalog.features() {
        let on = entitled(&snapshot, version, feature) && access >= feature.min_access();
        set(&mut enabled, feature.id(), on);
    }
    snapshot.enabled = enabled;
    snapshot
}

/// What standing and usage leave of the access to features.
pub(crate) fn left(snapshot: &Snapshot) -> AccessLevel {
    let read_only = snapshot.excess().map(|_| AccessLevel::Restricted);
    read_only.map_or(snapshot.access, |read_only| read_only.min(snapshot.access))
}

/// Whether plan, add-ons, roll-out and overrides give the feature, before the standing takes away.
pub(crate) fn entitled(snapshot: &Snapshot, version: &PlanVersion, feature: &Feature) -> bool {
    match snapshot.override_of(Target::Feature(feature.id())).map(|found| &found.grant) {
        Some(OverrideGrant::Switch { on, .. }) => return *on,
        Some(OverrideGrant::Value { .. }) => return true,
        Some(OverrideGrant::Limit { .. }) | None => {}
    }
    bought_feature(snapshot, version, feature) && rolled_out(snapshot, feature)
}

/// Whether plan and add-ons give the feature; of a metered one also the override of its limit.
pub(crate) fn bought_feature(snapshot: &Snapshot, version: &PlanVersion, feature: &Feature) -> bool {
    if let FeatureKind::Metered { meter } = feature.kind() {
        let paying = snapshot.catalog.paying(meter);
        return snapshot.limit_of(paying).is_some_and(|rule| rule.limit != Limit::Max(0));
    }
    version.grants(feature.id()) || snapshot.addons().any(|(addon, _)| addon.grants(feature.id()))
}

/// Whether a roll-out lets the tenant have the feature.
pub(crate) fn rolled_out(snapshot: &Snapshot, feature: &Feature) -> bool {
    let rollout = feature.rollout();
    rollout.is_none_or(|rollout| rollout.includes(feature.key(), snapshot.tenant, &snapshot.facts.cohorts))
}

fn version_in_force<'a>(catalog: &'a PlanCatalog, facts: &Facts, now: DateTime<Utc>) -> &'a PlanVersion {
    if facts.ends_at.is_some_and(|end| end <= now) {
        return catalog.default_version();
    }
    bought(catalog, facts.bought)
}

fn bought(catalog: &PlanCatalog, id: VersionId) -> &PlanVersion {
    // The id comes from this very catalogue, so the default is never taken.
    catalog.version_by_id(id).unwrap_or_else(|| catalog.default_version())
}

fn next_boundary(facts: &Facts, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let expiries = facts.overrides.iter().map(|(_, found)| found.expires_at);
    let excess = facts.excess.iter().flat_map(Excess::bounds);
    let ends = facts.ends_at.into_iter().chain(facts.standing.next_boundary(now)).chain(expiries).chain(excess);
    ends.filter(|instant| *instant > now).min()
}

fn words(catalog: &PlanCatalog) -> usize {
    catalog.features().len().div_ceil(64)
}

fn set(words: &mut [u64], feature: FeatureId, on: bool) {
    let index = feature.index();
    if let Some(word) = words.get_mut(index / 64) {
        let bit = 1 << (index % 64);
        *word = if on { *word | bit } else { *word & !bit };
    }
}

/// A handle for a feature of the snapshot's own catalogue.
pub(crate) fn handle(snapshot: &Snapshot, feature: &Feature) -> FeatureHandle {
    FeatureHandle { id: feature.id(), catalog: snapshot.fingerprint }
}
