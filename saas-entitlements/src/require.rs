//! Refusals that help: a feature is required, and the error says what would give it.

use std::{fmt, sync::Arc};

use saas_core::{
    AddOnKey, ErrorKind, FeatureKey, InvalidInput, Limit, PlanVersionRef, TenantId,
    plan::{AddOn, Feature, FeatureKind},
};
use serde::Serialize;

use crate::{
    Entitlements, EntitlementsError, Excess, Origin, Reason, Snapshot,
    resolve::{handle, rolled_out},
};

/// A tenant does not have a feature that was required. Displayed as one sentence for whoever uses the application: it names
/// neither operators nor what they wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureRequired {
    /// Which feature.
    pub feature: FeatureKey,
    /// Whose answer it was.
    pub tenant: TenantId,
    /// What decided. For logs and operators: an override in it has its author and reason.
    pub reason: Reason,
    /// The lowest-ranked plan above the present one that has it; `None` where a plan is not what is missing.
    pub plan: Option<PlanVersionRef>,
    /// An add-on, first by name, that gives it beside the present plan; `None` as for `plan`.
    pub addon: Option<AddOnKey>,
    /// Where to get it, made of the adopter's [`UpgradeLink`]; `None` without a link, or where money does not help.
    pub upgrade_url: Option<Box<str>>,
}

impl FeatureRequired {
    /// Whether paying gives the feature: an upgrade, an add-on, or an open invoice.
    #[must_use]
    pub const fn is_for_sale(&self) -> bool {
        self.plan.is_some() || self.addon.is_some() || matches!(self.reason, Reason::Standing { .. })
    }

    /// [`Forbidden`](ErrorKind::Forbidden).
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Forbidden
    }

    /// 402 where paying gives the feature, 403 otherwise.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        if self.is_for_sale() { 402 } else { 403 }
    }

    /// Adds the link, where paying gives the feature.
    #[must_use]
    pub fn with_link(mut self, link: &UpgradeLink) -> Self {
        if self.is_for_sale() {
            self.upgrade_url = Some(link.fill(&self));
        }
        self
    }
}

impl fmt::Display for FeatureRequired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let feature = &self.feature;
        match (&self.reason, &self.plan, &self.addon) {
            (Reason::Standing { .. }, ..) => write!(f, "`{feature}` is paused until the open invoice is paid")?,
            (Reason::OverLimit { excess, .. }, plan, _) => {
                let Excess { meter, used, limit, .. } = excess;
                write!(
                    f,
                    "`{feature}` is paused: you have {used} of {limit} `{meter}`; remove {} of them",
                    excess.over
                )?;
                plan.iter().try_for_each(|plan| write!(f, ", or move to the plan `{}`", plan.plan))?;
            }
            (Reason::Rollout { .. }, ..) => write!(f, "`{feature}` is part of your plan and will be switched on soon")?,
            (_, Some(plan), Some(addon)) => {
                write!(f, "`{feature}` needs the plan `{}` or the add-on `{addon}`", plan.plan)?;
            }
            (_, Some(plan), None) => write!(f, "`{feature}` needs the plan `{}`", plan.plan)?,
            (_, None, Some(addon)) => write!(f, "`{feature}` needs the add-on `{addon}`")?,
            (_, None, None) => write!(f, "`{feature}` is not available to you")?,
        }
        self.upgrade_url.iter().try_for_each(|url| write!(f, ": {url}"))
    }
}

impl std::error::Error for FeatureRequired {}

/// Where a tenant gets what it does not have: an address with the placeholders `{feature}`, `{plan}`, `{addon}` and
/// `{tenant}`, which are empty where there is no such thing.
///
/// ```
/// use saas_entitlements::UpgradeLink;
///
/// assert!(UpgradeLink::new("https://app.example.com/billing?plan={plan}").is_ok());
/// assert_eq!(
///     UpgradeLink::new("/billing?to={price}").unwrap_err().to_string(),
///     "upgrade link has the unknown placeholder `{price}`; use {feature}, {plan}, {addon} or {tenant}"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeLink(Arc<str>);

impl UpgradeLink {
    /// A link of 1 to 2,000 characters.
    ///
    /// # Errors
    /// When it is neither `https://`, `http://` nor a path of this site, has an unknown placeholder, a brace that is none,
    /// a space or a control character.
    pub fn new(template: &str) -> Result<Self, InvalidInput> {
        let invalid = |why: String, remedy: &'static str| Err(InvalidInput::new("upgrade link", why, remedy));
        let own_path = template.starts_with('/') && !template.starts_with("//") && !template.starts_with("/\\");
        if !(own_path || template.starts_with("https://") || template.starts_with("http://")) {
            return invalid("leads nowhere".to_owned(), "start it with https:// or with one slash");
        }
        if template.chars().count() > 2_000 || template.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return invalid("is longer than 2,000 characters or holds a space".to_owned(), "shorten or encode it");
        }
        let mut rest = template;
        while let Some(open) = rest.find(['{', '}']) {
            let tail = rest.get(open..).unwrap_or_default();
            let end = tail.find('}').map_or(tail.len(), |end| end + 1);
            let (name, after) = tail.split_at(end);
            if !matches!(name, "{feature}" | "{plan}" | "{addon}" | "{tenant}") {
                let why = format!("has the unknown placeholder `{}`", name.chars().take(40).collect::<String>());
                return invalid(why, "use {feature}, {plan}, {addon} or {tenant}");
            }
            rest = after;
        }
        Ok(Self(template.into()))
    }

    /// Keys and ids consist of characters that stand for themselves in an address.
    fn fill(&self, of: &FeatureRequired) -> Box<str> {
        let plan = of.plan.as_ref().map_or("", |version| version.plan.as_str());
        let filled = self.0.replace("{feature}", of.feature.as_str()).replace("{plan}", plan);
        let filled = filled.replace("{addon}", of.addon.as_ref().map_or("", AddOnKey::as_str));
        filled.replace("{tenant}", &of.tenant.to_string()).into()
    }
}

impl Snapshot {
    /// Refuses unless the feature is on.
    ///
    /// # Errors
    /// - [`FeatureRequired`](EntitlementsError::FeatureRequired): the tenant does not have it; answer with its status.
    /// - [`Unavailable`](EntitlementsError::Unavailable): nothing is known about the tenant at present and the feature fails
    ///   closed. It may well have it.
    /// - [`UnknownFeature`](EntitlementsError::UnknownFeature): the catalogue has no such feature.
    pub fn require(&self, feature: &FeatureKey) -> Result<(), EntitlementsError> {
        let Some(found) = self.catalog.feature(feature) else {
            return Err(EntitlementsError::UnknownFeature { key: feature.clone() });
        };
        if self.is_enabled(handle(self, found)) {
            return Ok(());
        }
        if self.origin() == Origin::FailPolicy {
            return Err(EntitlementsError::Unavailable { cause: None });
        }
        let why = self.explain(feature)?;
        // Neither a plan nor an add-on helps a tenant whose turn has not come.
        let missing = matches!(why.reason, Reason::Plan | Reason::Limit) && rolled_out(self, found);
        let helps = missing || matches!(why.reason, Reason::OverLimit { .. });
        let addon = missing.then(|| self.addon_with(found)).flatten();
        Err(EntitlementsError::FeatureRequired(Box::new(FeatureRequired {
            feature: feature.clone(),
            tenant: self.tenant(),
            reason: why.reason,
            plan: why.upgrade.filter(|_| helps),
            addon: addon.map(|addon| addon.key().clone()),
            upgrade_url: None,
        })))
    }

    fn addon_with(&self, feature: &Feature) -> Option<&AddOn> {
        let gives = |addon: &&AddOn| match feature.kind() {
            FeatureKind::Metered { meter } => {
                addon.limit(self.catalog.paying(meter)).is_some_and(|limit| limit != Limit::Max(0))
            }
            FeatureKind::Boolean
            | FeatureKind::Integer
            | FeatureKind::Text
            | FeatureKind::OneOf
            | FeatureKind::Json => addon.grants(feature.id()),
        };
        self.catalog.addons().iter().find(gives)
    }
}

impl Entitlements {
    /// The same gate, whose refusals carry a link.
    #[must_use]
    pub fn with_upgrade_link(mut self, link: UpgradeLink) -> Self {
        self.link = Some(link);
        self
    }

    /// Refuses unless the tenant has the feature now.
    ///
    /// # Errors
    /// As [`Snapshot::require`]; a refusal carries the link of [`with_upgrade_link`](Self::with_upgrade_link).
    pub async fn require(&self, tenant: TenantId, feature: &FeatureKey) -> Result<(), EntitlementsError> {
        self.snapshot(tenant).await.require(feature).map_err(|error| match (error, &self.link) {
            (EntitlementsError::FeatureRequired(refused), Some(link)) => {
                EntitlementsError::FeatureRequired(Box::new(refused.with_link(link)))
            }
            (error, _) => error,
        })
    }
}
