//! A tenant on the move, between real servers, while it is at work.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and sets its places up with statements of its own making"
)]

mod attack;
mod kill;
mod online;
mod process;
mod refuse;
mod status;
mod tables;
mod work;
mod world;
