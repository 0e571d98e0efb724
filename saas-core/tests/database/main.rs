//! The kernel on a real PostgreSQL, as the application role.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and attacks with statements of its own making"
)]

mod adopter;
mod cancel;
mod doctor;
mod fence;
mod idempotency;
mod isolation;
mod login;
mod migrations;
mod outbox;
mod place;
mod pooler;
mod record;
mod rows;
mod search;
mod search_hostile;
mod transactions;
mod warm;
