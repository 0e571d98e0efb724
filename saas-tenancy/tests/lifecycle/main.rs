//! A tenant's life after its creation, on a real PostgreSQL: its status, its export, its end.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "a test makes names of its own")]

mod erase;
mod export;
#[cfg(feature = "object-store")]
mod into_s3;
mod jobs;
mod placed;
mod round_trip;
#[cfg(feature = "object-store")]
mod s3;
mod stage;
mod status;
mod targets;
