//! Development PostgreSQL for tests, examples and benchmarks. Feature `testing`; Unix only.
//!
//! - [`DevServer`]: a real server, named by a variable or started from the machine's own binaries, that never outlives
//!   its process.
//! - [`Proxy`]: a network that can be slow, silent or cut, and that counts round trips.
//!
//! Nothing here belongs in production: it creates superuser access, roles and databases.

mod binaries;
mod cluster;
#[cfg(feature = "docker")]
mod docker;
mod home;
mod proxy;
mod server;
mod sweep;

pub use proxy::{Cut, Proxy};
pub use server::{DevServer, Durability, Purpose};
