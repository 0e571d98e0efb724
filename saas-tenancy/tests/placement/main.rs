//! Tenants in places of their own, on a real PostgreSQL.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and sets databases up with statements of its own making"
)]

mod binding;
mod fleet;
mod modes;
mod pools;
mod provision;
mod sessions;
mod stage;
