//! Moves tenants from one plan version to another, which nothing else does: page by page, with a look beforehand.
//!
//! There is no state of its own to lose. Who is still to be moved is who is still on the old version, so a run that stopped,
//! for whatever reason, is taken up by starting it again, and a tenant is never moved twice. What was moved stands in the
//! audit log (`plan.migrated`).

use saas_core::{
    Actor, CoreError, FeatureKey, Limit, MeterKey, Page, PageSize, PlanVersionRef, SystemTx, TenantId,
    plan::{PlanVersion, StaticValue},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::assigned::{Assignments, find_in};
use crate::{EntitlementsError, Origin, Snapshot};

/// Which tenants are moved, and where to.
#[derive(Debug, Clone)]
pub struct PlanMove {
    from: PlanVersionRef,
    to: PlanVersionRef,
    cohort: Option<String>,
    max_failures: u32,
}

impl PlanMove {
    /// Everybody on one version, to another one of the same plan or of another plan. Stops at the first failure.
    #[must_use]
    pub const fn new(from: PlanVersionRef, to: PlanVersionRef) -> Self {
        Self { from, to, cohort: None, max_failures: 0 }
    }

    /// Only tenants of a cohort.
    #[must_use]
    pub fn with_cohort(mut self, cohort: impl Into<String>) -> Self {
        self.cohort = Some(cohort.into());
        self
    }

    /// How many tenants of one run may fail before it stops.
    #[must_use]
    pub const fn with_max_failures(mut self, failures: u32) -> Self {
        self.max_failures = failures;
        self
    }
}

/// What a move would mean to one tenant, with its add-ons, overrides and standing of now.
#[derive(Debug, Clone, PartialEq)]
pub struct MovePreview {
    /// Whose.
    pub tenant: TenantId,
    /// Features that would be switched on.
    pub gains: Vec<FeatureKey>,
    /// Features that would be switched off.
    pub losses: Vec<FeatureKey>,
    /// Static features that are on before and after with another value: from, to.
    pub values: Vec<(FeatureKey, Option<StaticValue>, Option<StaticValue>)>,
    /// Limits that would be others: from, to; `None` for a meter that the tenant does not have.
    pub limits: Vec<(MeterKey, Option<Limit>, Option<Limit>)>,
}

/// What a move would mean to a page of tenants.
#[derive(Debug)]
pub struct MovePreviews {
    /// What it would mean to each whose state is known, by id.
    pub previews: Vec<MovePreview>,
    /// Tenants whose state cannot be read at present, and why: nothing can be said about them.
    pub failed: Vec<(TenantId, EntitlementsError)>,
    /// The place from which the next page goes on; `None` when the end was reached.
    pub next: Option<TenantId>,
}

/// What one run did.
#[derive(Debug)]
pub struct MoveReport {
    /// Tenants that are on the new version now because of this run.
    pub moved: Vec<TenantId>,
    /// Tenants that were no longer on the old version when their turn came.
    pub skipped: Vec<TenantId>,
    /// Tenants that could not be moved, and why. They are as they were.
    pub failed: Vec<(TenantId, EntitlementsError)>,
    /// The place from which the next run goes on; `None` when the end was reached.
    pub next: Option<TenantId>,
    /// Whether the run ended early because too many failed.
    pub stopped: bool,
}

impl Assignments {
    /// Shows what a move would mean, one page of tenants at a time, by id from after `after` on. Changes nothing.
    ///
    /// # Errors
    /// [`UnknownPlan`](EntitlementsError::UnknownPlan) when the catalogue lacks the new version; when the page cannot be read.
    /// What cannot be said about a tenant is in the result.
    pub async fn preview_move(
        &self,
        planned: &PlanMove,
        after: Option<TenantId>,
        size: PageSize,
    ) -> Result<MovePreviews, EntitlementsError> {
        let to = self.version(&planned.to)?;
        let Page { items, next } = self.list_on_version(planned, after, size).await?;
        let mut shown = MovePreviews { previews: Vec::with_capacity(items.len()), failed: Vec::new(), next };
        for tenant in items {
            match preview(&*self.entitlements.snapshot(tenant).await, to) {
                Ok(preview) => shown.previews.push(preview),
                Err(error) => shown.failed.push((tenant, error)),
            }
        }
        Ok(shown)
    }

    /// Moves one page of tenants, each in a transaction of its own with its revision, history and audit row.
    ///
    /// Call it until `next` is `None`; start again with `after` = `None` to take up a run that stopped and to try those that
    /// failed once more. Standing, anchor, end and add-ons stay.
    ///
    /// # Errors
    /// [`UnknownPlan`](EntitlementsError::UnknownPlan) when the catalogue lacks the new version; when the page cannot be read.
    /// What happens to a tenant is in the report.
    pub async fn run_move(
        &self,
        planned: &PlanMove,
        after: Option<TenantId>,
        size: PageSize,
        actor: &Actor,
    ) -> Result<MoveReport, EntitlementsError> {
        self.version(&planned.to)?;
        let Page { items, next } = self.list_on_version(planned, after, size).await?;
        let mut report =
            MoveReport { moved: Vec::new(), skipped: Vec::new(), failed: Vec::new(), next, stopped: false };
        for tenant in items {
            match self.move_one(planned, tenant, actor).await {
                Ok(true) => report.moved.push(tenant),
                Ok(false) => report.skipped.push(tenant),
                Err(error) => {
                    report.failed.push((tenant, error));
                    if report.failed.len() > usize::try_from(planned.max_failures).unwrap_or(usize::MAX) {
                        return Ok(MoveReport { next: Some(tenant), stopped: true, ..report });
                    }
                }
            }
        }
        Ok(report)
    }

    /// How many tenants are still to be moved.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_to_move(&self, planned: &PlanMove) -> Result<u64, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, Actor::system("entitlements"), "count a plan's tenants").await?;
        let count: i64 = sqlx::query_scalar(
            "select count(*)
             from saas.plan_assignment a
             where a.plan = $1 and a.version = $2
               and ($3::text is null
                    or exists (select from saas.tenant_cohort c where c.tenant_id = a.tenant_id and c.cohort = $3))",
        )
        .bind(planned.from.plan.as_str())
        .bind(i64::from(planned.from.version))
        .bind(&planned.cohort)
        .fetch_one(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.rollback().await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn move_one(&self, planned: &PlanMove, tenant: TenantId, actor: &Actor) -> Result<bool, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "move a tenant to another plan version").await?;
        // First, as in every change: what is read below is what is replaced.
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let present = find_in(&mut tx, tenant).await?;
        let on_it =
            |plan: &saas_core::PlanKey, version| *plan == planned.from.plan && version == Some(planned.from.version);
        let Some(mut assignment) = present.filter(|present| on_it(&present.plan, present.version)) else {
            tx.rollback().await?;
            return Ok(false);
        };
        assignment.plan = planned.to.plan.clone();
        assignment.version = Some(planned.to.version);
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let (_, revision) = self.write(&mut tx, tenant, assignment, "plan.migrated", actor, now).await?;
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(true)
    }

    fn version(&self, wanted: &PlanVersionRef) -> Result<&PlanVersion, EntitlementsError> {
        let found = self.entitlements.catalog().version(&wanted.plan, Some(wanted.version));
        found.ok_or_else(|| EntitlementsError::UnknownPlan { plan: wanted.plan.clone(), version: Some(wanted.version) })
    }

    async fn list_on_version(
        &self,
        planned: &PlanMove,
        after: Option<TenantId>,
        size: PageSize,
    ) -> Result<Page<TenantId, TenantId>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, Actor::system("entitlements"), "list a plan's tenants").await?;
        let rows = list_in(&mut tx, planned, after, size).await?;
        tx.rollback().await?;
        Ok(Page::from_rows(rows.into_iter().map(TenantId::from_uuid).collect(), size, |tenant| *tenant))
    }
}

async fn list_in(
    connection: &mut PgConnection,
    planned: &PlanMove,
    after: Option<TenantId>,
    size: PageSize,
) -> Result<Vec<Uuid>, CoreError> {
    sqlx::query_scalar(
        "select a.tenant_id
         from saas.plan_assignment a
         where a.plan = $1 and a.version = $2 and ($3::uuid is null or a.tenant_id > $3)
           and ($4::text is null
                or exists (select from saas.tenant_cohort c where c.tenant_id = a.tenant_id and c.cohort = $4))
         order by a.tenant_id
         limit $5",
    )
    .bind(planned.from.plan.as_str())
    .bind(i64::from(planned.from.version))
    .bind(after.map(TenantId::as_uuid))
    .bind(&planned.cohort)
    .bind(i64::from(size.get()) + 1)
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)
}

fn preview(before: &Snapshot, to: &PlanVersion) -> Result<MovePreview, EntitlementsError> {
    match before.origin() {
        Origin::Loaded => {}
        Origin::UnknownTenant => return Err(CoreError::NotFound { what: "tenant" }.into()),
        // What a fail policy or an older state says would be compared with is not what the tenant has.
        Origin::LastKnown { .. } | Origin::FailPolicy => return Err(EntitlementsError::Unavailable { cause: None }),
    }
    let after = before.on_version(to);
    let mut preview = MovePreview {
        tenant: before.tenant(),
        gains: Vec::new(),
        losses: Vec::new(),
        values: Vec::new(),
        limits: Vec::new(),
    };
    for feature in before.catalog.features() {
        let key = feature.key();
        match (before.is_feature_enabled(key), after.is_feature_enabled(key)) {
            (false, true) => preview.gains.push(key.clone()),
            (true, false) => preview.losses.push(key.clone()),
            (true, true) if before.value(key) != after.value(key) => {
                preview.values.push((key.clone(), before.value(key).cloned(), after.value(key).cloned()));
            }
            (true, true) | (false, false) => {}
        }
    }
    for meter in before.catalog.meters() {
        let limit = |of: &Snapshot| of.limit_of(meter.id()).map(|rule| rule.limit);
        if limit(before) != limit(&after) {
            preview.limits.push((meter.key().clone(), limit(before), limit(&after)));
        }
    }
    Ok(preview)
}
