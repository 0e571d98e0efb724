//! The isolation proof: silent on sound tables, and loud on each planted leak.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and plants leaks with statements of its own making"
)]

mod broken;
mod case;
mod seeds;
mod shop;
mod sound;
mod unusual;
