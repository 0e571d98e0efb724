//! What an operator sees and does: lists of what is stuck, replay, and the health of the inbox.

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Actor, CoreError, Page, PageSize, SystemTx};
use serde::Serialize;

use crate::{
    billing::Billing,
    error::BillingError,
    object::ObjectId,
    postgres::{
        conflict,
        desk::{self, Listed},
        fetch, notice,
        receipt::State,
    },
};

/// Why a receipt needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// Waits for its customer to be linked to a tenant.
    Parked,
    /// Kept without effect: another mode, another account, a checkout that was not made here.
    Quarantined,
    /// Cannot be read, or failed too often.
    Dead,
}

/// A receipt in a list. The body stays in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The account that the event belongs to; `None` for the platform's own.
    pub account: Option<String>,
    /// Whether it is about real money.
    pub livemode: bool,
    /// Stripe's id, or `sha256:…` of a body without a readable one.
    pub event_id: String,
    /// Such as `invoice.paid`; empty when it cannot be read.
    pub event_type: String,
    /// Why it is where it is.
    pub reason: String,
    /// The object whose link would set it free.
    pub waits_for: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it came in.
    pub received_at: DateTime<Utc>,
}

/// A place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptCursor {
    received_at: DateTime<Utc>,
    event_id: String,
}

/// How the inbox is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InboxHealth {
    /// Waiting for a worker.
    pub pending: u64,
    /// When the oldest of them came in: the lag.
    pub oldest_pending: Option<DateTime<Utc>>,
    /// Of those, the ones that have failed at least once.
    pub failing: u64,
    /// When the last event came in; `None` when none has for 24 hours and none waits for anything.
    pub last_received: Option<DateTime<Utc>>,
    /// Applied, of those that came in during the last 24 hours.
    pub applied: u64,
    /// Nothing to do about them, of those that came in during the last 24 hours.
    pub ignored: u64,
    /// Waiting for their customer's link.
    pub parked: u64,
    /// When the oldest of them came in.
    pub oldest_parked: Option<DateTime<Utc>>,
    /// Kept without effect.
    pub quarantined: u64,
    /// Dead letters.
    pub dead: u64,
    /// Objects that could not be read from Stripe.
    pub dead_fetches: u64,
    /// Bodies that contradict a receipt: forged, or a fixture. Should be 0.
    pub conflicts: u64,
    /// What Stripe has told and nobody has seen yet ([`Billing::list_notices`]).
    pub notices: u64,
}

impl Billing {
    /// Lists receipts that need a person, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_stuck(
        &self,
        actor: &Actor,
        stuck: Stuck,
        after: Option<&ReceiptCursor>,
        size: PageSize,
    ) -> Result<Page<Receipt, ReceiptCursor>, BillingError> {
        let state = match stuck {
            Stuck::Parked => State::Parked,
            Stuck::Quarantined => State::Quarantined,
            Stuck::Dead => State::Dead,
        };
        let after = after.map(|cursor| (cursor.received_at, cursor.event_id.as_str()));
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "list webhook receipts").await?;
        let rows = desk::list(&mut tx, &self.scope, state, after, i64::from(size.get()) + 1).await?;
        tx.commit().await?;
        let receipts = rows.into_iter().map(Receipt::from).collect();
        let cursor = |last: &Receipt| ReceiptCursor { received_at: last.received_at, event_id: last.event_id.clone() };
        Ok(Page::from_rows(receipts, size, cursor))
    }

    /// The body of a receipt, byte for byte as Stripe sent it. It may hold personal data: who looks, and why, is for the
    /// caller to record.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) when there is no receipt of that id; [`Corrupt`](CoreError::Corrupt) when a newer
    /// version of this crate stored it.
    pub async fn receipt_body(&self, actor: &Actor, event_id: &str) -> Result<Vec<u8>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "read a webhook receipt").await?;
        let body = desk::body(&mut tx, &self.scope, event_id).await?;
        tx.commit().await?;
        let body = body.ok_or(CoreError::NotFound { what: "webhook receipt" })?;
        Ok(body.unpack().map_err(|_| CoreError::Corrupt { table: "saas.billing_receipt", column: "body" })?)
    }

    /// Sends an event through the worker again, whatever became of it. Harmless at any time: what is already known is
    /// merged once more and changes nothing.
    ///
    /// # Errors
    /// [`NotFound`](CoreError::NotFound) when there is no receipt of that id.
    pub async fn replay(&self, actor: &Actor, event_id: &ObjectId) -> Result<(), BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "replay a webhook receipt").await?;
        if !desk::replay(&mut tx, &self.scope, event_id.as_str(), self.clock.now()).await? {
            return Err(CoreError::NotFound { what: "webhook receipt" }.into());
        }
        tracing::info!(target: "saas.billing.webhook.replay", %actor, %event_id, "replayed");
        Ok(tx.commit().await?)
    }

    /// Sends events of this account and mode that other endpoints have received and kept through the worker, up to `limit`,
    /// oldest first: for a connected account that has got a service of its own. Returns how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_over_quarantined(&self, actor: &Actor, limit: u16) -> Result<u64, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "take over what other endpoints have kept").await?;
        let taken = desk::take_over(&mut tx, &self.scope, self.clock.now(), i64::from(limit)).await?;
        tx.commit().await?;
        tracing::info!(target: "saas.billing.webhook.replay", %actor, taken, "took over what other endpoints had kept");
        Ok(taken)
    }

    /// Sends all dead letters through the worker again, and puts objects that could not be read from Stripe back on its list.
    /// Returns how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn replay_all(&self, actor: &Actor) -> Result<u64, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "replay all dead letters").await?;
        let now = self.clock.now();
        let receipts = desk::replay_dead(&mut tx, &self.scope, now).await?;
        let replayed = receipts + fetch::replay_dead(&mut tx, &self.scope, now).await?;
        tx.commit().await?;
        tracing::info!(target: "saas.billing.webhook.replay", %actor, replayed, "replayed all dead letters");
        Ok(replayed)
    }

    /// How the inbox is doing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn inbox_health(&self, actor: &Actor) -> Result<InboxHealth, BillingError> {
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "look at the webhook inbox").await?;
        let day_ago = self.clock.now() - TimeDelta::days(1);
        let counts = desk::count(&mut tx, &self.scope, day_ago).await?;
        let dead_fetches = fetch::count_dead(&mut tx, &self.scope).await?;
        let conflicts = conflict::count(&mut tx, &self.scope).await?;
        let notices = notice::count(&mut tx, &self.scope).await?;
        tx.commit().await?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let mut health = InboxHealth {
            conflicts: number(conflicts),
            dead_fetches: number(dead_fetches),
            notices: number(notices),
            ..InboxHealth::default()
        };
        for (state, count, oldest, latest, failing) in counts {
            let count = number(count);
            health.last_received = health.last_received.max(latest);
            match state.as_str() {
                "pending" => {
                    (health.pending, health.oldest_pending, health.failing) = (count, oldest, number(failing));
                }
                "applied" => health.applied = count,
                "ignored" => health.ignored = count,
                "parked" => (health.parked, health.oldest_parked) = (count, oldest),
                "quarantined" => health.quarantined += count,
                "dead" => health.dead += count,
                _ => return Err(CoreError::Corrupt { table: "saas.billing_receipt", column: "state" }.into()),
            }
        }
        Ok(health)
    }
}

impl From<Listed> for Receipt {
    fn from((account, livemode, event_id, event_type, reason, waits_for, attempts, received_at): Listed) -> Self {
        let account = Some(account).filter(|account| !account.is_empty());
        let (reason, attempts) = (reason.unwrap_or_default(), u32::try_from(attempts).unwrap_or(0));
        Self { account, livemode, event_id, event_type, reason, waits_for, attempts, received_at }
    }
}
