//! Billing on a real PostgreSQL, against the Stripe simulator.

mod crash;
mod intake;
mod orders;
mod shop;
