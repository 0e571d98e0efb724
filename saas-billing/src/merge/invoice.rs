//! An invoice goes one way: draft, open, perhaps uncollectible, then paid or void; a draft may be deleted.

use super::{Fact, Merged, StripeObject};
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
        facts.extend(u64::try_from(self.paid_elsewhere).ok().filter(|units| *units > 0).map(Fact::PaidElsewhere));
        facts
    }
}

impl Merged<Invoice> {
    /// Minor units of what was paid that came by other means than Stripe, as far as anything has said so: what a read found
    /// out outlives the events after it, which do not say.
    #[must_use]
    pub fn paid_elsewhere(&self) -> i64 {
        let said = self.history().facts().filter_map(|(fact, _)| match fact {
            Fact::PaidElsewhere(units) => i64::try_from(*units).ok(),
            _ => None,
        });
        said.max().unwrap_or(0).min(self.value().amount_paid)
    }
}
