//! A real PostgreSQL for tests, examples and measurements. Feature `testing`; Unix only.
//!
//! - [`DevServer`]: a server named by a variable or started from the machine's own binaries, that never outlives its
//!   process.
//! - [`TestDatabase`]: one database per test, cloned from a migrated template, reached only as the roles of production.
//! - [`DevDatabase`]: one database per example, empty at the start of every run.
//! - [`Pooler`]: a PgBouncer in transaction mode in front of the server.
//! - [`RedisServer`], [`RedisCluster`]: Redis, alone and as a cluster of three nodes.
//! - [`leaks`]: listens to all that is logged, for keys and mail addresses.
//! - [`Proxy`]: a network that can be slow, silent or cut, and that counts round trips.
//!
//! Nothing here belongs in production: it has superuser access, and creates and drops roles and databases.

#[cfg(feature = "postgres")]
mod admin;
mod binaries;
mod cluster;
#[cfg(feature = "postgres")]
mod database;
#[cfg(feature = "postgres")]
mod dev_database;
#[cfg(feature = "docker")]
mod docker;
mod home;
#[cfg(feature = "postgres")]
pub mod leaks;
#[cfg(feature = "postgres")]
mod pooler;
mod proxy;
mod redis;
mod server;
mod sweep;

#[cfg(feature = "postgres")]
pub use database::{TestDatabase, TestDatabaseBuilder};
#[cfg(feature = "postgres")]
pub use dev_database::DevDatabase;
#[cfg(feature = "postgres")]
pub use pooler::Pooler;
pub use proxy::{Cut, Proxy};
pub use redis::{RedisCluster, RedisServer};
pub use server::{DevServer, Durability, Purpose};
