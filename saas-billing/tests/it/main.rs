//! Billing on a real PostgreSQL, against the Stripe simulator.

mod apply;
mod crash;
mod fence;
mod fetch;
mod intake;
mod orders;
mod shop;
mod story;
