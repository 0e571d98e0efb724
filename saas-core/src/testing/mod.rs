//! Development PostgreSQL for tests, examples and benchmarks. Feature `testing`; Unix only.
//!
//! - [`DevServer`]: a real server, named by a variable or started from the machine's own binaries, that never outlives
//!   its process.
//!
//! Nothing here belongs in production: it creates superuser access, roles and databases.

mod binaries;
mod cluster;
#[cfg(feature = "docker")]
mod docker;
mod home;
mod server;
mod sweep;

pub use server::{DevServer, Durability, Purpose};
