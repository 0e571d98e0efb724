//! A Stripe to develop and test against: no account, no network, its own clock.
//!
//! Owns customers, prices, checkout, subscriptions, invoices, a clock that it advances through renewals, retries and
//! trials, and the events about all that: correctly signed, pretty-printed, with Stripe's shapes, whole-second `created`
//! and `previous_attributes`. Promises that the same calls give the same bytes. Deliveries can be shuffled, repeated,
//! delayed and dropped by a seed. Leaves HTTP to whoever puts a server in front.

mod chaos;
mod checkout;
mod engine;
mod payload;
mod simulator;
mod world;

pub use chaos::Chaos;
pub use checkout::{CheckoutRequest, Purchase};
pub use payload::PayloadShape;
pub use simulator::{Delivery, StripeSimulator};
pub use world::AfterRetries;
