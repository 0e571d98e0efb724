//! One visit to Stripe's payment page.

use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Reference, Text, expect_object, reference},
};

open_enum! {
    /// How far a checkout session has come.
    CheckoutStatus {
        /// The customer may still pay.
        Open = "open",
        /// Done.
        Complete = "complete",
        /// Can no longer be paid.
        Expired = "expired",
    }
}

/// What we keep of a checkout session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckoutSession {
    /// `cs_…`
    pub id: ObjectId,
    /// How far it has come.
    pub status: CheckoutStatus,
    /// Whether money came in, or none was due (a trial).
    pub settled: bool,
    /// Who paid; Stripe makes the customer on completion unless one was given.
    pub customer: Option<ObjectId>,
    /// What was bought, for sessions of mode `subscription`.
    pub subscription: Option<ObjectId>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    #[serde(borrow)]
    payment_status: Option<Text<'a>>,
    #[serde(borrow)]
    customer: Option<Reference<'a>>,
    #[serde(borrow)]
    subscription: Option<Reference<'a>>,
}

impl CheckoutSession {
    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        _: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?))
    }

    fn from_wire(wire: Wire<'_>) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "checkout.session")?;
        let status = wire.status.ok_or_else(|| Unreadable::new("checkout session without status"))?;
        Ok(Self {
            id: wire.id.id("checkout_session.id")?,
            status: status.word("checkout_session.status")?.into(),
            settled: wire.payment_status.is_some_and(|word| matches!(word.as_str(), "paid" | "no_payment_required")),
            customer: reference("checkout_session.customer", wire.customer)?,
            subscription: reference("checkout_session.subscription", wire.subscription)?,
        })
    }
}
