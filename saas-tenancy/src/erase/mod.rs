//! The end of a tenant: asked for, approved by someone else, done in small steps, reported.
//!
//! Owns which rows go, in which order, and the record of it. Promises:
//!
//! - *Fenced*: every statement names the tenant; a foreign key that could reach another tenant's rows stops the erasure
//!   before it begins.
//! - *Resumable*: each step is one transaction. A process that dies at any point is followed by another that calls
//!   [`run`](Erasures::run) again, and the counts in the report stay exact.
//! - *Gentle*: a step erases one bounded batch, so locks are short and nothing piles up in the log.
//! - *Complete*: when it says done, no row is left in any table that has a `tenant_id`, in the control database
//!   or in the tenant's own place, except in the ones
//!   that the report names as kept, with the reason given in a migration:
//!   `select saas.retain('invoice', 'tax law: ten years');`.
//! - *Final for the name*: the tenant's row stays as a tombstone, so its id is never given again; its address only if the
//!   request said so.
//!
//! A tenant's own schema or database is emptied by the same rules and then removed; where a table in it is kept by
//! `saas.retain`, it stays, behind a closed door, and the report says so. That needs
//! [`with_places`](Erasures::with_places); without it, such a tenant is refused.
//!
//! Leaves to the application: rows that name no tenant, files, caches of its own and backups. Exports that
//! [`ExportJobs`](crate::export::ExportJobs) keeps forbid an erasure where they are
//! [dependents](Erasures::with_dependents).

mod catalog;
mod place;
mod plan;
mod report;
mod run;
mod store;
mod survey;

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, SharedClock, SystemPool, SystemTx, TenantId,
    audit::{self, Entry},
    dependents::Dependents,
};
use serde_json::{Value, json};

pub use self::{
    plan::{ErasePlan, Fate, Obstacle, PlannedTable},
    report::{EraseState, EraseStep, ErasedPlace, ErasedTable, Erasure, SlugPolicy},
};
use crate::{TenancyError, lifecycle, placement::Provisioner};

/// Erases tenants. For operators; the running of it for a worker.
#[derive(Clone)]
pub struct Erasures {
    system: SystemPool,
    clock: SharedClock,
    dependents: Vec<Arc<dyn Dependents>>,
    provisioner: Option<Provisioner>,
    batch: i32,
}

const BATCH: i32 = 1_000;

impl Erasures {
    /// The service over the system's pool of the control database.
    #[must_use]
    pub fn new(system: SystemPool, clock: SharedClock) -> Self {
        Self { system, clock, dependents: Vec::new(), provisioner: None, batch: BATCH }
    }

    /// Asks this one, too, whether something depends on a tenant: billing, or the application's own.
    #[must_use]
    pub fn with_dependents(mut self, dependents: Arc<dyn Dependents>) -> Self {
        self.dependents.push(dependents);
        self
    }

    /// Reaches tenants' own schemas and databases, and removes them. The provisioner's clusters need their admin logins.
    #[must_use]
    pub fn with_places(mut self, provisioner: Provisioner) -> Self {
        self.provisioner = Some(provisioner);
        self
    }

    /// Erases at most this many rows in one transaction, 1 to 100,000. Default: 1,000.
    #[must_use]
    pub fn with_batch(mut self, rows: u32) -> Self {
        self.batch = i32::try_from(rows.clamp(1, 100_000)).unwrap_or(BATCH);
        self
    }

    /// What an erasure would do now, table by table, without doing anything: a dry run. Counts every row of the tenant.
    ///
    /// # Errors
    /// [`NotMember`](TenancyError::NotMember) when there is no such tenant.
    pub async fn plan(&self, tenant: TenantId) -> Result<ErasePlan, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, LOOK, "plan an erasure").await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        self.survey(&mut tx, tenant).await?.into_plan(&mut tx, tenant).await
    }

    /// Asks for an erasure. Nothing happens to the tenant yet.
    ///
    /// # Errors
    /// - [`NotAnOperator`](TenancyError::NotAnOperator): only a person of the vendor can, under their own name.
    /// - [`Erasure`](TenancyError::Erasure): one was asked for already.
    /// - [`EraseBlocked`](TenancyError::EraseBlocked): something stands in the way.
    pub async fn request(
        &self,
        tenant: TenantId,
        operator: &Actor,
        reason: &str,
        slug: SlugPolicy,
    ) -> Result<(), TenancyError> {
        let reason = lifecycle::check_reason(reason)?;
        let (mut tx, present) = self.lock(tenant, operator, "ask for an erasure").await?;
        if let Some(present) = present {
            return Err(TenancyError::Erasure { present: Some(present.state) });
        }
        self.require_possible(&mut tx, tenant).await?;
        let now = self.clock.now();
        store::request(&mut tx, tenant, operator, reason, slug == SlugPolicy::Free, now).await?;
        record(&mut tx, tenant, operator, "tenant.erase_requested", json!({ "reason": reason }), now).await?;
        Ok(tx.commit().await?)
    }

    /// Approves what another operator has asked for: four eyes. [`run`](Self::run) does it from then on.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`SameOperator`](TenancyError::SameOperator) for whoever asked.
    pub async fn approve(&self, tenant: TenantId, operator: &Actor) -> Result<(), TenancyError> {
        let (mut tx, present) = self.lock(tenant, operator, "approve an erasure").await?;
        match present {
            Some(present) if present.state == EraseState::Requested => {
                if present.requested_by == operator.to_string() {
                    return Err(TenancyError::SameOperator);
                }
            }
            other => return Err(TenancyError::Erasure { present: other.map(|erasure| erasure.state) }),
        }
        self.require_possible(&mut tx, tenant).await?;
        let now = self.clock.now();
        store::approve(&mut tx, tenant, operator, now).await?;
        record(&mut tx, tenant, operator, "tenant.erase_approved", json!({}), now).await?;
        Ok(tx.commit().await?)
    }

    /// Takes a request back, approved or not, while nothing has been done.
    ///
    /// # Errors
    /// [`NotAnOperator`](TenancyError::NotAnOperator); [`Erasure`](TenancyError::Erasure) when there is none or it has begun.
    pub async fn withdraw(&self, tenant: TenantId, operator: &Actor) -> Result<(), TenancyError> {
        let (mut tx, present) = self.lock(tenant, operator, "withdraw an erasure").await?;
        match present.map(|erasure| erasure.state) {
            Some(EraseState::Requested | EraseState::Approved) => {}
            other => return Err(TenancyError::Erasure { present: other }),
        }
        store::withdraw(&mut tx, tenant).await?;
        record(&mut tx, tenant, operator, "tenant.erase_withdrawn", json!({}), self.clock.now()).await?;
        Ok(tx.commit().await?)
    }

    /// The erasure of a tenant and its report so far.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find(&self, tenant: TenantId) -> Result<Option<Erasure>, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, LOOK, "read an erasure").await?;
        Ok(store::find(&mut tx, tenant).await?)
    }

    async fn require_possible(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<(), TenancyError> {
        let mut survey = self.survey(tx, tenant).await?;
        survey.look_into_place().await?;
        survey.must_be_possible()
    }

    async fn lock(
        &self,
        tenant: TenantId,
        operator: &Actor,
        why: &'static str,
    ) -> Result<(SystemTx, Option<Erasure>), TenancyError> {
        match operator {
            Actor::Operator { .. } => {}
            other
            @ (Actor::User { .. } | Actor::ApiKey { .. } | Actor::Impersonation { .. } | Actor::System { .. }) => {
                return Err(TenancyError::NotAnOperator { actor: other.to_string() });
            }
        }
        let mut tx = SystemTx::begin(&self.system, operator.clone(), why).await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        let present = store::find_locked(&mut tx, tenant).await?;
        Ok((tx, present))
    }
}

const LOOK: Actor = Actor::system("erase.look");
const RUN: Actor = Actor::system("erase");

async fn record(
    tx: &mut SystemTx,
    tenant: TenantId,
    actor: &Actor,
    action: &'static str,
    detail: Value,
    now: DateTime<Utc>,
) -> Result<(), CoreError> {
    audit::record_in(tx, tenant, actor, Entry::new(action, tenant).with_detail(detail), now).await.map(drop)
}

impl fmt::Debug for Erasures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Erasures")
            .field("dependents", &self.dependents)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
