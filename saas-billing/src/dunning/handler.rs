//! The worker's part: wakes at the instants at which time alone changes something, and sends what is due.

use std::sync::Arc;

use async_trait::async_trait;
use saas_core::{
    CoreError, SystemTx, TenantId, Topic, audit, mail,
    outbox::{Job, JobError, JobHandler},
    tenant,
};
use serde::Deserialize;
use serde_json::json;

use super::{DunningMessages, DunningNotice, MessageCause, agenda::Due, record::Held};
use crate::{
    Billing, BillingError,
    apply::reason_of,
    billing::ACTOR,
    derive::{Derived, FetchRequest},
    object::{InvoiceStatus, ObjectKind},
    postgres::{dunning, fetch, recorded, state},
    provider::{Fetched, ObjectSource},
    subscription::{InvoiceSummary, read_invoice},
};

/// The topic of dunning: a worker needs [`DunningHandler`] there.
pub const DUNNING: Topic = Topic::from_static("billing.dunning");

/// Sends what is due, and records what time has done to access.
#[derive(Debug)]
pub struct DunningHandler {
    billing: Billing,
    source: Arc<dyn ObjectSource>,
    messages: Arc<dyn DunningMessages>,
}

#[derive(Deserialize)]
struct Payload {
    livemode: bool,
}

impl DunningHandler {
    /// A handler for [`DUNNING`]. Its letters go through the outbox, so a worker needs a
    /// [`MailHandler`](saas_core::mail::MailHandler) as well.
    #[must_use]
    pub fn new(billing: Billing, source: Arc<dyn ObjectSource>, messages: Arc<dyn DunningMessages>) -> Self {
        Self { billing, source, messages }
    }
}

#[async_trait]
impl JobHandler for DunningHandler {
    async fn run(&self, job: &Job) -> Result<(), JobError> {
        let payload: Payload = job.payload()?;
        if payload.livemode != self.billing.scope.livemode {
            return Err(JobError::retry("dunning of the other mode; its own worker does it"));
        }
        let due = self.billing.wake(job.tenant).await?;
        let mut failed = None;
        for due in due {
            // One that cannot be sent keeps no other from being sent.
            if let Err(why) =
                self.billing.send_due(self.source.as_ref(), self.messages.as_ref(), job.tenant, &due).await
            {
                let (invoice, code) = (due.invoice.as_str(), why.code());
                tracing::warn!(target: "saas.billing.dunning", invoice, message = %due.message, code, "a message was not sent");
                failed = Some(why);
            }
        }
        match failed {
            None => Ok(()),
            Some(why) if why.is_retryable() || why.kind() == saas_core::ErrorKind::Misconfigured => {
                Err(JobError::retry(reason_of(&why)))
            }
            Some(why) => Err(JobError::permanent(reason_of(&why))),
        }
    }
}

impl Billing {
    /// Records what time has done, has the tenant looked at at the next instant, and says what is due now.
    async fn wake(&self, tenant: TenantId) -> Result<Vec<Due>, CoreError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at what a tenant owes").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let now = self.clock.now();
        let derived = self.derived_in(&mut tx, tenant).await?;
        let held = self.held(&mut tx, tenant, &derived).await?;
        let (known, agenda) = self.agenda(&mut tx, tenant, &held, now).await?;
        if held.terms.standing(derived.unpaid_since, derived.suspended_since, now).access(now) != known.access() {
            let states = recorded::load(&mut tx, tenant, self.scope.livemode).await?.paying;
            let paying = self.record_revenue(&mut tx, tenant, (&held, &held), states, (now, now)).await?;
            state::show(&mut tx, (tenant, &self.scope), &held, &paying, false, now).await?;
        }
        self.keep(&mut tx, tenant, (&held, &known), agenda.next_at, now).await?;
        tx.commit().await?;
        Ok(agenda.due)
    }

    /// Sends one message, unless it was sent, or its invoice is not what it was taken for.
    async fn send_due(
        &self,
        source: &dyn ObjectSource,
        messages: &dyn DunningMessages,
        tenant: TenantId,
        due: &Due,
    ) -> Result<(), BillingError> {
        // A last look at Stripe: the payment may have come while its event has not. And the address is fresh: it ends some day.
        let invoice = match source.fetch(ObjectKind::Invoice, &due.invoice).await? {
            Fetched::Found { object, .. } => Some(read_invoice(&object)?.1),
            Fetched::Missing => None,
        };
        let wanted = if due.cause == MessageCause::Recovery { InvoiceStatus::Paid } else { InvoiceStatus::Open };
        let Some(invoice) = invoice.filter(|invoice| invoice.status == wanted) else {
            return self.doubt(due).await;
        };
        let notice = self.notice(tenant, due, invoice).await?;
        let mails = messages.compose(&notice).await?;

        let mut tx = SystemTx::begin(&self.system, ACTOR, "send a message about an invoice").await?;
        tenant::lock_in(&mut tx, tenant).await?;
        let now = self.clock.now();
        let derived = self.derived_in(&mut tx, tenant).await?;
        let held = self.held(&mut tx, tenant, &derived).await?;
        let (mut known, agenda) = self.agenda(&mut tx, tenant, &held, now).await?;
        let livemode = self.scope.livemode;
        // It may have been paid, sent or put off meanwhile.
        let is_due = agenda.due.iter().any(|still| (&still.invoice, &still.message) == (&due.invoice, &due.message));
        if is_due
            && dunning::claim_message(&mut tx, (tenant, livemode), (&due.invoice, &due.message), mails.len(), now)
                .await?
        {
            for mail in &mails {
                mail::enqueue_in(&mut tx, tenant, mail, now).await?;
            }
            if due.cause == MessageCause::Recovery {
                dunning::close_invoice(&mut tx, tenant, livemode, &due.invoice, None).await?;
                known.paid.remove(&due.invoice);
            }
            let detail = json!({"message": due.message, "mails": mails.len(), "access": notice.access});
            let entry = audit::Entry::new("billing.dunning_message", &due.invoice).with_detail(detail);
            audit::record_in(&mut tx, tenant, &ACTOR, entry, now).await?;
        }
        self.keep(&mut tx, tenant, (&held, &known), agenda.next_at, now).await?;
        Ok(tx.commit().await?)
    }

    async fn notice(
        &self,
        tenant: TenantId,
        due: &Due,
        invoice: InvoiceSummary,
    ) -> Result<DunningNotice, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "read what a message is about").await?;
        let now = self.clock.now();
        let derived = self.derived_in(&mut tx, tenant).await?;
        let held = self.held(&mut tx, tenant, &derived).await?;
        tx.commit().await?;
        let (paid, sent) = Default::default();
        let situation = held.situation(&paid, &sent);
        Ok(DunningNotice {
            tenant,
            message: due.message.clone(),
            cause: due.cause,
            invoice: due.invoice.clone(),
            amount: if due.cause == MessageCause::Recovery { invoice.total } else { invoice.remaining },
            pay_link: invoice.page,
            access: situation.access(now),
            next_access: situation.next_access(now),
            open: derived.debts.len(),
        })
    }

    /// Has an invoice read that is not what the events say: nobody is told anything until it is merged.
    async fn doubt(&self, due: &Due) -> Result<(), BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "list an invoice to be fetched").await?;
        let reason = "a message about it was due, and Stripe says otherwise".to_owned();
        let request = FetchRequest { kind: ObjectKind::Invoice, id: due.invoice.clone(), reason };
        fetch::request(&mut tx, &self.scope, &request, self.clock.now()).await?;
        Ok(tx.commit().await?)
    }

    async fn derived_in(&self, connection: &mut sqlx::PgConnection, tenant: TenantId) -> Result<Derived, CoreError> {
        Ok(state::find(connection, tenant, self.scope.livemode).await?.unwrap_or_default())
    }

    /// What was derived, with the tenant's terms.
    pub(crate) async fn held<'a>(
        &self,
        connection: &mut sqlx::PgConnection,
        tenant: TenantId,
        derived: &'a Derived,
    ) -> Result<Held<'a>, CoreError> {
        let exception = dunning::exception(connection, tenant, self.scope.livemode).await?;
        Ok(self.held_with(derived, exception.as_ref()))
    }
}
