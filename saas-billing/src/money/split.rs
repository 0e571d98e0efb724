//! Dividing an amount so that the parts are the whole.

use super::{Money, MoneyError};

impl Money {
    /// Splits in proportion to `weights`, by largest remainder: each part is its exact share rounded towards zero, and the
    /// minor units that are left go one each to the parts that lost most; of equals, to the first.
    ///
    /// The parts add up to the amount, whatever the weights, and the same call always gives the same parts.
    ///
    /// # Errors
    /// [`NoWeights`](MoneyError::NoWeights) when all weights are zero, or there are none.
    pub fn split(self, weights: &[u64]) -> Result<Vec<Self>, MoneyError> {
        let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        if total == 0 {
            return Err(MoneyError::NoWeights);
        }
        let size = u128::from(self.minor().unsigned_abs());
        // At most 64 bits each: the product fits, and so does the sum of any number of weights that fits into memory.
        let shares = weights.iter().map(|weight| size * u128::from(*weight));
        let mut parts: Vec<(u128, u128)> = shares.map(|share| (share / total, share % total)).collect();
        let given: u128 = parts.iter().map(|(part, _)| part).sum();
        let mut by_loss: Vec<usize> = (0..parts.len()).collect();
        by_loss.sort_by(|a, b| parts[*b].1.cmp(&parts[*a].1).then(a.cmp(b)));
        let left = usize::try_from(size - given).unwrap_or(parts.len());
        for index in by_loss.into_iter().take(left) {
            parts[index].0 += 1;
        }
        let sign = if self.minor() < 0 { -1 } else { 1 };
        let signed = |part: u128| i128::try_from(part).ok().and_then(|part| i64::try_from(sign * part).ok());
        parts
            .into_iter()
            .map(|(part, _)| signed(part).map(|minor| Self::new(minor, self.currency())).ok_or(MoneyError::OutOfRange))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(minor: i64, weights: &[u64]) -> Vec<i64> {
        let money = Money::new(minor, "eur".parse().unwrap());
        money.split(weights).unwrap().into_iter().map(Money::minor).collect()
    }

    // L5
    #[test]
    fn what_is_left_goes_to_whoever_lost_most_and_of_equals_to_the_first() {
        assert_eq!(parts(100, &[1, 1, 1]), [34, 33, 33]);
        assert_eq!(parts(-100, &[1, 1, 1]), [-34, -33, -33]);
        assert_eq!(parts(5, &[3, 0, 4]), [2, 0, 3]);
        assert_eq!(parts(1, &[1, 1]), [1, 0]);
        assert_eq!(parts(0, &[1, 1]), [0, 0]);
        assert_eq!(parts(i64::MIN, &[u64::MAX]), [i64::MIN]);
        assert_eq!(parts(i64::MAX, &[u64::MAX, u64::MAX, 1]).iter().sum::<i64>(), i64::MAX);
        // An invoice of 20000 before, 24166 after tax: net and tax rounded one by one and together are the same.
        assert_eq!(parts(24_166, &[19_333, 4_833]), [19_333, 4_833]);
        // Rounded one by one, 19333.33 and 4833.33 lose a unit of the 24167 that was charged; split, they do not.
        assert_eq!(parts(24_167, &[1_933_333, 483_333]).iter().sum::<i64>(), 24_167);
        let nobody = Money::new(1, "eur".parse().unwrap());
        assert_eq!(nobody.split(&[]), Err(MoneyError::NoWeights));
        assert_eq!(nobody.split(&[0, 0]), Err(MoneyError::NoWeights));
    }

    // L5
    #[test]
    fn the_parts_of_a_million_random_splits_are_the_whole_and_each_within_one_unit_of_its_share() {
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let eur = "eur".parse().unwrap();
        for _ in 0..1_000_000 {
            let minor = i64::from_ne_bytes((next() >> (next() % 64)).to_ne_bytes());
            let weights: Vec<u64> = (0..=next() % 5).map(|_| next() >> (next() % 64)).collect();
            let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            let money = Money::new(minor, eur);
            let Ok(parts) = money.split(&weights) else {
                assert_eq!(total, 0);
                continue;
            };
            let sum: i128 = parts.iter().map(|part| i128::from(part.minor())).sum();
            assert_eq!(sum, i128::from(minor), "{minor} by {weights:?}");
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = u128::from(minor.unsigned_abs()) * u128::from(*weight) / total;
                let size = u128::from(part.minor().unsigned_abs());
                assert!(size == exact || size == exact + 1, "{minor} by {weights:?}: {parts:?}");
                assert!(part.minor() == 0 || (part.minor() < 0) == (minor < 0));
            }
        }
    }
}
