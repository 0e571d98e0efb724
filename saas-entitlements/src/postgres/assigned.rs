//! Plans in a table of this crate, for applications that sell without billing: read by the gate, changed by operators.
//!
//! Every change takes the tenant's row first and writes assignment, revision, audit row and history in one transaction.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, CoreError, InvalidInput, PlanCatalog, PlanKey, Revision, SessionBinding, SystemPool, SystemTx,
    TenantContext, TenantId, TenantTx, audit, revision,
    subscription::{self, PlanAssignment, PlanSource},
};
use serde_json::json;
use sqlx::{PgConnection, types::Json};

use crate::{Entitlements, EntitlementsError};

/// The name of this source in `saas.plan_record`.
const RECORD: &str = "assigned";

/// The plans of [`Assignments`], as the gate reads them. A tenant without one is on the catalogue's default plan.
#[derive(Debug, Clone)]
pub struct AssignedPlans {
    binding: Arc<dyn SessionBinding>,
    default_plan: PlanKey,
}

impl AssignedPlans {
    /// A source on the tenants' sessions.
    #[must_use]
    pub fn new(binding: Arc<dyn SessionBinding>, catalog: &PlanCatalog) -> Self {
        Self { binding, default_plan: catalog.default_version().reference().plan.clone() }
    }
}

#[async_trait]
impl PlanSource for AssignedPlans {
    async fn plan_of(&self, ctx: &dyn TenantContext, _: DateTime<Utc>) -> Result<PlanAssignment, CoreError> {
        let mut tx = TenantTx::begin_read_only(&*self.binding, ctx).await?;
        let found = find_in(&mut tx, ctx.tenant()).await?;
        Ok(found.unwrap_or_else(|| PlanAssignment::active(self.default_plan.clone())))
    }

    fn recorded_as(&self) -> Option<&'static str> {
        Some(RECORD)
    }
}

/// The tenant's assignment, if there is one.
pub(super) async fn find_in(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Option<PlanAssignment>, CoreError> {
    let found: Option<Json<PlanAssignment>> =
        sqlx::query_scalar("select assigned from saas.plan_assignment where tenant_id = $1")
            .bind(tenant.as_uuid())
            .fetch_optional(connection)
            .await
            .map_err(CoreError::from_database)?;
    Ok(found.map(|Json(assigned)| assigned))
}

/// Changes which plan a tenant is on.
#[derive(Debug, Clone)]
pub struct Assignments {
    pub(super) system: SystemPool,
    pub(super) entitlements: Entitlements,
}

impl Assignments {
    /// Works on the system role's pool, by the clock of `entitlements`, which sees changes at once; other processes do at commit.
    #[must_use]
    pub const fn new(system: SystemPool, entitlements: Entitlements) -> Self {
        Self { system, entitlements }
    }

    /// The tenant's assignment; `None` while it is on the default plan because nothing was assigned.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find_assignment(&self, tenant: TenantId) -> Result<Option<PlanAssignment>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, Actor::system("entitlements"), "read an assignment").await?;
        let found = find_in(&mut tx, tenant).await?;
        tx.rollback().await?;
        Ok(found)
    }

    /// Puts a tenant on a plan, in the place of what it had. Without a version it gets the newest that is active, and keeps
    /// that one.
    ///
    /// # Errors
    /// [`UnknownPlan`](EntitlementsError::UnknownPlan), [`UnknownAddOn`](EntitlementsError::UnknownAddOn) and
    /// [`Invalid`](EntitlementsError::Invalid) when it does not fit the catalogue. Nothing is written then.
    pub async fn put_assignment(
        &self,
        tenant: TenantId,
        assignment: PlanAssignment,
        actor: &Actor,
    ) -> Result<PlanAssignment, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "put a tenant on a plan").await?;
        // The clock is read under the lock: what is recorded has the order of the commits.
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let (put, revision) = self.put_assignment_in(&mut tx, tenant, assignment, actor, now).await?;
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(put)
    }

    /// As [`put_assignment`](Self::put_assignment), in the caller's transaction. Pass the revision to
    /// [`Entitlements::hear`] after the commit to see the change at once in this process.
    ///
    /// # Errors
    /// As [`put_assignment`](Self::put_assignment); the caller must then roll back.
    pub async fn put_assignment_in(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        assignment: PlanAssignment,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<(PlanAssignment, Revision), EntitlementsError> {
        self.write(connection, tenant, assignment, "plan.assigned", actor, now).await
    }

    /// Changes the assignment that a tenant has: its standing, its end, its add-ons. Concurrent changes of one tenant queue
    /// up; none is lost.
    ///
    /// # Errors
    /// As [`put_assignment`](Self::put_assignment).
    pub async fn change_assignment(
        &self,
        tenant: TenantId,
        actor: &Actor,
        change: impl FnOnce(&mut PlanAssignment) + Send,
    ) -> Result<PlanAssignment, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "change a tenant's plan").await?;
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let mut assignment = find_in(&mut tx, tenant).await?.unwrap_or_else(|| self.unassigned());
        change(&mut assignment);
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let (put, revision) = self.put_assignment_in(&mut tx, tenant, assignment, actor, now).await?;
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(put)
    }

    /// Starts the one trial that a tenant ever gets: the newest active version of the plan, for its `trial_days`.
    ///
    /// # Errors
    /// [`TrialUsed`](EntitlementsError::TrialUsed) when there was one before;
    /// [`Invalid`](EntitlementsError::Invalid) when the plan has no trial or the tenant is on a plan that was assigned.
    pub async fn start_trial(
        &self,
        tenant: TenantId,
        plan: &PlanKey,
        actor: &Actor,
    ) -> Result<PlanAssignment, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "start a trial").await?;
        saas_core::tenant::lock_in(&mut tx, tenant).await?;
        let now = self.entitlements.core.clock.now_in(&mut tx).await?;
        let (put, revision) = self.start_trial_in(&mut tx, tenant, plan, actor, now).await?;
        tx.commit().await?;
        self.entitlements.hear(tenant, revision);
        Ok(put)
    }

    /// As [`start_trial`](Self::start_trial), in the caller's transaction.
    ///
    /// # Errors
    /// As [`start_trial`](Self::start_trial); the caller must then roll back.
    pub async fn start_trial_in(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        plan: &PlanKey,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<(PlanAssignment, Revision), EntitlementsError> {
        let Some(version) = self.entitlements.catalog().version(plan, None) else {
            return Err(EntitlementsError::UnknownPlan { plan: plan.clone(), version: None });
        };
        if version.trial_days() == 0 {
            let what = format!("trial of `{}`", version.reference());
            return Err(InvalidInput::new(what, "is not offered", "set trial_days in the catalogue").into());
        }
        saas_core::tenant::lock_in(connection, tenant).await?;
        let used: Option<DateTime<Utc>> =
            sqlx::query_scalar("select started_at from saas.plan_trial where tenant_id = $1")
                .bind(tenant.as_uuid())
                .fetch_optional(&mut *connection)
                .await
                .map_err(CoreError::from_database)?;
        if let Some(started_at) = used {
            return Err(EntitlementsError::TrialUsed { started_at });
        }
        let present = find_in(connection, tenant).await?;
        let default_plan = &self.entitlements.catalog().default_version().reference().plan;
        let in_force = |at: &PlanAssignment| at.plan != *default_plan && at.ends_at.is_none_or(|end| end > now);
        if let Some(present) = present.filter(in_force) {
            let what = format!("trial of `{plan}`");
            let why = format!("would replace `{}`, which the tenant has", present.plan);
            return Err(InvalidInput::new(what, why, "assign the plan instead, or end the present one first").into());
        }
        let ends_at = now + TimeDelta::days(i64::from(version.trial_days()));
        let started_version = version.reference().version;
        sqlx::query(
            "insert into saas.plan_trial (tenant_id, plan, version, started_by, started_at, ends_at)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(tenant.as_uuid())
        .bind(plan.as_str())
        .bind(i32::try_from(started_version).unwrap_or(i32::MAX))
        .bind(actor.to_string())
        .bind(now)
        .bind(ends_at)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        let assignment = PlanAssignment {
            version: Some(started_version),
            ends_at: Some(ends_at),
            ..PlanAssignment::active(plan.clone())
        };
        self.write(connection, tenant, assignment, "plan.trial_started", actor, now).await
    }

    fn unassigned(&self) -> PlanAssignment {
        PlanAssignment::active(self.entitlements.catalog().default_version().reference().plan.clone())
    }

    /// Writes an assignment with all that belongs to a change.
    pub(super) async fn write(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        assignment: PlanAssignment,
        action: &'static str,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<(PlanAssignment, Revision), EntitlementsError> {
        let assignment = checked(self.entitlements.catalog(), assignment)?;
        // First: takes the tenant's row, so that revisions and assignments change in one order.
        let revision = revision::bump_in(connection, tenant).await?;
        let before = find_in(connection, tenant).await?;
        let default_plan = &self.entitlements.catalog().default_version().reference().plan;
        let former = before.clone().unwrap_or_else(|| {
            let version = Some(self.entitlements.catalog().default_version().reference().version);
            PlanAssignment { version, ..self.unassigned() }
        });
        let assignment = assignment.following(&former, default_plan, now);
        sqlx::query(
            "insert into saas.plan_assignment (tenant_id, assigned, assigned_by, assigned_at)
             values ($1, $2, $3, $4)
             on conflict (tenant_id) do update
             set assigned = excluded.assigned, assigned_by = excluded.assigned_by, assigned_at = excluded.assigned_at",
        )
        .bind(tenant.as_uuid())
        .bind(Json(&assignment))
        .bind(actor.to_string())
        .bind(now)
        .execute(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        subscription::record_in(connection, tenant, RECORD, revision, Some(&assignment), now).await?;
        let entry = audit::Entry::new(action, &assignment.plan);
        let entry = entry.with_detail(json!({ "from": before, "to": assignment }));
        audit::record_in(connection, tenant, actor, entry, now).await?;
        Ok((assignment, revision))
    }
}

/// The assignment with its version named, if the catalogue has all of it.
fn checked(catalog: &PlanCatalog, mut assignment: PlanAssignment) -> Result<PlanAssignment, EntitlementsError> {
    let PlanAssignment { plan, version, addons, .. } = &mut assignment;
    let Some(found) = catalog.version(plan, *version) else {
        return Err(EntitlementsError::UnknownPlan { plan: plan.clone(), version: *version });
    };
    *version = Some(found.reference().version);
    addons.sort_unstable();
    for (at, (key, quantity)) in addons.iter().enumerate() {
        let Some(addon) = catalog.addon(key) else {
            return Err(EntitlementsError::UnknownAddOn { key: key.clone() });
        };
        let twice = at > 0 && addons.get(at - 1).is_some_and(|(before, _)| before == key);
        if twice || !(1..=addon.max_quantity()).contains(quantity) {
            let why = format!("is there {quantity} times, or twice; up to {} of it are sold", addon.max_quantity());
            let remedy = "name each add-on once, with a quantity that is sold";
            return Err(InvalidInput::new(format!("add-on `{key}`"), why, remedy).into());
        }
    }
    Ok(assignment)
}
