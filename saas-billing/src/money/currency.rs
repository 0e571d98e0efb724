//! Currencies, and what their minor units are at Stripe, which is not what ISO 4217 says.

use std::fmt;

use saas_core::InvalidInput;
use serde::{Deserialize, Serialize};

/// A currency: three letters. Any three: a currency that Stripe adds tomorrow must not lose an event today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

/// Amounts are whole units (<https://docs.stripe.com/currencies#zero-decimal>). Madagascar's ariary is one of them although
/// ISO 4217 gives it two decimals.
const NO_DECIMALS: &[&str] =
    &["bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"];
/// <https://docs.stripe.com/currencies#three-decimal>: the last digit must be 0.
const THREE_DECIMALS: &[&str] = &["bhd", "jod", "kwd", "omr", "tnd"];
/// No decimals any more, written with two all the same (<https://docs.stripe.com/currencies#special-cases>): 500 is five
/// krónur, and nothing but multiples of 100 is taken.
const WHOLE_WITH_DECIMALS: &[&str] = &["isk", "ugx"];
/// Charged with decimals and paid out without.
const WHOLE_PAYOUTS: &[&str] = &["huf", "twd"];
/// The other currencies of Stripe's list: two decimals.
const TWO_DECIMALS: &[&str] = &[
    "aed", "afn", "all", "amd", "ang", "aoa", "ars", "aud", "awg", "azn", "bam", "bbd", "bdt", "bgn", "bmd", "bnd",
    "bob", "brl", "bsd", "btn", "bwp", "byn", "bzd", "cad", "cdf", "chf", "cny", "cop", "crc", "cve", "czk", "dkk",
    "dop", "dzd", "egp", "etb", "eur", "fjd", "fkp", "gbp", "gel", "ghs", "gip", "gmd", "gtq", "gyd", "hkd", "hnl",
    "htg", "huf", "idr", "ils", "inr", "isk", "jmd", "kes", "kgs", "khr", "kyd", "kzt", "lak", "lbp", "lkr", "lrd",
    "lsl", "mad", "mdl", "mkd", "mmk", "mnt", "mop", "mru", "mur", "mvr", "mwk", "mxn", "myr", "mzn", "nad", "ngn",
    "nio", "nok", "npr", "nzd", "pab", "pen", "pgk", "php", "pkr", "pln", "qar", "ron", "rsd", "rub", "sar", "sbd",
    "scr", "sek", "sgd", "shp", "sle", "sos", "srd", "std", "szl", "thb", "tjs", "top", "try", "ttd", "twd", "tzs",
    "uah", "ugx", "usd", "uyu", "uzs", "wst", "xcd", "xcg", "yer", "zar", "zmw",
];

impl Currency {
    /// Three lower-case letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// Decimals of an amount as Stripe writes it; `None` for a currency that is not in its list.
    #[must_use]
    pub fn decimals(self) -> Option<u8> {
        let is_in = |list: &[&str]| list.contains(&self.as_str());
        match () {
            () if is_in(NO_DECIMALS) => Some(0),
            () if is_in(THREE_DECIMALS) => Some(3),
            () if is_in(TWO_DECIMALS) => Some(2),
            () => None,
        }
    }

    /// The smallest amount that can be charged, in minor units; every charge is a multiple of it.
    #[must_use]
    pub fn charge_step(self) -> i64 {
        match () {
            () if WHOLE_WITH_DECIMALS.contains(&self.as_str()) => 100,
            () if THREE_DECIMALS.contains(&self.as_str()) => 10,
            () => 1,
        }
    }

    /// As [`charge_step`](Self::charge_step), for payouts.
    #[must_use]
    pub fn payout_step(self) -> i64 {
        if WHOLE_PAYOUTS.contains(&self.as_str()) { 100 } else { self.charge_step() }
    }
}

impl std::str::FromStr for Currency {
    type Err = InvalidInput;

    /// Reads a code in either case.
    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        match *text.as_bytes() {
            [a, b, c] if [a, b, c].iter().all(u8::is_ascii_alphabetic) => {
                Ok(Self([a, b, c].map(|letter| letter.to_ascii_lowercase())))
            }
            _ => Err(InvalidInput::new("the currency", "is not three letters", "pass an ISO 4217 code such as `eur`")),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.as_str().to_owned()
    }
}

/// As ISO 4217 writes it, in capitals.
impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().to_ascii_uppercase())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ISO 4217 (2024), every code whose minor unit is not two decimals.
    const ISO: &[(&str, u8)] = &[
        ("bif", 0),
        ("clp", 0),
        ("djf", 0),
        ("gnf", 0),
        ("isk", 0),
        ("jpy", 0),
        ("kmf", 0),
        ("krw", 0),
        ("pyg", 0),
        ("rwf", 0),
        ("ugx", 0),
        ("uyi", 0),
        ("vnd", 0),
        ("vuv", 0),
        ("xaf", 0),
        ("xof", 0),
        ("xpf", 0),
        ("bhd", 3),
        ("iqd", 3),
        ("jod", 3),
        ("kwd", 3),
        ("lyd", 3),
        ("omr", 3),
        ("tnd", 3),
        ("clf", 4),
        ("uyw", 4),
    ];

    // L6
    #[test]
    fn stripes_minor_units_differ_from_iso_4217_in_three_currencies_and_no_other() {
        let iso = |code: &str| ISO.iter().find(|(other, _)| *other == code).map_or(2, |(_, decimals)| *decimals);
        let known = [NO_DECIMALS, THREE_DECIMALS, TWO_DECIMALS].concat();
        let mut differ: Vec<&str> = known
            .iter()
            .copied()
            .filter(|code| code.parse::<Currency>().unwrap().decimals() != Some(iso(code)))
            .collect();
        differ.sort_unstable();
        // `std` is what Stripe calls the dobra of São Tomé, which ISO renamed `stn`: two decimals both.
        assert_eq!(differ, ["isk", "mga", "ugx"]);
        let mut once = known.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), known.len(), "a currency stands in two lists");
        // What Stripe does not take has no unit here, rather than a guessed one.
        for (code, _) in ISO.iter().filter(|(code, _)| !known.contains(code)) {
            assert_eq!(code.parse::<Currency>().unwrap().decimals(), None, "{code}");
        }
    }

    #[test]
    fn codes_are_three_letters_in_either_case() {
        assert_eq!("EUR".parse::<Currency>().unwrap(), "eur".parse().unwrap());
        assert_eq!("EuR".parse::<Currency>().unwrap().to_string(), "EUR");
        for wrong in ["", "eu", "euro", "e1r", "€€€", "eü", "e\0r"] {
            assert!(wrong.parse::<Currency>().is_err(), "{wrong:?}");
        }
    }
}
