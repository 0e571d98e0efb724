//! Stripe over HTTP: the port [`PaymentProvider`] against the real API, or against the simulator's server.
//!
//! Owns the form encoding, one try over HTTP, and what stands around it: tries with one key, pauses, a deadline, a budget of
//! calls, and a breaker that ignores declined cards. Promises that every write carries its key from the first try on, and
//! that nothing of a key, an answer or a customer gets into an error or a log. Leaves the meaning of objects to
//! [`object`](crate::object), and retries beyond seconds to the outbox.

#[cfg(any(feature = "stripe", feature = "testing"))]
pub(crate) mod answer;
#[cfg(feature = "stripe")]
mod breaker;
#[cfg(feature = "stripe")]
mod budget;
#[cfg(any(feature = "stripe", feature = "testing"))]
pub(crate) mod call;
#[cfg(feature = "stripe")]
mod client;
#[cfg(feature = "stripe")]
mod config;
#[cfg(any(feature = "stripe", feature = "testing"))]
pub(crate) mod form;
#[cfg(feature = "stripe")]
mod http;
#[cfg(any(feature = "stripe", feature = "testing"))]
pub(crate) mod interpret;
#[cfg(feature = "stripe")]
mod key;
#[cfg(any(feature = "stripe", feature = "testing"))]
pub(crate) mod read;
#[cfg(feature = "stripe")]
mod retry;

#[cfg(feature = "stripe")]
pub use client::StripeApi;
#[cfg(feature = "stripe")]
pub use config::{API_VERSION, StripeConfig};
#[cfg(feature = "stripe")]
pub use key::ApiKey;
#[cfg(feature = "stripe")]
pub use retry::Retries;
