//! How much is lent to Redis, and for how long.

use std::time::Duration;

use saas_core::InvalidInput;

use super::super::words::{self, MOST};

/// Bounds of a [`RedisTier`](super::RedisTier).
#[derive(Debug, Clone)]
pub struct TierOptions {
    pub(super) prefix: Box<str>,
    pub(super) answer_within: Duration,
    pub(super) smallest: u64,
    pub(super) largest: u64,
    pub(super) exposed_share: u64,
    pub(super) life: Duration,
    pub(super) tick: Duration,
    pub(super) pause: Duration,
    pub(super) remembered: Duration,
}

impl Default for TierOptions {
    /// Keys that begin with `saas`, 50 ms for an answer, slices of 16 to 1,000,000 units and of at most 1 % of a limit, a life
    /// of 10 s, settling each 100 ms, 1 s before a window near its limit is tried again, keys remembered for an hour.
    fn default() -> Self {
        Self {
            prefix: "saas".into(),
            answer_within: Duration::from_millis(50),
            smallest: 16,
            largest: 1_000_000,
            exposed_share: 100,
            life: Duration::from_secs(10),
            tick: Duration::from_millis(100),
            pause: Duration::from_secs(1),
            remembered: Duration::from_secs(60 * 60),
        }
    }
}

impl TierOptions {
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

    /// Lends between so many units at once, from 1 to 2^53-1, in order.
    #[must_use]
    pub fn with_size(mut self, smallest: u64, largest: u64) -> Self {
        self.smallest = smallest.clamp(1, MOST);
        self.largest = largest.clamp(self.smallest, MOST);
        self
    }

    /// Lets one part in `parts` of a limit be lent: the most that the loss of Redis and of every process at once can turn into
    /// use. At least 1.
    #[must_use]
    pub fn with_exposed_share(mut self, parts: u64) -> Self {
        self.exposed_share = parts.max(1);
        self
    }

    /// How long units stay lent that nobody settles a use of. Redis forgets them after three quarters of it.
    #[must_use]
    pub const fn with_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// How often admitted uses are settled. At least a millisecond.
    #[must_use]
    pub fn with_tick(mut self, tick: Duration) -> Self {
        self.tick = tick.max(Duration::from_millis(1));
        self
    }

    /// How long a window that is near its limit or a warning is counted by PostgreSQL alone before lending is tried again.
    #[must_use]
    pub const fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// How long Redis remembers keys, at some 200 bytes each. A repeat that comes later is found out when it is settled.
    #[must_use]
    pub const fn with_remembered(mut self, remembered: Duration) -> Self {
        self.remembered = remembered;
        self
    }

    pub(super) fn life_in_redis(&self) -> Duration {
        self.life / 4 * 3
    }
}
