//! What is owed, and since when. What that does to access is the policy's: `dunning`.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{Alert, FetchRequest, TenantObjects};
use crate::{
    merge::{Merged, StripeObject},
    money::Currency,
    object::{Collection, Invoice, InvoiceStatus, ObjectId, ObjectKind, Subscription},
};

/// How long a buyer may take to confirm a payment before it counts as failed: their bank wants to hear from them, which is
/// no decline.
const CONFIRMATION: TimeDelta = TimeDelta::days(3);

/// An open invoice that is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// When its clock began or, while it waits to be confirmed or for its due date, will begin.
    pub since: DateTime<Utc>,
    /// Since when the buyer is asked to confirm the payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_since: Option<DateTime<Utc>>,
    /// Of which subscription; `None` for a single sale.
    pub subscription: Option<ObjectId>,
    /// Of which currency, where that is known.
    pub currency: Option<Currency>,
    /// Minor units that are still to be paid.
    pub minor: i64,
}

/// What is owed.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// First failure of the oldest unpaid invoice.
    pub(super) since: Option<DateTime<Utc>>,
    /// The invoices that can be paid.
    pub(super) debts: BTreeMap<ObjectId, Debt>,
    pub(super) alerts: BTreeSet<Alert>,
    pub(super) fetches: BTreeSet<FetchRequest>,
}

impl Owed {
    fn owed_since(&mut self, at: DateTime<Utc>) {
        self.since = Some(self.since.map_or(at, |known| known.min(at)));
    }

    /// Notes an invoice that can be paid; one that was closed counts for access at most.
    fn note(&mut self, merged: &Merged<Invoice>, since: DateTime<Utc>) {
        let invoice = merged.value();
        if invoice.status != InvoiceStatus::Open || invoice.deleted {
            return;
        }
        let debt = Debt {
            since,
            confirm_since: merged.history().confirmation_asked(),
            subscription: invoice.subscription.clone(),
            currency: invoice.currency.as_deref().and_then(|code| code.parse().ok()),
            minor: invoice.amount_remaining,
        };
        self.debts.insert(invoice.id.clone(), debt);
    }
}

/// The oldest debt over the *set* of invoices of the subscriptions that count, so that paying one of two leaves the other,
/// and no retry moves the beginning.
///
/// A subscription that Stripe says is behind always owes, whatever became of its invoices: writing a debt off pays nothing.
pub(super) fn owed(objects: &TenantObjects, payers: &[&Merged<Subscription>]) -> Owed {
    let mut owed = Owed::default();
    for merged in objects.invoices.values().filter(|merged| merged.value().subscription.is_none()) {
        if let Some(at) = overdue_since(merged, None) {
            owed.owed_since(at);
            owed.note(merged, at);
        }
    }
    for payer in payers {
        let id = &payer.value().id;
        // An invoice of a subscription that has ended no longer decides about access.
        // What asks for a change that is dropped if it is not paid is no debt: nothing was given for it.
        let of_a_change = |invoice: &ObjectId| {
            let value = payer.value();
            value.pending.is_some() && value.latest_invoice.as_ref() == Some(invoice) && value.is_behind() != Some(true)
        };
        let own = || {
            let own = objects.invoices.values().filter(|merged| merged.value().subscription.as_ref() == Some(id));
            own.filter(|merged| !of_a_change(&merged.value().id))
        };
        for merged in own() {
            if let Some(at) = overdue_since(merged, Some(payer)) {
                owed.note(merged, at);
            }
        }
        let oldest = |withdrawn| {
            let wanted = own().filter(|merged| is_withdrawn(merged.value()) == withdrawn);
            wanted.filter_map(|merged| overdue_since(merged, Some(payer))).min()
        };
        // What was withdrawn is not owed; while the subscription is behind all the same it says since when, if nothing else
        // does. What was written off is owed.
        let oldest = oldest(false).or_else(|| oldest(true));
        if let Some(at) = oldest {
            owed.owed_since(at);
        }
        if payer.value().is_behind() == Some(true) {
            look_behind(objects, payer, oldest.is_none(), &mut owed);
        }
    }
    owed
}

/// What is missing about the debt of a subscription that is behind.
fn look_behind(objects: &TenantObjects, payer: &Merged<Subscription>, unexplained: bool, owed: &mut Owed) {
    let subscription = payer.value();
    let unseen = subscription.latest_invoice.as_ref().filter(|id| !objects.invoices.contains_key(*id));
    if unexplained {
        // The debt is certain, its beginning is not: this is the latest it can be.
        owed.owed_since(payer.history().behind_since().unwrap_or_else(|| payer.as_of()));
        owed.alerts.insert(Alert::UnexplainedDebt { subscription: subscription.id.clone() });
    }
    if let Some(invoice) = unseen {
        let reason = "an unpaid invoice that no event has told about".to_owned();
        owed.fetches.insert(FetchRequest { kind: ObjectKind::Invoice, id: invoice.clone(), reason });
    } else if unexplained {
        let reason = "behind, without an invoice that says why".to_owned();
        owed.fetches.insert(FetchRequest { kind: ObjectKind::Subscription, id: subscription.id.clone(), reason });
    }
}

fn is_withdrawn(invoice: &Invoice) -> bool {
    invoice.deleted || invoice.status == InvoiceStatus::Void
}

/// Since when an invoice is overdue; `None` if it is not. One that was closed without being paid counts only while its
/// subscription is behind, and only if it failed since that was last not so.
fn overdue_since(merged: &Merged<Invoice>, payer: Option<&Merged<Subscription>>) -> Option<DateTime<Utc>> {
    let behind = payer.filter(|payer| payer.value().is_behind() == Some(true));
    let since = failing_since(merged, behind.map(|payer| payer.value()));
    match merged.value().status {
        InvoiceStatus::Open if !merged.value().deleted => since,
        InvoiceStatus::Draft | InvoiceStatus::Open | InvoiceStatus::Uncollectible | InvoiceStatus::Void => {
            let paid_at = behind?.history().paid_at();
            since.filter(|since| paid_at.is_none_or(|paid_at| paid_at <= *since))
        }
        InvoiceStatus::Paid | InvoiceStatus::Other(_) => None,
    }
}

/// The first failure to collect an invoice; `behind` is its subscription where Stripe says that it is behind.
fn failing_since(merged: &Merged<Invoice>, behind: Option<&Subscription>) -> Option<DateTime<Utc>> {
    let invoice = merged.value();
    let written = invoice.finalized_at.or(invoice.created).unwrap_or_else(|| merged.as_of());
    let open = invoice.status == InvoiceStatus::Open;
    match &invoice.collection {
        Collection::SendInvoice if open => Some(invoice.due_at.unwrap_or(written)),
        Collection::SendInvoice => invoice.due_at,
        Collection::ChargeAutomatically | Collection::Other(_) => {
            let history = merged.history();
            let unconfirmed = history.confirmation_asked().and_then(|at| at.checked_add_signed(CONFIRMATION));
            [history.first_decline(), unconfirmed].into_iter().flatten().min().or_else(|| {
                // An attempt alone may still be under way, as with a bank debit. Of a subscription that is behind it has
                // failed, and Stripe makes the first when an invoice is final.
                let failed = |payer: &&Subscription| {
                    invoice.attempt_count > 0 || (open && payer.latest_invoice.as_ref() == Some(&invoice.id))
                };
                behind.filter(failed).map(|_| written)
            })
        }
    }
}
