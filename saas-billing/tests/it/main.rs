//! Billing on a real PostgreSQL, against the Stripe simulator.

mod apply;
mod crash;
mod fetch;
mod intake;
mod orders;
mod shop;
mod story;
