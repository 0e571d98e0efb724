//! Receipts of one customer in one transaction: a burst costs one lock, one look at what is known, one commit.
//!
//! Only receipts that nobody has tried yet. One that spoils its company is found by trying each alone, as is one that a worker
//! never came back from: its lease tells, so that no try needs to be counted before it is made.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use saas_core::{LeaseToken, SystemTx};

use crate::{
    apply::{Applied, UNLINKED, owner, read, reason_of},
    billing::{ACTOR, Billing},
    error::BillingError,
    event::{AnySnapshot, Told},
    object::{ObjectId, ObjectKind},
    postgres::{
        directory,
        receipt::{self, Claimed, Ending, State},
    },
    settle::{BOUNDS, Report, Settled},
    sitting::Sitting,
};

/// The most receipts in one transaction: it holds the tenant's lock as long.
const COMPANY: usize = 64;

/// A receipt that has been read.
struct Member {
    claimed: Claimed,
    snapshot: AnySnapshot,
    event_type: String,
}

impl Billing {
    /// Applies what can be in company, and returns what is to be tried alone.
    pub(crate) async fn apply_together(
        &self,
        claimed: Vec<Claimed>,
        (lease, until): (LeaseToken, DateTime<Utc>),
        busy: &mut BTreeSet<ObjectId>,
        applied: &mut Applied,
    ) -> Vec<Claimed> {
        let (companies, mut alone) = companies(claimed);
        for (owner, mut company) in companies {
            while !company.is_empty() {
                let rest = company.split_off(company.len().min(COMPANY));
                // A lease is not prolonged here: the rest of it has to suffice.
                let in_time = self.clock.now() + self.config.lease / 2 < until;
                if !in_time || busy.contains(&owner) {
                    alone.extend(company.into_iter().map(|member| member.claimed));
                    company = rest;
                    continue;
                }
                match self.end_company(&owner, &company, lease).await {
                    Ok(ends) => {
                        for (member, end) in company.into_iter().zip(ends) {
                            match end {
                                Some(state) => applied.count(state),
                                None => alone.push(member.claimed),
                            }
                        }
                    }
                    Err(why) if why.is_retryable() => {
                        busy.insert(owner.clone());
                        for member in company {
                            match self.give_back(&member.claimed, lease, 0, &reason_of(&why)).await {
                                Ok(None) => applied.lost += 1,
                                Ok(Some(_)) | Err(_) => applied.retried += 1,
                            }
                        }
                    }
                    Err(_) => alone.extend(company.into_iter().map(|member| member.claimed)),
                }
                company = rest;
            }
        }
        alone
    }

    /// Says of each receipt how it ended; `None` when it is to be tried alone.
    async fn end_company(
        &self,
        owner: &ObjectId,
        company: &[Member],
        lease: LeaseToken,
    ) -> Result<Vec<Option<State>>, BillingError> {
        let merged = self.merge_company(company, lease).await?;
        if merged.iter().any(|merged| *merged) {
            return Ok(merged.into_iter().map(|merged| merged.then_some(State::Applied)).collect());
        }
        self.park_company(owner, company, lease).await
    }

    /// Merges receipts in one transaction with their ends. Says of each whether it was; of none, when a lease was lost.
    async fn merge_company(&self, company: &[Member], lease: LeaseToken) -> Result<Vec<bool>, BillingError> {
        let now = self.clock.now();
        let reason = "apply webhook receipts of one customer";
        let mut tx = SystemTx::begin_with(&self.system, ACTOR, reason, BOUNDS).await?;
        let snapshots = company.iter().map(|member| &member.snapshot);
        let mut sitting = Sitting::of_many(&mut tx, &self.scope, snapshots).await?;
        let (mut merged, mut done) = (Vec::with_capacity(company.len()), Vec::new());
        let mut whose = None;
        for member in company {
            let event_id = member.claimed.event_id.as_str();
            let report = Report { source: event_id.to_owned(), event_type: member.event_type.clone(), afresh: None };
            let settled = self.hear(&mut tx, &mut sitting, member.snapshot.clone(), report, now).await?;
            let Settled::Applied { tenant, .. } = settled else {
                merged.push(false);
                continue;
            };
            merged.push(true);
            done.push(event_id);
            whose = Some(tenant);
        }
        let Some(tenant) = whose else {
            tx.rollback().await?;
            return Ok(merged);
        };
        self.write_down(&mut tx, &mut sitting, now).await?;
        let ending = Ending { tenant: Some(tenant), ..Ending::default() };
        let ended = receipt::finish_all(&mut tx, &self.scope, (&done, lease), State::Applied, ending, now).await?;
        if !ended {
            tx.rollback().await?;
            return Ok(vec![false; company.len()]);
        }
        tx.commit().await?;
        Ok(merged)
    }

    /// Parks what waits for its customer's link. What is placed by another object is left to be tried alone.
    async fn park_company(
        &self,
        customer: &ObjectId,
        company: &[Member],
        lease: LeaseToken,
    ) -> Result<Vec<Option<State>>, BillingError> {
        let waits: Vec<bool> = company.iter().map(|member| waits_for_customer(&member.snapshot)).collect();
        let waiting = company.iter().zip(&waits).filter(|(_, waits)| **waits);
        let events: Vec<&str> = waiting.map(|(member, _)| member.claimed.event_id.as_str()).collect();
        let now = self.clock.now();
        let reason = "park webhook receipts of one customer";
        let mut tx = SystemTx::begin_with(&self.system, ACTOR, reason, BOUNDS).await?;
        let unlinked = !events.is_empty()
            && directory::lock_unlinked(&mut tx, &self.scope, (ObjectKind::Customer, customer)).await?.is_none();
        let ending = Ending { reason: Some(UNLINKED), waits_for: Some(customer.as_str()), tenant: None };
        let parked =
            unlinked && receipt::finish_all(&mut tx, &self.scope, (&events, lease), State::Parked, ending, now).await?;
        if !parked {
            tx.rollback().await?;
            return Ok(vec![None; company.len()]);
        }
        tx.commit().await?;
        Ok(waits.into_iter().map(|waits| waits.then_some(State::Parked)).collect())
    }
}

/// Whether it has a tenant as soon as its customer has, and not before.
fn waits_for_customer(snapshot: &AnySnapshot) -> bool {
    snapshot.kind() != ObjectKind::CheckoutSession && snapshot.charge().is_none() && snapshot.customer().is_some()
}

/// Receipts by whose locks they take, in the order in which they were taken; and those that go alone.
fn companies(claimed: Vec<Claimed>) -> (Vec<(ObjectId, Vec<Member>)>, Vec<Claimed>) {
    let mut companies: Vec<(ObjectId, Vec<Member>)> = Vec::new();
    let (mut places, mut alone) = (BTreeMap::new(), Vec::new());
    for claimed in claimed {
        let work =
            (!claimed.is_suspect).then(|| claimed.body.unpack().ok().and_then(|body| read(&body).ok())).flatten();
        let Some((work, event_type)) = work else {
            alone.push(claimed);
            continue;
        };
        let (Some(owner), Told::Snapshot(snapshot)) = (owner(&work), work) else {
            alone.push(claimed);
            continue;
        };
        let place = *places.entry(owner.clone()).or_insert_with(|| {
            companies.push((owner, Vec::new()));
            companies.len() - 1
        });
        if let Some((_, company)) = companies.get_mut(place) {
            company.push(Member { claimed, snapshot: *snapshot, event_type });
        }
    }
    for (_, company) in &mut companies {
        // What brings the customer's link goes first: the others have a tenant then.
        company.sort_by_key(|member| member.snapshot.kind() != ObjectKind::CheckoutSession);
    }
    (companies, alone)
}
