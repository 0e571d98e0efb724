//! Domains of tenants' own: claimed, proven, then served.
//!
//! Owns who claims a domain and to whom it leads. Promises that a domain leads to one tenant at most, and only to one that
//! could publish what nobody else was told ([`DomainProof`]); that no tenant learns what another one claims; and that every
//! change stands in the audit log. Leaves DNS, and certificates, to the adopter.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use saas_tenancy::{Tenancy, domain::{DomainProof, Domains, Verification}};
//! # async fn example(tenancy: Tenancy, dns: Arc<dyn DomainProof>, ctx: saas_core::RequestContext)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let domains = Domains::new(tenancy, dns, &["example.com"])?;
//! let domain = "app.customer.com".parse()?;
//! let claim = domains.claim(&ctx, &domain).await?;
//! println!("publish TXT {} {}", claim.record(), claim.value());
//! match domains.verify(&ctx, &domain).await? {
//!     Verification::Active => println!("it is yours"),
//!     Verification::Missing => println!("nothing is published yet"),
//!     Verification::Contested => println!("remove what else is published there"),
//! }
//! # Ok(()) }
//! ```

mod name;
mod postgres;
mod proof;
mod recheck;
mod service;

pub use name::{CHALLENGE_LABEL, DomainName};
pub(crate) use postgres::find_active_in;
pub use proof::{DomainProof, ProofError, value_for};
pub use recheck::{Recheck, Rechecked};
pub use service::{Claim, ClaimState, Domains, MAX_DOMAINS, Verification};
