//! A dispute is open until it is decided.

use super::{Fact, StripeObject};
use crate::object::{Dispute, DisputeStatus, ObjectId, ObjectKind};

impl StripeObject for Dispute {
    const KIND: ObjectKind = ObjectKind::Dispute;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    /// Of two decisions the later one counts: a bank can be overruled.
    fn stage(&self) -> u8 {
        u8::from(self.is_closed())
    }

    fn rank(&self) -> u8 {
        match self.status {
            DisputeStatus::Other(_) => 0,
            DisputeStatus::WarningNeedsResponse => 1,
            DisputeStatus::WarningUnderReview => 2,
            DisputeStatus::NeedsResponse => 3,
            DisputeStatus::UnderReview => 4,
            DisputeStatus::Prevented => 5,
            DisputeStatus::WarningClosed => 6,
            DisputeStatus::Won => 7,
            DisputeStatus::Lost => 8,
        }
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        match self.status {
            DisputeStatus::NeedsResponse | DisputeStatus::UnderReview => vec![Fact::DisputeOpened],
            DisputeStatus::Won => vec![Fact::DisputeOpened, Fact::DisputeWon],
            DisputeStatus::Lost => vec![Fact::DisputeOpened, Fact::DisputeLost],
            DisputeStatus::WarningNeedsResponse
            | DisputeStatus::WarningUnderReview
            | DisputeStatus::WarningClosed
            | DisputeStatus::Prevented
            | DisputeStatus::Other(_) => Vec::new(),
        }
    }
}
