//! How often and how far apart a call is tried. Pure.

use std::time::Duration;

/// How often and how far apart one call is tried before the caller hears of it. Longer waits belong into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Tries in all, at least one.
    pub tries: u32,
    /// The upper bound of the first pause; it doubles with each try.
    pub base: Duration,
    /// The longest pause, also if Stripe asks for more.
    pub cap: Duration,
}

impl Default for Retries {
    /// Three tries: half a second and a second apart, at most eight.
    fn default() -> Self {
        Self { tries: 3, base: Duration::from_millis(500), cap: Duration::from_secs(8) }
    }
}

impl Retries {
    /// The pause after try `tried` (1, 2, …), for a random number in `0.0..1.0`; `None` when that was the last. What Stripe
    /// asks for is the least; the rest is drawn evenly, so that calls that failed together do not come back together.
    #[must_use]
    pub fn pause(&self, tried: u32, asked: Option<Duration>, random: f64) -> Option<Duration> {
        if tried >= self.tries {
            return None;
        }
        let doubled = self.base.saturating_mul(1_u32.checked_shl(tried.saturating_sub(1)).unwrap_or(u32::MAX));
        let drawn = doubled.min(self.cap).mul_f64(random.clamp(0.0, 1.0));
        Some(drawn.max(asked.unwrap_or_default()).min(self.cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_are_drawn_and_have_an_end() {
        let retries = Retries { tries: 40, ..Retries::default() };
        let bounds: Vec<_> =
            (1..8).filter_map(|tried| retries.pause(tried, None, 1.0)).map(|p| p.as_millis()).collect();
        assert_eq!(bounds, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(retries.pause(2, None, 0.25), Some(Duration::from_millis(250)));
        assert_eq!(retries.pause(39, None, 1.0), Some(retries.cap));
        assert_eq!(retries.pause(40, None, 1.0), None);
    }

    #[test]
    fn stripe_is_waited_for_as_long_as_it_asks_within_the_cap() {
        let retries = Retries::default();
        assert_eq!(retries.pause(1, Some(Duration::from_secs(3)), 0.5), Some(Duration::from_secs(3)));
        assert_eq!(retries.pause(1, Some(Duration::from_secs(600)), 0.5), Some(retries.cap));
    }
}
