//! Stores in memory, for the tests of applications. They keep the same contracts as the real ones, for one process.

mod counters;
mod leases;
mod reservations;
#[cfg(feature = "postgres")]
mod sink;
mod source;

pub use counters::MemoryCounters;
pub use leases::MemoryLeases;
#[cfg(feature = "postgres")]
pub use sink::InMemorySink;
pub use source::MemorySource;
