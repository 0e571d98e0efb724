//! Stripe billing whose state does not depend on the order of events.
#![cfg_attr(feature = "testing", recursion_limit = "256")]

pub mod derive;
mod error;
pub mod event;
pub mod merge;
pub mod object;
mod port;
pub mod signature;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::BillingError;
pub use port::{Accepted, Fetched, ObjectSource, WebhookProcessor};
pub use signature::{SIGNATURE_HEADER, SignatureError, SigningSecrets, StripeSecret};
