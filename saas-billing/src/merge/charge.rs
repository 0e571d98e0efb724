//! A charge is pending until it has succeeded or failed.

use super::{Fact, StripeObject};
use crate::object::{Charge, ChargeStatus, ObjectId, ObjectKind};

impl StripeObject for Charge {
    const KIND: ObjectKind = ObjectKind::Charge;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    fn stage(&self) -> u8 {
        match self.status {
            ChargeStatus::Pending | ChargeStatus::Other(_) => 0,
            ChargeStatus::Failed | ChargeStatus::Succeeded => 1,
        }
    }

    fn rank(&self) -> u8 {
        match self.status {
            ChargeStatus::Other(_) => 0,
            ChargeStatus::Pending => 1,
            ChargeStatus::Failed => 2,
            ChargeStatus::Succeeded => 3,
        }
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        let received = self.status == ChargeStatus::Succeeded && self.captured > 0;
        if received { vec![Fact::PaymentReceived] } else { Vec::new() }
    }
}
