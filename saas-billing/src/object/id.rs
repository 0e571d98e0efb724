//! Stripe's ids and the kinds of object they name.

use std::fmt;

use saas_core::InvalidInput;
use serde::{Deserialize, Serialize};

/// The id of a Stripe object or event: 1 to 255 visible ASCII characters, so that it fits a `text` column and a log line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId(String);

impl ObjectId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ObjectId {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        if (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text));
        }
        Err(InvalidInput::new(
            "the Stripe id",
            "is empty, too long or holds other than visible ASCII",
            "pass an id such as `cus_…`",
        ))
    }
}

impl std::str::FromStr for ObjectId {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        Self::try_from(text.to_owned())
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of object that are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// A payer.
    Customer,
    /// One visit to Stripe's payment page.
    CheckoutSession,
    /// A recurring purchase.
    Subscription,
    /// A bill.
    Invoice,
    /// A payment as the bank saw it.
    Charge,
    /// Money given back.
    Refund,
    /// A payment that the bank wants back.
    Dispute,
    /// What an invoice was too much.
    CreditNote,
}

impl ObjectKind {
    /// The kind that Stripe's `object` field names, if it is one of ours.
    #[must_use]
    pub fn from_object(object: &str) -> Option<Self> {
        match object {
            "customer" => Some(Self::Customer),
            "checkout.session" => Some(Self::CheckoutSession),
            "subscription" => Some(Self::Subscription),
            "invoice" => Some(Self::Invoice),
            "charge" => Some(Self::Charge),
            "refund" => Some(Self::Refund),
            "dispute" => Some(Self::Dispute),
            "credit_note" => Some(Self::CreditNote),
            _ => None,
        }
    }

    /// The form that is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::CheckoutSession => "checkout_session",
            Self::Subscription => "subscription",
            Self::Invoice => "invoice",
            Self::Charge => "charge",
            Self::Refund => "refund",
            Self::Dispute => "dispute",
            Self::CreditNote => "credit_note",
        }
    }

    /// Reads the stored form.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        const ALL: [ObjectKind; 8] = [
            ObjectKind::Customer,
            ObjectKind::CheckoutSession,
            ObjectKind::Subscription,
            ObjectKind::Invoice,
            ObjectKind::Charge,
            ObjectKind::Refund,
            ObjectKind::Dispute,
            ObjectKind::CreditNote,
        ];
        ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}
