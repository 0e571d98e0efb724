//! Who is owed money since when, and what that does to access.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{InvalidInput, subscription::Standing};

use super::{FetchRequest, TenantObjects};
use crate::{
    merge::Merged,
    object::{Collection, Invoice, InvoiceStatus, ObjectId, ObjectKind, Subscription, SubscriptionStatus},
};

/// How long access lasts after a payment failed: our policy, whatever Stripe's retry schedule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GracePolicy {
    full: TimeDelta,
    restricted: TimeDelta,
}

impl Default for GracePolicy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl GracePolicy {
    /// Two weeks of full access (the median time from a first failure to its end), then two restricted.
    pub const DEFAULT: Self = Self { full: TimeDelta::days(14), restricted: TimeDelta::days(14) };

    /// Full access for `full` after the first failure, then restricted for `restricted`, then none.
    ///
    /// # Errors
    /// When one is negative or longer than a year.
    pub fn new(full: TimeDelta, restricted: TimeDelta) -> Result<Self, InvalidInput> {
        let allowed = TimeDelta::zero()..=TimeDelta::days(366);
        if allowed.contains(&full) && allowed.contains(&restricted) {
            return Ok(Self { full, restricted });
        }
        Err(InvalidInput::new(
            "the grace policy",
            "has a period that is negative or above a year",
            "use 0 to 366 days each",
        ))
    }

    /// The standing at `now` of a tenant that owes since `unpaid_since`, or has no access since `suspended_since`.
    #[must_use]
    pub fn standing(
        &self,
        unpaid_since: Option<DateTime<Utc>>,
        suspended_since: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Standing {
        let grace = unpaid_since.filter(|since| *since <= now).and_then(|since| {
            let until = since.checked_add_signed(self.full)?;
            Some((until, until.checked_add_signed(self.restricted)?))
        });
        match (suspended_since, grace) {
            (Some(since), None) => Standing::Suspended { since },
            (Some(since), Some((_, suspended_from))) => Standing::Suspended { since: since.min(suspended_from) },
            (None, Some((_, suspended_from))) if suspended_from <= now => Standing::Suspended { since: suspended_from },
            (None, Some((until, suspended_from))) => Standing::Grace { until, suspended_from },
            (None, None) => Standing::Active,
        }
    }
}

/// What is owed.
pub(super) struct Owed {
    /// First failure of the oldest unpaid invoice.
    pub(super) since: Option<DateTime<Utc>>,
    pub(super) fetches: BTreeSet<FetchRequest>,
}

/// The oldest debt over the *set* of open invoices of the live subscriptions, so that paying one of two leaves the other,
/// and no retry moves the beginning.
pub(super) fn owed<'a>(objects: &TenantObjects, live: impl Iterator<Item = &'a Merged<Subscription>>) -> Owed {
    let live: Vec<_> = live.collect();
    let mut owed = Owed { since: None, fetches: BTreeSet::new() };
    let owed_since =
        |since: &mut Option<DateTime<Utc>>, at: DateTime<Utc>| *since = Some(since.map_or(at, |known| known.min(at)));
    for merged in objects.invoices.values() {
        let invoice = merged.value();
        let payer = invoice.subscription.as_ref().and_then(|id| live.iter().find(|merged| merged.value().id == *id));
        // An invoice of a subscription that has ended no longer decides about access.
        if invoice.subscription.is_some() && payer.is_none() {
            continue;
        }
        if let Some(at) = unpaid_since(merged, payer.map(|merged| merged.value())) {
            owed_since(&mut owed.since, at);
        }
    }
    for merged in live {
        let subscription = merged.value();
        let behind = matches!(subscription.status, SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid);
        let unseen = |id: &&ObjectId| !objects.invoices.contains_key(*id);
        if let Some(invoice) = subscription.latest_invoice.as_ref().filter(unseen).filter(|_| behind) {
            // The debt is certain, its beginning is not: this is the latest it can be.
            owed_since(&mut owed.since, merged.as_of());
            let reason = "an unpaid invoice that no event has told about".to_owned();
            owed.fetches.insert(FetchRequest { kind: ObjectKind::Invoice, id: invoice.clone(), reason });
        }
    }
    owed
}

/// Since when an invoice is overdue; `None` if it is not.
fn unpaid_since(merged: &Merged<Invoice>, payer: Option<&Subscription>) -> Option<DateTime<Utc>> {
    let invoice = merged.value();
    match invoice.status {
        _ if invoice.deleted => return None,
        InvoiceStatus::Open => {}
        InvoiceStatus::Draft | InvoiceStatus::Paid | InvoiceStatus::Uncollectible | InvoiceStatus::Void => return None,
        InvoiceStatus::Other(_) => return None,
    }
    let written = invoice.finalized_at.or(invoice.created).unwrap_or_else(|| merged.as_of());
    match &invoice.collection {
        Collection::SendInvoice => Some(invoice.due_at.unwrap_or(written)),
        Collection::ChargeAutomatically | Collection::Other(_) => {
            merged.history().first_payment_failure().or_else(|| {
                // Stripe says the subscription is behind for this invoice, and charges at the moment an invoice is final.
                let behind = |payer: &&Subscription| {
                    matches!(payer.status, SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid)
                        && payer.latest_invoice.as_ref() == Some(&invoice.id)
                };
                payer.filter(behind).map(|_| written)
            })
        }
    }
}
