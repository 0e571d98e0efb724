//! A bill.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Reference, TaxAmount, Text, currency, expect_object, instant, reference, tax},
};

open_enum! {
    /// How far an invoice has come. Stripe never goes back: draft, open, then uncollectible or a final state.
    InvoiceStatus {
        /// Still being written.
        Draft = "draft",
        /// To be paid.
        Open = "open",
        /// Paid. Final.
        Paid = "paid",
        /// Written off; may still be paid.
        Uncollectible = "uncollectible",
        /// Withdrawn. Final.
        Void = "void",
    }
}

open_enum! {
    /// How the money is asked for.
    Collection {
        /// Stripe charges the payment method.
        ChargeAutomatically = "charge_automatically",
        /// The customer is sent the invoice and has until the due date.
        SendInvoice = "send_invoice",
    }
}

/// What we keep of an invoice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// `in_…`
    pub id: ObjectId,
    /// Who pays.
    pub customer: Option<ObjectId>,
    /// For which subscription; `None` for a single sale.
    pub subscription: Option<ObjectId>,
    /// How far it has come.
    pub status: InvoiceStatus,
    /// Deleted as a draft.
    pub deleted: bool,
    /// Payment attempts so far.
    pub attempt_count: u32,
    /// How the money is asked for.
    pub collection: Collection,
    /// Minor units still to be paid.
    pub amount_remaining: i64,
    /// Minor units paid.
    pub amount_paid: i64,
    /// Lower-case ISO 4217.
    pub currency: Option<String>,
    /// When it must be paid, if it is sent.
    pub due_at: Option<DateTime<Utc>>,
    /// When it became final, which is when Stripe first tries to charge.
    pub finalized_at: Option<DateTime<Utc>>,
    /// When it was made at Stripe.
    pub created: Option<DateTime<Utc>>,
    /// Minor units of all lines, discounts and taxes; `None` where the payload does not say.
    #[serde(default)]
    pub total: Option<i64>,
    /// Minor units of tax in that.
    #[serde(default)]
    pub tax: i64,
    /// Minor units of the customer's credit that went into it; below zero, what was added to the credit, or asked for from
    /// before.
    #[serde(default)]
    pub credit_used: i64,
    /// Minor units that credit notes took off before it was paid.
    #[serde(default)]
    pub credited: i64,
    /// Minor units of what was paid that came by other means than Stripe, as far as this payload says: events of API versions
    /// since 2025-03-31 (basil) do not.
    #[serde(default)]
    pub paid_elsewhere: i64,
    /// When it was paid.
    #[serde(default)]
    pub paid_at: Option<DateTime<Utc>>,
    /// When it was withdrawn.
    #[serde(default)]
    pub voided_at: Option<DateTime<Utc>>,
    /// When it was written off; stays when it is paid after all.
    #[serde(default)]
    pub written_off_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    #[serde(borrow)]
    customer: Option<Reference<'a>>,
    /// Before API version 2025-03-31 (basil).
    #[serde(borrow)]
    subscription: Option<Reference<'a>>,
    /// Since then.
    #[serde(borrow)]
    parent: Option<WireParent<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    deleted: Option<bool>,
    attempt_count: Option<u32>,
    #[serde(borrow)]
    collection_method: Option<Text<'a>>,
    amount_remaining: Option<i64>,
    amount_paid: Option<i64>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    due_date: Option<i64>,
    status_transitions: Option<WireTransitions>,
    created: Option<i64>,
    total: Option<i64>,
    total_excluding_tax: Option<i64>,
    total_taxes: Option<Vec<TaxAmount>>,
    /// Before API version 2025-03-31 (basil).
    total_tax_amounts: Option<Vec<TaxAmount>>,
    tax: Option<i64>,
    starting_balance: Option<i64>,
    ending_balance: Option<i64>,
    pre_payment_credit_notes_amount: Option<i64>,
    amount_due: Option<i64>,
    /// Before API version 2025-03-31 (basil); then `amount_paid` does not have it.
    paid_out_of_band: Option<bool>,
    /// Since API version 2026-05-27 (dahlia), to reads that ask for it; `amount_paid` has it.
    amount_paid_off_stripe: Option<i64>,
}

#[derive(Deserialize)]
struct WireParent<'a> {
    #[serde(borrow)]
    subscription_details: Option<WireDetails<'a>>,
}

#[derive(Deserialize)]
struct WireDetails<'a> {
    #[serde(borrow)]
    subscription: Option<Reference<'a>>,
}

#[derive(Default, Deserialize)]
struct WireTransitions {
    finalized_at: Option<i64>,
    paid_at: Option<i64>,
    voided_at: Option<i64>,
    marked_uncollectible_at: Option<i64>,
}

impl Invoice {
    /// Whether it can no longer change what is owed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.deleted || matches!(self.status, InvoiceStatus::Paid | InvoiceStatus::Void)
    }

    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        deleted: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?, deleted))
    }

    fn from_wire(wire: Wire<'_>, deleted: bool) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "invoice")?;
        let deleted = deleted || wire.deleted == Some(true);
        let status = match wire.status {
            Some(word) => word.word("invoice.status")?.into(),
            None if deleted => InvoiceStatus::Draft,
            None => return Err(Unreadable::new("invoice without status")),
        };
        let details = wire.parent.and_then(|parent| parent.subscription_details);
        let subscription = details.and_then(|details| details.subscription).or(wire.subscription);
        let taxes = wire.total_taxes.or(wire.total_tax_amounts);
        let tax =
            tax(wire.total.unwrap_or(0), wire.total_excluding_tax.filter(|_| wire.total.is_some()), taxes, wire.tax);
        // Without the second there was no end to it yet: a draft uses nothing.
        let credit_used = match (wire.starting_balance, wire.ending_balance) {
            (Some(starting), Some(ending)) => ending.checked_sub(starting),
            (Some(_) | None, Some(_) | None) => Some(0),
        };
        let transitions = wire.status_transitions.unwrap_or_default();
        let (mut amount_paid, mut paid_elsewhere) =
            (wire.amount_paid.unwrap_or(0), wire.amount_paid_off_stripe.unwrap_or(0));
        if wire.paid_out_of_band == Some(true) {
            // It was paid at once and by nothing else.
            amount_paid = amount_paid.max(wire.amount_due.unwrap_or(0));
            paid_elsewhere = amount_paid;
        }
        Ok(Self {
            id: wire.id.id("invoice.id")?,
            customer: reference("invoice.customer", wire.customer)?,
            subscription: reference("invoice.subscription", subscription)?,
            status,
            deleted,
            attempt_count: wire.attempt_count.unwrap_or(0),
            collection: match wire.collection_method {
                Some(word) => word.word("invoice.collection_method")?.into(),
                None => Collection::ChargeAutomatically,
            },
            amount_remaining: wire.amount_remaining.unwrap_or(0),
            amount_paid,
            currency: currency(wire.currency),
            due_at: instant(wire.due_date),
            finalized_at: instant(transitions.finalized_at),
            created: instant(wire.created),
            total: wire.total,
            tax: tax.ok_or_else(|| Unreadable::new("invoice with taxes out of range"))?,
            credit_used: credit_used.ok_or_else(|| Unreadable::new("invoice with a balance out of range"))?,
            credited: wire.pre_payment_credit_notes_amount.unwrap_or(0),
            paid_elsewhere,
            paid_at: instant(transitions.paid_at),
            voided_at: instant(transitions.voided_at),
            written_off_at: instant(transitions.marked_uncollectible_at),
        })
    }
}
