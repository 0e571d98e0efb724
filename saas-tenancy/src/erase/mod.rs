//! The end of a tenant: asked for, approved by someone else, done in small steps, reported.
//!
//! Owns which rows go, in which order, and the record of it. Promises:
//!
//! - *Fenced*: every statement names the tenant; a foreign key that could reach another tenant's rows stops the erasure
//!   before it begins.
//! - *Resumable*: each step is one transaction. A process that dies at any point is followed by another that calls
//!   [`run`](Erasures::run) again, and the counts in the report stay exact.
//! - *Gentle*: a step erases one bounded batch, so locks are short and nothing piles up in the log.
//! - *Complete*: when it says done, no row is left in any table of this database that has a `tenant_id`, except in the ones
//!   that the report names as kept, with the reason given in a migration:
//!   `select saas.retain('invoice', 'tax law: ten years');`.
//! - *Final for the name*: the tenant's row stays as a tombstone, so its id is never given again; its address only if the
//!   request said so.
//!
//! Leaves to the application: rows that name no tenant, files, caches of its own and backups. A tenant whose tables are in
//! another database is refused until it was moved back.

mod catalog;
mod plan;
mod store;

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, SharedClock, SystemPool, SystemTx, TenantId,
    audit::{self, Entry},
    dependents::Dependents,
    revision,
};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::plan::{ErasePlan, Fate, Obstacle, PlannedTable};
use crate::{
    TenancyError,
    lifecycle::{self, State},
};

/// How far an erasure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EraseState {
    /// Asked for.
    Requested,
    /// Approved by another operator.
    Approved,
    /// Begun. The tenant is not served any more.
    Running,
    /// Stopped by something that a repeat alone does not mend.
    Failed,
    /// Over.
    Done,
}

impl EraseState {
    const ALL: &'static [Self] = &[Self::Requested, Self::Approved, Self::Running, Self::Failed, Self::Done];

    /// The text that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Approved => "approved",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for EraseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What becomes of the tenant's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlugPolicy {
    /// Nobody gets it: old links never lead to another tenant.
    Keep,
    /// Another tenant may take it.
    Free,
}

/// The record of an erasure, and its report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Erasure {
    /// Whose.
    pub tenant: TenantId,
    /// How far it is.
    pub state: EraseState,
    /// Whether the address becomes free.
    pub frees_slug: bool,
    /// Why.
    pub reason: String,
    /// Who asked.
    pub requested_by: String,
    /// When.
    pub requested_at: DateTime<Utc>,
    /// Who approved.
    pub approved_by: Option<String>,
    /// When.
    pub approved_at: Option<DateTime<Utc>>,
    /// The code of the error that stopped it.
    pub failure: Option<String>,
    /// When it was done.
    pub finished_at: Option<DateTime<Utc>>,
    /// The tables in the order in which they are emptied; when it is done, followed by those that were kept.
    pub tables: Vec<ErasedTable>,
}

/// What became of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ErasedTable {
    /// Schema and table, quoted as SQL needs it.
    pub name: String,
    /// Rows that were erased so far.
    pub rows_erased: u64,
    /// Rows that were kept.
    pub rows_kept: u64,
    /// Why.
    pub kept_reason: Option<String>,
}

/// What one step did.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EraseStep {
    /// The tenant is not served any more; nothing is erased yet.
    Begun,
    /// A batch of a table's rows is gone.
    Erased {
        /// Which table.
        table: String,
        /// How many.
        rows: u64,
    },
    /// A table has no row of the tenant left.
    Emptied {
        /// Which table.
        table: String,
    },
    /// All is done, or was done before.
    Done(Box<Erasure>),
}

/// Erases tenants. For operators; the running of it for a worker.
#[derive(Clone)]
pub struct Erasures {
    system: SystemPool,
    clock: SharedClock,
    dependents: Vec<Arc<dyn Dependents>>,
    batch: i32,
}

const BATCH: i32 = 1_000;
const ACCOUNTS: &str = "saas.user_account";
const MEMBERSHIPS: &str = "saas.membership";

impl Erasures {
    /// The service over the system's pool of the control database.
    #[must_use]
    pub fn new(system: SystemPool, clock: SharedClock) -> Self {
        Self { system, clock, dependents: Vec::new(), batch: BATCH }
    }

    /// Asks this one, too, whether something depends on a tenant: billing, or the application's own.
    #[must_use]
    pub fn with_dependents(mut self, dependents: Arc<dyn Dependents>) -> Self {
        self.dependents.push(dependents);
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
        let survey = self.survey(&mut tx, tenant).await?;
        let mut tables = Vec::new();
        for name in survey.order {
            let rows = catalog::count(&mut tx, &name, tenant).await?;
            tables.push(PlannedTable { name, rows, fate: Fate::Erase });
        }
        for (name, reason) in survey.kept {
            let rows = catalog::count(&mut tx, &name, tenant).await?;
            tables.push(PlannedTable { name, rows, fate: Fate::Keep { reason } });
        }
        Ok(ErasePlan { tables, obstacles: survey.obstacles, dependents: survey.dependents })
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
        self.survey(&mut tx, tenant).await?.must_be_possible()?;
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
        self.survey(&mut tx, tenant).await?.must_be_possible()?;
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
        Ok(store::find_locked(&mut tx, tenant).await?)
    }

    /// Does an approved erasure from where it is to its end, and answers its report.
    ///
    /// Call it again after a crash, after an error, and, if processes may have outlived it with the tenant in their memory,
    /// once more when it is done: it erases what they wrote. Two at once take turns.
    ///
    /// # Errors
    /// - [`Erasure`](TenancyError::Erasure): none was approved.
    /// - [`EraseBlocked`](TenancyError::EraseBlocked): something came in the way; nothing was erased since.
    /// - A retryable error: call again. Any other is on record, as [`Failed`](EraseState::Failed): mend it, then call again.
    pub async fn run(
        &self,
        tenant: TenantId,
        on_step: &mut (dyn FnMut(&EraseStep) + Send),
    ) -> Result<Erasure, TenancyError> {
        loop {
            let step = self.step(tenant).await?;
            on_step(&step);
            if let EraseStep::Done(erasure) = step {
                return Ok(*erasure);
            }
        }
    }

    /// Does the next step: one transaction.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn step(&self, tenant: TenantId) -> Result<EraseStep, TenancyError> {
        match self.try_step(tenant).await {
            Err(TenancyError::Core(error)) if !error.is_retryable() => {
                self.fail(tenant, error.code()).await?;
                Err(error.into())
            }
            outcome => outcome,
        }
    }

    async fn try_step(&self, tenant: TenantId) -> Result<EraseStep, TenancyError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "erase a tenant").await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        let Some(erasure) = store::find_locked(&mut tx, tenant).await? else {
            return Err(TenancyError::Erasure { present: None });
        };
        let step = match erasure.state {
            EraseState::Requested => return Err(TenancyError::Erasure { present: Some(erasure.state) }),
            EraseState::Approved | EraseState::Failed => self.start(&mut tx, &erasure).await?,
            EraseState::Running => match store::next_table(&mut tx, tenant).await? {
                Some(table) => self.batch(&mut tx, tenant, table).await?,
                None => self.finish(&mut tx, erasure).await?,
            },
            EraseState::Done => self.finish(&mut tx, erasure).await?,
        };
        tx.commit().await?;
        if matches!(step, EraseStep::Begun) {
            self.wait_until_left(tenant).await?;
        }
        Ok(step)
    }

    /// Whoever came through the door before it closed may still write.
    async fn wait_until_left(&self, tenant: TenantId) -> Result<(), CoreError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "wait until a tenant's transactions have left").await?;
        lifecycle::store::wait_until_left(&mut tx, tenant).await
    }

    /// Shuts the tenant out and writes the list of tables.
    async fn start(&self, tx: &mut SystemTx, erasure: &Erasure) -> Result<EraseStep, TenancyError> {
        let (tenant, now) = (erasure.tenant, self.clock.now());
        let survey = self.survey(tx, tenant).await?;
        survey.must_be_possible()?;
        lifecycle::change_in(tx, tenant, State::Erasing, &RUN, &erasure.reason, now).await?;
        store::note_accounts(tx, tenant).await?;
        for (place, table) in (0..).zip(&survey.order) {
            store::open_step(tx, tenant, table, place).await?;
            if table == MEMBERSHIPS {
                store::open_step(tx, tenant, ACCOUNTS, place).await?;
            }
        }
        store::set_state(tx, tenant, EraseState::Running, None, None).await?;
        Ok(EraseStep::Begun)
    }

    async fn batch(&self, tx: &mut SystemTx, tenant: TenantId, table: String) -> Result<EraseStep, TenancyError> {
        let (looked, rows) = if table == ACCOUNTS {
            store::erase_accounts(tx, tenant, self.batch).await?
        } else {
            let rows = catalog::erase_batch(tx, &table, tenant, self.batch).await?;
            (rows, rows)
        };
        let finished_at = (looked == 0).then(|| self.clock.now());
        store::count_step(tx, tenant, &table, rows, finished_at).await?;
        Ok(match finished_at {
            Some(_) => EraseStep::Emptied { table },
            None => EraseStep::Erased { table, rows: u64::try_from(rows).unwrap_or(0) },
        })
    }

    /// Looks whether anything is left, in whatever tables there are by now, and buries the tenant.
    async fn finish(&self, tx: &mut SystemTx, erasure: Erasure) -> Result<EraseStep, TenancyError> {
        let (tenant, now) = (erasure.tenant, self.clock.now());
        let survey = self.survey(tx, tenant).await?;
        survey.must_be_possible()?;
        let mut is_left = false;
        for (place, table) in (0..).zip(&survey.order) {
            if catalog::count(tx, table, tenant).await? != Some(0) {
                is_left = true;
                store::open_step(tx, tenant, table, place).await?;
            }
        }
        if is_left {
            store::set_state(tx, tenant, EraseState::Running, None, None).await?;
            return Ok(EraseStep::Begun);
        }
        if erasure.state == EraseState::Done {
            return Ok(EraseStep::Done(Box::new(erasure)));
        }
        store::bury(tx, tenant, erasure.frees_slug).await?;
        lifecycle::change_in(tx, tenant, State::Erased, &RUN, &erasure.reason, now).await?;
        store::set_state(tx, tenant, EraseState::Done, None, Some(now)).await?;
        for (table, reason) in &survey.kept {
            let rows = catalog::count(tx, table, tenant).await?.unwrap_or(0);
            store::keep_step(tx, tenant, table, rows, reason, now).await?;
        }
        let done = store::find_locked(tx, tenant).await?.ok_or(CoreError::NotFound { what: "erasure" })?;
        Ok(EraseStep::Done(Box::new(done)))
    }

    /// Puts a failure on record, if the erasure had begun.
    async fn fail(&self, tenant: TenantId, code: &'static str) -> Result<(), TenancyError> {
        let mut tx = SystemTx::begin(&self.system, RUN, "record that an erasure failed").await?;
        lifecycle::lock_tenant(&mut tx, tenant).await?;
        let running = store::find_locked(&mut tx, tenant).await?.filter(|found| found.state == EraseState::Running);
        if running.is_none() {
            return Ok(());
        }
        store::set_state(&mut tx, tenant, EraseState::Failed, Some(code), None).await?;
        record(&mut tx, tenant, &RUN, "tenant.erase_failed", json!({ "code": code }), self.clock.now()).await?;
        revision::bump_in(&mut tx, tenant).await?;
        Ok(tx.commit().await?)
    }

    async fn survey(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Survey, TenancyError> {
        let tables = catalog::tables(tx, tenant).await?;
        let (order, mut obstacles) = plan::order(&tables, &catalog::references(tx).await?);
        obstacles.extend(catalog::elsewhere(tx, tenant).await?);
        let mut dependents = Vec::new();
        for port in &self.dependents {
            dependents.extend(port.find(tx, tenant).await?);
        }
        let kept = tables.into_iter().filter_map(|table| Some((table.name, table.retained?))).collect();
        Ok(Survey { order, kept, obstacles, dependents })
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

/// What the catalogue and the ports say.
struct Survey {
    order: Vec<String>,
    kept: Vec<(String, String)>,
    obstacles: Vec<Obstacle>,
    dependents: Vec<saas_core::dependents::Dependent>,
}

impl Survey {
    fn must_be_possible(&self) -> Result<(), TenancyError> {
        if self.obstacles.is_empty() && self.dependents.is_empty() {
            return Ok(());
        }
        Err(TenancyError::EraseBlocked { obstacles: self.obstacles.clone(), dependents: self.dependents.clone() })
    }
}

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
