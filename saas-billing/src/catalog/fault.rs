//! What is wrong with a price list: everything at once, each with its place and its remedy.

use std::{error::Error as StdError, fmt};

use saas_core::ErrorKind;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceFault {
    /// By its path in the file, such as `prices.pro-monthly.amounts.eur`.
    pub place: String,
    /// Why it is refused.
    pub why: String,
    /// What to write instead.
    pub remedy: &'static str,
}

/// A price list that was refused. Nothing of it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceListError {
    pub(super) faults: Vec<PriceFault>,
}

impl PriceListError {
    /// The mistakes in the order of names.
    #[must_use]
    pub fn faults(&self) -> &[PriceFault] {
        &self.faults
    }

    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// A stable name for logs and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "invalid_price_list"
    }
}

impl fmt::Display for PriceListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the price list cannot be applied:")?;
        for PriceFault { place, why, remedy } in &self.faults {
            write!(f, "\n  {place} {why}; {remedy}")?;
        }
        Ok(())
    }
}

impl StdError for PriceListError {}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<PriceFault>);

impl Faults {
    pub(super) fn add(&mut self, place: impl Into<String>, why: impl Into<String>, remedy: &'static str) {
        self.0.push(PriceFault { place: place.into(), why: why.into(), remedy });
    }

    /// What was read, unless something is wrong with it.
    pub(super) fn or<T>(self, read: T) -> Result<T, PriceListError> {
        if self.0.is_empty() { Ok(read) } else { Err(PriceListError { faults: self.0 }) }
    }
}
