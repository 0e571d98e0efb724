//! What the pools may use, and how long anyone waits for them.

use std::time::Duration;

use saas_core::InvalidInput;

/// Bounds of the [`Pools`](super::Pools) of one process.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    pub(super) connections: u32,
    pub(super) per_database: u32,
    pub(super) openings_per_cluster: usize,
    pub(super) acquire_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) turn: Duration,
    pub(super) first_pause: Duration,
    pub(super) last_pause: Duration,
}

impl Default for PoolLimits {
    /// 40 connections in all, 2 per database, 4 openings per cluster at a time; 5 s to wait for a connection, 2 s to
    /// connect; a database that nobody lets go of gives way after 1 s; one that failed is left alone for 1 s, then twice
    /// as long each time, up to 1 min.
    fn default() -> Self {
        Self {
            connections: 40,
            per_database: 2,
            openings_per_cluster: 4,
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            turn: Duration::from_secs(1),
            first_pause: Duration::from_secs(1),
            last_pause: Duration::from_secs(60),
        }
    }
}

impl PoolLimits {
    /// How many connections all databases together may have, those included that are being opened or closed.
    #[must_use]
    pub const fn with_connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// How many connections one database may have.
    #[must_use]
    pub const fn with_per_database(mut self, connections: u32) -> Self {
        self.per_database = connections;
        self
    }

    /// How many databases of one cluster may be opened at the same time: a cluster that hangs ties up no more than that.
    #[must_use]
    pub const fn with_openings_per_cluster(mut self, openings: usize) -> Self {
        self.openings_per_cluster = openings;
        self
    }

    /// How long a request waits for a connection, whatever it waits for.
    #[must_use]
    pub const fn with_acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// How long connecting to a database and checking it may take.
    #[must_use]
    pub const fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a database that is never idle keeps its connections while another one waits for some.
    #[must_use]
    pub const fn with_turn(mut self, turn: Duration) -> Self {
        self.turn = turn;
        self
    }

    /// How long a database that failed is left alone: `first`, then twice as long after each failure, up to `last`.
    #[must_use]
    pub const fn with_pause(mut self, first: Duration, last: Duration) -> Self {
        self.first_pause = first;
        self.last_pause = last;
        self
    }

    /// The pause after `failures` of them in a row.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_pause.checked_mul(factor).map_or(self.last_pause, |pause| pause.min(self.last_pause))
    }

    pub(super) fn check(self) -> Result<Self, InvalidInput> {
        let wrong = |why: &'static str, remedy: &'static str| Err(InvalidInput::new("pool limits", why, remedy));
        if self.per_database == 0 || self.openings_per_cluster == 0 {
            return wrong("leave a database without connections", "allow at least one");
        }
        if self.connections < self.per_database {
            return wrong("are too small for one database", "raise `connections` or lower `per_database`");
        }
        if self.connect_timeout > self.acquire_timeout {
            return wrong("let connecting take longer than anyone waits", "lower `connect_timeout`");
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let limits = PoolLimits::default();
        let pauses: Vec<u64> = [1, 2, 3, 6, 7, 40, u32::MAX].map(|n| limits.pause(n).as_secs()).into();
        assert_eq!(pauses, [1, 2, 4, 32, 60, 60, 60]);
    }

    #[test]
    fn limits_that_would_serve_nobody_are_refused() {
        let limits = PoolLimits::default();
        assert!(limits.check().is_ok());
        assert!(limits.with_per_database(0).check().is_err());
        assert!(limits.with_connections(1).check().is_err());
        assert!(limits.with_connect_timeout(Duration::from_secs(6)).check().is_err());
    }
}
