//! What an invoice was too much.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{List, Reference, TaxAmount, Text, currency, expect_object, instant, reference, tax},
};

open_enum! {
    /// How far a credit note has come.
    CreditNoteStatus {
        /// It counts.
        Issued = "issued",
        /// Withdrawn. Final.
        Void = "void",
    }
}

/// What we keep of a credit note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditNote {
    /// `cn_…`
    pub id: ObjectId,
    /// Whose invoice.
    pub customer: Option<ObjectId>,
    /// Which invoice.
    pub invoice: Option<ObjectId>,
    /// How far it has come.
    pub status: CreditNoteStatus,
    /// Minor units, tax included.
    pub total: i64,
    /// Minor units of tax in that.
    pub tax: i64,
    /// Minor units that the invoice no longer asks for.
    pub unbilled: i64,
    /// Minor units of what had been paid that go back as refunds.
    pub refunded: i64,
    /// Minor units of what had been paid that were given back outside Stripe.
    pub out_of_band: i64,
    /// Lower-case ISO 4217.
    pub currency: Option<String>,
    /// When it was made at Stripe.
    pub created: Option<DateTime<Utc>>,
    /// When it was withdrawn.
    pub voided_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    #[serde(borrow)]
    customer: Option<Reference<'a>>,
    #[serde(borrow)]
    invoice: Option<Reference<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    /// `pre_payment` or `post_payment`; what tells the two amounts apart before Stripe names them.
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    total: Option<i64>,
    total_excluding_tax: Option<i64>,
    total_taxes: Option<Vec<TaxAmount>>,
    tax_amounts: Option<Vec<TaxAmount>>,
    pre_payment_amount: Option<i64>,
    out_of_band_amount: Option<i64>,
    /// Since 2024-10-28: several.
    refunds: Option<Refunds>,
    /// Before: one, whose amount is what is neither credited nor out of band.
    #[serde(borrow)]
    refund: Option<Reference<'a>>,
    #[serde(borrow)]
    customer_balance_transaction: Option<Reference<'a>>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    created: Option<i64>,
    voided_at: Option<i64>,
}

/// A list of Stripe's, or a plain one, as API versions have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Refunds {
    Plain(Vec<NotedRefund>),
    Listed(List<NotedRefund>),
}

#[derive(Deserialize)]
struct NotedRefund {
    amount_refunded: Option<i64>,
}

impl CreditNote {
    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        _: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?))
    }

    fn from_wire(wire: Wire<'_>) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "credit_note")?;
        let total = wire.total.ok_or_else(|| Unreadable::new("credit note without total"))?;
        let before_payment = wire.kind.as_ref().is_none_or(|kind| kind.as_str() == "pre_payment");
        let unbilled = wire.pre_payment_amount.unwrap_or(if before_payment { total } else { 0 });
        let out_of_band = wire.out_of_band_amount.unwrap_or(0);
        let listed = wire.refunds.map(|refunds| match refunds {
            Refunds::Plain(refunds) | Refunds::Listed(List { data: refunds, .. }) => refunds,
        });
        let listed: Option<Vec<i64>> = listed
            .filter(|refunds| !refunds.is_empty())
            .map(|refunds| refunds.into_iter().filter_map(|refund| refund.amount_refunded).collect());
        let left = total.checked_sub(unbilled).and_then(|left| left.checked_sub(out_of_band));
        let refunded = match (listed, wire.refund, wire.customer_balance_transaction) {
            (Some(amounts), _, _) => amounts.into_iter().try_fold(0_i64, i64::checked_add),
            (None, Some(_), None) => left,
            (None, Some(_) | None, Some(_)) | (None, None, None) => Some(0),
        };
        Ok(Self {
            id: wire.id.id("credit_note.id")?,
            customer: reference("credit_note.customer", wire.customer)?,
            invoice: reference("credit_note.invoice", wire.invoice)?,
            status: match wire.status {
                Some(word) => word.word("credit_note.status")?.into(),
                None => return Err(Unreadable::new("credit note without status")),
            },
            total,
            tax: tax(total, wire.total_excluding_tax, wire.total_taxes.or(wire.tax_amounts), None)
                .ok_or_else(|| Unreadable::new("credit note with taxes out of range"))?,
            unbilled,
            refunded: refunded.ok_or_else(|| Unreadable::new("credit note with amounts out of range"))?,
            out_of_band,
            currency: currency(wire.currency),
            created: instant(wire.created),
            voided_at: instant(wire.voided_at),
        })
    }
}
