//! What an object is that Stripe does not have.

use chrono::{DateTime, Utc};

use super::AnySnapshot;
use crate::{
    derive::AnyMerged,
    merge::{Origin, Snapshot, StripeObject},
    object::{
        ChargeStatus, CheckoutStatus, CreditNoteStatus, DisputeStatus, InvoiceStatus, RefundStatus, SubscriptionStatus,
    },
};

/// Whether Stripe forgets such an object in the normal course of things: it deletes drafts, and answers for everything else
/// for good.
pub(crate) fn may_be_gone(known: &AnyMerged) -> bool {
    matches!(known, AnyMerged::Invoice(merged) if merged.value().status == InvoiceStatus::Draft)
}

/// A snapshot by which the object moves no money and gives no access; `None` for a customer, of whom Stripe says that it was
/// deleted.
pub(crate) fn absent(known: &AnyMerged, created: DateTime<Utc>, origin: Origin) -> Option<AnySnapshot> {
    fn read<T: StripeObject>(value: T, created: DateTime<Utc>, origin: Origin) -> Snapshot<T> {
        Snapshot::new(value, None, created, origin, "")
    }
    Some(match known {
        AnyMerged::Customer(_) => return None,
        AnyMerged::CheckoutSession(merged) => {
            let mut value = merged.value().clone();
            value.status = CheckoutStatus::Expired;
            AnySnapshot::CheckoutSession(read(value, created, origin))
        }
        AnyMerged::Subscription(merged) => {
            let mut value = merged.value().clone();
            value.status = SubscriptionStatus::IncompleteExpired;
            AnySnapshot::Subscription(read(value, created, origin))
        }
        AnyMerged::Invoice(merged) => {
            let mut value = merged.value().clone();
            value.deleted = true;
            AnySnapshot::Invoice(read(value, created, origin))
        }
        AnyMerged::Charge(merged) => {
            let mut value = merged.value().clone();
            value.status = ChargeStatus::Failed;
            AnySnapshot::Charge(read(value, created, origin))
        }
        AnyMerged::Refund(merged) => {
            let mut value = merged.value().clone();
            value.status = RefundStatus::Canceled;
            AnySnapshot::Refund(read(value, created, origin))
        }
        AnyMerged::Dispute(merged) => {
            let mut value = merged.value().clone();
            value.status = DisputeStatus::Prevented;
            AnySnapshot::Dispute(read(value, created, origin))
        }
        AnyMerged::CreditNote(merged) => {
            let mut value = merged.value().clone();
            value.status = CreditNoteStatus::Void;
            AnySnapshot::CreditNote(read(value, created, origin))
        }
    })
}
