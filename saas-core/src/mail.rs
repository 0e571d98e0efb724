//! The port through which messages leave. Adopters put their provider behind it; messages travel by the outbox, so that
//! a change and its message commit together and a provider that is down delays a message but loses none.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Cause, EmailAddress, InvalidInput, JobId, TenantId};

/// A message to one person.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Mail {
    to: EmailAddress,
    subject: String,
    text: String,
}

/// A message as it was stored.
#[derive(Deserialize)]
struct Unchecked {
    to: EmailAddress,
    subject: String,
    text: String,
}

impl TryFrom<Unchecked> for Mail {
    type Error = InvalidInput;

    fn try_from(mail: Unchecked) -> Result<Self, InvalidInput> {
        Self::new(mail.to, mail.subject, mail.text)
    }
}

impl Mail {
    /// A message whose subject cannot smuggle in a header.
    ///
    /// # Errors
    /// When the subject is empty, longer than 250 characters or holds a line break.
    pub fn new(to: EmailAddress, subject: impl Into<String>, text: impl Into<String>) -> Result<Self, InvalidInput> {
        let subject = subject.into();
        if subject.is_empty() || subject.chars().count() > 250 || subject.chars().any(char::is_control) {
            return Err(InvalidInput::new(
                "subject",
                "is empty, longer than 250 characters or holds a control character",
                "pass one line of text",
            ));
        }
        Ok(Self { to, subject, text: text.into() })
    }

    /// To whom.
    #[must_use]
    pub const fn to(&self) -> &EmailAddress {
        &self.to
    }

    /// One line.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Leaves out the text: it may hold a link that signs someone in.
impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail").field("to", &self.to).field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Why a message was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MailError {
    /// The provider did not answer or asked to wait; try again.
    #[error("the mail provider is unavailable")]
    Unavailable(#[source] Cause),
    /// The provider will never accept this message.
    #[error("the mail provider refused the message")]
    Refused(#[source] Cause),
}

/// Sends messages.
///
/// # Contract
/// - *At least once*: the same `job` may come again after a crash; a provider that takes an idempotency key gets it.
/// - *Truthful*: `Ok` means that the provider took responsibility.
#[async_trait]
pub trait Mailer: fmt::Debug + Send + Sync + 'static {
    /// Sends one message on behalf of a tenant.
    async fn send(&self, tenant: TenantId, job: JobId, mail: &Mail) -> Result<(), MailError>;
}

/// A mailbox in memory, for development and tests. Keeps one message per job, as a provider with idempotency keys does.
#[cfg(feature = "testing")]
#[derive(Debug, Clone, Default)]
pub struct Mailbox(std::sync::Arc<std::sync::Mutex<std::collections::BTreeMap<JobId, Mail>>>);

#[cfg(feature = "testing")]
impl Mailbox {
    /// All messages, in the order of their jobs.
    #[must_use]
    pub fn messages(&self) -> Vec<Mail> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(feature = "testing")]
#[async_trait]
impl Mailer for Mailbox {
    async fn send(&self, _: TenantId, job: JobId, mail: &Mail) -> Result<(), MailError> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(job, mail.clone());
        Ok(())
    }
}

#[cfg(feature = "postgres")]
pub use postgres::{MailHandler, TOPIC, enqueue_in};

#[cfg(feature = "postgres")]
mod postgres {
    use std::sync::Arc;

    use async_trait::async_trait;
    use chrono::{DateTime, Utc};
    use sqlx::PgConnection;

    use super::{Mail, MailError, Mailer};
    use crate::{
        CoreError, JobId, TenantId, Topic,
        outbox::{self, Job, JobError, JobHandler, NewJob},
    };

    /// The outbox topic of messages.
    pub const TOPIC: Topic = Topic::from_static("mail");

    /// Puts a message into the caller's transaction.
    ///
    /// # Errors
    /// When the row cannot be written.
    pub async fn enqueue_in(
        connection: &mut PgConnection,
        tenant: TenantId,
        mail: &Mail,
        now: DateTime<Utc>,
    ) -> Result<JobId, CoreError> {
        outbox::enqueue_in(connection, tenant, NewJob::of(TOPIC, mail)?, now).await
    }

    /// Delivers the outbox's messages through a [`Mailer`].
    #[derive(Debug, Clone)]
    pub struct MailHandler(pub Arc<dyn Mailer>);

    #[async_trait]
    impl JobHandler for MailHandler {
        async fn run(&self, job: &Job) -> Result<(), JobError> {
            let mail: Mail = job.payload()?;
            self.0.send(job.tenant, job.id, &mail).await.map_err(|error| match error {
                MailError::Unavailable(cause) => {
                    JobError::retry(format_args!("the mail provider is unavailable: {cause}"))
                }
                MailError::Refused(cause) => JobError::permanent(format_args!("the mail provider refused: {cause}")),
            })
        }
    }
}
