//! Plans and overrides in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{Actor, RequestContext, Revision, TenantId, subscription::PlanAssignment};

use crate::{CounterStore, EntitlementsError, Override, SnapshotSource, TenantState, Watched, memory::MemoryCounters};

/// Plans and overrides in memory. A clone is another handle to the same tenants.
#[derive(Debug, Clone, Default)]
pub struct MemorySource {
    tenants: Arc<Mutex<HashMap<TenantId, TenantState>>>,
    counters: Option<Arc<MemoryCounters>>,
}

impl MemorySource {
    /// No tenants.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Knows what is used, too, so that a tenant which has more than its plan allows may only read, where the plan says so.
    #[must_use]
    pub fn with_counters(self, counters: Arc<MemoryCounters>) -> Self {
        Self { counters: Some(counters), ..self }
    }

    /// Raises a tenant's revision, as a use does in a database after which the tenant may only read, or may write again.
    /// `None` for a tenant without a plan.
    pub fn raise(&self, tenant: TenantId) -> Option<Revision> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let state = tenants.get_mut(&tenant)?;
        state.revision = Revision::new(state.revision.get() + 1);
        Some(state.revision)
    }

    /// Puts a tenant on a plan and returns its new revision. Pass that to
    /// [`Entitlements::hear`](crate::Entitlements::hear), as the database's notification would.
    pub fn put_plan(&self, tenant: TenantId, assignment: PlanAssignment) -> Revision {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let state = tenants.entry(tenant).or_insert_with(|| TenantState {
            revision: Revision::NONE,
            assignment: assignment.clone(),
            overrides: Vec::new(),
            cohorts: Vec::new(),
        });
        state.assignment = assignment;
        state.revision = Revision::new(state.revision.get() + 1);
        state.revision
    }

    /// Puts an override in force, in the place of the one about the same subject. `None` for a tenant without a plan.
    pub fn put_override(&self, tenant: TenantId, new: Override) -> Option<Revision> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let state = tenants.get_mut(&tenant)?;
        state.overrides.retain(|old| old.grant.subject() != new.grant.subject());
        state.overrides.push(new);
        state.revision = Revision::new(state.revision.get() + 1);
        Some(state.revision)
    }

    /// Says which cohorts a tenant is in. `None` for a tenant without a plan.
    pub fn put_cohorts(&self, tenant: TenantId, cohorts: &[&str]) -> Option<Revision> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let state = tenants.get_mut(&tenant)?;
        state.cohorts = cohorts.iter().map(|cohort| (*cohort).into()).collect();
        state.revision = Revision::new(state.revision.get() + 1);
        Some(state.revision)
    }

    /// Removes a tenant.
    pub fn remove(&self, tenant: TenantId) {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }
}

#[async_trait]
impl SnapshotSource for MemorySource {
    async fn load(&self, tenant: TenantId, _: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        Ok(self.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned())
    }

    async fn watch(
        &self,
        tenant: TenantId,
        windows: &[Watched],
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<u64>>, EntitlementsError> {
        let Some(counters) = &self.counters else { return Ok(None) };
        let ctx = RequestContext::new_at(tenant, Actor::system("entitlements"), now);
        let mut used = Vec::with_capacity(windows.len());
        for watched in windows {
            used.push(counters.used(&ctx, &watched.meter, watched.window, watched.period).await?);
        }
        Ok(Some(used))
    }
}
