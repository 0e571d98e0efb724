//! Billing on a real PostgreSQL, against the Stripe simulator.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod account;
mod alerts;
mod apply;
mod bills;
mod calls;
mod catalog;
mod changes;
mod command;
mod counter;
mod coupons;
mod crash;
mod dependents;
mod desk;
mod dunning;
mod fence;
mod fetch;
mod health;
mod home;
mod hybrid;
mod intake;
mod ledger;
mod money;
mod orders;
mod proration;
mod provider;
mod purging;
mod reconcile;
mod redaction;
mod reread;
mod revenue;
mod scenarios;
mod seats;
mod shop;
mod simulator;
mod stops;
mod story;
mod test_account;
mod tiers;
mod till;
mod together;
mod trials;
mod usage;
mod year;
