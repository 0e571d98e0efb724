//! The other worker's step: reads from Stripe what no event tells for certain.
//!
//! The lease on the object's row spans the read and the write, without a transaction open in between: one reader per
//! object at a time, and an answer that comes after its lease has passed on is dropped.

use chrono::{DateTime, Utc};
use saas_core::{LeaseToken, SystemTx};

use crate::{
    apply::{pause, reason_of},
    billing::{ACTOR, Billing},
    derive::AnyMerged,
    error::BillingError,
    event::{AnySnapshot, absent, may_be_gone, read_fetched},
    merge::Origin,
    object::{ObjectId, ObjectKind},
    postgres::{
        fetch::{self, Claimed, End},
        object,
    },
    provider::{Fetched, ObjectSource},
    settle::{Report, Settled, fetch_origin},
};

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchPass {
    /// Read, merged and certain.
    pub done: usize,
    /// To be read again later, or when their customer is linked.
    pub retried: usize,
    /// Given up.
    pub dead: usize,
    /// Answers that came after their lease.
    pub lost: usize,
}

/// What became of one.
enum Outcome {
    Done,
    Again(String),
    Parked(ObjectId),
    Dead(String),
}

impl Billing {
    /// Reads up to `limit` objects that are due from Stripe, one after the other, and merges what they are now.
    ///
    /// # Errors
    /// When the list cannot be read. What fails for one object is recorded on its row and not returned.
    #[tracing::instrument(name = "saas.billing.fetch", level = "debug", skip(self, source))]
    pub async fn fetch_pending(&self, source: &dyn ObjectSource, limit: u16) -> Result<FetchPass, BillingError> {
        let now = self.clock.now();
        let lease = LeaseToken::mint_at(now);
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take objects that are to be fetched").await?;
        let until = now + self.config.lease;
        let claimed = fetch::claim(&mut tx, &self.scope, i64::from(limit), lease, (now, until)).await?;
        tx.commit().await?;
        let mut pass = FetchPass::default();
        for claimed in claimed {
            match self.fetch(&claimed, lease, source).await {
                Ok(Some(true)) => pass.done += 1,
                Ok(Some(false)) => pass.retried += 1,
                Ok(None) => pass.lost += 1,
                Err(why) => match self.put_fetch_off(&claimed, lease, &reason_of(&why)).await {
                    Ok(Some(true)) => pass.dead += 1,
                    Ok(Some(false)) | Err(_) => pass.retried += 1,
                    Ok(None) => pass.lost += 1,
                },
            }
        }
        Ok(pass)
    }

    /// Reads one object. `Some(true)` when it is certain now, `None` when the lease was lost.
    async fn fetch(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        source: &dyn ObjectSource,
    ) -> Result<Option<bool>, BillingError> {
        // What is known before the read is what the read supersedes.
        let known = self.known(claimed).await?;
        let asked = self.clock.now();
        let (object, as_of) = match source.fetch(claimed.kind, &claimed.id).await? {
            Fetched::Found { object, as_of } => (object, as_of),
            Fetched::Missing => return self.merge_missing(claimed, lease, (known, asked), source).await,
        };
        let (origin, created) = origin_of(claimed, known.as_ref(), as_of, asked);
        match read_fetched(claimed.kind, &object, created, origin) {
            Err(why) => self.end_fetch(claimed, lease, Outcome::Dead(why.to_string())).await,
            Ok(snapshot) if *snapshot.id() != claimed.id => {
                self.end_fetch(claimed, lease, Outcome::Dead("Stripe answered with another object".to_owned())).await
            }
            Ok(snapshot) => self.merge_fetched(claimed, lease, known, snapshot).await,
        }
    }

    async fn known(&self, claimed: &Claimed) -> Result<Option<AnyMerged>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look at what is known before a fetch").await?;
        let known = object::find_anywhere(&mut tx, self.scope.livemode, &claimed.id).await?;
        tx.commit().await?;
        Ok(known)
    }

    /// What Stripe does not have is given up, unless it is a draft, which was deleted then; or was asked for afresh, and
    /// never was.
    async fn merge_missing(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        (known, asked): (Option<AnyMerged>, DateTime<Utc>),
        source: &dyn ObjectSource,
    ) -> Result<Option<bool>, BillingError> {
        let give_up = |why: &str| Outcome::Dead(why.to_owned());
        let Some(known) = known.filter(|known| claimed.afresh || may_be_gone(known)) else {
            return self.end_fetch(claimed, lease, give_up("Stripe does not know it")).await;
        };
        // To the key of another account, everything is missing.
        let witness = match (known.customer(), known.charge()) {
            (Some(customer), _) => source.fetch(ObjectKind::Customer, customer).await?,
            (None, Some(charge)) => source.fetch(ObjectKind::Charge, charge).await?,
            (None, None) => Fetched::Missing,
        };
        if matches!(witness, Fetched::Missing) {
            let outcome = give_up("Stripe knows neither it nor whose it is: is the key one of another account?");
            return self.end_fetch(claimed, lease, outcome).await;
        }
        let (origin, created) = origin_of(claimed, Some(&known), None, asked);
        match absent(&known, created, origin) {
            Some(snapshot) => self.merge_fetched(claimed, lease, Some(known), snapshot).await,
            None => self.end_fetch(claimed, lease, give_up("Stripe does not know it")).await,
        }
    }

    async fn merge_fetched(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        known: Option<AnyMerged>,
        snapshot: AnySnapshot,
    ) -> Result<Option<bool>, BillingError> {
        let now = self.clock.now();
        let mut tx = SystemTx::begin(&self.system, ACTOR, "merge a fetched object").await?;
        let source = format!("fetch:{}", claimed.sequence);
        let afresh = known.filter(|_| claimed.afresh).map(Box::new);
        let report = Report { source, event_type: String::new(), afresh };
        let settled = self.settle(&mut tx, snapshot, report, now).await?;
        let outcome = match settled {
            Settled::Applied { still_ambiguous: false, .. } => Outcome::Done,
            Settled::Applied { still_ambiguous: true, .. } => Outcome::Again("still not certain".to_owned()),
            Settled::Ignored(reason) => Outcome::Dead(reason.to_owned()),
            Settled::Parked(waits_for) | Settled::Quarantined { waits_for, .. } => Outcome::Parked(waits_for),
            Settled::Again => Outcome::Again("something else was heard of it at this moment".to_owned()),
        };
        let end = self.end_of(claimed, &outcome);
        if !fetch::finish(&mut tx, &self.scope, (&claimed.id, lease), end, now).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(matches!(outcome, Outcome::Done)))
    }

    async fn end_fetch(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        outcome: Outcome,
    ) -> Result<Option<bool>, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "end a fetch").await?;
        let end = self.end_of(claimed, &outcome);
        let ended = fetch::finish(&mut tx, &self.scope, (&claimed.id, lease), end, self.clock.now()).await?;
        tx.commit().await?;
        Ok(ended.then_some(false))
    }

    /// Puts a fetch off, or gives up. `Some(true)` when it was given up.
    async fn put_fetch_off(
        &self,
        claimed: &Claimed,
        lease: LeaseToken,
        reason: &str,
    ) -> Result<Option<bool>, BillingError> {
        let outcome = Outcome::Again(reason.to_owned());
        let dead = matches!(self.end_of(claimed, &outcome), End::Dead(_));
        Ok(self.end_fetch(claimed, lease, outcome).await?.map(|_| dead))
    }

    fn end_of<'a>(&self, claimed: &Claimed, outcome: &'a Outcome) -> End<'a> {
        let attempts = u32::try_from(claimed.attempts).unwrap_or(u32::MAX);
        match outcome {
            Outcome::Done => End::Done,
            Outcome::Parked(waits_for) => End::Parked(self.clock.now(), waits_for.as_str()),
            Outcome::Dead(reason) => End::Dead(reason),
            Outcome::Again(reason) if attempts >= self.config.attempts => End::Dead(reason),
            Outcome::Again(reason) => End::Again(self.clock.now() + pause(attempts), reason),
        }
    }
}

/// The origin of what was read, which is dated even where it stands for all that was known: later events follow it.
fn origin_of(
    claimed: &Claimed,
    known: Option<&AnyMerged>,
    as_of: Option<DateTime<Utc>>,
    asked: DateTime<Utc>,
) -> (Origin, DateTime<Utc>) {
    if claimed.afresh {
        return fetch_origin(None, claimed.sequence, Some(as_of.unwrap_or(asked)));
    }
    fetch_origin(known, claimed.sequence, as_of)
}
