//! Stores in memory, for the tests of applications. They keep the same contracts as the real ones, for one process.

mod counters;
mod leases;
mod reservations;
mod source;

pub use counters::MemoryCounters;
pub use leases::MemoryLeases;
pub use source::MemorySource;
