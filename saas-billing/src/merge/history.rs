//! What ever happened to an object, kept even when the snapshot that said so is not the newest.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use saas_core::InvalidInput;
use serde::{Deserialize, Serialize};

use super::{StripeObject, arrears::Arrears, tenure::Tenure};
use crate::object::ObjectId;

/// Entries of each kind that are kept.
const MAX_ENTRIES: usize = 64;

/// Something that happened to an object and cannot un-happen. An effect (a mail, a ledger entry) hangs on the fact, not on
/// an event id: Stripe may report one change with two ids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Fact {
    /// The checkout was completed.
    CheckoutCompleted,
    /// The customer was deleted at Stripe.
    CustomerDeleted,
    /// The invoice was paid.
    InvoicePaid,
    /// So many minor units of the invoice were paid by other means than Stripe.
    PaidElsewhere(u64),
    /// The nth attempt to charge the invoice failed.
    PaymentFailed(u32),
    /// At the nth attempt the bank wanted to hear from the buyer.
    ConfirmationAsked(u32),
    /// An invoice turned out to be too much.
    CreditNoteIssued,
    /// The credit note was withdrawn.
    CreditNoteVoided,
    /// The bank decided against us.
    DisputeLost,
    /// The bank took a payment back until it has decided.
    DisputeOpened,
    /// The bank decided for us.
    DisputeWon,
    /// Money came in.
    PaymentReceived,
    /// Money given back came back.
    RefundFailed,
    /// Money was given back.
    Refunded,
    /// The subscription ended for good.
    SubscriptionEnded,
    /// The subscription gave access for the first time.
    SubscriptionStarted,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckoutCompleted => f.write_str("checkout.completed"),
            Self::CustomerDeleted => f.write_str("customer.deleted"),
            Self::InvoicePaid => f.write_str("invoice.paid"),
            Self::PaidElsewhere(units) => write!(f, "invoice.paid_elsewhere.{units}"),
            Self::PaymentFailed(attempt) => write!(f, "payment.failed.{attempt}"),
            Self::ConfirmationAsked(attempt) => write!(f, "payment.confirmation_asked.{attempt}"),
            Self::CreditNoteIssued => f.write_str("credit_note.issued"),
            Self::CreditNoteVoided => f.write_str("credit_note.voided"),
            Self::DisputeLost => f.write_str("dispute.lost"),
            Self::DisputeOpened => f.write_str("dispute.opened"),
            Self::DisputeWon => f.write_str("dispute.won"),
            Self::PaymentReceived => f.write_str("payment.received"),
            Self::RefundFailed => f.write_str("refund.failed"),
            Self::Refunded => f.write_str("payment.refunded"),
            Self::SubscriptionEnded => f.write_str("subscription.ended"),
            Self::SubscriptionStarted => f.write_str("subscription.started"),
        }
    }
}

impl From<Fact> for String {
    fn from(fact: Fact) -> Self {
        fact.to_string()
    }
}

impl TryFrom<String> for Fact {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        Ok(match text.as_str() {
            "checkout.completed" => Self::CheckoutCompleted,
            "customer.deleted" => Self::CustomerDeleted,
            "invoice.paid" => Self::InvoicePaid,
            "credit_note.issued" => Self::CreditNoteIssued,
            "credit_note.voided" => Self::CreditNoteVoided,
            "dispute.lost" => Self::DisputeLost,
            "dispute.opened" => Self::DisputeOpened,
            "dispute.won" => Self::DisputeWon,
            "payment.received" => Self::PaymentReceived,
            "refund.failed" => Self::RefundFailed,
            "payment.refunded" => Self::Refunded,
            "subscription.ended" => Self::SubscriptionEnded,
            "subscription.started" => Self::SubscriptionStarted,
            other => {
                let counted = |prefix| other.strip_prefix(prefix).and_then(|attempt: &str| attempt.parse().ok());
                let failed = counted("payment.failed.").map(Self::PaymentFailed);
                let known = failed.or_else(|| counted("payment.confirmation_asked.").map(Self::ConfirmationAsked));
                let units = || other.strip_prefix("invoice.paid_elsewhere.").and_then(|units| units.parse().ok());
                let known = known.or_else(|| units().map(Self::PaidElsewhere));
                let remedy = "migrate forward: a newer version wrote it";
                known.ok_or_else(|| InvalidInput::new("the fact", "is unknown", remedy))?
            }
        })
    }
}

/// The facts and the prices ever seen of one object, its present arrears, and what it was charged by since when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// With the earliest instant at which each was reported.
    facts: BTreeMap<Fact, DateTime<Utc>>,
    /// With the latest instant at which each was charged by.
    prices: BTreeMap<ObjectId, DateTime<Utc>>,
    #[serde(default)]
    arrears: Arrears,
    #[serde(default)]
    tenure: Tenure,
}

impl History {
    pub(super) fn new(
        at: DateTime<Utc>,
        facts: Vec<Fact>,
        prices: Vec<ObjectId>,
        (arrears, tenure): (Arrears, Tenure),
    ) -> Self {
        let with = |price| (price, at);
        Self {
            facts: facts.into_iter().map(|fact| (fact, at)).collect(),
            prices: prices.into_iter().map(with).collect(),
            arrears,
            tenure,
        }
    }

    /// Earliest report of each fact, latest use of each price: commutative, associative, idempotent. So is the bound: it
    /// keeps the first facts in their order (early payment attempts) and the last prices in time.
    pub(super) fn join(mut self, other: Self) -> Self {
        for (fact, at) in other.facts {
            self.facts.entry(fact).and_modify(|known| *known = at.min(*known)).or_insert(at);
        }
        for (price, at) in other.prices {
            self.prices.entry(price).and_modify(|known| *known = at.max(*known)).or_insert(at);
        }
        self.arrears = self.arrears.join(other.arrears);
        self.tenure = self.tenure.join(other.tenure);
        while self.facts.len() > MAX_ENTRIES {
            self.facts.pop_last();
        }
        while self.prices.len() > MAX_ENTRIES {
            let oldest =
                self.prices.iter().min_by_key(|(price, at)| (**at, (*price).clone())).map(|(price, _)| price.clone());
            oldest.and_then(|price| self.prices.remove(&price));
        }
        self
    }

    /// The facts, each with the earliest instant at which it was reported.
    pub fn facts(&self) -> impl Iterator<Item = (&Fact, DateTime<Utc>)> {
        self.facts.iter().map(|(fact, at)| (fact, *at))
    }

    /// When the first decline was reported. Stripe reports an attempt at which the bank wants to hear from the buyer as failed,
    /// too; that is none.
    #[must_use]
    pub fn first_decline(&self) -> Option<DateTime<Utc>> {
        let asked = |attempt: &u32| self.facts.contains_key(&Fact::ConfirmationAsked(*attempt));
        let declined = self.facts().filter(|(fact, _)| matches!(fact, Fact::PaymentFailed(attempt) if !asked(attempt)));
        declined.map(|(_, at)| at).min()
    }

    /// When the buyer was first asked to confirm a payment.
    #[must_use]
    pub fn confirmation_asked(&self) -> Option<DateTime<Utc>> {
        self.facts().filter(|(fact, _)| matches!(fact, Fact::ConfirmationAsked(_))).map(|(_, at)| at).min()
    }

    /// When payments were first reported to be behind, of the reports since the last one that they were not.
    #[must_use]
    pub fn behind_since(&self) -> Option<DateTime<Utc>> {
        self.arrears.since()
    }

    /// When payments were last reported not to be behind.
    #[must_use]
    pub const fn paid_at(&self) -> Option<DateTime<Utc>> {
        self.arrears.paid_at()
    }

    /// The lists of prices that it was charged by up to the present `value`, the earliest first, each with the instant since
    /// when: that of the report of the change or, where that is lost, of the last report of what was before. `None`: since it
    /// began.
    #[must_use]
    pub fn charged_by<T: StripeObject>(&self, value: &T) -> Vec<(Option<DateTime<Utc>>, Vec<ObjectId>)> {
        self.tenure.steps(&value.prices())
    }

    /// The prices ever charged by, latest first.
    #[must_use]
    pub fn prices(&self) -> Vec<&ObjectId> {
        let mut prices: Vec<_> = self.prices.iter().collect();
        prices.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        prices.into_iter().map(|(price, _)| price).collect()
    }
}
