//! The gate's bounds, each with its unit.

use std::time::Duration;

use chrono::TimeDelta;
use saas_core::InvalidInput;

/// How much the gate holds and for how long it relies on it.
///
/// The staleness bound of an answer is one notification while a listener is connected, and `ttl` plus `tick` when every
/// notification is lost. While the source cannot be read, it is `stale_if_error`.
#[derive(Debug, Clone)]
pub struct GateOptions {
    pub(crate) capacity: usize,
    pub(crate) ttl: TimeDelta,
    pub(crate) unknown_ttl: TimeDelta,
    pub(crate) stale_if_error: TimeDelta,
    pub(crate) retry_after: TimeDelta,
    pub(crate) load_timeout: Duration,
    pub(crate) concurrent_loads: usize,
    pub(crate) tick: Duration,
    pub(crate) max_skew: TimeDelta,
}

impl Default for GateOptions {
    /// 20,000 tenants; 60 s; 2 s for tenants that do not exist; 1 hour in an outage; 0.5 s between tries; 2 s per load; 8
    /// loads at once; 20 ms per tick; 5 s between the clocks of process and source.
    fn default() -> Self {
        Self {
            capacity: 20_000,
            ttl: TimeDelta::seconds(60),
            unknown_ttl: TimeDelta::seconds(2),
            stale_if_error: TimeDelta::hours(1),
            retry_after: TimeDelta::milliseconds(500),
            load_timeout: Duration::from_secs(2),
            concurrent_loads: 8,
            tick: Duration::from_millis(20),
            max_skew: crate::clock::MAX_SKEW,
        }
    }
}

macro_rules! options {
    ($($(#[$doc:meta])* $setter:ident $field:ident: $kind:ty, $least:expr, $most:expr, $unit:literal;)+) => {
        impl GateOptions {
            $(
                $(#[$doc])*
                #[must_use]
                pub const fn $setter(mut self, $field: $kind) -> Self {
                    self.$field = $field;
                    self
                }
            )+

            /// Refuses values that would make the gate unsafe or useless.
            pub(crate) fn check(&self) -> Result<(), InvalidInput> {
                $(
                    if !($least..=$most).contains(&self.$field) {
                        return Err(InvalidInput::new(
                            concat!("gate option `", stringify!($field), "`"),
                            format!("{:?} is out of range", self.$field),
                            concat!("choose ", $unit),
                        ));
                    }
                )+
                Ok(())
            }
        }
    };
}

options! {
    /// How many tenants are held. Memory is taken at once: about 80 bytes each, and 330 more once a tenant is loaded.
    with_capacity capacity: usize, 1, 16_000_000, "1 to 16,000,000 tenants";
    /// How long an answer is relied upon when nothing is heard. Loads are spread over its last tenth.
    with_ttl ttl: TimeDelta, TimeDelta::milliseconds(100), TimeDelta::days(1), "0.1 seconds to 1 day";
    /// How long a tenant is taken not to exist when its creation is not heard of.
    with_unknown_ttl unknown_ttl: TimeDelta, TimeDelta::milliseconds(10), TimeDelta::minutes(1), "10 milliseconds to 1 minute";
    /// How long the last known state serves while the source cannot be read; then each feature answers by its fail
    /// policy.
    with_stale_if_error stale_if_error: TimeDelta, TimeDelta::zero(), TimeDelta::days(30), "0 to 30 days";
    /// How long the last known state serves before the source is tried again, while nobody waits for the try.
    with_retry_after retry_after: TimeDelta, TimeDelta::milliseconds(10), TimeDelta::minutes(5), "10 milliseconds to 5 minutes";
    /// How long one load may take, waiting for its turn included.
    with_load_timeout load_timeout: Duration, Duration::from_millis(1), Duration::from_secs(60), "1 millisecond to 60 seconds";
    /// How many loads run at once: keep it well below the size of the source's pool.
    with_concurrent_loads concurrent_loads: usize, 1, 1_024, "1 to 1,024 loads";
    /// How often the coarse clock is read. Time boundaries are met this late at most.
    with_tick tick: Duration, Duration::from_millis(1), Duration::from_secs(1), "1 millisecond to 1 second";
    /// How far the process' clock may be from the source's, which each load compares. Up to here the gate and the meters go by
    /// the process' own; beyond it they go by the source's until that is right again, which is warned of once and shown by
    /// [`Staleness::clock_skew_ms`](crate::Staleness::clock_skew_ms).
    with_max_skew max_skew: TimeDelta, TimeDelta::milliseconds(100), TimeDelta::hours(1), "0.1 seconds to 1 hour";
}
