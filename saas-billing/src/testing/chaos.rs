//! What a network does to deliveries, repeatably.

/// How deliveries are disturbed. Everything follows from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chaos {
    state: u64,
    shuffle: bool,
    duplicate_percent: u8,
    delay_percent: u8,
    drop_percent: u8,
}

impl Chaos {
    /// Shuffles, and nothing else.
    #[must_use]
    pub const fn shuffled(seed: u64) -> Self {
        Self { state: seed, shuffle: true, duplicate_percent: 0, delay_percent: 0, drop_percent: 0 }
    }

    /// Delivers this share of events twice.
    #[must_use]
    pub const fn duplicating(mut self, percent: u8) -> Self {
        self.duplicate_percent = percent;
        self
    }

    /// Keeps this share of events back for the next time.
    #[must_use]
    pub const fn delaying(mut self, percent: u8) -> Self {
        self.delay_percent = percent;
        self
    }

    /// Loses this share of events for good.
    #[must_use]
    pub const fn dropping(mut self, percent: u8) -> Self {
        self.drop_percent = percent;
        self
    }

    /// What is delivered now, and what later.
    pub(super) fn disturb<T: Clone>(mut self, events: Vec<T>) -> (Vec<T>, Vec<T>) {
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for event in events {
            if self.hits(self.drop_percent) {
                continue;
            }
            if self.hits(self.delay_percent) {
                later.push(event);
                continue;
            }
            if self.hits(self.duplicate_percent) {
                now.push(event.clone());
            }
            now.push(event);
        }
        if self.shuffle {
            for last in (1..now.len()).rev() {
                let other = usize::try_from(self.next() % (last as u64 + 1)).unwrap_or(0);
                now.swap(last, other);
            }
        }
        (now, later)
    }

    fn hits(&mut self, percent: u8) -> bool {
        percent > 0 && self.next() % 100 < u64::from(percent)
    }

    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
