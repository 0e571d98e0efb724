//! The database side of the kernel: how a session becomes a tenant's, and how the schema gets there.
//!
//! Owns connections, transactions, roles and migrations. Promises that a statement runs for exactly one tenant or, loudly,
//! for the system; that a dropped or cancelled transaction leaves nothing behind in the pool; and that a login which
//! row-level security does not bind is refused before its first statement. Leaves pools and TLS to the adopter.

mod binding;
mod check;
mod error;
mod guard;
mod migrate;
mod once;
mod place;
mod served;
mod tx;
mod warm;
mod work;

pub(crate) use binding::Sessions;
pub(crate) use guard::Guard;
pub(crate) use warm::Warm;

pub use binding::{SessionBinding, SystemPool, TenantPool, pool_options};
pub use migrate::{Migration, Schema, migrate, pending};
pub use once::{Errand, Literal};
pub use place::{Generation, Place, SchemaName};
pub use tx::{SystemTx, TenantTx};
pub use work::TenantWork;
