//! Stripe billing whose state does not depend on the order of events.

pub mod derive;
pub mod error;
pub mod event;
pub mod merge;
pub mod object;
pub mod signature;
