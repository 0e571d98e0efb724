//! The payer.

use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    wire::{Text, expect_object},
};

/// What we keep of a customer. Name and address stay at Stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Customer {
    /// `cus_…`
    pub id: ObjectId,
    /// Deleted at Stripe. The tenant keeps its link: history must stay readable.
    pub deleted: bool,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    object: Option<Text<'a>>,
    deleted: Option<bool>,
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
        Ok(Self { id: wire.id.id("customer.id")?, deleted: deleted || wire.deleted == Some(true) })
    }
}
