//! How much is borrowed, and for how long.

use std::time::Duration;

/// Bounds of [`Leases`](super::Leases).
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    pub(super) holder: Box<str>,
    pub(super) smallest: u64,
    pub(super) largest: u64,
    pub(super) exposed_share: u64,
    pub(super) life: Duration,
    pub(super) tick: Duration,
    pub(super) borrows_ahead: bool,
}

impl Default for LeaseOptions {
    /// 16 to 10,000 uses per lease, 1 % of a limit out at once, a life of 10 s, a report each 250 ms.
    fn default() -> Self {
        Self {
            holder: format!("process {}", std::process::id()).into(),
            smallest: 16,
            largest: 10_000,
            exposed_share: 100,
            life: Duration::from_secs(10),
            tick: Duration::from_millis(250),
            borrows_ahead: true,
        }
    }
}

impl LeaseOptions {
    /// Names this process in the table.
    #[must_use]
    pub fn with_holder(mut self, holder: impl Into<Box<str>>) -> Self {
        self.holder = holder.into();
        self
    }

    /// Borrows between so many units of the meter: more while they are used up quickly. At least 1, in order.
    #[must_use]
    pub fn with_size(mut self, smallest: u64, largest: u64) -> Self {
        self.smallest = smallest.max(1);
        self.largest = largest.max(self.smallest);
        self
    }

    /// Lets one part in `parts` of a limit be out with all processes together: the most that the loss of all of them at once
    /// can turn into use. At least 1.
    #[must_use]
    pub fn with_exposed_share(mut self, parts: u64) -> Self {
        self.exposed_share = parts.max(1);
        self
    }

    /// How long a lease lives without a report. The holder stops at three quarters of it, by its monotonic clock.
    #[must_use]
    pub const fn with_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// Borrows only when nothing is left. Otherwise a lease that is used up within half a tick is topped up before it is.
    #[must_use]
    pub const fn without_borrowing_ahead(mut self) -> Self {
        self.borrows_ahead = false;
        self
    }

    /// How often what was used is reported, and changed limits are noticed. At least a millisecond.
    #[must_use]
    pub fn with_tick(mut self, tick: Duration) -> Self {
        self.tick = tick.max(Duration::from_millis(1));
        self
    }
}
