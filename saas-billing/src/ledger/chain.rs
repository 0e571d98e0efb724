//! The hash of a transaction over everything in it and the hash before it.
//!
//! Every field goes in with its length, so that no boundary can be shifted, and instants in the microseconds that the
//! database keeps, so that what is read back hashes as it was written.

use chrono::{DateTime, SubsecRound, Utc};
use saas_core::TenantId;
use sha2::{Digest, Sha256};

use super::{Cause, Hash, Posting};

/// What comes before the first transaction.
pub(crate) const GENESIS: Hash = [0; 32];

/// A transaction as it is written and hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) sequence: i64,
    pub(crate) cause: Cause,
    /// The Stripe object, or the key of what was not Stripe's.
    pub(crate) subject: String,
    /// The payment that it is about.
    pub(crate) payment: Option<String>,
    /// What makes it happen once, where that is not a Stripe object.
    pub(crate) key: Option<String>,
    /// The transaction that it takes back.
    pub(crate) reverses: Option<i64>,
    pub(crate) actor: String,
    pub(crate) occurred_at: DateTime<Utc>,
    pub(crate) recorded_at: DateTime<Utc>,
    pub(crate) postings: Vec<Posting>,
}

impl Record {
    pub(crate) fn hash(&self, (tenant, livemode): (TenantId, bool), previous: &Hash) -> Hash {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        part(b"saas.ledger.1");
        part(tenant.as_uuid().as_bytes());
        part(&[u8::from(livemode)]);
        part(&self.sequence.to_be_bytes());
        part(self.cause.as_str().as_bytes());
        part(self.subject.as_bytes());
        for text in [&self.payment, &self.key] {
            // Absent is not empty.
            part(&[u8::from(text.is_some())]);
            part(text.as_deref().unwrap_or("").as_bytes());
        }
        part(&self.reverses.unwrap_or(0).to_be_bytes());
        part(self.actor.as_bytes());
        part(&self.occurred_at.timestamp_micros().to_be_bytes());
        part(&self.recorded_at.timestamp_micros().to_be_bytes());
        for posting in &self.postings {
            part(posting.account.as_str().as_bytes());
            part(posting.amount.currency().as_str().as_bytes());
            part(&posting.amount.minor().to_be_bytes());
        }
        part(previous);
        hasher.finalize().into()
    }
}

/// An instant as the database keeps it.
pub(crate) fn storable_instant(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(6)
}
