//! Exports as jobs: asked for by a member, done by a worker, kept for a while, removed.
//!
//! Owns `saas.export_job`. Promises:
//!
//! - *One at a time*: whoever asks while one is under way gets that one, and of two workers one does it.
//! - *Resumable*: a job whose process died is done again by the next [`run`](ExportJobs::run). From the beginning, because
//!   the rows of an export are those of one instant, which no second process can go back to; what the first one left is
//!   removed before.
//! - *Nothing is left*: what a job has put into the target goes when its time is over, also after a failure.
//!
//! As [`Dependents`], forbids to erase a tenant of which exports are still kept. Leaves to the application: calling
//! [`run`](ExportJobs::run) for what [`list_to_run`](ExportJobs::list_to_run) answers, and
//! [`remove_expired`](ExportJobs::remove_expired) now and then.

mod store;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, CoreError, ExportId, RequestContext, SystemTx, TenantContext, TenantId,
    audit::{self, Entry},
    dependents::{Dependent, Dependents},
};
use serde::Serialize;
use serde_json::json;

use super::{ExportProgress, ExportTarget, Exported, Exports};
use crate::{TenancyError, lifecycle};

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExportJobState {
    /// Asked for.
    Requested,
    /// Begun. Its process may have died since; whoever runs it finds out.
    Running,
    /// Its files can be fetched.
    Done,
    /// Given up.
    Failed,
    /// Its files are gone.
    Removed,
}

impl ExportJobState {
    const ALL: &'static [Self] = &[Self::Requested, Self::Running, Self::Done, Self::Failed, Self::Removed];

    /// The text that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Removed => "removed",
        }
    }
}

/// One export that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExportJob {
    /// Whose data.
    pub tenant: TenantId,
    /// Which.
    pub id: ExportId,
    /// How far it is.
    pub state: ExportJobState,
    /// Who asked, as in the audit log.
    pub requested_by: String,
    /// When.
    pub requested_at: DateTime<Utc>,
    /// How often it was begun.
    pub tries: u32,
    /// The table at hand, or the last one.
    pub table: Option<String>,
    /// Rows of it that are written.
    pub rows: u64,
    /// Bytes of all files so far.
    pub bytes: u64,
    /// Where it is, when it is done.
    pub place: Option<String>,
    /// The code of the error that stopped it.
    pub failure: Option<String>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// When its files go.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What a call of [`ExportJobs::run`] came to.
#[must_use]
#[derive(Debug)]
pub enum ExportRun {
    /// It is complete.
    Done(Box<Exported>),
    /// Another process is at it.
    Elsewhere,
    /// There is none to be done.
    Nothing,
}

/// How often a job is begun before it is given up, unless set.
const TRIES: u32 = 5;
/// How long files are kept, unless set.
const KEEP: TimeDelta = TimeDelta::days(7);

/// Keeps the exports of tenants in one target.
#[derive(Debug, Clone)]
pub struct ExportJobs {
    exports: Exports,
    target: Arc<dyn ExportTarget>,
    keep: TimeDelta,
    tries: u32,
}

impl ExportJobs {
    /// Jobs that export into `target`. One that runs holds a connection of the system's pool, and for moments two more.
    #[must_use]
    pub fn new(exports: Exports, target: Arc<dyn ExportTarget>) -> Self {
        Self { exports, target, keep: KEEP, tries: TRIES }
    }

    /// Keeps the files for this long. Default: seven days.
    #[must_use]
    pub const fn with_keep(mut self, keep: TimeDelta) -> Self {
        self.keep = keep;
        self
    }

    /// Gives a job up after it was begun this often. Default: five times.
    #[must_use]
    pub const fn with_tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// Asks for an export of the context's tenant; answers the one that is under way, if one is.
    ///
    /// # Errors
    /// As [`Exports::run`], for who may not.
    pub async fn request(&self, ctx: &dyn TenantContext) -> Result<ExportJob, TenancyError> {
        self.exports.authorize(ctx).await?;
        let now = self.exports.clock.now();
        let mut tx = self.begin(ctx.actor().clone(), "ask for an export").await?;
        lifecycle::lock_tenant(&mut tx, ctx.tenant()).await?;
        let status = lifecycle::store::find(&mut tx, ctx.tenant()).await?;
        if status.is_some_and(|status| matches!(status.state, lifecycle::State::Erasing | lifecycle::State::Erased)) {
            return Err(TenancyError::NotMember);
        }
        if let Some(present) = store::find_under_way(&mut tx, ctx.tenant()).await? {
            return Ok(present);
        }
        let id = ExportId::mint_at(now);
        store::request(&mut tx, ctx.tenant(), id, ctx.actor(), now).await?;
        audit::record_for(&mut tx, ctx, Entry::new("tenant.export_requested", id), now).await?;
        let job = store::get(&mut tx, ctx.tenant(), id).await?;
        tx.commit().await?;
        Ok(job)
    }

    /// The newest jobs of the context's tenant, at most 100, with how far they are.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub async fn list(&self, ctx: &dyn TenantContext) -> Result<Vec<ExportJob>, TenancyError> {
        self.exports.authorize(ctx).await?;
        let mut tx = self.begin(ctx.actor().clone(), "list exports").await?;
        Ok(store::list(&mut tx, ctx.tenant()).await?)
    }

    /// Tenants with an export to be done, the longest waiting first, at most 1,000; those that are being done are among
    /// them. For a worker.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_to_run(&self) -> Result<Vec<TenantId>, TenancyError> {
        let mut tx = self.begin(WORKER, "list exports to be done").await?;
        Ok(store::list_to_run(&mut tx).await?)
    }

    /// Does the export that was asked for, if no other process is at it.
    ///
    /// # Errors
    /// As [`Exports::run`]. After a retryable one, call again; after another one, or one too many, the job is
    /// [`Failed`](ExportJobState::Failed).
    pub async fn run(&self, tenant: TenantId) -> Result<ExportRun, TenancyError> {
        // Held until the end: whoever dies lets go of it.
        let mut alone = self.begin(WORKER, "export alone").await?;
        if !store::lock(&mut alone, tenant).await? {
            return Ok(ExportRun::Elsewhere);
        }
        let mut tx = self.begin(WORKER, "begin an export").await?;
        let Some(job) = store::find_under_way(&mut tx, tenant).await? else { return Ok(ExportRun::Nothing) };
        let attempt = ExportId::mint(self.exports.clock.as_ref());
        let left = store::start(&mut tx, tenant, job.id, attempt).await?;
        tx.commit().await?;
        let done = self.attempt(&mut alone, &job, attempt, left).await;
        let mut tx = self.begin(WORKER, "end an export").await?;
        let now = self.exports.clock.now();
        match &done {
            Ok(exported) => {
                let expires_at = now + self.keep;
                if !store::finish(&mut tx, tenant, job.id, &exported.place, now, expires_at).await? {
                    // Its tenant was erased meanwhile, and nobody would ever remove it.
                    drop(tx);
                    self.target.remove(tenant, attempt).await?;
                    return Err(CoreError::NotFound { what: "export job" }.into());
                }
            }
            Err(error) if error.is_retryable() && job.tries + 1 < self.tries => {
                store::note_failure(&mut tx, tenant, job.id, error.code()).await?;
            }
            Err(error) => {
                store::fail(&mut tx, tenant, job.id, error.code(), now).await?;
                let entry = Entry::new("tenant.export_failed", job.id).with_detail(json!({ "code": error.code() }));
                audit::record_in(&mut tx, tenant, &WORKER, entry, now).await?;
            }
        }
        tx.commit().await?;
        done.map(|exported| ExportRun::Done(Box::new(exported)))
    }

    /// Clears away what earlier attempts left, then exports, telling the database how far it is.
    async fn attempt(
        &self,
        alone: &mut SystemTx,
        job: &ExportJob,
        attempt: ExportId,
        left: Vec<ExportId>,
    ) -> Result<Exported, TenancyError> {
        for earlier in &left {
            self.target.remove(job.tenant, *earlier).await?;
        }
        if !left.is_empty() {
            let mut tx = self.begin(WORKER, "forget earlier attempts of an export").await?;
            store::forget_attempts(&mut tx, job.tenant, job.id, attempt).await?;
            tx.commit().await?;
        }
        let ctx = RequestContext::new(job.tenant, WORKER, self.exports.clock.as_ref());
        let heard = Mutex::new(None);
        let (hears, mut told) = tokio::sync::mpsc::channel(1);
        let mut progress = |now: &ExportProgress| {
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(now.clone());
            // One is enough: what is heard meanwhile is told with it.
            let _ = hears.try_send(());
        };
        let mut run = Box::pin(self.exports.run_as(&ctx, attempt, &*self.target, &mut progress));
        let done = loop {
            tokio::select! {
                done = &mut run => break done,
                Some(()) = told.recv() => {
                    // Whoever has lost the lock does not publish.
                    store::ping(alone).await?;
                    self.tell(job, &heard).await?;
                }
            }
        };
        drop(run);
        self.tell(job, &heard).await?;
        done
    }

    async fn tell(&self, job: &ExportJob, heard: &Mutex<Option<ExportProgress>>) -> Result<(), CoreError> {
        let Some(now) = heard.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        let mut tx = self.begin(WORKER, "say how far an export is").await?;
        store::tell(&mut tx, job.tenant, job.id, &now).await?;
        tx.commit().await
    }

    /// Removes what expired and failed jobs, at most `limit` of them, have put into the target. Answers how many jobs that
    /// were.
    ///
    /// # Errors
    /// When the target or the database does not answer; what was removed until then is on record.
    pub async fn remove_expired(&self, limit: u32) -> Result<u32, TenancyError> {
        let mut tx = self.begin(WORKER, "list expired exports").await?;
        let due = store::list_expired(&mut tx, self.exports.clock.now(), limit).await?;
        drop(tx);
        let mut removed = 0;
        for (tenant, id) in due {
            self.remove(tenant, id).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes the files of a job that is over, before its time: for a tenant that is to be erased. None there is as good.
    ///
    /// # Errors
    /// When the target or the database does not answer; [`NotFound`](CoreError::NotFound) when there is no such job.
    pub async fn remove(&self, tenant: TenantId, id: ExportId) -> Result<(), TenancyError> {
        let mut tx = self.begin(WORKER, "remove an export").await?;
        let attempts = store::attempts_of_ended(&mut tx, tenant, id).await?;
        drop(tx);
        // The manifest says what is there, and goes first: see the target's contract.
        for attempt in attempts {
            self.target.remove(tenant, attempt).await?;
        }
        let mut tx = self.begin(WORKER, "note that an export is gone").await?;
        if store::set_removed(&mut tx, tenant, id).await? {
            let now = self.exports.clock.now();
            audit::record_in(&mut tx, tenant, &WORKER, Entry::new("tenant.export_removed", id), now).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn begin(&self, actor: Actor, reason: &'static str) -> Result<SystemTx, CoreError> {
        SystemTx::begin(&self.exports.system, actor, reason).await
    }
}

const WORKER: Actor = Actor::system("export jobs");

#[async_trait]
impl Dependents for ExportJobs {
    async fn find(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Vec<Dependent>, CoreError> {
        let kept = store::count_kept(tx, tenant).await?;
        let what = format!("{kept} of its exports are under way or kept");
        let remedy = "remove them by ExportJobs::remove, or wait until they have expired".to_owned();
        Ok(if kept == 0 { Vec::new() } else { vec![Dependent { what, remedy }] })
    }
}
