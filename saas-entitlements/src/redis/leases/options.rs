//! How much PostgreSQL lends to Redis at once, and for how long.

use std::time::Duration;

use saas_core::InvalidInput;

use super::super::words;

/// Bounds of [`RedisLeases`](super::RedisLeases). How much may be out, and how large a lease is, say
/// [`LeaseOptions`](crate::LeaseOptions).
#[derive(Debug, Clone)]
pub struct RedisLeaseOptions {
    pub(super) prefix: Box<str>,
    pub(super) answer_within: Duration,
    pub(super) leases: u64,
    pub(super) life: Duration,
    pub(super) tick: Duration,
    pub(super) pause: Duration,
}

impl Default for RedisLeaseOptions {
    /// Keys that begin with `saas`, 50 ms for an answer, pools of 64 leases, a life of 10 s, a report each 250 ms, 1 s before a
    /// window near its limit is lent of again.
    fn default() -> Self {
        Self {
            prefix: "saas".into(),
            answer_within: Duration::from_millis(50),
            leases: 64,
            life: Duration::from_secs(10),
            tick: Duration::from_millis(250),
            pause: Duration::from_secs(1),
        }
    }
}

impl RedisLeaseOptions {
    /// Begins every key with this: one for each database, the same in all processes that use it.
    ///
    /// # Errors
    /// When it is empty, longer than 64 characters, or holds anything but letters, digits, `-`, `_`, `.` and `:`: braces would
    /// move a tenant's keys apart in a cluster.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, InvalidInput> {
        words::check_prefix(prefix)?;
        self.prefix = prefix.into();
        Ok(self)
    }

    /// How long Redis may take before PostgreSQL is asked in its place.
    #[must_use]
    pub const fn with_answer_within(mut self, answer_within: Duration) -> Self {
        self.answer_within = answer_within;
        self
    }

    /// Has PostgreSQL lend so many leases at once, as far as they may be out. At least 1.
    #[must_use]
    pub fn with_pool_of(mut self, leases: u64) -> Self {
        self.leases = leases.max(1);
        self
    }

    /// How long a pool lives that nobody reports. Redis forgets it then, and what was not reported counts as used.
    #[must_use]
    pub const fn with_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// How often what was used of the pools is reported to PostgreSQL, and overdue leases are ended. At least a millisecond.
    #[must_use]
    pub fn with_tick(mut self, tick: Duration) -> Self {
        self.tick = tick.max(Duration::from_millis(1));
        self
    }

    /// How long PostgreSQL alone is asked of a window that is near its limit before a pool is tried again.
    #[must_use]
    pub const fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}
