//! Plans and overrides in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{Revision, TenantId, subscription::PlanAssignment};

use crate::{
    Entitlements, EntitlementsError, Override, SnapshotSource, TenantState, Watched, gate::Core, memory::MemoryCounters,
};

/// Plans and overrides in memory. A clone is another handle to the same tenants.
#[derive(Debug, Clone, Default)]
pub struct MemorySource {
    tenants: Arc<Tenants>,
    counters: Option<Arc<MemoryCounters>>,
}

/// What a change goes through, whoever makes it: an operator, or a use that turns the answer.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    states: Mutex<HashMap<TenantId, TenantState>>,
    /// The gates that hear of changes. They have this source, so it does not keep them.
    gates: Mutex<Vec<Weak<Core>>>,
}

impl Tenants {
    fn states(&self) -> MutexGuard<'_, HashMap<TenantId, TenantState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises a tenant's revision, as every change does in a database. `None` for a tenant without a plan.
    pub(super) fn raise(&self, tenant: TenantId) -> Option<Revision> {
        self.change(tenant, |_| ())
    }

    fn change(&self, tenant: TenantId, change: impl FnOnce(&mut TenantState)) -> Option<Revision> {
        let mut states = self.states();
        let state = states.get_mut(&tenant)?;
        change(state);
        state.revision = Revision::new(state.revision.get() + 1);
        let revision = state.revision;
        drop(states);
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|gate| {
            gate.upgrade().is_some_and(|gate| {
                gate.hear(tenant, revision);
                true
            })
        });
        Some(revision)
    }
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

    /// Has a gate hear of each change from now on, as a [`RevisionListener`](crate::RevisionListener) does in a database.
    pub fn announce_to(&self, gate: &Entitlements) {
        self.tenants.gates.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&gate.core));
    }

    /// Puts a tenant on a plan and returns its new revision. Pass that to
    /// [`Entitlements::hear`](crate::Entitlements::hear) of gates that nothing is [announced to](Self::announce_to).
    pub fn put_plan(&self, tenant: TenantId, assignment: PlanAssignment) -> Revision {
        self.tenants.states().entry(tenant).or_insert_with(|| TenantState {
            revision: Revision::NONE,
            assignment: assignment.clone(),
            overrides: Vec::new(),
            cohorts: Vec::new(),
        });
        self.tenants.change(tenant, |state| state.assignment = assignment).unwrap_or(Revision::NONE)
    }

    /// Puts an override in force, in the place of the one about the same subject. `None` for a tenant without a plan.
    pub fn put_override(&self, tenant: TenantId, new: Override) -> Option<Revision> {
        self.tenants.change(tenant, |state| {
            state.overrides.retain(|old| old.grant.subject() != new.grant.subject());
            state.overrides.push(new);
        })
    }

    /// Says which cohorts a tenant is in. `None` for a tenant without a plan.
    pub fn put_cohorts(&self, tenant: TenantId, cohorts: &[&str]) -> Option<Revision> {
        self.tenants.change(tenant, |state| state.cohorts = cohorts.iter().map(|cohort| (*cohort).into()).collect())
    }

    /// Removes a tenant.
    pub fn remove(&self, tenant: TenantId) {
        self.tenants.states().remove(&tenant);
    }
}

#[async_trait]
impl SnapshotSource for MemorySource {
    async fn load(&self, tenant: TenantId, _: DateTime<Utc>) -> Result<Option<TenantState>, EntitlementsError> {
        Ok(self.tenants.states().get(&tenant).cloned())
    }

    async fn watch(
        &self,
        tenant: TenantId,
        windows: &[Watched],
        _: DateTime<Utc>,
    ) -> Result<Option<Vec<u64>>, EntitlementsError> {
        let watch = |counters: &Arc<MemoryCounters>| counters.watch(tenant, windows, &Arc::downgrade(&self.tenants));
        Ok(self.counters.as_ref().map(watch))
    }
}
