//! The payer.

use serde::{Deserialize, Serialize};

use super::{
    Discount, ObjectId, Unreadable,
    discount::WireDiscount,
    wire::{Text, currency, expect_object},
};

/// What we keep of a customer. Name and address stay at Stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customer {
    /// `cus_…`
    pub id: ObjectId,
    /// Deleted at Stripe. The tenant keeps its link: history must stay readable.
    pub deleted: bool,
    /// Minor units that the next invoices ask for in addition; below zero, the credit that they use up. `None` where the
    /// payload does not say.
    #[serde(default)]
    pub balance: Option<i64>,
    /// Of the balance: lower-case ISO 4217.
    #[serde(default)]
    pub currency: Option<String>,
    /// What is taken off all that has no discount of its own.
    #[serde(default)]
    pub discount: Option<Discount>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    deleted: Option<bool>,
    balance: Option<i64>,
    /// What the balance was called before 2019-10-17.
    account_balance: Option<i64>,
    #[serde(borrow)]
    currency: Option<Text<'a>>,
    #[serde(borrow)]
    discount: Option<WireDiscount<'a>>,
}

impl Customer {
    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        deleted: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?, deleted))
    }

    fn from_wire(wire: Wire<'_>, deleted: bool) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "customer")?;
        Ok(Self {
            id: wire.id.id("customer.id")?,
            deleted: deleted || wire.deleted == Some(true),
            balance: wire.balance.or(wire.account_balance),
            currency: currency(wire.currency),
            discount: wire.discount.map(WireDiscount::read).transpose()?,
        })
    }
}
