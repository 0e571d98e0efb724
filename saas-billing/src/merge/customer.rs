//! A customer lives until it is deleted.

use super::{Fact, StripeObject};
use crate::object::{Customer, ObjectId, ObjectKind};

impl StripeObject for Customer {
    const KIND: ObjectKind = ObjectKind::Customer;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    fn stage(&self) -> u8 {
        u8::from(self.deleted)
    }

    fn rank(&self) -> u8 {
        0
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        if self.deleted { vec![Fact::CustomerDeleted] } else { Vec::new() }
    }
}
