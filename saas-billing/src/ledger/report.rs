//! What a verification says.

use std::{fmt, str::FromStr};

use saas_core::InvalidInput;
use serde::{Deserialize, Serialize};

use super::Account;
use crate::money::Currency;

/// SHA-256.
pub(crate) type Hash = [u8; 32];

/// A place in a chain and the hash there. Kept outside the database, where its owner cannot reach it, it is what finds a
/// chain that was cut off or written anew from some place on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LedgerAnchor {
    /// The transaction; 0 for an empty ledger.
    pub sequence: i64,
    pub(crate) hash: Hash,
}

impl fmt::Display for LedgerAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex::encode(self.hash))
    }
}

impl FromStr for LedgerAnchor {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        let read = || {
            let (sequence, digits) = text.split_once(':')?;
            let mut hash = Hash::default();
            hex::decode_to_slice(digits, &mut hash).ok()?;
            Some(Self { sequence: sequence.parse().ok().filter(|sequence| *sequence >= 0)?, hash })
        };
        read().ok_or_else(|| {
            InvalidInput::new("the ledger anchor", "is not `number:hash`", "pass one that a verification printed")
        })
    }
}

impl TryFrom<String> for LedgerAnchor {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        text.parse()
    }
}

impl From<LedgerAnchor> for String {
    fn from(anchor: LedgerAnchor) -> Self {
        anchor.to_string()
    }
}

/// Something that the crate never writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
#[non_exhaustive]
pub enum LedgerFault {
    /// A transaction is not there.
    Missing {
        /// Which.
        sequence: i64,
    },
    /// A transaction or its entries are not what they were, or an entry is gone, or too much.
    Changed {
        /// Which.
        sequence: i64,
    },
    /// A transaction does not add up to zero.
    Unbalanced {
        /// Which.
        sequence: i64,
        /// In which currency.
        currency: Currency,
    },
    /// Transactions behind the end of the chain.
    BeyondEnd {
        /// The last of them.
        sequence: i64,
    },
    /// The end of the chain is not the hash of the last transaction.
    EndChanged,
    /// Entries of a transaction that is not there.
    Orphans {
        /// Which.
        sequence: i64,
    },
    /// The chain no longer goes through a place that it went through.
    AnchorLost {
        /// Which.
        sequence: i64,
    },
    /// What is written about an object is not what follows from it.
    Differs {
        /// The object.
        subject: String,
        /// On which account, for one.
        account: Account,
    },
    /// Entries about an object that no version of this crate writes.
    Unreadable {
        /// The object.
        subject: String,
    },
    /// Entries about an object that nobody has told about.
    Unexplained {
        /// The object.
        subject: String,
    },
    /// An object whose amounts make no sum, so that nothing is written about what is new of it.
    Unbookable {
        /// The object.
        subject: String,
        /// Why.
        reason: String,
    },
}

/// Faults of one ledger that are kept; the rest is counted.
#[cfg(feature = "postgres")]
const MAX_FAULTS: usize = 100;

/// What a verification found.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerReport {
    /// Transactions of the chain that were read.
    pub transactions: u64,
    /// Objects that were compared with what is written about them.
    pub objects: u64,
    /// What is wrong; the first hundred.
    pub faults: Vec<LedgerFault>,
    /// Faults beyond those.
    pub more: u64,
    /// The end of the chain: to be kept outside the database, and handed to the next verification.
    pub anchor: LedgerAnchor,
}

impl LedgerReport {
    #[cfg(feature = "postgres")]
    pub(crate) const fn new(anchor: LedgerAnchor) -> Self {
        Self { transactions: 0, objects: 0, faults: Vec::new(), more: 0, anchor }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn push(&mut self, fault: LedgerFault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.more += 1;
        }
    }
}
