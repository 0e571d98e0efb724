//! A subscription ends once.

use super::{Fact, StripeObject};
use crate::object::{ObjectId, ObjectKind, Subscription, SubscriptionStatus};

impl StripeObject for Subscription {
    const KIND: ObjectKind = ObjectKind::Subscription;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    fn stage(&self) -> u8 {
        u8::from(self.is_final())
    }

    fn rank(&self) -> u8 {
        match self.status {
            SubscriptionStatus::Other(_) => 0,
            SubscriptionStatus::Incomplete => 1,
            SubscriptionStatus::Trialing => 2,
            SubscriptionStatus::Active => 3,
            SubscriptionStatus::PastDue => 4,
            SubscriptionStatus::Unpaid => 5,
            SubscriptionStatus::Paused => 6,
            SubscriptionStatus::IncompleteExpired => 7,
            SubscriptionStatus::Canceled => 8,
        }
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        match self.status {
            SubscriptionStatus::Trialing
            | SubscriptionStatus::Active
            | SubscriptionStatus::PastDue
            | SubscriptionStatus::Unpaid
            | SubscriptionStatus::Paused => vec![Fact::SubscriptionStarted],
            SubscriptionStatus::Canceled => vec![Fact::SubscriptionEnded],
            SubscriptionStatus::Incomplete | SubscriptionStatus::IncompleteExpired | SubscriptionStatus::Other(_) => {
                Vec::new()
            }
        }
    }

    fn prices(&self) -> Vec<ObjectId> {
        self.items.iter().map(|item| item.price.id.clone()).collect()
    }

    fn charged_by(&self) -> Option<Vec<ObjectId>> {
        (!self.items_truncated && !self.items.is_empty()).then(|| self.prices())
    }

    fn is_behind(&self) -> Option<bool> {
        match self.status {
            SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid => Some(true),
            SubscriptionStatus::Active | SubscriptionStatus::Trialing => Some(false),
            SubscriptionStatus::Incomplete
            | SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Canceled
            | SubscriptionStatus::Paused
            | SubscriptionStatus::Other(_) => None,
        }
    }

    fn gap(&self) -> Option<&'static str> {
        Self::gap(self)
    }
}
