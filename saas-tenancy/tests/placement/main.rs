//! Tenants in places of their own, on a real PostgreSQL.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and sets databases up with statements of its own making"
)]

mod binding;
// What sockets are open is read where Linux shows it.
#[cfg(target_os = "linux")]
mod budget;
mod fleet;
mod lifecycle;
mod modes;
mod pools;
mod provision;
mod runners;
mod sessions;
mod stage;
mod stock;
mod storm;
