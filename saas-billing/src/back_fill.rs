//! Receipts for events that were never delivered: read from Stripe's list of events, after an outage longer than its retries.

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Actor, InvalidInput};

use crate::{
    billing::{Billing, receipt_of},
    error::BillingError,
    event::Envelope,
    intake::decide,
    object::ObjectId,
    port::Accepted,
    provider::{PageLimit, PaymentProvider, Query},
};

/// How far back Stripe lists events.
const LISTED: TimeDelta = TimeDelta::days(30);

/// What a page of [`Billing::back_fill`] brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackFilled {
    /// Events of the page.
    pub listed: usize,
    /// Of them, those that had not been delivered.
    pub stored: usize,
    /// Where the next page begins, further back in time; `None` after the last one.
    pub next: Option<ObjectId>,
}

impl Billing {
    /// Stores what Stripe has told since `since` and never delivered, one page of its list, newest first. The worker applies
    /// it like a delivery; what is there already stays as it is. Repeating a page is harmless: go on until `next` is `None`.
    ///
    /// # Errors
    /// - [`Invalid`](BillingError::Invalid): `since` is more than 30 days ago. Stripe lists no older events; compare the
    ///   objects themselves ([`start_reconcile`](Self::start_reconcile)).
    /// - [`Provider`](BillingError::Provider): Stripe did not give the page.
    /// - When the database does not answer.
    #[tracing::instrument(name = "saas.billing.back_fill", level = "debug", skip(self, provider))]
    pub async fn back_fill(
        &self,
        provider: &dyn PaymentProvider,
        actor: &Actor,
        since: DateTime<Utc>,
        after: Option<&ObjectId>,
    ) -> Result<BackFilled, BillingError> {
        let now = self.clock.now();
        if since < now - LISTED {
            let why = "is more than 30 days ago, and Stripe lists no older events";
            return Err(InvalidInput::new("since", why, "compare the objects: `start_reconcile`").into());
        }
        let query = Query::Events { created_from: Some(since) };
        let page = provider.list(&query, after, PageLimit::MAX).await?;
        let mut filled = BackFilled { listed: page.objects.len(), stored: 0, next: page.next };
        for json in &page.objects {
            let body = json.get().as_bytes();
            let Ok(mut envelope) = Envelope::read(body) else {
                let received = self.receive_unreadable(body, "a listed event that cannot be read", now).await?;
                filled.stored += usize::from(received == Accepted::Unreadable);
                continue;
            };
            // It was asked of this account, whether the event says so or not.
            envelope.account = self.config.account.clone();
            let disposition = decide(&envelope, self.config.mode, self.config.account.as_ref());
            let new = receipt_of(&self.scope, &envelope, body, disposition, &self.scope, now);
            filled.stored += usize::from(self.store(new).await?);
        }
        if filled.stored > 0 {
            tracing::warn!(target: "saas.billing.back_fill", %actor, stored = filled.stored, "events that were never delivered");
        }
        Ok(filled)
    }
}
