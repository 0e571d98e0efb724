//! Stripe over HTTP: the port [`PaymentProvider`](crate::PaymentProvider) against the real API, or against the server of
//! the simulator.
//!
//! Owns the form encoding, one try over HTTP, and what stands around it: tries with one key, pauses, a deadline, a budget of
//! calls, and a breaker that ignores declined cards. Promises that every write carries its key from the first try on, and
//! that nothing of a key, an answer or a customer gets into an error or a log. Leaves the meaning of objects to
//! [`object`](crate::object), and retries beyond seconds to the outbox.

pub(crate) mod answer;
mod breaker;
mod budget;
pub(crate) mod call;
mod client;
mod config;
mod form;
mod http;
pub(crate) mod interpret;
mod key;
pub(crate) mod read;
mod retry;
#[cfg(feature = "testing")]
pub(crate) mod test_account;

pub use client::StripeApi;
pub use config::{API_VERSION, StripeConfig};
pub use key::ApiKey;
pub use retry::Retries;
#[cfg(feature = "testing")]
pub use test_account::TestCard;
