//! What usage says about customers: who got started, what is adopted, who is still there.
//!
//! All of it is derived from usage events and their roll-ups; nothing else is recorded. Owns the questions about one tenant
//! ([`activation_in`], [`adoption_in`], [`last_active_in`], [`active_members_in`]) and the way to a product analytics service:
//! [`AnalyticsFeed`] is a receiver of [`UsagePipeline::export`](crate::usage::UsagePipeline::export), and hands uses to an
//! [`AnalyticsSink`], such as [`PostHog`] and [`Segment`]. Leaves HTTP to [`HttpPost`]: [`HyperPost`](client::HyperPost) of the
//! feature `analytics-http`, or a few lines over the client that the application has.
//!
//! # What leaves the house
//! Of a use: its id, its meter, how much, when, the tenant's id, and the member's id where it is one ([`MemberIds`]). Never an
//! e-mail address, a name, a key of a use or a text that somebody typed.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use saas_core::{SharedClock, SystemPool};
//! use saas_entitlements::{
//!     analytics::{AnalyticsFeed, HttpPost, PostHog},
//!     usage::UsagePipeline,
//! };
//!
//! # async fn example(system: SystemPool, clock: SharedClock, http: Arc<dyn HttpPost>) -> Result<(), Box<dyn std::error::Error>> {
//! let posthog = PostHog::new("https://eu.i.posthog.com", "phc_of_the_project".to_owned().into(), http)?;
//! let feed = AnalyticsFeed::new(Arc::new(posthog), clock.clone());
//! // Every minute, say. What the service does not take comes again with the next run.
//! UsagePipeline::new(system, clock).export("posthog", &feed).await?;
//! # Ok(()) }
//! ```

#[cfg(feature = "analytics-http")]
pub mod client;
#[cfg(feature = "testing")]
pub mod conformance;
mod courier;
mod feed;
mod http;
mod posthog;
mod queries;
mod segment;
mod sink;

pub use feed::{AnalyticsFeed, MemberIds};
pub use http::{HttpAnswer, HttpPost, RetryAfter};
pub use posthog::PostHog;
pub use queries::{
    Activation, ActiveMembers, Adoption, KeyEvent, Span, activation_in, active_members_in, adoption_in, last_active_in,
};
pub use segment::Segment;
pub use sink::{AnalyticsSink, ProductEvent, SinkError};
