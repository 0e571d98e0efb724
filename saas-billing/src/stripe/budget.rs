//! Keeps calls below what Stripe allows. Pure but for the lock.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A token bucket that gives out places in the future: whoever comes waits in line, in the order of coming.
#[derive(Debug)]
pub(super) struct Budget {
    gap: Duration,
    /// Places that may be taken at once after a rest.
    burst: u32,
    /// When the next place is.
    next: Mutex<Option<Instant>>,
}

impl Budget {
    /// So many calls per second, at least one; after a rest a quarter of them at once.
    pub(super) fn per_second(calls: u32) -> Self {
        let calls = calls.max(1);
        Self { gap: Duration::from_secs(1) / calls, burst: (calls / 4).max(1), next: Mutex::new(None) }
    }

    /// Takes the next place if it is at most `patience` away, and says how long to wait for it.
    pub(super) fn take(&self, now: Instant, patience: Duration) -> Result<Duration, Duration> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // After a rest, up to `burst` places lie in the past.
        let earliest = now.checked_sub(self.gap * (self.burst - 1)).unwrap_or(now);
        let place = next.map_or(earliest, |next| next.max(earliest));
        let wait = place.saturating_duration_since(now);
        if wait > patience {
            return Err(wait);
        }
        *next = Some(place + self.gap);
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_holds_more_calls_than_stripe_allows_and_whoever_cannot_wait_takes_no_place() {
        let (budget, start) = (Budget::per_second(20), Instant::now() + Duration::from_secs(60));
        let patience = Duration::from_secs(1);
        let waits: Vec<u128> = (0..25).map(|_| budget.take(start, patience).unwrap().as_millis()).collect();
        assert_eq!(waits[..8], [0, 0, 0, 0, 0, 50, 100, 150]);
        assert_eq!(waits[24], 1000, "25 in the first second, which is the limit of test mode");
        assert_eq!(budget.take(start, patience), Err(Duration::from_millis(1050)));
        assert_eq!(budget.take(start + Duration::from_millis(50), patience), Ok(patience));
        let rested = start + Duration::from_secs(30);
        assert!((0..5).all(|_| budget.take(rested, Duration::ZERO) == Ok(Duration::ZERO)));
        assert!(budget.take(rested, Duration::ZERO).is_err());
    }
}
