//! Tenants and the people in them, on isolation that the database enforces.
//!
//! [`Tenancy`] creates a tenant with its owner in one transaction, and keeps memberships: who may do what is a printable
//! [matrix](role::MATRIX), nobody gives a role above their own, and the last owner cannot leave. Isolation itself is the
//! job of `saas_core::db`; sessions and sign-in stay with the adopter's identity provider.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use saas_core::{SystemClock, SystemPool, TenantPool};
//! # use saas_tenancy::{NewTenant, Tenancy, VerifiedEmail};
//! # async fn example(tenants: TenantPool, system: SystemPool) -> Result<(), Box<dyn std::error::Error>> {
//! let tenancy = Tenancy::new(tenants, system, Arc::new(SystemClock));
//! // Only after the link that was sent to the address came back.
//! let ada = VerifiedEmail::vouched("ada@acme.example".parse()?);
//! let acme = tenancy.create_tenant(&NewTenant::new("acme".parse()?, "Acme Inc.")?, &ada).await?;
//! let ctx = tenancy.enter(acme.tenant, acme.owner).await?; // what a request of the owner carries
//! # Ok(()) }
//! ```

#[cfg(feature = "postgres")]
pub mod domain;
#[cfg(feature = "postgres")]
pub mod erase;
mod error;
#[cfg(feature = "postgres")]
pub mod export;
#[cfg(feature = "postgres")]
pub mod lifecycle;
#[cfg(feature = "postgres")]
pub mod placement;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
pub mod relocate;
#[cfg(feature = "postgres")]
pub mod resolve;
pub mod role;
#[cfg(feature = "postgres")]
mod tenancy;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(feature = "tower", feature = "actix"))]
pub mod web;

pub use error::TenancyError;
pub use role::{Permission, Role};
#[cfg(feature = "postgres")]
pub use saas_core::tenant::NewTenant;
#[cfg(feature = "postgres")]
pub use tenancy::{Created, Membership, Tenancy, VerifiedEmail};

/// The tables of this crate. They need those of `saas_core`.
#[cfg(feature = "postgres")]
pub static SCHEMA: saas_core::Schema = saas_core::schema!("tenancy":
    1 "0001_membership",
    2 "0002_custom_domain",
    3 "0003_erase",
    4 "0004_fleet",
    5 "0005_move",
    6 "0006_stock",
    7 "0007_door",
    8 "0008_end",
);
