//! Redis beside PostgreSQL: news of revisions for processes without a database session of their own, a tier that counts
//! faster than PostgreSQL and decides nothing without it, and leases out of units that PostgreSQL has lent.
//!
//! Whatever Redis loses, whenever, costs speed only: a revision that is not heard is bounded by the gate's TTL, a unit that
//! is not found again by the share of a limit that may be lent, and no use is lost or counted twice.

mod leases;
mod link;
mod relay;
mod revisions;
mod tier;
mod totals;
mod words;

pub use leases::{RedisLeaseOptions, RedisLeaseStats, RedisLeases};
pub use link::Redis;
pub use relay::RevisionRelay;
pub use revisions::RedisRevisions;
pub use tier::{RedisTier, TierOptions, TierStats};
