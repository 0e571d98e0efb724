//! What an object says happened to money: legs, each of them balanced.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Account;
use crate::{
    money::{Currency, Money, MoneyError},
    object::ObjectId,
};

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why money moved.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Cause {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl Cause {
            /// The name that is stored.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// Reads the stored name.
            #[must_use]
            pub fn from_stored(text: &str) -> Option<Self> {
                [$(Self::$name),+].into_iter().find(|cause| cause.as_str() == text)
            }
        }
    };
}

causes! {
    /// An invoice became final.
    InvoiceFinalized = "invoice.finalized",
    /// The customer's credit went into an invoice, or came out of one.
    CreditUsed = "invoice.credit_used",
    /// An invoice was paid, perhaps in part.
    InvoicePaid = "invoice.paid",
    /// An invoice was written off.
    InvoiceWrittenOff = "invoice.written_off",
    /// What had been written off was paid after all.
    InvoiceRecovered = "invoice.recovered",
    /// An invoice was withdrawn.
    InvoiceVoided = "invoice.voided",
    /// A payment came in.
    PaymentReceived = "payment.received",
    /// A payment was given back.
    PaymentRefunded = "payment.refunded",
    /// What was given back came back.
    RefundReturned = "refund.returned",
    /// A bank took a payment back for now.
    DisputeOpened = "dispute.opened",
    /// A bank decided for us.
    DisputeWon = "dispute.won",
    /// A bank decided against us.
    DisputeLost = "dispute.lost",
    /// A credit note was issued.
    CreditNoteIssued = "credit_note.issued",
    /// A credit note was withdrawn.
    CreditNoteVoided = "credit_note.voided",
    /// The customer's credit changed.
    CustomerCreditChanged = "customer_credit.changed",
    /// Prepaid credits were granted.
    CreditsGranted = "credits.granted",
    /// Prepaid credits were burnt.
    CreditsBurnt = "credits.burnt",
    /// Prepaid credits were taken back, since what they were bought with was.
    CreditsRevoked = "credits.revoked",
    /// An entry was taken back.
    Reversed = "reversed",
}

impl Cause {
    /// Whether its amount grows and shrinks as time passes, so that what is new of it is dated when it came. Everything else
    /// has one date, and a correction of it bears that.
    #[must_use]
    pub const fn is_running(self) -> bool {
        matches!(self, Self::InvoicePaid | Self::CustomerCreditChanged | Self::CreditsRevoked)
    }
}

/// One thing that happened to money, balanced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// What happened.
    pub cause: Cause,
    /// When, by Stripe's clock.
    pub at: DateTime<Utc>,
    /// Debits and credits, one per account.
    pub postings: Vec<Posting>,
}

/// An amount on an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posting {
    /// Where.
    pub account: Account,
    /// A debit above zero, a credit below.
    pub amount: Money,
}

/// What follows from one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Legs {
    /// In no particular order.
    pub legs: Vec<Leg>,
    /// The payment that it is about, under the name that whoever started it knows: prepaid credits hang on it.
    pub payment: Option<ObjectId>,
}

/// Why nothing can be booked for an object: what it says makes no sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unbookable {
    /// An amount without a currency.
    #[error("an amount without a currency")]
    NoCurrency,
    /// A final invoice that does not say what it asks for.
    #[error("an invoice without a total")]
    NoTotal,
    /// Amounts that make no sum.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// Collects legs of one currency; what is nothing is left out, and the last posting of each balances the rest.
pub(super) struct Book {
    currency: Result<Currency, Unbookable>,
    legs: Vec<Leg>,
}

impl Book {
    pub(super) fn new(currency: Option<&str>) -> Self {
        let currency = currency.and_then(|code| code.parse().ok()).ok_or(Unbookable::NoCurrency);
        Self { currency, legs: Vec::new() }
    }

    /// Moves an amount: a debit of the first account and a credit of the second.
    pub(super) fn move_amount(
        &mut self,
        (cause, at): (Cause, DateTime<Utc>),
        amount: i64,
        (debit, credit): (Account, Account),
    ) -> Result<(), Unbookable> {
        self.post((cause, at), &[(debit, amount)], credit)
    }

    /// Debits amounts, and credits their sum to the last account.
    pub(super) fn post(
        &mut self,
        (cause, at): (Cause, DateTime<Utc>),
        debits: &[(Account, i64)],
        balancing: Account,
    ) -> Result<(), Unbookable> {
        if debits.iter().all(|(_, amount)| *amount == 0) {
            return Ok(());
        }
        let currency = self.currency?;
        let mut left = Money::zero(currency);
        let mut postings = Vec::new();
        for (account, amount) in debits.iter().filter(|(_, amount)| *amount != 0) {
            let amount = Money::new(*amount, currency);
            left = left.checked_sub(amount)?;
            postings.push(Posting { account: *account, amount });
        }
        if !left.is_zero() {
            postings.push(Posting { account: balancing, amount: left });
        }
        self.legs.push(Leg { cause, at, postings });
        Ok(())
    }

    pub(super) fn about(self, payment: Option<ObjectId>) -> Legs {
        Legs { legs: self.legs, payment }
    }
}

/// The amount the other way round.
pub(super) fn negated(amount: i64) -> Result<i64, Unbookable> {
    amount.checked_neg().ok_or(Unbookable::Money(MoneyError::OutOfRange))
}

/// The difference of two amounts.
pub(super) fn less(amount: i64, other: i64) -> Result<i64, Unbookable> {
    amount.checked_sub(other).ok_or(Unbookable::Money(MoneyError::OutOfRange))
}
