//! Money: whole minor units of one currency, as Stripe counts them.
//!
//! Promises that no amount is ever rounded in silence, wraps around or is mixed with another currency: every operation that
//! could says so in its type. Parts of a split add up to the whole. Leaves exchange rates to nobody: there are none here.
//!
//! ```
//! use saas_billing::money::{Currency, Money};
//!
//! let eur: Currency = "eur".parse()?;
//! let price = Money::new(10_000, eur);
//! let parts = price.split(&[1, 1, 1])?;
//! assert_eq!(parts.iter().map(|part| part.minor()).collect::<Vec<_>>(), [3_334, 3_333, 3_333]);
//! assert_eq!(price.to_string(), "100.00 EUR");
//! assert!(price.checked_add(Money::new(1, "jpy".parse()?)).is_err());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! There is no `+`:
//! ```compile_fail
//! # use saas_billing::money::Money;
//! # fn sum(a: Money, b: Money) -> Money {
//! a + b
//! # }
//! ```

mod currency;
mod ratio;
mod split;

pub use currency::Currency;
pub use ratio::{Ratio, Rounding};

use std::fmt;

use saas_core::InvalidInput;
use serde::{Deserialize, Serialize};

/// An amount: whole minor units, as Stripe counts them, of one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    minor: i64,
    currency: Currency,
}

/// Why amounts cannot be reckoned with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MoneyError {
    /// Two currencies. There is no rate to reckon with.
    #[error("{left} and {right} cannot be reckoned with each other; keep one sum per currency")]
    Currencies {
        /// Of the one.
        left: Currency,
        /// Of the other.
        right: Currency,
    },
    /// The result has more than 18 digits.
    #[error("the amount leaves the range of a 64-bit number; look for a wrong unit or a wrong sign")]
    OutOfRange,
    /// There is nothing to split by.
    #[error("an amount cannot be split by weights that are all zero; give at least one part a weight")]
    NoWeights,
}

impl Money {
    /// An amount of so many minor units.
    #[must_use]
    pub const fn new(minor: i64, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// Nothing, in a currency.
    #[must_use]
    pub const fn zero(currency: Currency) -> Self {
        Self::new(0, currency)
    }

    /// Minor units.
    #[must_use]
    pub const fn minor(self) -> i64 {
        self.minor
    }

    /// The currency.
    #[must_use]
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.minor == 0
    }

    /// The sum.
    ///
    /// # Errors
    /// [`Currencies`](MoneyError::Currencies), [`OutOfRange`](MoneyError::OutOfRange).
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        self.same_currency(other)?;
        self.minor.checked_add(other.minor).map(|minor| Self { minor, ..self }).ok_or(MoneyError::OutOfRange)
    }

    /// The difference.
    ///
    /// # Errors
    /// [`Currencies`](MoneyError::Currencies), [`OutOfRange`](MoneyError::OutOfRange).
    pub fn checked_sub(self, other: Self) -> Result<Self, MoneyError> {
        self.same_currency(other)?;
        self.minor.checked_sub(other.minor).map(|minor| Self { minor, ..self }).ok_or(MoneyError::OutOfRange)
    }

    /// The same amount the other way round.
    ///
    /// # Errors
    /// [`OutOfRange`](MoneyError::OutOfRange) for the one number that has no opposite.
    pub fn checked_neg(self) -> Result<Self, MoneyError> {
        self.minor.checked_neg().map(|minor| Self { minor, ..self }).ok_or(MoneyError::OutOfRange)
    }

    /// So many times the amount.
    ///
    /// # Errors
    /// [`OutOfRange`](MoneyError::OutOfRange).
    pub fn checked_mul(self, times: i64) -> Result<Self, MoneyError> {
        self.minor.checked_mul(times).map(|minor| Self { minor, ..self }).ok_or(MoneyError::OutOfRange)
    }

    /// A share of the amount, rounded in the way that is named.
    ///
    /// # Errors
    /// [`OutOfRange`](MoneyError::OutOfRange).
    pub fn share(self, of: Ratio, rounding: Rounding) -> Result<Self, MoneyError> {
        let minor = Ratio::whole(i128::from(self.minor))
            .checked_mul(of)
            .and_then(|exact| i64::try_from(exact.round(rounding)).ok());
        minor.map(|minor| Self { minor, ..self }).ok_or(MoneyError::OutOfRange)
    }

    /// Checks that Stripe takes the amount as a charge: some currencies have minor units that cannot be paid.
    ///
    /// # Errors
    /// When it is not a multiple of what can be paid.
    pub fn check_chargeable(self) -> Result<Self, InvalidInput> {
        self.check_step(self.currency.charge_step(), "a charge")
    }

    /// Checks that Stripe takes the amount as a payout by hand.
    ///
    /// # Errors
    /// When it is not a multiple of what can be paid out.
    pub fn check_payable_out(self) -> Result<Self, InvalidInput> {
        self.check_step(self.currency.payout_step(), "a payout")
    }

    fn check_step(self, step: i64, of: &'static str) -> Result<Self, InvalidInput> {
        if self.minor % step == 0 {
            return Ok(self);
        }
        Err(InvalidInput::new(
            format!("{of} of {self}"),
            format!("is not a multiple of {}", Self::new(step, self.currency)),
            "round the price to an amount that exists, and decide who bears the difference",
        ))
    }

    fn same_currency(self, other: Self) -> Result<(), MoneyError> {
        if self.currency == other.currency {
            return Ok(());
        }
        Err(MoneyError::Currencies { left: self.currency, right: other.currency })
    }
}

/// For people: `12.34 EUR`, `500 JPY`, `1.234 KWD`. Of a currency whose minor unit this version does not know, the number as
/// Stripe gave it: `1234 minor units of XTS`.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(decimals) = self.currency.decimals() else {
            return write!(f, "{} minor units of {}", self.minor, self.currency);
        };
        if decimals == 0 {
            return write!(f, "{} {}", self.minor, self.currency);
        }
        let unit = 10_u64.pow(u32::from(decimals));
        let (sign, size) = (if self.minor < 0 { "-" } else { "" }, self.minor.unsigned_abs());
        let width = usize::from(decimals);
        write!(f, "{sign}{}.{:0width$} {}", size / unit, size % unit, self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(minor: i64, currency: &str) -> Money {
        Money::new(minor, currency.parse().unwrap())
    }

    // L6
    #[test]
    fn amounts_read_as_their_currency_counts() {
        for (minor, currency, text) in [
            (500, "jpy", "500 JPY"),
            (1_234, "kwd", "1.234 KWD"),
            (1_234, "eur", "12.34 EUR"),
            (-5, "eur", "-0.05 EUR"),
            (500, "isk", "5.00 ISK"),
            (500, "ugx", "5.00 UGX"),
            (500, "mga", "500 MGA"),
            (i64::MIN, "usd", "-92233720368547758.08 USD"),
            (7, "xts", "7 minor units of XTS"),
        ] {
            assert_eq!(money(minor, currency).to_string(), text);
        }
    }

    // L6
    #[test]
    fn what_cannot_be_paid_is_refused_with_the_step_that_can() {
        assert!(money(5_120, "kwd").check_chargeable().is_ok());
        let refused = money(5_124, "kwd").check_chargeable().unwrap_err().to_string();
        assert!(refused.contains("5.124 KWD is not a multiple of 0.010 KWD"), "{refused}");
        assert!(money(450, "isk").check_chargeable().is_err() && money(400, "isk").check_chargeable().is_ok());
        assert!(money(1_045, "huf").check_chargeable().is_ok() && money(1_045, "huf").check_payable_out().is_err());
        assert!(money(1, "jpy").check_chargeable().is_ok() && money(1, "xts").check_chargeable().is_ok());
    }

    // L4
    #[test]
    fn currencies_are_never_mixed() {
        let mixed = MoneyError::Currencies { left: "eur".parse().unwrap(), right: "usd".parse().unwrap() };
        assert_eq!(money(1, "eur").checked_add(money(1, "usd")), Err(mixed));
        assert_eq!(money(1, "eur").checked_sub(money(1, "usd")), Err(mixed));
        assert!(mixed.to_string().starts_with("EUR and USD cannot"), "{mixed}");
    }

    // L8
    #[test]
    fn what_does_not_fit_is_an_error_and_never_wraps() {
        for result in [
            money(i64::MAX, "eur").checked_add(money(1, "eur")),
            money(i64::MIN, "eur").checked_sub(money(1, "eur")),
            money(i64::MIN, "eur").checked_neg(),
            money(i64::MAX, "eur").checked_mul(2),
            money(i64::MAX, "eur").share(Ratio::new(2, 1).unwrap(), Rounding::HalfEven),
        ] {
            assert_eq!(result, Err(MoneyError::OutOfRange));
        }
        assert_eq!(money(i64::MAX, "eur").checked_add(money(i64::MIN, "eur")), Ok(money(-1, "eur")));
    }
}
