//! The accounts of a tenant's ledger.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! accounts {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// An account. Every tenant has all of them, in every currency.
        ///
        /// A debit is an amount above zero, a credit one below. What belongs to us (cash, what is owed to us, losses) is above
        /// zero when there is some of it; what we owe and what we earned is below.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Account {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl Account {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name that is stored.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

accounts! {
    /// What customers owe on invoices.
    Receivable = "receivable",
    /// What came in through Stripe and has not gone back, before Stripe's fees.
    Cash = "cash",
    /// What was paid past Stripe, as by a bank transfer that somebody marked as paid.
    OutOfBand = "out_of_band",
    /// Between charges and invoices: what came in and no invoice is known to be paid by (below zero), or what invoices say
    /// was paid and no charge is known of (above).
    Payments = "payments",
    /// What invoices ask for, without tax.
    Revenue = "revenue",
    /// Tax that is owed to the state.
    Tax = "tax",
    /// What credit notes took back of the revenue.
    CreditNotes = "credit_notes",
    /// Given back without a credit note that says what for.
    Refunds = "refunds",
    /// Invoices that were written off.
    BadDebt = "bad_debt",
    /// In the hands of banks until they have decided.
    Disputes = "disputes",
    /// What banks decided against us.
    DisputesLost = "disputes_lost",
    /// The customer's credit with us for coming invoices, as Stripe keeps it.
    CustomerCredit = "customer_credit",
    /// Between invoices, credit notes and the customer's credit: what was given or taken by hand.
    CreditClearing = "credit_clearing",
    /// Prepaid credits that the tenant can still burn. Above zero: more was revoked than was left.
    Credits = "credits",
    /// Prepaid credits that were granted.
    CreditsGranted = "credits_granted",
    /// Prepaid credits that were burnt.
    CreditsBurnt = "credits_burnt",
}

impl Account {
    /// Reads the stored name.
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|account| account.as_str() == text)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
