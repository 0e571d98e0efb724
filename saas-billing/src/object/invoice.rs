//! A bill.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Reference, Text, currency, expect_object, instant, reference},
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

#[derive(Deserialize)]
struct WireTransitions {
    finalized_at: Option<i64>,
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
            amount_paid: wire.amount_paid.unwrap_or(0),
            currency: currency(wire.currency),
            due_at: instant(wire.due_date),
            finalized_at: wire.status_transitions.and_then(|transitions| instant(transitions.finalized_at)),
            created: instant(wire.created),
        })
    }
}
