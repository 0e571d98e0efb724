//! What a tenant has beyond its plan, or would have beyond another one.

use async_trait::async_trait;
use saas_core::{
    CoreError, PlanKey, Refusal, TenantContext,
    plan::{MeterOver, OverLimitReport, OverLimitState, OverLimits, PlanVersionRef},
};

use super::Meter;
use crate::{EntitlementsError, Origin, Snapshot};

impl Meter {
    /// What the tenant would have beyond a version of a plan, came it to that now: limits with its add-ons and overrides, and
    /// with what the change of plan does to what was used. The newest active version for `None`.
    ///
    /// # Errors
    /// - [`UnknownPlan`](EntitlementsError::UnknownPlan): the catalogue has no such version.
    /// - [`NotFound`](saas_core::ErrorKind::NotFound): no such tenant.
    /// - [`Unavailable`](saas_core::ErrorKind::Unavailable): ask again.
    pub async fn preview_change(
        &self,
        ctx: &dyn TenantContext,
        plan: &PlanKey,
        version: Option<u32>,
    ) -> Result<OverLimitReport, EntitlementsError> {
        let Some(to) = self.entitlements.catalog().version(plan, version) else {
            return Err(EntitlementsError::UnknownPlan { plan: plan.clone(), version });
        };
        let present = self.present(ctx).await?;
        let then = present.on_version(to);
        let mut lost = Vec::new();
        for feature in present.catalog.features() {
            let handle = crate::resolve::handle(&present, feature);
            if present.is_enabled(handle) && !then.is_enabled(handle) {
                lost.push(feature.key().clone());
            }
        }
        Ok(OverLimitReport::new(to.reference().clone(), self.meters_of(ctx, &then).await?, lost))
    }

    /// What the tenant has beyond the plan that it is on.
    ///
    /// # Errors
    /// As [`preview_change`](Self::preview_change).
    pub async fn over_limit(&self, ctx: &dyn TenantContext) -> Result<OverLimitReport, EntitlementsError> {
        let present = self.present(ctx).await?;
        let plan = present.plan_version().map(|version| version.reference().clone());
        let plan = plan.ok_or(EntitlementsError::Unavailable { cause: None })?;
        Ok(OverLimitReport::new(plan, self.meters_of(ctx, &present).await?, Vec::new()))
    }

    /// What holds for the tenant because of it: ask before a change is made in its name, and let it only read where the
    /// answer is [`ReadOnly`](OverLimitState::ReadOnly). Uses of what it has too much of are refused by the meter itself.
    ///
    /// # Errors
    /// As [`preview_change`](Self::preview_change).
    pub async fn over_limit_state(&self, ctx: &dyn TenantContext) -> Result<OverLimitState, EntitlementsError> {
        let present = self.present(ctx).await?;
        let since = present.changed_at();
        let meters = self.meters_of(ctx, &present).await?;
        let states = meters.iter().map(|meter| meter.state(since, present.at));
        Ok(states.max().unwrap_or(OverLimitState::Within))
    }

    async fn present(&self, ctx: &dyn TenantContext) -> Result<Snapshot, EntitlementsError> {
        let snapshot = self.entitlements.snapshot(ctx.tenant()).await;
        match snapshot.origin() {
            Origin::Loaded | Origin::LastKnown { .. } => Ok(snapshot.at(self.entitlements.core.clock.now())),
            Origin::UnknownTenant => Err(CoreError::NotFound { what: "tenant" }.into()),
            Origin::FailPolicy => Err(EntitlementsError::Unavailable { cause: None }),
        }
    }

    async fn meters_of(&self, ctx: &dyn TenantContext, then: &Snapshot) -> Result<Vec<MeterOver>, EntitlementsError> {
        let mut meters = Vec::new();
        for meter in then.catalog.meters().iter().filter(|meter| meter.credit().is_none()) {
            let terms = then.plain_terms_of(meter.id(), then.at);
            // What the new plan does not have is measured where it is counted at present.
            let counted = match &terms {
                Some(terms) => Some((terms.rule.window, terms.period)),
                None => then.former_terms_of(meter.id(), then.at).map(|terms| (terms.rule.window, terms.period)),
            };
            let Some((window, period)) = counted else { continue };
            let used = self.store.used(ctx, meter.key(), window, period).await?;
            meters.push(MeterOver::new(meter.key().clone(), used, terms.as_ref().map(|terms| &terms.rule)));
        }
        Ok(meters)
    }
}

#[async_trait]
impl OverLimits for Meter {
    async fn report(&self, ctx: &dyn TenantContext, to: &PlanVersionRef) -> Result<OverLimitReport, CoreError> {
        self.preview_change(ctx, &to.plan, Some(to.version)).await.map_err(|why| match why {
            EntitlementsError::Core(core) => core,
            other => CoreError::Refused(Refusal::new(other.kind(), other.code(), other)),
        })
    }
}
