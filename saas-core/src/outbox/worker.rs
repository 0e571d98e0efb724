//! The worker: claims due jobs, runs their handlers, and finishes them under a fencing token.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle, JoinSet},
};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Job, JobError, JobHandler};
use crate::{Actor, CoreError, JobId, LeaseToken, SharedClock, SystemPool, SystemTx, TenantId, Topic, trace};

/// How often and how far apart a failing job is tried.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries before a job becomes a dead letter.
    pub attempts: u32,
    /// The upper bound of the first wait; it doubles with each try.
    pub base: TimeDelta,
    /// The longest wait.
    pub cap: TimeDelta,
}

impl Default for RetryPolicy {
    /// Twelve tries over about a day.
    fn default() -> Self {
        Self { attempts: 12, base: TimeDelta::seconds(10), cap: TimeDelta::hours(6) }
    }
}

impl RetryPolicy {
    /// The wait after try `attempt` (1, 2, …), for a random number in `0.0..1.0`: exponential with full jitter, so that
    /// jobs that failed together do not come back together.
    #[must_use]
    pub fn wait(&self, attempt: u32, random: f64) -> TimeDelta {
        let doubled = self.base.num_milliseconds().saturating_mul(1i64 << attempt.saturating_sub(1).min(40));
        let bound = doubled.clamp(0, self.cap.num_milliseconds());
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "milliseconds below 2^53")]
        let wait = (bound as f64 * random.clamp(0.0, 1.0)) as i64;
        TimeDelta::milliseconds(wait)
    }
}

/// What one pass of the worker did.
#[must_use]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Jobs done.
    pub done: usize,
    /// Jobs that will come back.
    pub retried: usize,
    /// Jobs given up.
    pub dead: usize,
    /// Jobs whose lease had passed to another worker before they were finished; nothing was changed for them.
    pub lost: usize,
}

impl Pass {
    /// Whether there was nothing to do.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.done + self.retried + self.dead + self.lost == 0
    }
}

/// Asks a running worker to stop: it finishes what it holds and takes nothing new.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    /// Asks for it. The future of [`Worker::run`] then ends when the jobs in hand are finished.
    pub fn now(&self) {
        self.0.send_replace(true);
    }
}

/// Delivers the outbox. Run one per process or more: they share the work.
#[derive(Debug, Clone)]
pub struct Worker {
    system: SystemPool,
    clock: SharedClock,
    handlers: BTreeMap<Topic, Arc<dyn JobHandler>>,
    retry: RetryPolicy,
    lease: TimeDelta,
    batch: u16,
    idle: Duration,
}

impl Worker {
    /// A worker without handlers; it takes only jobs it has a handler for.
    #[must_use]
    pub fn new(system: SystemPool, clock: SharedClock) -> Self {
        Self {
            system,
            clock,
            handlers: BTreeMap::new(),
            retry: RetryPolicy::default(),
            lease: TimeDelta::seconds(60),
            batch: 20,
            idle: Duration::from_secs(1),
        }
    }

    /// Serves a topic.
    #[must_use]
    pub fn with_handler(mut self, topic: Topic, handler: Arc<dyn JobHandler>) -> Self {
        self.handlers.insert(topic, handler);
        self
    }

    /// Replaces the retry policy.
    #[must_use]
    pub const fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// How long a job may take, at least one second, before another worker may take it over. Default: one minute.
    #[must_use]
    pub fn with_lease(mut self, lease: TimeDelta) -> Self {
        self.lease = lease.max(TimeDelta::seconds(1));
        self
    }

    /// How many jobs run at once, 1 to 500. Default: 20.
    #[must_use]
    pub fn with_batch(mut self, jobs: u16) -> Self {
        self.batch = jobs.clamp(1, 500);
        self
    }

    /// Runs until asked to stop. Poll this in a task of its own and keep the [`Shutdown`].
    pub fn run(self) -> (Shutdown, impl Future<Output = ()> + Send + 'static) {
        let (stop, mut stopped) = watch::channel(false);
        let worker = async move {
            let mut running = JoinSet::new();
            while !*stopped.borrow() && stopped.has_changed().is_ok() {
                let free = usize::from(self.batch).saturating_sub(running.len());
                let taken = match self.take(free, &mut running).await {
                    Ok(taken) => taken,
                    Err(error) => {
                        tracing::warn!(target: "saas.outbox", code = error.code(), %error, "cannot read the outbox");
                        0
                    }
                };
                // All slots taken: wait for one. Otherwise look again after a while, or when one is done.
                let pause = self.idle.mul_f64(0.5 + fastrand::f64());
                tokio::select! {
                    Some(finished) = running.join_next(), if !running.is_empty() => drop(account(finished)),
                    () = tokio::time::sleep(pause), if taken < free => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            }
            while let Some(finished) = running.join_next().await {
                let _ = account(finished);
            }
        };
        (Shutdown(stop), worker)
    }

    /// Claims one batch of due jobs, runs them at once, and finishes each.
    ///
    /// # Errors
    /// When the claim fails. A job that cannot be finished stays claimed until its lease ends, and comes again.
    pub async fn run_once(&self) -> Result<Pass, CoreError> {
        let mut running = JoinSet::new();
        self.take(usize::from(self.batch), &mut running).await?;
        let mut pass = Pass::default();
        while let Some(finished) = running.join_next().await {
            match account(finished) {
                Finished::Done => pass.done += 1,
                Finished::Retried => pass.retried += 1,
                Finished::Dead => pass.dead += 1,
                Finished::Lost => pass.lost += 1,
            }
        }
        Ok(pass)
    }

    /// Claims up to `limit` due jobs and starts them; says how many there were.
    async fn take(&self, limit: usize, running: &mut JoinSet<Result<Finished, CoreError>>) -> Result<usize, CoreError> {
        if limit == 0 {
            return Ok(0);
        }
        let token = LeaseToken::mint(self.clock.as_ref());
        let jobs = self.claim(token, limit).await?;
        let taken = jobs.len();
        for job in jobs {
            let worker = self.clone();
            running.spawn(async move { worker.deliver(job, token).await });
        }
        Ok(taken)
    }

    async fn claim(&self, token: LeaseToken, limit: usize) -> Result<Vec<Job>, CoreError> {
        let now = self.clock.now();
        let topics: Vec<&str> = self.handlers.keys().map(Topic::as_str).collect();
        let mut tx = SystemTx::begin(&self.system, WORKER, "claim due jobs").await?;
        let rows: Vec<Claimed> = sqlx::query_as(
            "with oldest as (
                select tenant_id, id, due_at
                from saas.outbox
                where state = 'pending' and due_at <= $1 and topic = any($2)
                order by due_at
                limit 1000
             ),
             -- Each tenant's first, then each tenant's second: one tenant's thousand does not delay another one's one.
             fair as (
                select tenant_id, id, due_at, row_number() over (partition by tenant_id order by due_at) as turn
                from oldest
             ),
             due as (
                select o.tenant_id, o.id
                from saas.outbox o
                join fair on o.tenant_id = fair.tenant_id and o.id = fair.id
                where o.state = 'pending' and o.due_at <= $1
                order by fair.turn, fair.due_at
                limit $3
                for update of o skip locked
             )
             update saas.outbox o
             set lease = $4, due_at = $5, attempts = o.attempts + 1
             from due
             where o.tenant_id = due.tenant_id and o.id = due.id
             returning o.tenant_id, o.id, o.topic, o.payload, o.attempts",
        )
        .bind(now)
        .bind(topics)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(token.as_uuid())
        .bind(now + self.lease)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        let readable = |row: Claimed| {
            let id = row.1;
            Job::try_from(row)
                .inspect_err(|error| tracing::error!(target: "saas.outbox", job = %id, %error, "an unreadable job"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    async fn deliver(&self, job: Job, token: LeaseToken) -> Result<Finished, CoreError> {
        // Every try but the last ended without a word: the process died, or the job killed it.
        let outcome = match job.attempt > self.retry.attempts {
            true => Err(JobError::permanent("every try ended without an answer; the job may be what kills the worker")),
            false => self.attempt(&job).await,
        };
        let now = self.clock.now();
        match outcome {
            Ok(()) => self.finish(&job, token, "done", now, None).await,
            Err(error) if error.permanent || job.attempt >= self.retry.attempts => {
                tracing::warn!(target: "saas.outbox", job = %job.id, topic = %job.topic, attempt = job.attempt, "given up");
                self.finish(&job, token, "dead", now, Some(error.reason)).await
            }
            Err(error) => {
                let due = now + self.retry.wait(job.attempt, fastrand::f64());
                self.finish(&job, token, "pending", due, Some(error.reason)).await
            }
        }
    }

    /// Runs the handler in a task of its own: a panic fails the job, not the worker.
    async fn attempt(&self, job: &Job) -> Result<(), JobError> {
        let Some(handler) = self.handlers.get(&job.topic).cloned() else {
            return Err(JobError::retry("no handler for this topic"));
        };
        let mut task = start(handler, job.clone());
        // Well within the lease, so that a job is given up here before it is taken over elsewhere.
        let patience = (self.lease * 4 / 5).to_std().unwrap_or_default();
        match tokio::time::timeout(patience, &mut task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => Err(JobError::retry(format_args!("the handler panicked: {panic}"))),
            Err(_) => {
                task.abort();
                Err(JobError::retry("the handler did not end within four fifths of its lease"))
            }
        }
    }

    /// Writes the outcome, if the lease is still ours.
    async fn finish(
        &self,
        job: &Job,
        token: LeaseToken,
        state: &'static str,
        at: DateTime<Utc>,
        reason: Option<String>,
    ) -> Result<Finished, CoreError> {
        let mut tx = SystemTx::begin(&self.system, WORKER, "finish a job").await?;
        let updated = sqlx::query(
            "update saas.outbox
             set state = $4, lease = null, last_error = $6,
                 due_at = case when $4 = 'pending' then $5 else due_at end,
                 finished_at = case when $4 = 'pending' then null else $5 end
             where tenant_id = $1 and id = $2 and lease = $3 and state = 'pending'",
        )
        .bind(job.tenant.as_uuid())
        .bind(job.id.as_uuid())
        .bind(token.as_uuid())
        .bind(state)
        .bind(at)
        .bind(reason.map(|text| storable(&text)))
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(match (updated.rows_affected(), state) {
            (0, _) => Finished::Lost,
            (_, "done") => Finished::Done,
            (_, "dead") => Finished::Dead,
            (_, _) => Finished::Retried,
        })
    }
}

const WORKER: Actor = Actor::system("outbox");

#[derive(Debug, Clone, Copy)]
enum Finished {
    Done,
    Retried,
    Dead,
    Lost,
}

/// What became of a job. One that could not be finished stays leased: the lease ends and the job comes again.
fn account(finished: Result<Result<Finished, CoreError>, JoinError>) -> Finished {
    match finished {
        Ok(Ok(finished)) => finished,
        Ok(Err(error)) => {
            tracing::warn!(target: "saas.outbox", code = error.code(), %error, "cannot finish a job");
            Finished::Lost
        }
        Err(panic) => {
            tracing::error!(target: "saas.outbox", %panic, "the outbox worker panicked");
            Finished::Lost
        }
    }
}

/// Tenant, id, topic, payload, attempts.
type Claimed = (Uuid, Uuid, String, Vec<u8>, i32);

impl TryFrom<Claimed> for Job {
    type Error = CoreError;

    fn try_from((tenant, id, topic, payload, attempts): Claimed) -> Result<Self, CoreError> {
        let corrupt = |column| CoreError::Corrupt { table: "saas.outbox", column };
        Ok(Self {
            tenant: TenantId::from_uuid(tenant),
            id: JobId::from_uuid(id),
            topic: Topic::try_from(topic).map_err(|_| corrupt("topic"))?,
            attempt: u32::try_from(attempts).map_err(|_| corrupt("attempts"))?,
            payload,
        })
    }
}

/// Runs a handler in a task and under a span of the job's own, so that what it logs names the tenant.
fn start(handler: Arc<dyn JobHandler>, job: Job) -> JoinHandle<Result<(), JobError>> {
    let span = trace::job_span(&job);
    tokio::spawn(async move { handler.run(&job).await }.instrument(span))
}

/// An error text that PostgreSQL can hold: no NUL, at most 2,000 characters.
fn storable(reason: &str) -> String {
    reason.chars().take(2_000).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Q4
    #[test]
    fn waits_double_up_to_the_cap_and_are_spread_evenly() {
        let policy = RetryPolicy::default();
        let bounds: Vec<i64> = (1..=15).map(|n| policy.wait(n, 1.0).num_seconds()).collect();
        assert_eq!(bounds[..4], [10, 20, 40, 80]);
        assert_eq!(*bounds.last().unwrap(), 6 * 3600);
        assert_eq!(policy.wait(3, 0.5).num_seconds(), 20);
        assert_eq!(policy.wait(200, 1.0), policy.cap);
        assert_eq!(policy.wait(1, 0.0), TimeDelta::zero());
    }

    #[derive(Debug)]
    struct Logs;

    #[async_trait::async_trait]
    impl JobHandler for Logs {
        async fn run(&self, _: &Job) -> Result<(), JobError> {
            tracing::info!("at work");
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_a_handler_logs_stands_under_its_tenant_and_job() {
        let recorder = trace::tests::Recorder::default();
        let _guard = tracing::subscriber::set_default(recorder.clone());
        let (tenant, id) = (TenantId::mint(&crate::SystemClock), JobId::mint(&crate::SystemClock));
        let job = Job { tenant, id, topic: Topic::from_static("mail"), attempt: 2, payload: Vec::new() };
        start(Arc::new(Logs), job).await.unwrap().unwrap();
        let recorded = recorder.0.lock().unwrap();
        let expected = [("attempt", "2"), ("job", &id.to_string()), ("tenant", &tenant.to_string()), ("topic", "mail")];
        assert!(recorded.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected));
        assert_eq!(recorded.events_inside, 1);
    }
}
