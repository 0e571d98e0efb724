//! Billing on a real PostgreSQL, against the Stripe simulator.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod apply;
mod crash;
mod dependents;
mod fence;
mod fetch;
mod intake;
mod ledger;
mod orders;
mod revenue;
mod shop;
mod story;
