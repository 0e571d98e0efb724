//! The clock that everything here decides by: the process' own, held to the database's where the two are too far apart.
//!
//! A source says with each load what time it is where it reads ([`Dated`](crate::Dated)), and what changes or sweeps asks on the way
//! ([`HeldClock::now_in`]). That instant lies between the beginning and the end of the question, so the two clocks differ by at
//! least what does not fit between them. A question that took long says less, and never something wrong.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
#[cfg(feature = "postgres")]
use saas_core::CoreError;
use saas_core::SharedClock;

/// How far it may be off, unless a gate was told otherwise.
pub(crate) const MAX_SKEW: TimeDelta = TimeDelta::seconds(5);

/// No difference was measured yet.
const UNKNOWN: i64 = i64::MIN;

/// The process' clock, beside the source's.
#[derive(Debug)]
pub(crate) struct HeldClock {
    own: SharedClock,
    /// In microseconds, as everything here.
    bound: i64,
    /// What is added to the process' clock: 0 while it is within the bound.
    offset: AtomicI64,
    /// How far the source was ahead when it was last asked.
    skew: AtomicI64,
    warned: AtomicBool,
}

impl HeldClock {
    pub(crate) fn new(own: SharedClock, bound: TimeDelta) -> Self {
        let bound = micros(bound);
        Self { own, bound, offset: AtomicI64::new(0), skew: AtomicI64::new(UNKNOWN), warned: AtomicBool::new(false) }
    }

    /// The time to decide by.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        let own = self.own.now();
        match self.offset.load(Ordering::Relaxed) {
            0 => own,
            offset => own.checked_add_signed(TimeDelta::microseconds(offset)).unwrap_or(own),
        }
    }

    /// The time to decide by, in a transaction: nobody knows yet whether a clock that was never compared is right.
    #[cfg(feature = "postgres")]
    pub(crate) async fn now_in(&self, connection: &mut sqlx::PgConnection) -> Result<DateTime<Utc>, CoreError> {
        if let Some(asked) = self.own_time() {
            let told = sqlx::query_scalar("select clock_timestamp()").fetch_one(connection).await;
            self.compare(asked, told.map_err(CoreError::from_database)?);
        }
        Ok(self.now())
    }

    /// What the process' clock shows; `None` for one that does not tell the real time.
    pub(crate) fn own_time(&self) -> Option<DateTime<Utc>> {
        self.own.tells_real_time().then(|| self.own.now())
    }

    /// How far the source's clock is ahead of the process', as far as is certain.
    pub(crate) fn skew(&self) -> Option<TimeDelta> {
        let skew = self.skew.load(Ordering::Relaxed);
        (skew != UNKNOWN).then(|| TimeDelta::microseconds(skew))
    }

    /// Takes note of the source's time, told between `asked` and now by the process' clock. Returns whether this clock was
    /// moved by that: what was decided with the time before it is to be decided again.
    pub(crate) fn compare(&self, asked: DateTime<Utc>, told: DateTime<Utc>) -> bool {
        let (least, most) = (micros(told - self.own.now()), micros(told - asked));
        // A clock that was moved meanwhile says nothing.
        let Some(skew) = (least <= most).then(|| 0.clamp(least, most)) else { return false };
        self.skew.store(skew, Ordering::Relaxed);
        let is_beyond = skew.saturating_abs() > self.bound;
        if self.warned.swap(is_beyond, Ordering::Relaxed) != is_beyond && is_beyond {
            tracing::warn!(
                target: "saas.entitlements.gate.clock", source_is_ahead_ms = skew / 1_000, bound_ms = self.bound / 1_000,
                "this machine's clock is off: the gate, the meters and what changes or sweeps go by the source's until it is right again"
            );
        }
        let offset = self.offset.load(Ordering::Relaxed);
        if (skew - offset).saturating_abs() <= self.bound {
            return false;
        }
        let right = if is_beyond { skew } else { 0 };
        self.offset.compare_exchange(offset, right, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn micros(length: TimeDelta) -> i64 {
    length.num_microseconds().unwrap_or(if length < TimeDelta::zero() { i64::MIN + 1 } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use saas_core::{Clock, TestClock};

    use super::*;

    /// The test's clock, said to be real.
    #[derive(Debug)]
    struct Real(TestClock);

    impl Clock for Real {
        fn now(&self) -> DateTime<Utc> {
            self.0.now()
        }
    }

    fn seconds(seconds: i64) -> TimeDelta {
        TimeDelta::seconds(seconds)
    }

    /// A clock that was asked at 0 and answered after `took`, when the source said `told`.
    fn compared(clock: &HeldClock, own: &TestClock, took: TimeDelta, told: TimeDelta) -> bool {
        let asked = own.now();
        own.advance(took);
        clock.compare(asked, asked + told)
    }

    // G14
    #[test]
    fn a_clock_within_the_bound_is_gone_by_and_one_beyond_it_is_held_to_the_sources() {
        let own = TestClock::starting("2026-01-15T12:00:00Z");
        let clock = HeldClock::new(Arc::new(Real(own.clone())), seconds(5));
        assert_eq!(clock.skew(), None);
        assert!(!compared(&clock, &own, seconds(0), seconds(5)));
        assert_eq!((clock.skew(), clock.now()), (Some(seconds(5)), own.now()), "at the bound");
        assert!(compared(&clock, &own, seconds(0), seconds(60)));
        assert_eq!((clock.skew(), clock.now() - own.now()), (Some(seconds(60)), seconds(60)));
        assert!(!compared(&clock, &own, seconds(0), seconds(57)), "it stays where it is while it is right");
        assert_eq!(clock.now() - own.now(), seconds(60));
        assert!(compared(&clock, &own, seconds(0), seconds(-90)));
        assert_eq!(clock.now() - own.now(), seconds(-90), "ahead");
        assert!(compared(&clock, &own, seconds(0), seconds(1)));
        assert_eq!(clock.now(), own.now(), "it was put right");
    }

    #[test]
    fn a_load_that_took_long_is_no_skew() {
        let own = TestClock::starting("2026-01-15T12:00:00Z");
        let clock = HeldClock::new(Arc::new(Real(own.clone())), seconds(5));
        assert!(!compared(&clock, &own, seconds(30), seconds(10)));
        assert_eq!(clock.skew(), Some(seconds(0)), "somewhere within the load");
        assert!(!compared(&clock, &own, seconds(30), seconds(34)));
        assert_eq!(clock.skew(), Some(seconds(4)), "by that at least");
        assert!(!compared(&clock, &own, seconds(-60), seconds(0)), "it went back meanwhile");
        assert_eq!(clock.skew(), Some(seconds(4)));
    }
}
