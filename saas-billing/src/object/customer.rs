//! The payer.

use serde::{Deserialize, Serialize};

use super::{ObjectId, Unreadable, wire::Text};

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
    deleted: Option<bool>,
}

impl Customer {
    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        deleted: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        let wire = Wire::deserialize(json)?;
        Ok(wire.id.id("customer.id").map(|id| Self { id, deleted: deleted || wire.deleted == Some(true) }))
    }
}
