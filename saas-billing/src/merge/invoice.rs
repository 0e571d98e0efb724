//! An invoice goes one way: draft, open, perhaps uncollectible, then paid or void; a draft may be deleted.

use super::{Fact, StripeObject};
use crate::object::{Invoice, InvoiceStatus, ObjectId, ObjectKind};

impl StripeObject for Invoice {
    const KIND: ObjectKind = ObjectKind::Invoice;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    /// <https://docs.stripe.com/invoicing/overview#invoice-statuses>: no transition leads back, so a late
    /// `payment_failed` can never undo `paid`, whatever the seconds say.
    fn stage(&self) -> u8 {
        match self.status {
            _ if self.deleted => 4,
            InvoiceStatus::Other(_) | InvoiceStatus::Draft => 0,
            InvoiceStatus::Open => 1,
            InvoiceStatus::Uncollectible => 2,
            InvoiceStatus::Paid | InvoiceStatus::Void => 3,
        }
    }

    fn progress(&self) -> u32 {
        self.attempt_count
    }

    fn rank(&self) -> u8 {
        match self.status {
            InvoiceStatus::Other(_) => 0,
            InvoiceStatus::Draft => 1,
            InvoiceStatus::Open => 2,
            InvoiceStatus::Uncollectible => 3,
            InvoiceStatus::Void => 4,
            InvoiceStatus::Paid => 5,
        }
    }

    fn facts(&self, event_type: &str) -> Vec<Fact> {
        let mut facts = Vec::new();
        if event_type == "invoice.payment_failed" {
            facts.push(Fact::PaymentFailed(self.attempt_count));
        }
        if event_type == "invoice.payment_action_required" {
            facts.push(Fact::ConfirmationAsked(self.attempt_count));
        }
        if self.status == InvoiceStatus::Paid {
            facts.push(Fact::InvoicePaid);
        }
        facts
    }
}
