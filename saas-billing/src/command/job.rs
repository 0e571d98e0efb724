//! The outbox's part: commands whose first try had no answer.

use std::sync::Arc;

use async_trait::async_trait;
use saas_core::{
    Topic,
    outbox::{Job, JobError, JobHandler},
};
use serde::Deserialize;

use crate::{apply::reason_of, billing::Billing, error::BillingError, provider::PaymentProvider};

/// The topic of commands: a worker needs [`CommandHandler`] there.
pub const COMMANDS: Topic = Topic::from_static("billing.command");

/// Sends commands that are still to be sent.
#[derive(Debug)]
pub struct CommandHandler {
    billing: Billing,
    provider: Arc<dyn PaymentProvider>,
}

#[derive(Deserialize)]
struct Payload {
    livemode: bool,
    /// The job is of a request, and not of one command.
    #[serde(default)]
    request: bool,
}

impl CommandHandler {
    /// A handler for [`COMMANDS`].
    #[must_use]
    pub fn new(billing: Billing, provider: Arc<dyn PaymentProvider>) -> Self {
        Self { billing, provider }
    }
}

#[async_trait]
impl JobHandler for CommandHandler {
    async fn run(&self, job: &Job) -> Result<(), JobError> {
        let payload: Payload = job.payload()?;
        if payload.livemode != self.billing.scope.livemode {
            return Err(JobError::retry("a command of the other mode; its own worker takes it"));
        }
        let provider = self.provider.as_ref();
        let outcome = if payload.request {
            self.billing.drive(provider, job.tenant, job.id).await.map(drop)
        } else {
            self.billing.send(provider, job.tenant, job.id).await.map(drop)
        };
        match outcome {
            // What failed for good was recorded when it did, and whoever asked was told.
            Ok(()) | Err(BillingError::CommandFailed { .. }) => Ok(()),
            Err(why) if why.is_retryable() || why.kind() == saas_core::ErrorKind::Misconfigured => {
                Err(JobError::retry(reason_of(&why)))
            }
            Err(why) => Err(JobError::permanent(reason_of(&why))),
        }
    }
}
