//! From a request to its tenant, whatever the web framework.
//!
//! Owns the reading of hosts, paths, headers and claims ([`Resolver`]), the look-up of what they name, its memory, and the
//! check that the signed-in person is a member ([`Entrance`]). Leaves sign-in to the adopter, who says who the person is
//! ([`SignedIn`]) and what their identity provider said ([`VerifiedClaims`]); leaves HTTP to the adapters in `web`, which the
//! features `tower`, `axum` and `actix` turn on.
//!
//! ```no_run
//! use saas_tenancy::resolve::{Entrance, RequestView, Resolver, SignedIn};
//! # use saas_tenancy::Tenancy;
//! # async fn example(tenancy: Tenancy, user: saas_core::UserId) -> Result<(), Box<dyn std::error::Error>> {
//! let resolver = Resolver::subdomain("example.com").or(Resolver::header("x-tenant"));
//! let entrance = Entrance::new(tenancy, resolver)?;
//!
//! let headers: &[(&str, &str)] = &[("host", "acme.example.com")];
//! let request = RequestView::new("/projects", &headers);
//! let ctx = entrance.resolve(&request, Some(SignedIn(user))).await?.ctx;
//! # Ok(()) }
//! ```

mod cache;
mod entrance;
mod error;
mod host;
mod resolver;
mod view;

pub use entrance::{Entrance, EntranceStats, Memory, Resolved};
pub use error::ResolveError;
pub use host::Host;
pub(crate) use host::MAX_HOST;
pub use resolver::Resolver;
pub use view::{Claims, Header, Headers, RequestView, SignedIn, VerifiedClaims};
