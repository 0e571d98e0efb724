//! The outbox: work that a transaction promises and a worker delivers, at least once.
//!
//! A job is a row of the caller's transaction, always of one tenant. The worker claims due rows with `SKIP LOCKED` under
//! a lease; only the holder of the lease's token can finish a job, so a worker that slept through its lease changes
//! nothing. Failures come back with exponential backoff and full jitter, and end in a list of dead letters with their
//! reason. Receivers recognise a repeat by the job's id.

mod dead;
mod worker;

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
pub use dead::{DeadLetter, list_dead, purge_done_in, replay_dead_in};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::PgConnection;
pub use worker::{Pass, RetryPolicy, Shutdown, Worker};

use crate::{CoreError, InvalidInput, JobId, TenantId, Topic};

/// The largest payload, in bytes: a job names things, it does not carry them.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// A job to be done.
#[derive(Clone)]
pub struct NewJob {
    topic: Topic,
    payload: Vec<u8>,
    due_at: Option<DateTime<Utc>>,
}

impl NewJob {
    /// A job whose payload is stored as JSON, due at once.
    ///
    /// # Errors
    /// When the payload cannot be written as JSON or is larger than [`MAX_PAYLOAD`].
    pub fn of<T: Serialize>(topic: Topic, payload: &T) -> Result<Self, InvalidInput> {
        let payload = serde_json::to_vec(payload).map_err(|_| {
            InvalidInput::new("job payload", "cannot be written as JSON", "use string keys and finite numbers")
        })?;
        if payload.len() > MAX_PAYLOAD {
            return Err(InvalidInput::new("job payload", "is larger than 256 KiB", "store the data and pass its id"));
        }
        Ok(Self { topic, payload, due_at: None })
    }

    /// Delays the job until `at`.
    #[must_use]
    pub const fn with_due_at(mut self, at: DateTime<Utc>) -> Self {
        self.due_at = Some(at);
        self
    }
}

impl fmt::Debug for NewJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewJob").field("topic", &self.topic).field("due_at", &self.due_at).finish_non_exhaustive()
    }
}

/// Puts a job into the caller's transaction: it exists if and only if that commits.
///
/// # Errors
/// [`Forbidden`](CoreError::Forbidden) when the transaction is bound to another tenant.
pub async fn enqueue_in(
    connection: &mut PgConnection,
    tenant: TenantId,
    job: NewJob,
    now: DateTime<Utc>,
) -> Result<JobId, CoreError> {
    let id = JobId::mint_at(now);
    sqlx::query(
        "insert into saas.outbox (tenant_id, id, topic, payload, due_at, created_at)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .bind(job.topic.as_str())
    .bind(job.payload)
    .bind(job.due_at.unwrap_or(now))
    .bind(now)
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(id)
}

/// Takes a job back that nobody has begun, in the caller's transaction; `false` when it was done, is being done, or is not
/// there. Runs as the system role.
///
/// # Errors
/// When the database does not answer.
pub async fn withdraw_in(connection: &mut PgConnection, tenant: TenantId, id: JobId) -> Result<bool, CoreError> {
    let deleted = sqlx::query(
        "delete from saas.outbox
         where tenant_id = $1 and id = $2 and state = 'pending' and lease is null",
    )
    .bind(tenant.as_uuid())
    .bind(id.as_uuid())
    .execute(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(deleted.rows_affected() > 0)
}

/// A job in the hands of a worker.
#[derive(Clone)]
pub struct Job {
    /// Whose.
    pub tenant: TenantId,
    /// Which; the idempotency key towards whoever receives the effect.
    pub id: JobId,
    /// What kind.
    pub topic: Topic,
    /// How often it was tried, this time included.
    pub attempt: u32,
    payload: Vec<u8>,
}

impl Job {
    /// The payload.
    ///
    /// # Errors
    /// Permanent, when the payload is not a `T`: trying again would not help.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, JobError> {
        // Not serde's own words: they quote the payload.
        serde_json::from_slice(&self.payload)
            .map_err(|_| JobError::permanent("the payload is not what the handler reads"))
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("tenant", &self.tenant)
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Why a job was not done.
#[derive(Debug)]
pub struct JobError {
    permanent: bool,
    reason: String,
}

impl JobError {
    /// A later try may succeed.
    #[must_use]
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self { permanent: false, reason: reason.to_string() }
    }

    /// No later try will succeed: a dead letter.
    #[must_use]
    pub fn permanent(reason: impl fmt::Display) -> Self {
        Self { permanent: true, reason: reason.to_string() }
    }
}

impl From<CoreError> for JobError {
    fn from(error: CoreError) -> Self {
        if error.is_retryable() { Self::retry(error) } else { Self::permanent(error) }
    }
}

/// Does the jobs of one topic.
///
/// # Contract
/// - *Idempotent by [`Job::id`]*: after a crash the same job comes again.
/// - *Bounded*: gives up before the worker's lease ends; the worker stops waiting then.
#[async_trait]
pub trait JobHandler: fmt::Debug + Send + Sync + 'static {
    /// Does one job.
    async fn run(&self, job: &Job) -> Result<(), JobError>;
}
