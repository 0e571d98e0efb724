//! The catalogue itself: immutable, shared, cheap to clone.

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use super::{
    AddOn, CatalogError, Feature, FeatureId, Meter, MeterId, Plan, PlanVersion, PlanVersionRef, VersionId,
    compile::{Compiled, compile, compile_bytes},
    fnv::Fnv1a,
};
use crate::{AddOnKey, FeatureKey, MeterKey, PlanKey};

/// Everything that is sold, checked as a whole.
///
/// A clone is another handle to the same data. Two catalogues that grant the same have the same
/// [`fingerprint`](Self::fingerprint), whatever the order and the comments of their files.
#[derive(Debug, Clone)]
pub struct PlanCatalog(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    features: Box<[Feature]>,
    meters: Box<[Meter]>,
    /// Ascending by rank.
    plans: Box<[Plan]>,
    /// Ascending by name.
    addons: Box<[AddOn]>,
    /// The plan and the place in it, by version id.
    versions: Box<[(usize, usize)]>,
    /// The version of tenants that bought nothing.
    default_version: VersionId,
    by_plan: HashMap<PlanKey, usize>,
    by_price: HashMap<Box<str>, PlanVersionRef>,
    /// What prices are called in the file, by what the payment provider calls them.
    price_names: HashMap<Box<str>, Box<str>>,
    fingerprint: u64,
}

impl PlanCatalog {
    /// Reads a catalogue file.
    ///
    /// # Errors
    /// With every mistake of the file at once; see [`CatalogError::faults`]. A file that is not TOML at all reports its
    /// syntax errors first.
    pub fn from_toml(text: &str) -> Result<Self, CatalogError> {
        compile(text).map(Self::new)
    }

    /// Reads a catalogue file that has not been checked to be UTF-8.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml), and when the bytes are not UTF-8.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CatalogError> {
        compile_bytes(bytes).map(Self::new)
    }

    /// All features by id.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.0.features
    }

    /// All meters by id.
    #[must_use]
    pub fn meters(&self) -> &[Meter] {
        &self.0.meters
    }

    /// All plans, lowest rank first.
    #[must_use]
    pub fn plans(&self) -> &[Plan] {
        &self.0.plans
    }

    /// The feature of that name.
    #[must_use]
    pub fn feature(&self, key: &FeatureKey) -> Option<&Feature> {
        let at = self.0.features.binary_search_by(|feature| feature.key().cmp(key)).ok()?;
        self.0.features.get(at)
    }

    /// The feature at that place.
    #[must_use]
    pub fn feature_by_id(&self, id: FeatureId) -> Option<&Feature> {
        self.0.features.get(id.index())
    }

    /// The meter of that name.
    #[must_use]
    pub fn meter(&self, key: &MeterKey) -> Option<&Meter> {
        let at = self.0.meters.binary_search_by(|meter| meter.key().cmp(key)).ok()?;
        self.0.meters.get(at)
    }

    /// The meter at that place.
    #[must_use]
    pub fn meter_by_id(&self, id: MeterId) -> Option<&Meter> {
        self.0.meters.get(id.index())
    }

    /// The plan of that name.
    #[must_use]
    pub fn plan(&self, key: &PlanKey) -> Option<&Plan> {
        self.0.plans.get(*self.0.by_plan.get(key)?)
    }

    /// All add-ons by name.
    #[must_use]
    pub fn addons(&self) -> &[AddOn] {
        &self.0.addons
    }

    /// The add-on of that name.
    #[must_use]
    pub fn addon(&self, key: &AddOnKey) -> Option<&AddOn> {
        let at = self.0.addons.binary_search_by(|addon| addon.key().cmp(key)).ok()?;
        self.0.addons.get(at)
    }

    /// The meter whose limit and counter a use of the meter falls under: the balance that it draws on, or itself.
    #[must_use]
    pub fn paying(&self, meter: MeterId) -> MeterId {
        self.meter_by_id(meter).and_then(Meter::credit).map_or(meter, |credit| credit.of)
    }

    /// One version of a plan; the newest that is active for `None`.
    #[must_use]
    pub fn version(&self, plan: &PlanKey, version: Option<u32>) -> Option<&PlanVersion> {
        self.plan(plan)?.version(version)
    }

    /// The version at that place.
    #[must_use]
    pub fn version_by_id(&self, id: VersionId) -> Option<&PlanVersion> {
        let (plan, version) = self.0.versions.get(id.index())?;
        self.0.plans.get(*plan)?.versions.get(*version)
    }

    /// The plan of tenants that bought nothing, in its newest active version.
    #[must_use]
    pub fn default_version(&self) -> &PlanVersion {
        let (plan, version) = self.0.versions[self.0.default_version.index()];
        &self.0.plans[plan].versions[version]
    }

    /// The plan version that a price of the payment provider buys. A price belongs to one version.
    #[must_use]
    pub fn plan_for_price(&self, price: &str) -> Option<PlanVersionRef> {
        self.0.by_price.get(self.price_name(price)).cloned()
    }

    /// The add-on that a price of the payment provider buys.
    #[must_use]
    pub fn addon_for_price(&self, price: &str) -> Option<&AddOn> {
        let name = self.price_name(price);
        self.0.addons.iter().find(|addon| addon.prices().any(|own| own == name))
    }

    /// What a price is called in the file; its own id where the file names that.
    fn price_name<'a>(&'a self, price: &'a str) -> &'a str {
        self.0.price_names.get(price).map_or(price, AsRef::as_ref)
    }

    /// The same catalogue, which also knows the payment provider's ids of prices that the file calls by a name: pairs of id
    /// and name, beside those it knows already. A name can have several: every price that was ever sold under it.
    #[must_use]
    pub fn with_price_ids(&self, ids: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.price_names.extend(ids.into_iter().map(|(id, name)| (id.into(), name.into())));
        Self(Arc::new(inner))
    }

    /// The newest version of the lowest-ranked offered plan of at least `min_rank` that has the feature: the upgrade
    /// hint.
    #[must_use]
    pub fn cheapest_with(&self, feature: FeatureId, min_rank: u32) -> Option<&PlanVersion> {
        self.newest_offered(min_rank).find(|version| version.grants(feature))
    }

    /// As [`cheapest_with`](Self::cheapest_with), by any condition on the version.
    #[must_use]
    pub fn cheapest_where(&self, min_rank: u32, wanted: impl Fn(&PlanVersion) -> bool) -> Option<&PlanVersion> {
        self.newest_offered(min_rank).find(|version| wanted(version))
    }

    /// 64 bits that differ between catalogues that grant differently. Part of every shared cache key, so that old and
    /// new binaries do not read each other's bit positions during a deployment. Not a cryptographic hash.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.0.fingerprint
    }

    fn newest_offered(&self, min_rank: u32) -> impl Iterator<Item = &PlanVersion> {
        let plans = self.0.plans.iter().filter(move |plan| plan.is_offered() && plan.rank() >= min_rank);
        plans.filter_map(|plan| plan.version(None))
    }

    fn new(compiled: Compiled) -> Self {
        let Compiled { features, meters, mut plans, addons, default_plan } = compiled;
        plans.sort_by_key(Plan::rank);
        let mut versions = Vec::new();
        for (at, plan) in plans.iter_mut().enumerate() {
            for (place, version) in plan.versions.iter_mut().enumerate() {
                // The size of a file bounds the number of versions far below 32 bits.
                version.id = VersionId(u32::try_from(versions.len()).unwrap_or(u32::MAX));
                versions.push((at, place));
            }
        }
        let by_plan: HashMap<_, _> = plans.iter().enumerate().map(|(at, plan)| (plan.key().clone(), at)).collect();
        let all = plans.iter().flat_map(Plan::versions);
        let by_price = all.flat_map(|v| v.prices().map(|price| (price.into(), v.reference().clone()))).collect();
        // That it has an active version was checked.
        let bought_nothing =
            by_plan.get(&default_plan).and_then(|at| plans.get(*at)).and_then(|plan| plan.version(None));
        let default_version = bought_nothing.map_or(VersionId(0), PlanVersion::id);
        let fingerprint = fingerprint(&features, &meters, &plans, &addons, default_version);
        Self(Arc::new(Inner {
            features: features.into(),
            meters: meters.into(),
            plans: plans.into(),
            versions: versions.into(),
            addons: addons.into(),
            default_version,
            by_plan,
            by_price,
            price_names: HashMap::new(),
            fingerprint,
        }))
    }
}

/// Hashes what the catalogue grants, in one fixed spelling.
fn fingerprint(
    features: &[Feature],
    meters: &[Meter],
    plans: &[Plan],
    addons: &[AddOn],
    default_version: VersionId,
) -> u64 {
    let mut hash = Fnv1a::START;
    let mut write = |line: std::fmt::Arguments<'_>| {
        // Writing to a number cannot fail.
        let _ = hash.write_fmt(line);
    };
    for f in features {
        write(format_args!("feature {} {:?} {:?} {:?}", f.key, f.kind, f.fail, f.min_access));
        write(format_args!(" {:?} {:?}\n", f.options, f.rollout));
    }
    for m in meters {
        write(format_args!("meter {} {:?} {:?}", m.key, m.aggregation, m.min_access));
        write(format_args!(" {:?} {}\n", m.credit, m.late_hours));
    }
    for plan in plans {
        write(format_args!("plan {} {} {}\n", plan.key, plan.rank, plan.offered));
        for v in plan.versions() {
            write(format_args!("version {} {:?} {}", v.reference.version, v.state, v.id == default_version));
            write(format_args!(" {} {:?}\n", v.trial_days, v.granted));
            write(format_args!("{:?} {:?} {:?}\n", v.prices, v.values, v.limits));
        }
    }
    for a in addons {
        write(format_args!("addon {} {:?} {} {:?}", a.key, a.mode, a.max_quantity, a.prices));
        write(format_args!(" {:?} {:?} {:?}\n", a.granted, a.values, a.limits));
    }
    hash.get()
}
