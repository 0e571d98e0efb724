//! What runs beside the requests, in every process or in one of their own: the outbox and who takes its jobs.
//!
//! Usage that is charged goes to Stripe from here, too: `tests/usage.rs` has its receiver.

use std::sync::Arc;

use async_trait::async_trait;
use saas_billing::{
    Billing, ObjectSource, PaymentProvider,
    command::{COMMANDS, CommandHandler},
    dunning::{DUNNING, DunningHandler, DunningMessages, DunningNotice},
};
use saas_core::{
    CoreError, SharedClock, SystemPool,
    mail::{self, Mail, MailHandler, Mailbox},
    outbox::{Job, JobError, JobHandler, Worker},
};
use saas_entitlements::{THRESHOLD_TOPIC, ThresholdCrossed};

/// A worker for everything that the four crates put into the outbox.
pub(crate) fn worker<P: PaymentProvider>(
    (system, clock): (SystemPool, SharedClock),
    billing: &Billing,
    stripe: &Arc<P>,
    mailbox: &Mailbox,
) -> Worker {
    let provider: Arc<dyn PaymentProvider> = Arc::clone(stripe) as _;
    let source: Arc<dyn ObjectSource> = Arc::clone(stripe) as _;
    Worker::new(system, clock)
        // Writes to Stripe whose answer was lost.
        .with_handler(COMMANDS, Arc::new(CommandHandler::new(billing.clone(), provider)))
        // Letters to who owes, each once, and when access falls.
        .with_handler(DUNNING, Arc::new(DunningHandler::new(billing.clone(), source, Arc::new(Letters))))
        // In production a mailer that speaks SMTP; here, a box to look into.
        .with_handler(mail::TOPIC, Arc::new(MailHandler(Arc::new(mailbox.clone()))))
        .with_handler(THRESHOLD_TOPIC, Arc::new(Warnings))
}

/// Whom an application writes to, and in which words.
#[derive(Debug)]
struct Letters;

#[async_trait]
impl DunningMessages for Letters {
    async fn compose(&self, notice: &DunningNotice) -> Result<Vec<Mail>, CoreError> {
        Ok(vec![notice.plain_mail("ada@acme.example".parse()?, "Quickstart")?])
    }
}

/// What an application does when a tenant nears a limit: a mail, a banner; here, a line.
#[derive(Debug)]
struct Warnings;

#[async_trait]
impl JobHandler for Warnings {
    async fn run(&self, job: &Job) -> Result<(), JobError> {
        let warning: ThresholdCrossed = job.payload()?;
        println!("  warning: {} % of {} used", warning.percent, warning.meter);
        Ok(())
    }
}
