//! A checkout session is open until it is complete or expired; the money may come later.

use super::{Fact, StripeObject};
use crate::object::{CheckoutSession, CheckoutStatus, ObjectId, ObjectKind};

impl StripeObject for CheckoutSession {
    const KIND: ObjectKind = ObjectKind::CheckoutSession;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    fn stage(&self) -> u8 {
        match self.status {
            CheckoutStatus::Open | CheckoutStatus::Other(_) => 0,
            CheckoutStatus::Complete | CheckoutStatus::Expired => 1,
        }
    }

    /// Money that came in stays in: `async_payment_succeeded` follows `completed`.
    fn progress(&self) -> u32 {
        u32::from(self.settled)
    }

    fn rank(&self) -> u8 {
        match self.status {
            CheckoutStatus::Other(_) => 0,
            CheckoutStatus::Open => 1,
            CheckoutStatus::Expired => 2,
            CheckoutStatus::Complete => 3,
        }
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        if self.status == CheckoutStatus::Complete { vec![Fact::CheckoutCompleted] } else { Vec::new() }
    }
}
