//! Where time comes from. `now` is read once per operation and passed on; nothing else in the workspace asks the system.

use std::{fmt, sync::Arc};

use chrono::{DateTime, SubsecRound, Utc};

/// Tells the time.
///
/// # Contract
/// - Whole microseconds: what PostgreSQL can store, so that a value read back equals the value written.
/// - Cheap: a read never blocks.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> DateTime<Utc>;

    /// Whether it shows the time that other machines show, as far as clocks agree; not for one that a test or a simulation
    /// moves. Only such a clock is compared with a database's.
    fn tells_real_time(&self) -> bool {
        true
    }
}

/// A clock that several services share.
pub type SharedClock = Arc<dyn Clock>;

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}

/// A clock that stands still until a test moves it.
#[cfg(feature = "testing")]
#[derive(Debug, Clone)]
pub struct TestClock(Arc<std::sync::atomic::AtomicI64>);

#[cfg(feature = "testing")]
impl TestClock {
    /// A clock that shows `instant`.
    #[must_use]
    pub fn at(instant: DateTime<Utc>) -> Self {
        Self(Arc::new(instant.timestamp_micros().into()))
    }

    /// A clock that shows an RFC 3339 instant such as `2026-01-31T00:00:00Z`.
    ///
    /// # Panics
    /// When the text is not RFC 3339: a mistake in the test itself.
    #[must_use]
    #[expect(clippy::panic, reason = "a malformed literal in a test has no better answer")]
    pub fn starting(rfc3339: &str) -> Self {
        match DateTime::parse_from_rfc3339(rfc3339) {
            Ok(instant) => Self::at(instant.to_utc()),
            Err(why) => panic!("{rfc3339:?} is not RFC 3339: {why}"),
        }
    }

    /// Moves the clock forward (or back, for a clock that jumps).
    pub fn advance(&self, by: chrono::TimeDelta) {
        let micros = by.num_microseconds().unwrap_or(i64::MAX);
        self.0.fetch_add(micros, std::sync::atomic::Ordering::SeqCst);
    }

    /// Sets the clock to `instant`.
    pub fn set(&self, instant: DateTime<Utc>) {
        self.0.store(instant.timestamp_micros(), std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(feature = "testing")]
impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0.load(std::sync::atomic::Ordering::SeqCst))
            .unwrap_or(DateTime::UNIX_EPOCH)
    }

    fn tells_real_time(&self) -> bool {
        false
    }
}
