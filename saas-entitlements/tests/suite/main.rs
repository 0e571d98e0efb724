//! The behaviour of `saas-entitlements`, seen from outside.
#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic as tests may")]

mod allocation;
mod coherence;
mod counters;
mod layers;
mod metering;
mod outage;
mod postgres;
mod processes;
mod stage;
