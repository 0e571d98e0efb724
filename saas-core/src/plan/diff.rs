//! What changes between two catalogues, as data and in words: to be read before a new file is put in force.
//!
//! Owns the comparison and how grave each difference is. It looks at what tenants would notice; comments and the order of a
//! file do not count. Who is on a version is asked of the caller, because the catalogue does not know its tenants.

use std::fmt;

use serde::Serialize;

use super::{AddOn, Feature, Meter, MeterLimit, Plan, PlanCatalog, PlanVersion, PlanVersionRef, VersionState};
use crate::{AddOnKey, FeatureKey, MeterKey, PlanKey};

/// How grave a difference is. Ordered: the later is the graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// No tenant has anything else because of it.
    Harmless,
    /// Tenants would have something else than they bought or were used to.
    Changes,
    /// What tenants have would no longer be found, or what was counted would mean something else.
    Breaks,
}

/// What a difference is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", content = "key", rename_all = "snake_case")]
pub enum Subject {
    /// The catalogue as a whole.
    Catalog,
    /// A feature.
    Feature(FeatureKey),
    /// A meter.
    Meter(MeterKey),
    /// A plan.
    Plan(PlanKey),
    /// One version of a plan.
    Version(PlanVersionRef),
    /// An add-on.
    AddOn(AddOnKey),
    /// A price of the payment provider.
    Price(Box<str>),
}

/// One difference. Displayed as a sentence such as `` `pro@2`: api-calls 1000 per month → 5000 per month; … ``.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it is about.
    pub subject: Subject,
    /// Which setting of it, in the words of the file; `None` where the subject itself came or went.
    pub setting: Option<Box<str>>,
    /// What it was; `None` where there was nothing.
    pub from: Option<Box<str>>,
    /// What it is; `None` where there is nothing.
    pub to: Option<Box<str>>,
    /// How grave it is.
    pub severity: Severity,
    /// What it means and what to do about it, where that is not plain.
    pub advice: Option<Box<str>>,
}

impl PlanCatalog {
    /// What differs in `new`, in the order features, meters, plans, add-ons, prices.
    ///
    /// A version or an add-on that is gone counts as one that somebody is on; [`diff_with`](Self::diff_with) asks.
    #[must_use]
    pub fn diff(&self, new: &Self) -> Vec<Change> {
        self.diff_with(new, |_| None)
    }

    /// As [`diff`](Self::diff). `holders` says how many tenants are on a version or have an add-on that is gone, with
    /// `None` for "not known": one that nobody has goes harmlessly.
    #[must_use]
    pub fn diff_with(&self, new: &Self, holders: impl Fn(&Subject) -> Option<u64>) -> Vec<Change> {
        let mut diff = Diff { old: self, new, holders: &holders, changes: Vec::new() };
        diff.features();
        diff.meters();
        diff.plans();
        diff.addons();
        diff.prices();
        diff.changes
    }
}

/// Refuses a new catalogue that differs more gravely than is allowed: the check of a pipeline.
///
/// ```
/// use saas_core::plan::{PlanCatalog, Severity, refuse_above};
/// # let text = "default_plan = 'free'\n[features.csv]\nkind = 'boolean'\nfail = 'closed'\n\
/// #     [plans.free]\nrank = 0\n[[plans.free.versions]]\nversion = 1\n";
/// let (released, edited) = (PlanCatalog::from_toml(text)?, PlanCatalog::from_toml(&format!("{text}grants.csv = true"))?);
/// let refused = refuse_above(Severity::Harmless, released.diff(&edited)).unwrap_err();
/// assert_eq!(
///     refused.to_string(),
///     "1 change of the plan catalogue is graver than allowed:\n\
///      - `free@1`: csv none → granted; edited in place: tenants on it would change, make version 2 instead"
/// );
/// # Ok::<_, saas_core::CatalogError>(())
/// ```
///
/// # Errors
/// With every change that is graver than `allowed`.
pub fn refuse_above(allowed: Severity, changes: Vec<Change>) -> Result<Vec<Change>, RefusedChanges> {
    let grave: Vec<_> = changes.iter().filter(|change| change.severity > allowed).cloned().collect();
    if grave.is_empty() { Ok(changes) } else { Err(RefusedChanges(grave)) }
}

/// The changes for which a new catalogue is refused; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedChanges(Vec<Change>);

impl RefusedChanges {
    /// All of them.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.0
    }
}

impl fmt::Display for RefusedChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, are) = (self.0.len(), if self.0.len() == 1 { "change" } else { "changes" });
        let verb = if self.0.len() == 1 { "is" } else { "are" };
        write!(f, "{count} {are} of the plan catalogue {verb} graver than allowed:")?;
        self.0.iter().try_for_each(|change| write!(f, "\n- {change}"))
    }
}

impl std::error::Error for RefusedChanges {}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog => f.write_str("the catalogue"),
            Self::Feature(key) => write!(f, "feature `{key}`"),
            Self::Meter(key) => write!(f, "meter `{key}`"),
            Self::Plan(key) => write!(f, "plan `{key}`"),
            Self::Version(version) => write!(f, "`{version}`"),
            Self::AddOn(key) => write!(f, "add-on `{key}`"),
            Self::Price(price) => write!(f, "price {price:?}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subject)?;
        let or_none = |text: &Option<Box<str>>| text.as_deref().unwrap_or("none").to_owned();
        match (&self.setting, &self.from, &self.to) {
            (Some(setting), from, to) => write!(f, ": {setting} {} → {}", or_none(from), or_none(to))?,
            (None, None, Some(to)) => write!(f, " added, {to}")?,
            (None, Some(_), None) => f.write_str(" removed")?,
            (None, from, to) => write!(f, " moved from {} to {}", or_none(from), or_none(to))?,
        }
        self.advice.iter().try_for_each(|advice| write!(f, "; {advice}"))
    }
}

/// A comparison that is under way.
struct Diff<'a> {
    old: &'a PlanCatalog,
    new: &'a PlanCatalog,
    holders: &'a dyn Fn(&Subject) -> Option<u64>,
    changes: Vec<Change>,
}

impl Diff<'_> {
    fn add(&mut self, subject: Subject, severity: Severity, is: impl Into<Box<str>>) {
        let to = Some(is.into());
        self.changes.push(Change { subject, setting: None, from: None, to, severity, advice: None });
    }

    /// Something that tenants may have is gone.
    fn gone(&mut self, subject: Subject) {
        let (severity, advice) = match (self.holders)(&subject) {
            Some(0) => (Severity::Harmless, None),
            Some(1) => (Severity::Breaks, Some("1 tenant has it: keep it, archived".to_owned())),
            Some(count) => (Severity::Breaks, Some(format!("{count} tenants have it: keep it, archived"))),
            None => (Severity::Breaks, Some("keep it while a tenant may have it".to_owned())),
        };
        let from = Some(subject.to_string().into());
        let advice = advice.map(Into::into);
        self.changes.push(Change { subject, setting: None, from, to: None, severity, advice });
    }

    /// A setting, if it is another one.
    fn setting(&mut self, subject: &Subject, setting: &str, severity: Severity, from: Told, to: Told, advice: Told) {
        if from != to {
            let (setting, from, to) = (Some(setting.into()), from.map(Into::into), to.map(Into::into));
            let advice = advice.map(Into::into);
            self.changes.push(Change { subject: subject.clone(), setting, from, to, severity, advice });
        }
    }

    fn features(&mut self) {
        let (old, new) = (self.old, self.new);
        for was in old.features().iter().filter(|was| new.feature(was.key()).is_none()) {
            let subject = Subject::Feature(was.key().clone());
            let (from, advice) = (Some(subject.to_string().into()), "code that asks for it is answered off".into());
            let severity = Severity::Breaks;
            self.changes.push(Change { subject, setting: None, from, to: None, severity, advice: Some(advice) });
        }
        for is in new.features() {
            let subject = Subject::Feature(is.key().clone());
            let Some(was) = old.feature(is.key()) else {
                self.add(subject, Severity::Harmless, format!("fails {}", word(is.fail_policy())));
                continue;
            };
            let breaks = Some("overrides and code of the old kind would not fit".to_owned());
            self.setting(&subject, "kind", Severity::Breaks, kind(old, was), kind(new, is), breaks);
            let fail = |of: &Feature| Some(word(of.fail_policy()));
            self.setting(&subject, "fail", Severity::Changes, fail(was), fail(is), None);
            let access = |of: &Feature| Some(word(of.min_access()));
            self.setting(&subject, "min_access", Severity::Changes, access(was), access(is), None);
            let options = |of: &Feature| Some(of.options().collect::<Vec<_>>().join(", "));
            let lost = was.options().any(|option| !is.options().any(|kept| kept == option));
            let grave = if lost { Severity::Changes } else { Severity::Harmless };
            self.setting(&subject, "options", grave, options(was), options(is), None);
            self.setting(&subject, "rollout", Severity::Changes, rollout(was), rollout(is), None);
        }
    }

    fn meters(&mut self) {
        let (old, new) = (self.old, self.new);
        for was in old.meters().iter().filter(|was| new.meter(was.key()).is_none()) {
            let subject = Subject::Meter(was.key().clone());
            let (from, advice) =
                (Some(subject.to_string().into()), "what was counted under it is lost to sight".into());
            let severity = Severity::Breaks;
            self.changes.push(Change { subject, setting: None, from, to: None, severity, advice: Some(advice) });
        }
        for is in new.meters() {
            let subject = Subject::Meter(is.key().clone());
            let Some(was) = old.meter(is.key()) else {
                self.add(subject, Severity::Harmless, is.aggregation().as_str());
                continue;
            };
            let aggregation = |of: &Meter| Some(of.aggregation().as_str().to_owned());
            let advice = Some("what was counted so far would mean something else: make a new meter".to_owned());
            self.setting(&subject, "aggregation", Severity::Breaks, aggregation(was), aggregation(is), advice);
            self.setting(&subject, "credit", Severity::Changes, credit(old, was), credit(new, is), None);
            let access = |of: &Meter| Some(word(of.min_access()));
            self.setting(&subject, "min_access", Severity::Changes, access(was), access(is), None);
            let late = |of: &Meter| Some(of.late_hours().to_string());
            self.setting(&subject, "late_hours", Severity::Changes, late(was), late(is), None);
        }
    }

    fn plans(&mut self) {
        let (old, new) = (self.old, self.new);
        for was in old.plans().iter().filter(|was| new.plan(was.key()).is_none()) {
            was.versions().iter().for_each(|version| self.gone(Subject::Version(version.reference().clone())));
        }
        for is in new.plans() {
            let subject = Subject::Plan(is.key().clone());
            let Some(was) = old.plan(is.key()) else {
                self.add(subject, Severity::Harmless, format!("rank {}", is.rank()));
                continue;
            };
            let rank = |of: &Plan| Some(of.rank().to_string());
            self.setting(&subject, "rank", Severity::Harmless, rank(was), rank(is), None);
            let offered = |of: &Plan| Some(of.is_offered().to_string());
            self.setting(&subject, "offered", Severity::Harmless, offered(was), offered(is), None);
            self.versions(was, is);
            let newest = |of: &Plan| of.version(None).map(|version| version.reference().to_string());
            let advice = Some("tenants whose assignment names no version follow it".to_owned());
            self.setting(&subject, "newest active", Severity::Changes, newest(was), newest(is), advice);
        }
        let default = |of: &PlanCatalog| Some(of.default_version().reference().plan.to_string());
        let advice = Some("it is what tenants that bought nothing have".to_owned());
        self.setting(&Subject::Catalog, "default_plan", Severity::Changes, default(old), default(new), advice);
    }

    fn versions(&mut self, was: &Plan, is: &Plan) {
        let number = |version: &PlanVersion| Some(version.reference().version);
        let next = is.versions().iter().filter_map(number).max().unwrap_or(0).saturating_add(1);
        for version in was.versions().iter().filter(|version| is.version(number(version)).is_none()) {
            self.gone(Subject::Version(version.reference().clone()));
        }
        for version in is.versions() {
            let subject = Subject::Version(version.reference().clone());
            match was.version(number(version)) {
                None => self.add(subject, Severity::Harmless, word(version.state())),
                Some(before) => self.version(&subject, before, version, next),
            }
        }
    }

    fn version(&mut self, subject: &Subject, was: &PlanVersion, is: &PlanVersion, next: u32) {
        let state = |of: &PlanVersion| Some(word(of.state()));
        self.setting(subject, "state", Severity::Harmless, state(was), state(is), None);
        let trial = |of: &PlanVersion| Some(of.trial_days().to_string());
        self.setting(subject, "trial_days", Severity::Harmless, trial(was), trial(is), None);
        // Nobody has a draft: it may be edited.
        let (severity, advice) = if was.state() == VersionState::Draft {
            (Severity::Harmless, None)
        } else {
            let advice = format!("edited in place: tenants on it would change, make version {next} instead");
            (Severity::Changes, Some(advice))
        };
        let (old, new) = (self.old, self.new);
        for key in keys(old.features(), new.features(), Feature::key) {
            let grant = |catalog: &PlanCatalog, of: &PlanVersion| {
                // A metered feature follows its limit, which is told as such.
                let feature = catalog.feature(key).filter(|feature| !is_metered(feature))?;
                let granted = of.grants(feature.id()).then(|| "granted".to_owned());
                of.value(feature.id()).map(ToString::to_string).or(granted)
            };
            self.setting(subject, key.as_str(), severity, grant(old, was), grant(new, is), advice.clone());
        }
        for key in keys(old.meters(), new.meters(), Meter::key) {
            let rule = |catalog: &PlanCatalog, of: &PlanVersion| Some(limit(of.limit(catalog.meter(key)?.id())?));
            self.setting(subject, key.as_str(), severity, rule(old, was), rule(new, is), advice.clone());
        }
    }

    fn addons(&mut self) {
        let (old, new) = (self.old, self.new);
        for was in old.addons().iter().filter(|was| new.addon(was.key()).is_none()) {
            self.gone(Subject::AddOn(was.key().clone()));
        }
        for is in new.addons() {
            let subject = Subject::AddOn(is.key().clone());
            let Some(was) = old.addon(is.key()) else {
                self.add(subject, Severity::Harmless, format!("up to {} of it", is.max_quantity()));
                continue;
            };
            let advice = Some("tenants that have it would change, make another add-on instead".to_owned());
            let mode = |of: &AddOn| Some(word(of.mode()));
            self.setting(&subject, "mode", Severity::Changes, mode(was), mode(is), advice.clone());
            let most = |of: &AddOn| Some(of.max_quantity().to_string());
            let fewer = is.max_quantity() < was.max_quantity();
            let severity = if fewer { Severity::Changes } else { Severity::Harmless };
            self.setting(&subject, "max_quantity", severity, most(was), most(is), None);
            for key in keys(old.features(), new.features(), Feature::key) {
                let grant = |catalog: &PlanCatalog, of: &AddOn| {
                    let feature = catalog.feature(key).filter(|feature| !is_metered(feature))?;
                    let granted = of.grants(feature.id()).then(|| "granted".to_owned());
                    of.value(feature.id()).map(ToString::to_string).or(granted)
                };
                let (from, to) = (grant(old, was), grant(new, is));
                self.setting(&subject, key.as_str(), Severity::Changes, from, to, advice.clone());
            }
            for key in keys(old.meters(), new.meters(), Meter::key) {
                let units = |catalog: &PlanCatalog, of: &AddOn| Some(of.limit(catalog.meter(key)?.id())?.to_string());
                let (from, to) = (units(old, was), units(new, is));
                self.setting(&subject, key.as_str(), Severity::Changes, from, to, advice.clone());
            }
        }
    }

    fn prices(&mut self) {
        let (old, new) = (sold(self.old), sold(self.new));
        for price in keys(&old, &new, |(price, _)| price) {
            let owner = |of: &[(Box<str>, String)]| {
                let at = of.binary_search_by(|(own, _)| own.cmp(price)).ok()?;
                of.get(at).map(|(_, owner)| owner.as_str().into())
            };
            let (from, to): (Option<Box<str>>, Option<Box<str>>) = (owner(&old), owner(&new));
            let (severity, advice) = match (&from, &to) {
                (Some(from), Some(to)) if from == to => continue,
                (None, _) => (Severity::Harmless, None),
                (Some(_), Some(_)) => (Severity::Changes, Some("whoever pays it would change".into())),
                (Some(_), None) => {
                    (Severity::Breaks, Some("a subscription that pays it would buy nothing known".into()))
                }
            };
            let to = to.map(|owner: Box<str>| if from.is_none() { format!("buys {owner}").into() } else { owner });
            let subject = Subject::Price(price.clone());
            self.changes.push(Change { subject, setting: None, from, to, severity, advice });
        }
    }
}

type Told = Option<String>;

/// The keys of both lists, once each, ascending.
fn keys<'a, T, K: Ord>(old: &'a [T], new: &'a [T], key: impl Fn(&'a T) -> &'a K) -> Vec<&'a K> {
    let mut keys: Vec<_> = old.iter().chain(new).map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Every price with what it buys, ascending.
fn sold(catalog: &PlanCatalog) -> Vec<(Box<str>, String)> {
    let versions = catalog.plans().iter().flat_map(Plan::versions);
    let of_versions = versions.flat_map(|v| v.prices().map(|price| (price.into(), format!("`{}`", v.reference()))));
    let of_addons = catalog.addons().iter();
    let of_addons = of_addons.flat_map(|a| a.prices().map(|price| (price.into(), format!("add-on `{}`", a.key()))));
    let mut sold: Vec<_> = of_versions.chain(of_addons).collect();
    sold.sort_unstable();
    sold
}

/// How the file spells a value of ours: in lower case.
fn word(value: impl fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn is_metered(feature: &Feature) -> bool {
    matches!(feature.kind(), super::FeatureKind::Metered { .. })
}

fn kind(catalog: &PlanCatalog, feature: &Feature) -> Told {
    Some(match feature.kind() {
        super::FeatureKind::Metered { meter } => {
            let meter = catalog.meter_by_id(meter).map(|meter| meter.key().as_str());
            format!("metered by {}", meter.unwrap_or_default())
        }
        super::FeatureKind::Boolean => "boolean".to_owned(),
        super::FeatureKind::Integer => "integer".to_owned(),
        super::FeatureKind::Text => "text".to_owned(),
        super::FeatureKind::OneOf => "one-of".to_owned(),
        super::FeatureKind::Json => "json".to_owned(),
    })
}

fn rollout(feature: &Feature) -> Told {
    let rollout = feature.rollout()?;
    let (whole, tenth) = (rollout.permille / 10, rollout.permille % 10);
    let cohorts =
        if rollout.cohorts.is_empty() { String::new() } else { format!(" and {}", rollout.cohorts.join(", ")) };
    Some(format!("{whole}.{tenth} %{cohorts}"))
}

fn credit(catalog: &PlanCatalog, meter: &Meter) -> Told {
    let credit = meter.credit()?;
    let of = catalog.meter_by_id(credit.of).map(|meter| meter.key().as_str());
    Some(format!("{} of {}", credit.cost, of.unwrap_or_default()))
}

/// Such as `1000 per month, block`: everything in which two limits can differ.
fn limit(rule: &MeterLimit) -> String {
    let MeterLimit {
        limit,
        window,
        anchor,
        time_zone,
        overage,
        overage_max,
        rollover,
        on_plan_change,
        over_limit,
        per_member,
        warn,
    } = rule;
    let mut text = format!("{limit} per {window}, {}", overage.as_str());
    let mut more = |clause: String| {
        text.push_str(", ");
        text.push_str(&clause);
    };
    overage_max.iter().for_each(|max| more(format!("at most {max} beyond")));
    if *anchor == super::WindowAnchor::Billing {
        more("from the billing anchor".to_owned());
    }
    if *time_zone != chrono_tz::Tz::UTC {
        more(format!("by the clocks of {time_zone}"));
    }
    rollover.iter().for_each(|kept| more(format!("{} roll over for {} windows", kept.max, kept.windows)));
    if *on_plan_change != super::PlanChange::Keep {
        more(format!("{} on a change of plan", on_plan_change.as_str()));
    }
    if *over_limit != super::OverLimit::Block {
        more(format!("{over_limit} for who comes with more"));
    }
    per_member.iter().for_each(|max| more(format!("{max} per member")));
    if !warn.is_empty() {
        let warn: Vec<_> = warn.iter().map(|percent| format!("{percent} %")).collect();
        more(format!("warns at {}", warn.join(", ")));
    }
    text
}
