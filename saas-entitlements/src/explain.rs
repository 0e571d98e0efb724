//! Why a feature is on or off, as data and as a sentence.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use saas_core::{
    FeatureKey, PlanVersionRef, Revision,
    plan::{FailPolicy, FeatureKind, StaticValue},
    subscription::{AccessLevel, Standing},
};
use serde::Serialize;

use crate::{
    EntitlementsError, Override, OverrideGrant,
    resolve::{entitled, handle},
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
    /// The plan version in force; `None` while nothing is known about the tenant.
    pub plan: Option<PlanVersionRef>,
    /// What the standing lets the tenant do.
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
    /// No such tenant.
    UnknownTenant,
    /// Nothing is known and nothing can be read: the feature's fail policy.
    FailPolicy,
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
                    Reason::Standing { standing: self.facts.standing, needs: found.min_access() }
                } else if let Some(found) = by_override {
                    Reason::Override { found }
                } else if matches!(target, Target::Meter(_)) {
                    Reason::Limit
                } else {
                    Reason::Plan
                }
            }
        };
        let missing = !enabled && matches!(reason, Reason::Plan | Reason::Limit);
        let rank = plan.map_or(0, |version| version.rank().saturating_add(1));
        let upgrade = missing.then(|| self.catalog.cheapest_with(found.id(), rank)).flatten();
        Ok(Explanation {
            feature: feature.clone(),
            enabled,
            value: self.value(feature).cloned(),
            reason,
            plan: plan.map(|version| version.reference().clone()),
            access: self.access,
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
            write!(f, "; `{}` is the first plan that does", upgrade.plan)?;
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
