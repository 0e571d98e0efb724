//! A tenant's life after its creation, on a real PostgreSQL: its export.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod export;
mod round_trip;
mod stage;
mod targets;
