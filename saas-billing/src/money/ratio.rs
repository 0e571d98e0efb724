//! Exact fractions between the amounts: rounded once, at the end, in a way that is named.

/// A fraction whose bottom is above zero, in lowest terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    top: i128,
    bottom: i128,
}

/// What happens to the part of a minor unit that is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest; what is exactly between two goes to the even one, so that many roundings do not lean to one side.
    HalfEven,
    /// Away from zero: nothing is left over that nobody has.
    Up,
}

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self { top: 0, bottom: 1 };
    /// All of it.
    pub const ONE: Self = Self { top: 1, bottom: 1 };

    /// `top / bottom`; `None` when the bottom is not above zero.
    #[must_use]
    pub fn new(top: i128, bottom: i128) -> Option<Self> {
        if bottom <= 0 || top == i128::MIN {
            return None;
        }
        let common = common_divisor(top.unsigned_abs(), bottom.unsigned_abs());
        let common = i128::try_from(common).ok()?;
        Some(Self { top: top.checked_div(common)?, bottom: bottom.checked_div(common)? })
    }

    /// A whole number.
    #[must_use]
    pub const fn whole(top: i128) -> Self {
        Self { top, bottom: 1 }
    }

    /// The product; `None` when it does not fit.
    #[must_use]
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        Self::new(self.top.checked_mul(other.top)?, self.bottom.checked_mul(other.bottom)?)
    }

    /// The sum; `None` when it does not fit.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let top = self.top.checked_mul(other.bottom)?.checked_add(other.top.checked_mul(self.bottom)?)?;
        Self::new(top, self.bottom.checked_mul(other.bottom)?)
    }

    /// The difference; `None` when it does not fit.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.checked_add(Self { top: other.top.checked_neg()?, bottom: other.bottom })
    }

    /// The greater of it and nothing.
    #[must_use]
    pub const fn or_zero(self) -> Self {
        if self.top < 0 { Self::ZERO } else { self }
    }

    /// The lesser of it and all.
    #[must_use]
    pub const fn at_most_one(self) -> Self {
        if self.top > self.bottom { Self::ONE } else { self }
    }

    /// The whole number that it is rounded to.
    #[must_use]
    pub fn round(self, rounding: Rounding) -> i128 {
        let (below, rest) = (self.top.div_euclid(self.bottom), self.top.rem_euclid(self.bottom));
        let above = match rounding {
            _ if rest == 0 => false,
            // From below zero, away from it is down.
            Rounding::Up => self.top > 0,
            Rounding::HalfEven => match rest.cmp(&(self.bottom - rest)) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal => below % 2 != 0,
            },
        };
        if above { below + 1 } else { below }
    }
}

fn common_divisor(a: u128, b: u128) -> u128 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    // L5
    #[test]
    fn halves_go_to_the_even_neighbour_and_up_goes_away_from_zero() {
        let rounded = |top, bottom, rounding| Ratio::new(top, bottom).unwrap().round(rounding);
        let halves: Vec<i128> = [1, 3, 5, 7, -1, -3, -5].map(|top| rounded(top, 2, Rounding::HalfEven)).into();
        assert_eq!(halves, [0, 2, 2, 4, 0, -2, -2]);
        let thirds: Vec<i128> = [1, 2, -1, -2].map(|top| rounded(top, 3, Rounding::HalfEven)).into();
        assert_eq!(thirds, [0, 1, 0, -1]);
        let up: Vec<i128> = [1, 3, -1, 0].map(|top| rounded(top, 3, Rounding::Up)).into();
        assert_eq!(up, [1, 1, -1, 0]);
    }

    // L8
    #[test]
    fn what_does_not_fit_is_none() {
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(Ratio::new(1, -1), None);
        assert_eq!(Ratio::whole(i128::MAX).checked_mul(Ratio::whole(2)), None);
        assert_eq!(Ratio::whole(i128::MAX).checked_add(Ratio::ONE), None);
        assert_eq!(Ratio::whole(i128::MAX).round(Rounding::Up), i128::MAX);
    }
}
