//! A tenant's life after its creation, on a real PostgreSQL: its status, its export, its end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod erase;
mod export;
mod placed;
mod round_trip;
mod stage;
mod status;
mod targets;
