//! A refund is given, and may come back even after it has succeeded.

use super::{Fact, StripeObject};
use crate::object::{ObjectId, ObjectKind, Refund, RefundStatus};

impl StripeObject for Refund {
    const KIND: ObjectKind = ObjectKind::Refund;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    fn stage(&self) -> u8 {
        match self.status {
            RefundStatus::Pending | RefundStatus::RequiresAction | RefundStatus::Other(_) => 0,
            RefundStatus::Succeeded => 1,
            RefundStatus::Failed | RefundStatus::Canceled => 2,
        }
    }

    fn rank(&self) -> u8 {
        match self.status {
            RefundStatus::Other(_) => 0,
            RefundStatus::RequiresAction => 1,
            RefundStatus::Pending => 2,
            RefundStatus::Succeeded => 3,
            RefundStatus::Canceled => 4,
            RefundStatus::Failed => 5,
        }
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        match self.status {
            RefundStatus::Pending | RefundStatus::Succeeded => vec![Fact::Refunded],
            RefundStatus::Failed => vec![Fact::RefundFailed],
            RefundStatus::RequiresAction | RefundStatus::Canceled | RefundStatus::Other(_) => Vec::new(),
        }
    }
}
