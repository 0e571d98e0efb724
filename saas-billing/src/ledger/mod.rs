//! What happened to money: a double-entry ledger per tenant, currency and mode, only ever added to.
//!
//! Owns the accounts ([`Account`]), what follows from each Stripe object ([`legs`]), what of that is still to be written
//! ([`difference()`]), the chain of hashes, balances, statements, prepaid credits and the verification. Promises:
//! - *Balanced*: every transaction adds up to zero in each currency; the database looks at commit.
//! - *Converging*: what is written about an object is a function of the set of its snapshots. In whatever order and however
//!   often they come, balances end the same; a correction is an entry of its own.
//! - *Together*: money is written in the transaction of the change that moved it, or neither is.
//! - *Final*: no role can change or remove what was written; what the owner of the tables does by force,
//!   [`Billing::verify_ledger`](crate::Billing::verify_ledger) finds.
//!
//! Where two objects speak of one flow (a charge and the invoice it pays, a refund and its credit note) each books what it
//! says itself, and they meet on an account in between: its balance is what one has said and the other not yet.
//! `docs/ledger.md` has the table. Leaves fees, payouts and the recognition of revenue over time to the accounting that reads
//! this.

mod account;
#[cfg(any(feature = "postgres", test))]
mod chain;
#[cfg(feature = "postgres")]
mod credits;
mod difference;
mod invoice;
mod leg;
mod payment;
#[cfg(feature = "postgres")]
mod post;
#[cfg(feature = "postgres")]
mod read;
mod report;
#[cfg(feature = "postgres")]
mod verify;

pub use account::Account;
#[cfg(any(feature = "postgres", test))]
pub(crate) use chain::{GENESIS, Record, storable_instant};
#[cfg(feature = "postgres")]
pub use credits::{Burn, CreditGrant, Granted, Reversal};
pub use difference::{Draft, Written, difference};
pub use leg::{Cause, Leg, Legs, Posting, Unbookable};
#[cfg(feature = "postgres")]
pub use read::{Balance, StatementCursor, StatementFilter, StatementLine};
#[cfg(any(feature = "postgres", test))]
pub(crate) use report::Hash;
pub use report::{LedgerAnchor, LedgerFault, LedgerReport};
#[cfg(feature = "postgres")]
pub use verify::{VerifiedLedgers, VerifyCursor};

use crate::derive::AnyMerged;

/// What follows from an object. Subscriptions and checkouts move no money: their invoices and charges do.
///
/// # Errors
/// [`Unbookable`]: the object makes no sum. Nothing is guessed then.
pub fn legs(merged: &AnyMerged) -> Result<Legs, Unbookable> {
    match merged {
        AnyMerged::CheckoutSession(_) | AnyMerged::Subscription(_) => Ok(Legs::default()),
        AnyMerged::Customer(merged) => payment::customer(merged),
        AnyMerged::Invoice(merged) => invoice::legs(merged),
        AnyMerged::Charge(merged) => payment::charge(merged),
        AnyMerged::Refund(merged) => payment::refund(merged),
        AnyMerged::Dispute(merged) => payment::dispute(merged),
        AnyMerged::CreditNote(merged) => payment::credit_note(merged),
    }
}

#[cfg(test)]
mod tests;
