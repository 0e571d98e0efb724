//! A payment that the customer's bank wants back.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ObjectId, Unreadable,
    open_enum::open_enum,
    wire::{Reference, Text, currency, expect_object, instant, reference},
};

open_enum! {
    /// How far a dispute has come (<https://docs.stripe.com/api/disputes/object#dispute_object-status>).
    DisputeStatus {
        /// An inquiry: no money has moved.
        WarningNeedsResponse = "warning_needs_response",
        /// An inquiry that was answered.
        WarningUnderReview = "warning_under_review",
        /// An inquiry that came to nothing.
        WarningClosed = "warning_closed",
        /// The bank has taken the money and waits for evidence.
        NeedsResponse = "needs_response",
        /// The bank has the money and the evidence.
        UnderReview = "under_review",
        /// The money is back.
        Won = "won",
        /// The money is gone.
        Lost = "lost",
        /// Settled before the bank took anything.
        Prevented = "prevented",
    }
}

/// What we keep of a dispute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// `dp_…`, or `du_…`
    pub id: ObjectId,
    /// What is disputed. A dispute does not say whose it is; its charge does.
    pub charge: Option<ObjectId>,
    /// `pi_…`
    pub payment_intent: Option<ObjectId>,
    /// How far it has come.
    pub status: DisputeStatus,
    /// Minor units.
    pub amount: i64,
    /// Lower-case ISO 4217.
    pub currency: Option<String>,
    /// When it was opened.
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

impl Dispute {
    /// Whether it has been decided.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self.status {
            DisputeStatus::Won | DisputeStatus::Lost | DisputeStatus::WarningClosed | DisputeStatus::Prevented => true,
            DisputeStatus::WarningNeedsResponse
            | DisputeStatus::WarningUnderReview
            | DisputeStatus::NeedsResponse
            | DisputeStatus::UnderReview
            | DisputeStatus::Other(_) => false,
        }
    }

    pub(crate) fn read<'de, D: serde::Deserializer<'de>>(
        json: D,
        _: bool,
    ) -> Result<Result<Self, Unreadable>, D::Error> {
        Ok(Self::from_wire(Wire::deserialize(json)?))
    }

    fn from_wire(wire: Wire<'_>) -> Result<Self, Unreadable> {
        expect_object(wire.object.as_ref(), "dispute")?;
        let status = wire.status.ok_or_else(|| Unreadable::new("dispute without status"))?;
        Ok(Self {
            id: wire.id.id("dispute.id")?,
            charge: reference("dispute.charge", wire.charge)?,
            payment_intent: reference("dispute.payment_intent", wire.payment_intent)?,
            status: status.word("dispute.status")?.into(),
            amount: wire.amount.ok_or_else(|| Unreadable::new("dispute without amount"))?,
            currency: currency(wire.currency),
            created: instant(wire.created),
        })
    }
}
