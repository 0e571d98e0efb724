//! The behaviour of `saas-entitlements`, seen from outside.
#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic as tests may")]

mod allocation;
mod analytics;
mod coherence;
mod counters;
mod counting;
mod edges;
mod excess;
mod flights;
mod laws;
mod layers;
mod leases;
mod leasing;
mod metering;
mod outage;
mod over;
mod plans;
mod postgres;
mod processes;
mod receiver;
#[cfg(feature = "redis")]
mod redis;
mod require;
mod reservations;
mod skew;
mod stage;
mod staleness;
mod usage;
