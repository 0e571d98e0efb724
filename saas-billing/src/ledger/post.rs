//! Writing what follows from an object, in the transaction that merged it.

use std::{collections::BTreeSet, fmt};

use chrono::{DateTime, Utc};
use saas_core::{Actor, CoreError, PageSize, SystemTx, TenantContext, TenantId, tenant};
use sqlx::PgConnection;

use super::{Cause, Draft, Leg, Legs, Posting, Record, difference, legs, storable_instant};
use crate::{
    Billing, BillingError,
    billing::ACTOR,
    derive::AnyMerged,
    money::{Money, Ratio, Rounding},
    object::ObjectId,
    postgres::{
        ledger::{self, Chain, End},
        object,
    },
};

/// Whose request it is, and once.
pub(super) struct Request<'a> {
    pub(super) actor: &'a Actor,
    pub(super) key: Option<&'a str>,
    pub(super) reverses: Option<i64>,
}

/// What is to be written about one subject.
pub(super) struct Booking<'a> {
    pub(super) subject: &'a str,
    /// The payment that it belongs to.
    pub(super) payment: Option<&'a str>,
    pub(super) drafts: Vec<Draft>,
}

/// What was added.
pub(super) struct Appended<'a> {
    /// The place of the last transaction.
    pub(super) last: i64,
    /// The payments that it was about, if credits hang on any of them.
    payments: Vec<&'a str>,
}

impl Billing {
    pub(super) const fn chain(&self, tenant: TenantId) -> Chain {
        (tenant, self.scope.livemode)
    }

    /// Writes what follows from the objects and is not written yet. What makes no sum is left to the verification: the state
    /// of the tenant must not hang on it.
    pub(crate) async fn post(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        objects: &[AnyMerged],
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        let cannot = |id: &ObjectId, why: &dyn fmt::Display| {
            tracing::error!(target: "saas.billing.ledger", %tenant, object = %id, %why, "an object that cannot be booked");
        };
        let mut targets = Vec::new();
        for merged in objects.iter().filter(|merged| may_be_booked(merged)) {
            match legs(merged) {
                Ok(target) => targets.push((merged, target)),
                Err(why) => cannot(merged.id(), &why),
            }
        }
        if targets.is_empty() {
            return Ok(());
        }
        let subjects: Vec<&str> = targets.iter().map(|(merged, _)| merged.id().as_str()).collect();
        let written = ledger::written(connection, self.chain(tenant), &subjects).await?;
        let mut bookings = Vec::new();
        for (merged, target) in &targets {
            let subject = merged.id().as_str();
            let of_it = written.get(subject).map_or(&[][..], Vec::as_slice);
            match difference(target, of_it, merged.as_of()) {
                Ok(drafts) if drafts.is_empty() => {}
                Ok(drafts) => {
                    bookings.push(Booking { subject, payment: target.payment.as_ref().map(ObjectId::as_str), drafts });
                }
                Err(why) => cannot(merged.id(), &why),
            }
        }
        if bookings.is_empty() {
            return Ok(());
        }
        let request = Request { actor: &ACTOR, key: None, reverses: None };
        let appended = self.append(connection, tenant, bookings, &request, now).await?;
        self.revoke_credits(connection, tenant, &appended.payments, now).await
    }

    /// Adds transactions to the tenant's chain.
    pub(super) async fn append<'a>(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        bookings: Vec<Booking<'a>>,
        request: &Request<'_>,
        now: DateTime<Utc>,
    ) -> Result<Appended<'a>, CoreError> {
        let chain = self.chain(tenant);
        let payments: BTreeSet<&str> = bookings.iter().filter_map(|booking| booking.payment).collect();
        let payments: Vec<&str> = payments.into_iter().collect();
        let End { mut sequence, hash, has_grants } = ledger::lock_end(connection, chain, &payments).await?;
        let mut records = Vec::new();
        for Booking { subject, payment, drafts } in bookings {
            for mut draft in drafts {
                // In the order in which they are read back: the hash is over a list.
                draft.postings.sort_by_key(|posting| (posting.amount.currency(), posting.account));
                sequence = sequence.checked_add(1).ok_or(ledger::corrupt("sequence"))?;
                records.push(Record {
                    sequence,
                    cause: draft.cause,
                    subject: subject.to_owned(),
                    payment: payment.map(ToOwned::to_owned),
                    key: request.key.map(ToOwned::to_owned),
                    reverses: request.reverses,
                    actor: crate::postgres::storable(&request.actor.to_string()),
                    occurred_at: storable_instant(draft.at),
                    recorded_at: storable_instant(now),
                    postings: draft.postings,
                });
            }
        }
        ledger::append(connection, chain, hash, &records).await?;
        Ok(Appended { last: sequence, payments: if has_grants { payments } else { Vec::new() } })
    }

    /// Takes prepaid credits back in the proportion in which their payment was: each grant's share rounded up, so that no
    /// credit is left that nothing was paid for, and given again when the money comes back. What was burnt already is taken
    /// all the same: the balance then shows how much is missing.
    pub(super) async fn revoke_credits(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        payments: &[&str],
        now: DateTime<Utc>,
    ) -> Result<(), CoreError> {
        if payments.is_empty() {
            return Ok(());
        }
        let chain = self.chain(tenant);
        for grant in ledger::grants_of(connection, chain, payments).await? {
            let payment = grant.payment.as_deref();
            let (received, lost) = ledger::of_payment(connection, chain, payment.unwrap_or_default()).await?;
            let granted = Money::new(grant.minor, grant.currency);
            let revoked = if grant.reversed_by.is_some() { 0 } else { revoked(granted, received, lost) };
            let target = Legs { legs: revocation(Money::new(revoked, grant.currency), now), payment: None };
            let subject = grant.subject.as_str();
            let written = ledger::written(connection, chain, &[subject]).await?.remove(subject).unwrap_or_default();
            let Ok(drafts) = difference(&target, &written, now) else { continue };
            if !drafts.is_empty() {
                let request = Request { actor: &ACTOR, key: None, reverses: None };
                let booking = Booking { subject, payment, drafts };
                self.append(connection, tenant, vec![booking], &request, now).await?;
            }
        }
        Ok(())
    }

    /// Writes what follows from the tenant's stored objects and is not written yet: after an upgrade whose rules book more,
    /// or to mend what a verification found missing. Objects are read page by page, each page in a transaction of its own.
    ///
    /// # Errors
    /// When the database does not answer; what is done stays done, and the call can be repeated.
    pub async fn repost(&self, ctx: &dyn TenantContext) -> Result<u64, BillingError> {
        let (tenant, now) = (ctx.tenant(), self.clock.now());
        let mut after: Option<ObjectId> = None;
        let mut looked = 0;
        loop {
            let mut tx = SystemTx::begin(&self.system, ctx.actor().clone(), "book what follows from objects").await?;
            tenant::lock_in(&mut tx, tenant).await?;
            let size = PageSize::default().get();
            let page = object::page(&mut tx, tenant, self.scope.livemode, after.as_ref(), i64::from(size)).await?;
            self.post(&mut tx, tenant, &page, now).await?;
            tx.commit().await?;
            looked += page.len() as u64;
            match page.last() {
                Some(last) if page.len() == usize::from(size) => after = Some(last.id().clone()),
                Some(_) | None => return Ok(looked),
            }
        }
    }
}

/// Nothing was ever written about a draft, and an invoice never becomes one again.
fn may_be_booked(merged: &AnyMerged) -> bool {
    match merged {
        AnyMerged::Subscription(_) | AnyMerged::CheckoutSession(_) => false,
        AnyMerged::Invoice(merged) => merged.value().status != crate::object::InvoiceStatus::Draft,
        AnyMerged::Customer(_)
        | AnyMerged::Charge(_)
        | AnyMerged::Refund(_)
        | AnyMerged::Dispute(_)
        | AnyMerged::CreditNote(_) => true,
    }
}

/// How much of a grant is gone with so much of its payment. Before the payment is known, nothing is.
fn revoked(granted: Money, received: i128, lost: i128) -> i64 {
    let share = Ratio::new(lost, received).map_or(Ratio::ZERO, |lost| lost.or_zero().at_most_one());
    granted.share(share, Rounding::Up).map_or(granted.minor(), Money::minor)
}

fn revocation(amount: Money, at: DateTime<Utc>) -> Vec<Leg> {
    use super::Account::{Credits, CreditsGranted};
    let Ok(back) = amount.checked_neg() else { return Vec::new() };
    if amount.is_zero() {
        return Vec::new();
    }
    let postings = vec![Posting { account: Credits, amount }, Posting { account: CreditsGranted, amount: back }];
    vec![Leg { cause: Cause::CreditsRevoked, at, postings }]
}

#[cfg(test)]
mod tests {
    use super::*;

    // Lesson 33: pro rata, rounded up.
    #[test]
    fn credits_go_with_their_payment_in_proportion_and_rounded_up() {
        let grant = Money::new(1_000, "eur".parse().unwrap());
        for (received, lost, expected) in [
            (3_000, 0, 0),
            (3_000, 1, 1),
            (3_000, 1_000, 334),
            (3_000, 3_000, 1_000),
            (3_000, 9_000, 1_000),
            (3_000, -5, 0),
            (0, 10, 0),
        ] {
            assert_eq!(revoked(grant, received, lost), expected, "{lost} of {received}");
        }
    }
}
