//! Leaves Stripe alone while it is ill. Pure but for the lock.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Opens after so many failures in a row, and lets one call through after a while to see.
///
/// A declined card, a refusal and a 429 say that Stripe works: they close it. Only silence and 5xx count.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    rest: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    in_a_row: u32,
    /// Closed to calls until then.
    open_until: Option<Instant>,
}

impl Breaker {
    pub(super) const fn new(failures: u32, rest: Duration) -> Self {
        Self { failures, rest, state: Mutex::new(State { in_a_row: 0, open_until: None }) }
    }

    /// Whether a call may be made now; else after how long.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.open_until {
            Some(until) if now < until => Err(until.duration_since(now)),
            Some(_) => {
                // This one looks; others wait for what it finds.
                state.open_until = Some(now + self.rest);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Stripe answered, whatever it said.
    pub(super) fn well(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// Stripe did not answer, or with 5xx.
    pub(super) fn ill(&self, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_a_row = state.in_a_row.saturating_add(1);
        if state.in_a_row >= self.failures {
            state.open_until = Some(now + self.rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_lets_one_look_and_closes_when_it_finds_an_answer() {
        let (breaker, start) = (Breaker::new(3, Duration::from_secs(10)), Instant::now());
        for _ in 0..2 {
            breaker.ill(start);
        }
        breaker.well();
        for _ in 0..2 {
            breaker.ill(start);
        }
        assert_eq!(breaker.admit(start), Ok(()), "an answer in between began the row anew");
        breaker.ill(start);
        assert_eq!(breaker.admit(start + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        let later = start + Duration::from_secs(10);
        assert_eq!(breaker.admit(later), Ok(()));
        assert!(breaker.admit(later).is_err(), "one looks, the others wait");
        breaker.ill(later);
        assert!(breaker.admit(later + Duration::from_secs(9)).is_err());
        assert_eq!(breaker.admit(later + Duration::from_secs(10)), Ok(()));
        breaker.well();
        assert_eq!(breaker.admit(later), Ok(()));
    }
}
