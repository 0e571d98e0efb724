//! Why a feature is on or off, as data and as a sentence.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use saas_core::{
    AddOnKey, FeatureKey, Limit, PlanVersionRef, Revision,
    plan::{
        AddOn, AddOnMode, FailPolicy, Feature, FeatureKind, MeterId, MeterLimit, MeterOver, PlanVersion, StaticValue,
    },
    subscription::{AccessLevel, Standing},
};
use serde::Serialize;

use crate::{
    EntitlementsError, Excess, Override, OverrideGrant,
    resolve::{bought_feature, entitled, handle, left, rolled_out},
    snapshot::{Origin, Snapshot, Target},
};

/// Why a feature is on or off. Displayed as a sentence that an operator can read to a customer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Which feature.
    pub feature: FeatureKey,
    /// Whether it is on.
    pub enabled: bool,
    /// The value of a static feature that is on.
    pub value: Option<StaticValue>,
    /// What decided.
    pub reason: Reason,
    /// What each layer had to say, in the order in which they are asked.
    pub chain: Vec<Layer>,
    /// The plan version in force; `None` while nothing is known about the tenant.
    pub plan: Option<PlanVersionRef>,
    /// What the standing lets the tenant do, and what is left of it where it has more of a meter than its plan allows.
    pub access: AccessLevel,
    /// What the feature would answer in an outage.
    pub fail_policy: FailPolicy,
    /// When an answer changes by itself at the earliest.
    pub until: Option<DateTime<Utc>>,
    /// The lowest plan that would switch it on; `None` where it is on or a plan is not what is missing.
    pub upgrade: Option<PlanVersionRef>,
    /// The revision of the state behind the answer.
    pub revision: Revision,
    /// When the state was read, if the source could not be read since it went stale.
    pub last_known_from: Option<DateTime<Utc>>,
}

/// What decided about a feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The plan grants it, or does not.
    Plan,
    /// The limit of its meter lets something through, or nothing.
    Limit,
    /// An add-on grants it, or gives it its value or its meter's limit.
    AddOn {
        /// Which; of several the last that was asked.
        key: AddOnKey,
    },
    /// It was bought, but it is being rolled out and the tenant's turn has not come.
    Rollout {
        /// How many in a thousand have it.
        permille: u16,
    },
    /// An override.
    Override {
        /// All of it: who, why, until when.
        found: Override,
    },
    /// It would be on, but the standing takes it away.
    Standing {
        /// Whether the plan is paid for.
        standing: Standing,
        /// The access level that the feature needs.
        needs: AccessLevel,
    },
    /// It would be on, but the tenant has more of a meter than its plan allows, and may only read until that is mended.
    OverLimit {
        /// Of which meter, and how much.
        excess: Excess,
        /// The access level that the feature needs.
        needs: AccessLevel,
    },
    /// No such tenant.
    UnknownTenant,
    /// Nothing is known and nothing can be read: the feature's fail policy.
    FailPolicy,
}

/// What one layer says about a feature. Displayed as a clause such as ``add-on `extra-storage` (2 of it) gives it 100``.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "layer", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layer {
    /// The plan version in force.
    Plan {
        /// Which.
        plan: PlanVersionRef,
        /// What it gives.
        gives: Given,
    },
    /// An add-on that says something about it.
    AddOn {
        /// Which.
        key: AddOnKey,
        /// How many were bought.
        quantity: u32,
        /// What one of it gives.
        gives: Given,
    },
    /// Its roll-out.
    Rollout {
        /// How many in a thousand have it.
        permille: u16,
        /// Whether the tenant does.
        included: bool,
    },
    /// An override in force.
    Override {
        /// All of it: who, why, until when.
        found: Override,
    },
    /// The standing.
    Standing {
        /// What it lets the tenant do.
        access: AccessLevel,
        /// What the feature needs.
        needs: AccessLevel,
    },
    /// What the tenant has beyond its plan, where that lets it only read.
    OverLimit {
        /// Of which meter, and how much.
        excess: Excess,
        /// What the feature needs.
        needs: AccessLevel,
    },
}

/// What a layer gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Given {
    /// Nothing.
    Nothing,
    /// The feature.
    On,
    /// The feature with this value.
    Value(StaticValue),
    /// So much of its meter.
    Limit(Limit),
}

impl Given {
    fn of(on: bool, value: Option<&StaticValue>, limit: Option<Limit>) -> Self {
        match (value, limit) {
            (Some(value), _) => Self::Value(value.clone()),
            (None, Some(limit)) => Self::Limit(limit),
            (None, None) if on => Self::On,
            (None, None) => Self::Nothing,
        }
    }
}

impl Snapshot {
    /// Why a feature is on or off.
    ///
    /// # Errors
    /// [`UnknownFeature`](EntitlementsError::UnknownFeature) when the catalogue has no such feature.
    pub fn explain(&self, feature: &FeatureKey) -> Result<Explanation, EntitlementsError> {
        let Some(found) = self.catalog.feature(feature) else {
            return Err(EntitlementsError::UnknownFeature { key: feature.clone() });
        };
        let enabled = self.is_enabled(handle(self, found));
        let target = match found.kind() {
            FeatureKind::Metered { meter } => Target::Meter(self.catalog.paying(meter)),
            FeatureKind::Boolean
            | FeatureKind::Integer
            | FeatureKind::Text
            | FeatureKind::OneOf
            | FeatureKind::Json => Target::Feature(found.id()),
        };
        let plan = self.plan_version();
        let reason = match (self.origin, plan) {
            (Origin::UnknownTenant, _) => Reason::UnknownTenant,
            (Origin::FailPolicy, _) | (_, None) => Reason::FailPolicy,
            (Origin::Loaded | Origin::LastKnown { .. }, Some(version)) => {
                let by_override = self.override_of(target).cloned();
                if self.access < found.min_access() && entitled(self, version, found) {
                    Reason::Standing { standing: self.facts.standing.at(self.at), needs: found.min_access() }
                } else if let Some(excess) = self.taken_by_excess(found, version) {
                    Reason::OverLimit { excess: excess.clone(), needs: found.min_access() }
                } else if let Some(found) = by_override {
                    Reason::Override { found }
                } else if !rolled_out(self, found) && bought_feature(self, version, found) {
                    Reason::Rollout { permille: found.rollout().map_or(0, |rollout| rollout.permille) }
                } else if let Some(key) = self.deciding_addon(found, target, version) {
                    Reason::AddOn { key }
                } else if matches!(target, Target::Meter(_)) {
                    Reason::Limit
                } else {
                    Reason::Plan
                }
            }
        };
        let missing = !enabled && matches!(reason, Reason::Plan | Reason::Limit);
        let rank = plan.map_or(0, |version| version.rank().saturating_add(1));
        let upgrade = if let Reason::OverLimit { excess, .. } = &reason {
            self.room_for(excess, rank)
        } else {
            missing.then(|| self.catalog.cheapest_with(found.id(), rank)).flatten()
        };
        Ok(Explanation {
            feature: feature.clone(),
            enabled,
            value: self.value(feature).cloned(),
            reason,
            chain: self.chain(found, target),
            plan: plan.map(|version| version.reference().clone()),
            access: left(self),
            fail_policy: found.fail_policy(),
            until: self.next_boundary,
            upgrade: upgrade.map(|version| version.reference().clone()),
            revision: self.facts.revision,
            last_known_from: match self.origin {
                Origin::LastKnown { read_at } => Some(read_at),
                Origin::Loaded | Origin::UnknownTenant | Origin::FailPolicy => None,
            },
        })
    }

    /// What keeps the tenant from a feature that it has otherwise.
    fn taken_by_excess(&self, feature: &Feature, version: &PlanVersion) -> Option<&Excess> {
        let excess = self.excess().filter(|_| left(self) < feature.min_access())?;
        entitled(self, version, feature).then_some(excess)
    }

    /// The lowest plan above the present one that has room for what is used.
    fn room_for(&self, excess: &Excess, rank: u32) -> Option<&PlanVersion> {
        let meter = self.catalog.meter(&excess.meter)?.id();
        let fits = |rule: &MeterLimit| MeterOver::most(Some(rule)) >= excess.used;
        self.catalog.cheapest_where(rank, |version| version.limit(meter).is_some_and(fits))
    }

    /// The add-on that made the difference, if one did.
    fn deciding_addon(&self, feature: &Feature, target: Target, version: &PlanVersion) -> Option<AddOnKey> {
        let says = |addon: &AddOn| match target {
            Target::Meter(meter) => addon.limit(meter).is_some(),
            Target::Feature(id) => addon.value(id).is_some() || (addon.grants(id) && !version.grants(id)),
        };
        let addons = self.addons().filter(|(addon, _)| says(addon));
        // In the order in which they are asked: those that replace come first.
        let last = addons.max_by_key(|(addon, _)| addon.mode() == AddOnMode::Stack);
        last.filter(|_| self.is_enabled(handle(self, feature))).map(|(addon, _)| addon.key().clone())
    }

    /// What every layer says.
    fn chain(&self, feature: &Feature, target: Target) -> Vec<Layer> {
        let Some(version) = self.plan_version() else { return Vec::new() };
        let (id, meter) = match target {
            Target::Feature(id) => (Some(id), None),
            Target::Meter(meter) => (None, Some(meter)),
        };
        let limit = |of: &dyn Fn(MeterId) -> Option<Limit>| meter.and_then(of);
        let mut chain = vec![Layer::Plan {
            plan: version.reference().clone(),
            gives: Given::of(
                id.is_some_and(|id| version.grants(id)),
                id.and_then(|id| version.value(id)),
                limit(&|meter| version.limit(meter).map(|rule| rule.limit)),
            ),
        }];
        for mode in [AddOnMode::Override, AddOnMode::Stack] {
            for (addon, quantity) in self.addons().filter(|(addon, _)| addon.mode() == mode) {
                let gives = Given::of(
                    id.is_some_and(|id| addon.grants(id)),
                    id.and_then(|id| addon.value(id)),
                    limit(&|meter| addon.limit(meter)),
                );
                if gives != Given::Nothing {
                    chain.push(Layer::AddOn { key: addon.key().clone(), quantity, gives });
                }
            }
        }
        if let Some(rollout) = feature.rollout() {
            chain.push(Layer::Rollout { permille: rollout.permille, included: rolled_out(self, feature) });
        }
        chain.extend(self.override_of(target).cloned().map(|found| Layer::Override { found }));
        let needs = feature.min_access();
        chain.push(Layer::Standing { access: self.access, needs });
        chain.extend(self.excess().cloned().map(|excess| Layer::OverLimit { excess, needs }));
        chain
    }
}

impl Explanation {
    /// What every layer says, as one sentence.
    #[must_use]
    pub fn in_full(&self) -> String {
        let clauses: Vec<_> = self.chain.iter().map(ToString::to_string).collect();
        let on = if self.enabled { "on" } else { "off" };
        format!("`{}` is {on}: {}.", self.feature, clauses.join("; "))
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan { plan, gives } => write!(f, "{} {gives}", Named(Some(plan))),
            Self::AddOn { key, quantity, gives } => write!(f, "add-on `{key}` ({quantity} of it) {gives}"),
            Self::Rollout { permille, included } => {
                let (whole, tenth) = (permille / 10, permille % 10);
                let included =
                    if *included { "and the tenant is among them" } else { "and the tenant is not among them" };
                write!(f, "it is rolled out to {whole}.{tenth} % {included}")
            }
            Self::Override { found } => {
                let what = match &found.grant {
                    OverrideGrant::Switch { on: true, .. } => "switched it on".to_owned(),
                    OverrideGrant::Switch { on: false, .. } => "switched it off".to_owned(),
                    OverrideGrant::Value { value, .. } => format!("gave it {value}"),
                    OverrideGrant::Limit { limit, .. } => format!("set the limit of its meter to {limit}"),
                };
                write!(f, "{} {what} until {}, because “{}”", found.author, At(found.expires_at), found.reason)
            }
            Self::Standing { access, needs } => {
                write!(f, "it needs {} access and the tenant has {}", level(*needs), level(*access))
            }
            Self::OverLimit { excess, needs } => {
                write!(f, "it needs {} access and the tenant may only read, because {excess}", level(*needs))
            }
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("does not include it"),
            Self::On => f.write_str("grants it"),
            Self::Value(value) => write!(f, "gives it {value}"),
            Self::Limit(limit) => write!(f, "gives {limit} of its meter"),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}", self.feature, if self.enabled { "on" } else { "off" })?;
        if let Some(value) = &self.value {
            write!(f, " with the value {value}")?;
        }
        let plan = Named(self.plan.as_ref());
        match &self.reason {
            Reason::Plan if self.enabled => write!(f, ": {plan} grants it")?,
            Reason::Plan => write!(f, ": {plan} does not include it")?,
            Reason::Limit if self.enabled => write!(f, ": {plan} includes its meter")?,
            Reason::Limit => write!(f, ": {plan} lets nothing of its meter through")?,
            Reason::AddOn { key } => write!(f, ": add-on `{key}` beside {plan} grants it")?,
            Reason::Rollout { permille } => {
                let (whole, tenth) = (permille / 10, permille % 10);
                write!(f, ": {plan} grants it, but so far it is rolled out to {whole}.{tenth} % of the tenants")?;
            }
            Reason::Override { found } => {
                let what = match &found.grant {
                    OverrideGrant::Switch { .. } => "decided",
                    OverrideGrant::Value { .. } => "gave it this value",
                    OverrideGrant::Limit { .. } => "set the limit of its meter",
                };
                let Override { author, reason, expires_at, .. } = found;
                write!(f, ": {author} {what} until {}, because “{reason}”; otherwise {plan} counts", At(*expires_at))?;
            }
            Reason::Standing { standing, needs } => {
                let needs = level(*needs);
                match standing {
                    Standing::Suspended { since } => write!(f, ": access is suspended since {}", At(*since))?,
                    Standing::Grace { until, .. } if self.access == AccessLevel::Restricted => {
                        write!(f, ": a payment is open and the grace period ended at {}", At(*until))?;
                    }
                    Standing::Grace { suspended_from, .. } => {
                        write!(f, ": a payment stayed open and access is suspended since {}", At(*suspended_from))?;
                    }
                    Standing::Active => f.write_str(": access is limited")?,
                }
                write!(f, "; it needs {needs} access, the tenant has {}", level(self.access))?;
            }
            Reason::OverLimit { excess, needs } => {
                let needs = level(*needs);
                write!(f, ": {excess}, so the tenant may only read; it needs {needs} access")?;
            }
            Reason::UnknownTenant => f.write_str(": there is no such tenant")?,
            Reason::FailPolicy => {
                let policy = match self.fail_policy {
                    FailPolicy::Open => "open",
                    FailPolicy::Closed => "closed",
                };
                write!(f, ": the tenant's plan cannot be read at present and the feature fails {policy}")?;
            }
        }
        if let Some(upgrade) = &self.upgrade {
            let what = if matches!(self.reason, Reason::OverLimit { .. }) { "has room for it" } else { "does" };
            write!(f, "; `{}` is the first plan that {what}", upgrade.plan)?;
        }
        if let Some(read_at) = self.last_known_from {
            write!(f, "; last known state, read at {}", At(read_at))?;
        }
        f.write_str(".")
    }
}

/// `plan `pro` version 2`.
struct Named<'a>(Option<&'a PlanVersionRef>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(PlanVersionRef { plan, version }) => write!(f, "plan `{plan}` version {version}"),
            None => f.write_str("no plan"),
        }
    }
}

struct At(DateTime<Utc>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

const fn level(access: AccessLevel) -> &'static str {
    match access {
        AccessLevel::Full => "full",
        AccessLevel::Restricted => "restricted",
        AccessLevel::Suspended => "suspended",
    }
}
