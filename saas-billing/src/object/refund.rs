//! Money given back.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Reference, Text, currency, expect_object, instant, reference},
};

open_enum! {
    /// How far a refund has come.
    RefundStatus {
        /// On its way: it has left the balance.
        Pending = "pending",
        /// Waits for the customer to say where to.
        RequiresAction = "requires_action",
        /// Given back.
        Succeeded = "succeeded",
        /// Came back, and is in the balance again.
        Failed = "failed",
        /// Called off before it left.
        Canceled = "canceled",
    }
}

/// What we keep of a refund.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    /// `re_…`
    pub id: ObjectId,
    /// What it gives back. A refund does not say whose it is; its charge does.
    pub charge: Option<ObjectId>,
    /// `pi_…`
    pub payment_intent: Option<ObjectId>,
    /// How far it has come.
    pub status: RefundStatus,
    /// Minor units.
    pub amount: i64,
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
    charge: Option<Reference<'a>>,
    #[serde(borrow)]
    payment_intent: Option<Reference<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    amount: Option<i64>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    created: Option<i64>,
}

impl Refund {
    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        _: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?))
    }

    fn from_wire(wire: Wire<'_>) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "refund")?;
        Ok(Self {
            id: wire.id.id("refund.id")?,
            charge: reference("refund.charge", wire.charge)?,
            payment_intent: reference("refund.payment_intent", wire.payment_intent)?,
            // Before statuses came up, a refund that existed was one that succeeded.
            status: match wire.status {
                Some(word) => word.word("refund.status")?.into(),
                None => RefundStatus::Succeeded,
            },
            amount: wire.amount.ok_or_else(|| Unreadable::new("refund without amount"))?,
            currency: currency(wire.currency),
            created: instant(wire.created),
        })
    }
}
