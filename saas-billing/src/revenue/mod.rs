//! The numbers: monthly recurring revenue and its movements, trials, recoveries; per currency, never over two.
//!
//! Owns what recurs of a tenant's subscriptions ([`Recurring`]: a pure function of its objects, with the instants at which
//! time alone changes it), what a change of it is called ([`Movement`]), the record of every change, written in the
//! transaction that made it, and the questions over all tenants. Whether a debt still counts is asked of the same
//! [`DunningTerms`](crate::dunning::DunningTerms) that the gate and the dunning ask. `docs/numbers.md` has the definitions and the table
//! that they are tested against.

mod movement;
mod net;
#[cfg(feature = "postgres")]
mod numbers;
#[cfg(feature = "postgres")]
mod record;
mod recurring;

pub use movement::Movement;
#[cfg(feature = "postgres")]
pub use numbers::{Moved, Mrr, Recovery, TrialConversion};
pub use recurring::{Recurring, Span};
