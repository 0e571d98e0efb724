//! The worker's step: takes receipts that are due and applies them, by preference those of one customer in one transaction.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use saas_core::{LeaseToken, SystemTx};

use crate::{
    billing::{ACTOR, Billing},
    derive::FetchRequest,
    error::BillingError,
    event::{AnySnapshot, Envelope, Notice, Told, read_told},
    object::{ObjectId, ObjectKind, Unreadable},
    postgres::{
        desk, fetch, notice, object,
        receipt::{self, Claimed, Ending, State},
        usage_report,
    },
    settle::{Report, Settled},
};

/// How long a receipt may wait for its customer's link.
const PARKED_FOR: TimeDelta = TimeDelta::days(30);
/// The longest pause between two tries.
const MAX_PAUSE: TimeDelta = TimeDelta::hours(1);
/// The pause of what waited in vain for a lock or the database.
const BUSY_PAUSE: TimeDelta = TimeDelta::seconds(5);
/// Why a receipt is parked.
pub(crate) const UNLINKED: &str = "waits to be linked to a tenant";
/// Tries within one step when a link comes in between.
const LOOKS: usize = 3;

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// Merged.
    pub applied: usize,
    /// Nothing to do about them.
    pub ignored: usize,
    /// Waiting for their customer's link.
    pub parked: usize,
    /// Kept without effect.
    pub quarantined: usize,
    /// Failed, and coming again.
    pub retried: usize,
    /// Given up, with a reason.
    pub dead: usize,
    /// Taken over by another worker meanwhile.
    pub lost: usize,
}

impl Applied {
    /// How many receipts were looked at.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.applied + self.ignored + self.parked + self.quarantined + self.retried + self.dead + self.lost
    }
}

impl Billing {
    /// Applies up to `limit` receipts that are due: the longest due, to a quarter, 25 at most, the latest, which do not wait for
    /// a backlog, and to a half what else is due of the same customers. Those of one customer share a transaction; what fails in
    /// one, or was tried before, is tried in one of its own.
    ///
    /// Any number of workers may call this at once, on any number of machines. One that dies in the middle loses nothing:
    /// its receipts come again when the lease ends, and a transaction that was not committed has had no effect.
    ///
    /// # Errors
    /// When receipts cannot be taken. What fails for one receipt is recorded on it and not returned.
    #[tracing::instrument(name = "saas.billing.webhook.apply", level = "debug", skip(self))]
    pub async fn apply_pending(&self, limit: u16) -> Result<Applied, BillingError> {
        let now = self.clock.now();
        let lease = LeaseToken::mint_at(now);
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take webhook receipts that are due").await?;
        let until = now + self.config.lease;
        let claimed = receipt::claim(&mut tx, &self.scope, i64::from(limit), lease, (now, until)).await?;
        tx.commit().await?;
        let mut applied = Applied::default();
        let mut busy = BTreeSet::new();
        let alone = self.apply_together(claimed, (lease, until), &mut busy, &mut applied).await;
        for claimed in alone {
            match self.try_once(&claimed, lease, &mut busy).await {
                Ok(Some(state)) => applied.count(state),
                Ok(None) => applied.lost += 1,
                // The database is gone; the lease will end and the receipt come again.
                Err(_) => applied.retried += 1,
            }
        }
        Ok(applied)
    }

    /// Counts one try and makes it. `busy` collects whose locks are held elsewhere, so that one such costs a step a single
    /// wait, however many of its receipts are in it.
    async fn try_once(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        busy: &mut BTreeSet<ObjectId>,
    ) -> Result<Option<State>, BillingError> {
        let until = self.clock.now() + self.config.lease;
        let key = (claimed.event_id.as_str(), lease);
        let Some(attempts) = receipt::count_try(self.system.pool(), &self.scope, key, until).await? else {
            return Ok(None);
        };
        // A worker that never came back from its last try counted it: a body that kills workers must not do so for ever.
        if attempts > self.config.attempts {
            return self.end(claimed, lease, State::Dead, "given up: no worker came back from applying it").await;
        }
        let body = match claimed.body.unpack() {
            Ok(body) => body,
            Err(why) => return self.end(claimed, lease, State::Dead, &why.to_string()).await,
        };
        let (work, event_type) = match read(&body) {
            Ok(read) => read,
            Err(why) => return self.end(claimed, lease, State::Dead, &why.to_string()).await,
        };
        let owner = owner(&work);
        if owner.as_ref().is_some_and(|owner| busy.contains(owner)) {
            return self
                .give_back(claimed, lease, attempts.saturating_sub(1), "another receipt's wait was in vain")
                .await;
        }
        match self.apply(claimed, lease, work, &event_type).await {
            Ok(done) => Ok(done),
            Err(why) if why.is_retryable() => {
                busy.extend(owner);
                self.give_back(claimed, lease, attempts.saturating_sub(1), &reason_of(&why)).await
            }
            Err(why) => self.put_off(claimed, lease, attempts, &why).await,
        }
    }

    /// Gives up on what has waited for its customer for 30 days. Returns how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn expire_parked(&self) -> Result<u64, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "give up on receipts nobody links").await?;
        let expired = desk::expire_parked(&mut tx, &self.scope, now - PARKED_FOR, now).await?
            + fetch::expire_parked(&mut tx, &self.scope, now - PARKED_FOR).await?;
        tx.commit().await?;
        Ok(expired)
    }

    /// Applies one receipt. `None` when the lease was lost; then nothing was written.
    async fn apply(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        work: Told,
        event_type: &str,
    ) -> Result<Option<State>, BillingError> {
        match work {
            Told::Nothing(reason) => self.end(claimed, lease, State::Ignored, reason).await,
            Told::Fetch { kind, id, reason } => {
                let request = FetchRequest { kind, id, reason: reason.to_owned() };
                self.put_on_fetch_list(claimed, lease, &request).await
            }
            Told::UsageReport => self.put_on_report_list(claimed, lease, event_type).await,
            Told::Notice(told) => self.note(claimed, lease, &told, event_type).await,
            Told::Snapshot(snapshot) => {
                for _ in 0..LOOKS {
                    if let Some(done) = self.merge(claimed, lease, (*snapshot).clone(), event_type).await? {
                        return Ok(done);
                    }
                }
                Err(BillingError::Misconfigured {
                    what: "a customer's link keeps changing".to_owned(),
                    remedy: "look at saas.billing_directory",
                })
            }
        }
    }

    /// Merges in one transaction with the receipt's end. The outer `None` means: look again.
    async fn merge(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        snapshot: AnySnapshot,
        event_type: &str,
    ) -> Result<Option<Option<State>>, BillingError> {
        let now = self.clock.now();
        let report = Report { source: claimed.event_id.clone(), event_type: event_type.to_owned(), afresh: None };
        let mut tx = SystemTx::begin(&self.system, ACTOR, "apply a webhook receipt").await?;
        let settled = self.settle(&mut tx, snapshot, report, now).await?;
        let (state, ending) = match &settled {
            Settled::Again => {
                tx.rollback().await?;
                return Ok(None);
            }
            Settled::Applied { tenant, .. } => (State::Applied, Ending { tenant: Some(*tenant), ..Ending::default() }),
            Settled::Ignored(reason) => (State::Ignored, Ending { reason: Some(reason), ..Ending::default() }),
            Settled::Parked(object) => {
                (State::Parked, Ending { reason: Some(UNLINKED), waits_for: Some(object.as_str()), tenant: None })
            }
            Settled::Quarantined { reason, waits_for } => {
                (State::Quarantined, Ending { reason: Some(reason), waits_for: Some(waits_for.as_str()), tenant: None })
            }
        };
        if !receipt::finish(&mut tx, &self.scope, (&claimed.event_id, lease), state, ending, now).await? {
            tx.rollback().await?;
            return Ok(Some(None));
        }
        tx.commit().await?;
        Ok(Some(Some(state)))
    }

    /// Has the object read, unless it is an invoice of which no news can come.
    async fn put_on_fetch_list(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        request: &FetchRequest,
    ) -> Result<Option<State>, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "list an object to be fetched").await?;
        let known = match request.kind {
            ObjectKind::Invoice => object::find_anywhere(&mut tx, self.scope.livemode, &request.id).await?,
            _ => None,
        };
        let (state, ending) = if known.is_some_and(|known| known.is_settled_invoice()) {
            (State::Ignored, Ending { reason: Some("the invoice is known to be settled"), ..Ending::default() })
        } else {
            fetch::request(&mut tx, &self.scope, request, now).await?;
            (State::Applied, Ending { reason: Some(&request.reason), ..Ending::default() })
        };
        let key = (claimed.event_id.as_str(), lease);
        if !receipt::finish(&mut tx, &self.scope, key, state, ending, now).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(state))
    }

    /// Notes what an operator should know.
    async fn note(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        told: &Notice,
        event_type: &str,
    ) -> Result<Option<State>, BillingError> {
        let now = self.clock.now();
        let key = (claimed.event_id.as_str(), lease);
        let mut tx = SystemTx::begin(&self.system, ACTOR, "note what an operator should know").await?;
        let new = notice::note(&mut tx, &self.scope, told, (&claimed.event_id, event_type), now).await?;
        if !receipt::finish(&mut tx, &self.scope, key, State::Applied, Ending::default(), now).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        tx.commit().await?;
        if new {
            let (event_id, kind) = (claimed.event_id.as_str(), told.kind.as_str());
            tracing::warn!(target: "saas.billing.notice", event_id, event_type, kind, object = %told.object, "an operator should know");
        }
        Ok(Some(State::Applied))
    }

    async fn put_on_report_list(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        event_type: &str,
    ) -> Result<Option<State>, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "list a report on usage to be read").await?;
        usage_report::announce(&mut tx, &self.scope, (&claimed.event_id, event_type), now).await?;
        let key = (claimed.event_id.as_str(), lease);
        if !receipt::finish(&mut tx, &self.scope, key, State::Applied, Ending::default(), now).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(State::Applied))
    }

    async fn end(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        state: State,
        reason: &str,
    ) -> Result<Option<State>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "end a webhook receipt").await?;
        let ending = Ending { reason: Some(reason), ..Ending::default() };
        let key = (claimed.event_id.as_str(), lease);
        let ended = receipt::finish(&mut tx, &self.scope, key, state, ending, self.clock.now()).await?;
        tx.commit().await?;
        if ended && state == State::Dead {
            tracing::error!(target: "saas.billing.webhook.apply", event_id = claimed.event_id, reason, "a dead letter");
        }
        Ok(ended.then_some(state))
    }

    /// Records a failure that lies in the event: again later, or a dead letter after the last try.
    async fn put_off(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        attempts: u32,
        why: &BillingError,
    ) -> Result<Option<State>, BillingError> {
        let reason = reason_of(why);
        if attempts >= self.config.attempts {
            return self.end(claimed, lease, State::Dead, &reason).await;
        }
        let (event_id, code) = (claimed.event_id.as_str(), why.code());
        tracing::warn!(target: "saas.billing.webhook.apply", event_id, code, attempts, "an event was not applied");
        self.release(claimed, lease, attempts, &reason, pause(attempts)).await
    }

    /// Gives a receipt back that is not to blame for not being applied: the try does not count.
    pub(crate) async fn give_back(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        attempts: u32,
        reason: &str,
    ) -> Result<Option<State>, BillingError> {
        tracing::info!(target: "saas.billing.webhook.apply", event_id = claimed.event_id, reason, "an event has to wait");
        self.release(claimed, lease, attempts, reason, BUSY_PAUSE).await
    }

    async fn release(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        attempts: u32,
        reason: &str,
        pause: TimeDelta,
    ) -> Result<Option<State>, BillingError> {
        let due_at = self.clock.now() + pause;
        let key = (claimed.event_id.as_str(), lease);
        let mut tx = SystemTx::begin(&self.system, ACTOR, "put a webhook receipt off").await?;
        let released = receipt::release(&mut tx, &self.scope, key, attempts, reason, due_at).await?;
        tx.commit().await?;
        Ok(released.then_some(State::Pending))
    }
}

/// Whose locks it takes.
pub(crate) fn owner(work: &Told) -> Option<ObjectId> {
    match work {
        Told::Snapshot(snapshot) => Some(snapshot.customer().or(snapshot.charge()).unwrap_or(snapshot.id()).clone()),
        Told::Fetch { .. } | Told::UsageReport | Told::Notice(_) | Told::Nothing(_) => None,
    }
}

impl Applied {
    pub(crate) fn count(&mut self, state: State) {
        match state {
            State::Applied => self.applied += 1,
            State::Ignored => self.ignored += 1,
            State::Parked => self.parked += 1,
            State::Quarantined => self.quarantined += 1,
            State::Pending => self.retried += 1,
            State::Dead => self.dead += 1,
        }
    }
}

/// The pause after a failed try: 1 s, 2 s, 4 s … up to an hour.
pub(crate) fn pause(attempts: u32) -> TimeDelta {
    let seconds = 1_i64.checked_shl(attempts.saturating_sub(1)).unwrap_or(i64::MAX);
    TimeDelta::try_seconds(seconds).map_or(MAX_PAUSE, |pause| pause.min(MAX_PAUSE))
}

/// What stands in the list: a code and what the database said about it, never a value.
pub(crate) fn reason_of(why: &BillingError) -> String {
    format!("{}: {why}", why.code())
}

/// What the stored bytes say is to be done.
pub(crate) fn read(body: &[u8]) -> Result<(Told, String), Unreadable> {
    let envelope = Envelope::read(body)?;
    Ok((read_told(&envelope)?, envelope.event_type.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour() {
        let seconds: Vec<i64> = [0, 1, 2, 3, 12, 13, 63, 64, u32::MAX].map(|n| pause(n).num_seconds()).into();
        assert_eq!(seconds, [1, 1, 2, 4, 2048, 3600, 3600, 3600, 3600]);
    }
}
