//! Overrides: manual exceptions to a plan, each with an author, a reason and an end.

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, FeatureKey, InvalidInput, Limit, MeterKey, OverrideId,
    plan::{FeatureKind, PlanCatalog, StaticValue},
};
use serde::{Deserialize, Serialize};

use crate::EntitlementsError;

/// What an override puts in the place of the plan's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OverrideGrant {
    /// A feature is on or off. `off` also hides a static value.
    Switch {
        /// Which.
        feature: FeatureKey,
        /// Whether it is on.
        on: bool,
    },
    /// A static feature has this value.
    Value {
        /// Which.
        feature: FeatureKey,
        /// The value, of the feature's kind.
        value: StaticValue,
    },
    /// A meter has this limit. Window, anchor and overage stay the plan's; where the plan does not include the meter,
    /// it is a calendar month that blocks.
    Limit {
        /// Which.
        meter: MeterKey,
        /// How much.
        limit: Limit,
    },
}

impl OverrideGrant {
    /// What it is about: one override at a time is in force per subject.
    #[must_use]
    pub fn subject(&self) -> OverrideSubject {
        match self {
            Self::Switch { feature, .. } | Self::Value { feature, .. } => OverrideSubject::Feature(feature.clone()),
            Self::Limit { meter, .. } => OverrideSubject::Meter(meter.clone()),
        }
    }

    /// Whether it fits the catalogue.
    ///
    /// # Errors
    /// When the key is unknown, the value is of another kind, or a metered feature is switched (override its meter's
    /// limit instead).
    pub fn check(&self, catalog: &PlanCatalog) -> Result<(), EntitlementsError> {
        let find = |key: &FeatureKey| {
            catalog.feature(key).ok_or_else(|| EntitlementsError::UnknownFeature { key: key.clone() })
        };
        let mismatch = |why: &'static str, remedy: &'static str| Err(InvalidInput::new("override", why, remedy).into());
        match self {
            Self::Switch { feature, on } => match (find(feature)?.kind(), on) {
                (FeatureKind::Metered { .. }, _) => {
                    mismatch("switches a metered feature", "override the limit of its meter")
                }
                (FeatureKind::Boolean, _) | (_, false) => Ok(()),
                (FeatureKind::Integer | FeatureKind::Text | FeatureKind::OneOf | FeatureKind::Json, true) => {
                    mismatch("switches a static feature on without a value", "override its value")
                }
            },
            Self::Value { feature, value } => {
                let feature = find(feature)?;
                match (feature.kind(), value) {
                    (FeatureKind::Boolean | FeatureKind::Metered { .. }, _) => mismatch(
                        "gives a value to a feature without values",
                        "switch it, or override its meter's limit",
                    ),
                    (_, StaticValue::Text(text)) if text.contains('\0') => {
                        mismatch("has a value with a NUL character", "remove it")
                    }
                    (FeatureKind::OneOf, StaticValue::Text(text))
                        if !feature.options().any(|option| *option == **text) =>
                    {
                        mismatch("has a value that is none of the feature's options", "pass one of them")
                    }
                    (FeatureKind::Integer, StaticValue::Integer(_))
                    | (FeatureKind::Text | FeatureKind::OneOf, StaticValue::Text(_)) => Ok(()),
                    (FeatureKind::Json, StaticValue::Json(value)) if value.is_object() || value.is_array() => Ok(()),
                    (FeatureKind::Integer | FeatureKind::Text | FeatureKind::OneOf | FeatureKind::Json, _) => {
                        mismatch("has a value of another kind than the feature", "pass a value of the feature's kind")
                    }
                }
            }
            Self::Limit { meter, limit } => {
                if catalog.meter(meter).is_none() {
                    return Err(EntitlementsError::UnknownMeter { key: meter.clone() });
                }
                match limit {
                    Limit::Max(max) if i64::try_from(*max).is_err() => {
                        mismatch("has a limit beyond 2^63-1", "pass a lower limit, or unlimited")
                    }
                    Limit::Max(_) | Limit::Unlimited => Ok(()),
                }
            }
        }
    }
}

/// What an override is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "key", rename_all = "snake_case")]
pub enum OverrideSubject {
    /// A feature.
    Feature(FeatureKey),
    /// A meter.
    Meter(MeterKey),
}

impl OverrideSubject {
    /// `feature` or `meter`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Feature(_) => "feature",
            Self::Meter(_) => "meter",
        }
    }

    /// The key's text.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Feature(key) => key.as_str(),
            Self::Meter(key) => key.as_str(),
        }
    }
}

/// An override that is to be put in force.
#[derive(Debug, Clone)]
pub struct NewOverride {
    grant: OverrideGrant,
    reason: String,
    expires_at: DateTime<Utc>,
}

impl NewOverride {
    /// An exception with its reason (1 to 500 characters) and its end. There is no endless one: an exception that should
    /// last is a plan.
    ///
    /// # Errors
    /// When the reason is empty, too long or holds a control character.
    pub fn new(
        grant: OverrideGrant,
        reason: impl Into<String>,
        expires_at: DateTime<Utc>,
    ) -> Result<Self, InvalidInput> {
        let reason = reason.into();
        let reason = reason.trim();
        if !(1..=500).contains(&reason.chars().count()) || reason.chars().any(char::is_control) {
            return Err(InvalidInput::new(
                "override reason",
                "is empty, longer than 500 characters or holds a control character",
                "say in a sentence why this tenant differs from its plan",
            ));
        }
        Ok(Self { grant, reason: reason.to_owned(), expires_at })
    }

    /// What it puts in the place of the plan's answer.
    #[must_use]
    pub const fn grant(&self) -> &OverrideGrant {
        &self.grant
    }

    /// Puts it in force at `now`, under its author's name.
    ///
    /// # Errors
    /// When it does not fit the catalogue or would already be over.
    pub fn issue(
        self,
        catalog: &PlanCatalog,
        author: &Actor,
        now: DateTime<Utc>,
    ) -> Result<Override, EntitlementsError> {
        self.grant.check(catalog)?;
        if self.expires_at <= now {
            return Err(InvalidInput::new("override", "is already over", "pass an end in the future").into());
        }
        Ok(Override {
            id: OverrideId::mint_at(now),
            grant: self.grant,
            author: author.to_string().into(),
            reason: self.reason.into(),
            created_at: now,
            expires_at: self.expires_at,
        })
    }
}

/// A manual exception to the plan of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Its name in the audit log.
    pub id: OverrideId,
    /// What it puts in the place of the plan's answer.
    pub grant: OverrideGrant,
    /// Who decided, as in the audit log.
    pub author: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// Until when, exclusive.
    pub expires_at: DateTime<Utc>,
}
