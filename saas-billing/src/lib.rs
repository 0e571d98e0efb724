//! Stripe billing whose state does not depend on the order of events.
#![cfg_attr(feature = "testing", recursion_limit = "256")]

#[cfg(feature = "postgres")]
mod apply;
#[cfg(feature = "postgres")]
mod billing;
#[cfg(feature = "postgres")]
mod config;
pub mod derive;
mod error;
pub mod event;
#[cfg(feature = "postgres")]
mod fetching;
#[cfg(feature = "postgres")]
mod intake;
pub mod merge;
pub mod object;
mod port;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod receipts;
#[cfg(feature = "postgres")]
mod settle;
pub mod signature;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "postgres")]
pub use apply::Applied;
#[cfg(feature = "postgres")]
pub use billing::Billing;
#[cfg(feature = "postgres")]
pub use config::{BillingConfig, Mode};
pub use derive::GracePolicy;
pub use error::BillingError;
#[cfg(feature = "postgres")]
pub use fetching::FetchPass;
pub use object::ObjectId;
pub use port::{Accepted, Fetched, ObjectSource, WebhookProcessor};
#[cfg(feature = "postgres")]
pub use receipts::{InboxHealth, Receipt, ReceiptCursor, Stuck};
pub use signature::{SIGNATURE_HEADER, SignatureError, SigningSecrets, StripeSecret};

/// The tables of this crate. Migrate [`saas_core::SCHEMA`] first.
#[cfg(feature = "postgres")]
pub static SCHEMA: saas_core::Schema = saas_core::schema!("billing": 1 "0001_inbox", 2 "0002_state");
