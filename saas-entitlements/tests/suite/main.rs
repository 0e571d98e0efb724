//! The behaviour of `saas-entitlements`, seen from outside.

mod allocation;
mod coherence;
mod counters;
mod metering;
mod outage;
mod postgres;
mod stage;
