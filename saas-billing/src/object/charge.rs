//! A payment as the customer's bank saw it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Reference, Text, currency, expect_object, instant, reference},
};

open_enum! {
    /// How far a charge has come.
    ChargeStatus {
        /// The money came in.
        Succeeded = "succeeded",
        /// On its way, as with a bank debit.
        Pending = "pending",
        /// It did not come.
        Failed = "failed",
    }
}

/// What we keep of a charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// `ch_…`, or `py_…`
    pub id: ObjectId,
    /// Who paid; `None` for a guest.
    pub customer: Option<ObjectId>,
    /// `pi_…`, under which it is known to whoever started it.
    pub payment_intent: Option<ObjectId>,
    /// How far it has come.
    pub status: ChargeStatus,
    /// Minor units taken; of an authorisation that was not captured, none.
    pub captured: i64,
    /// Lower-case ISO 4217.
    pub currency: Option<String>,
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
    #[serde(borrow)]
    payment_intent: Option<Reference<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    amount: Option<i64>,
    /// Since 2020.
    amount_captured: Option<i64>,
    captured: Option<bool>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    created: Option<i64>,
}

impl Charge {
    /// What refunds and disputes, and whoever started the payment, know it by.
    #[must_use]
    pub fn payment(&self) -> &ObjectId {
        self.payment_intent.as_ref().unwrap_or(&self.id)
    }

    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        _: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?))
    }

    fn from_wire(wire: Wire<'_>) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "charge")?;
        let status = wire.status.ok_or_else(|| Unreadable::new("charge without status"))?;
        let captured = match (wire.amount_captured, wire.captured, wire.amount) {
            (Some(captured), _, _) => captured,
            (None, Some(false), _) => 0,
            (None, Some(true) | None, Some(amount)) => amount,
            (None, Some(true) | None, None) => return Err(Unreadable::new("charge without amount")),
        };
        Ok(Self {
            id: wire.id.id("charge.id")?,
            customer: reference("charge.customer", wire.customer)?,
            payment_intent: reference("charge.payment_intent", wire.payment_intent)?,
            status: status.word("charge.status")?.into(),
            captured,
            currency: currency(wire.currency),
            created: instant(wire.created),
        })
    }
}
