//! From decimal text to minor units, and back. No number in between is a fraction.

use crate::money::{Currency, Money};

/// Reads such as `20.00`, with no more decimals than the currency has, as Stripe counts them.
///
/// # Errors
/// With the reason and the remedy.
pub(super) fn minor_units(text: &str, currency: Currency) -> Result<u64, (String, &'static str)> {
    let Some(decimals) = currency.decimals() else {
        return Err((format!("is in {currency}, which Stripe does not charge"), "write a currency of Stripe's list"));
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || text.ends_with('.') {
        return Err((format!("is {text:?}"), "write digits with a decimal point, such as \"20.00\""));
    }
    let decimals = usize::from(decimals);
    if fraction.len() > decimals && fraction.bytes().skip(decimals).any(|digit| digit != b'0') {
        let why = format!("is {text}, finer than the {decimals} decimals of {currency}");
        return Err((why, "charge for a larger unit, such as a thousand calls, and count in it"));
    }
    let digits: String = whole.chars().chain(fraction.chars().chain("000".chars()).take(decimals)).collect();
    // What Stripe takes at most for one amount: eight digits, twelve in some currencies.
    let minor = digits.parse::<u64>().ok().filter(|minor| *minor <= 999_999_999_999);
    let minor = minor.ok_or((format!("is {text}, more than can be charged"), "write a smaller amount"))?;
    let signed = i64::try_from(minor).unwrap_or(i64::MAX);
    match Money::new(signed, currency).check_chargeable() {
        Ok(_) => Ok(minor),
        Err(_) => {
            let step = Money::new(currency.charge_step(), currency);
            Err((format!("is {text}, not a multiple of {step}"), "round it to an amount that can be paid"))
        }
    }
}

/// For people: the currency's decimals and its code.
pub(super) fn shown(minor: u64, currency: Currency) -> String {
    i64::try_from(minor).map_or_else(|_| format!("{minor} {currency}"), |minor| Money::new(minor, currency).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, currency: &str) -> Result<u64, String> {
        minor_units(text, currency.parse().unwrap()).map_err(|(why, _)| why)
    }

    // L6
    #[test]
    fn minor_units_are_stripes_for_zero_two_and_three_decimals() {
        assert_eq!(read("20", "eur"), Ok(2000));
        assert_eq!(read("20.5", "eur"), Ok(2050));
        assert_eq!(read("2400", "jpy"), Ok(2400));
        assert_eq!(read("2400.00", "jpy"), Ok(2400));
        assert_eq!(read("6.500", "kwd"), Ok(6500));
        assert_eq!(read("6.5", "kwd"), Ok(6500));
        assert_eq!(read("5", "isk"), Ok(500), "two decimals that are always nought");
        assert_eq!(read("0", "eur"), Ok(0));
    }

    // L6
    #[test]
    fn what_cannot_be_paid_is_refused_with_the_reason() {
        for (text, currency, why) in [
            ("0.001", "eur", "finer than the 2 decimals"),
            ("0.5", "jpy", "finer than the 0 decimals"),
            ("6.505", "kwd", "not a multiple of"),
            ("5.50", "isk", "not a multiple of"),
            ("-1", "eur", "is \"-1\""),
            ("1e3", "eur", "is \"1e3\""),
            ("1.", "eur", "is \"1.\""),
            (".5", "eur", "is \".5\""),
            ("", "eur", "is \"\""),
            ("99999999999999999999", "eur", "more than can be charged"),
            ("1", "xyz", "which Stripe does not charge"),
        ] {
            let refused = read(text, currency).unwrap_err();
            assert!(refused.contains(why), "{text} {currency}: {refused}");
        }
    }
}
