//! Who is owed money since when, and what that does to access.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{InvalidInput, subscription::Standing};

use super::{Alert, FetchRequest, TenantObjects};
use crate::{
    merge::{Merged, StripeObject},
    object::{Collection, Invoice, InvoiceStatus, ObjectKind, Subscription},
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
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// First failure of the oldest unpaid invoice.
    pub(super) since: Option<DateTime<Utc>>,
    pub(super) alerts: BTreeSet<Alert>,
    pub(super) fetches: BTreeSet<FetchRequest>,
}

impl Owed {
    fn owed_since(&mut self, at: DateTime<Utc>) {
        self.since = Some(self.since.map_or(at, |known| known.min(at)));
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
        }
    }
    for payer in payers {
        let id = &payer.value().id;
        // An invoice of a subscription that has ended no longer decides about access.
        let own = || objects.invoices.values().filter(|merged| merged.value().subscription.as_ref() == Some(id));
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
            merged.history().first_payment_failure().or_else(|| {
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
