//! Dunning: what happens to access, and what is said, while an invoice is not paid.
//!
//! Owns the policy ([`DunningPolicy`], data), what it means for one tenant ([`DunningTerms`]), and the messages. Promises: all
//! of it follows from the *set* of open invoices and the time, so neither the order of events nor the number of retries
//! matters; each message is sent once per invoice, and none about an invoice that is over. Never changes what a tenant has
//! bought. Leaves charging cards to Stripe, and the words and addresses of letters to the application ([`DunningMessages`]).
//! `docs/dunning.md` is the guide, with the default policy as a table.

#[cfg(feature = "postgres")]
mod agenda;
#[cfg(feature = "postgres")]
mod exception;
#[cfg(feature = "postgres")]
mod handler;
#[cfg(feature = "postgres")]
mod notice;
mod policy;
#[cfg(feature = "postgres")]
mod record;
#[cfg(feature = "postgres")]
mod report;
mod terms;

#[cfg(feature = "postgres")]
pub use agenda::{MessageCause, NextStep};
#[cfg(feature = "postgres")]
pub(crate) use agenda::{Sent, Situation};
#[cfg(feature = "postgres")]
pub use exception::{DunningException, NewDunningException};
#[cfg(feature = "postgres")]
pub use handler::{DUNNING, DunningHandler};
#[cfg(feature = "postgres")]
pub use notice::{DunningMessages, DunningNotice};
pub use policy::{DunningPolicy, DunningPolicyError, DunningStep};
#[cfg(feature = "postgres")]
pub(crate) use record::Held;
#[cfg(feature = "postgres")]
pub use report::{DunningCursor, DunningReport, InDunning, Outstanding, OwedInvoice};
pub use terms::DunningTerms;
