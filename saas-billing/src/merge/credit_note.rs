//! A credit note counts until it is withdrawn.

use super::{Fact, StripeObject};
use crate::object::{CreditNote, CreditNoteStatus, ObjectId, ObjectKind};

impl StripeObject for CreditNote {
    const KIND: ObjectKind = ObjectKind::CreditNote;

    fn id(&self) -> &ObjectId {
        &self.id
    }

    fn stage(&self) -> u8 {
        u8::from(self.status == CreditNoteStatus::Void)
    }

    fn rank(&self) -> u8 {
        match self.status {
            CreditNoteStatus::Other(_) => 0,
            CreditNoteStatus::Issued => 1,
            CreditNoteStatus::Void => 2,
        }
    }

    fn facts(&self, _: &str) -> Vec<Fact> {
        match self.status {
            CreditNoteStatus::Issued => vec![Fact::CreditNoteIssued],
            CreditNoteStatus::Void => vec![Fact::CreditNoteIssued, Fact::CreditNoteVoided],
            CreditNoteStatus::Other(_) => Vec::new(),
        }
    }
}
