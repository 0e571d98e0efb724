//! What merging needs to know about a kind of object.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

use super::Fact;
use crate::object::{ObjectId, ObjectKind};

/// A kind of Stripe object, with the rules of its life.
pub trait StripeObject:
    fmt::Debug + Clone + PartialEq + Eq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Which kind.
    const KIND: ObjectKind;

    /// Its id.
    fn id(&self) -> &ObjectId;

    /// How far along its life this value is, where Stripe never goes back; the greatest stage absorbs all others.
    fn stage(&self) -> u8;

    /// A counter of the object that never shrinks, to order values of one second.
    fn progress(&self) -> u32 {
        0
    }

    /// Which of two values of one second to believe until a fetch tells: the one that is further along as a rule.
    fn rank(&self) -> u8;

    /// What this value, reported by an event of this type, proves to have happened.
    fn facts(&self, event_type: &str) -> Vec<Fact>;

    /// The prices it is charged by.
    fn prices(&self) -> Vec<ObjectId> {
        Vec::new()
    }

    /// All prices that it is charged by at the same time, in one order; `None` where this value does not say all of them.
    fn charged_by(&self) -> Option<Vec<ObjectId>> {
        None
    }

    /// Whether payments are behind; `None` where this value does not say.
    fn is_behind(&self) -> Option<bool> {
        None
    }

    /// What is missing to trust this value alone.
    fn gap(&self) -> Option<&'static str> {
        None
    }
}
