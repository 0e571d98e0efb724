//! E-mail addresses.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::plain_text;
use crate::InvalidInput;

/// An e-mail address in its one normal form, which is what uniqueness is decided on.
///
/// Lower-cased here, in Rust, and nowhere else: databases and libraries disagree about `K` (U+212A) and `İ` (U+0130).
/// ASCII only; a non-ASCII local part needs a mail system that most receivers do not have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EmailAddress(String);

impl TryFrom<String> for EmailAddress {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        let refuse = |why: &'static str| {
            Err(InvalidInput::new("e-mail address", why, "pass one address such as ada@example.com"))
        };
        let text = text.trim();
        if text.len() > 254 {
            return refuse("is longer than 254 characters (RFC 5321, 4.5.3.1.3)");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return refuse("holds a space, a control character or a character outside ASCII");
        }
        let Some((local, domain)) = text.rsplit_once('@') else {
            return refuse("has no @");
        };
        let local_ok = (1..=64).contains(&local.len())
            && local.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~.-".contains(&b))
            && !local.starts_with('.')
            && !local.ends_with('.')
            && !local.contains("..");
        if !local_ok {
            return refuse("has no usable part before the @");
        }
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !domain.contains('.') || !domain.split('.').all(label_ok) {
            return refuse("has no usable domain after the @");
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// Hides the local part: addresses do not belong in logs.
impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmailAddress(…@{})", self.0.rsplit_once('@').map_or("", |(_, domain)| domain))
    }
}

plain_text!(EmailAddress);

#[cfg(test)]
mod tests {
    use super::*;

    // O4
    #[test]
    fn an_address_has_one_normal_form() {
        let address: EmailAddress = " Ada.Lovelace@Example.COM ".parse().unwrap();
        assert_eq!(address.as_str(), "ada.lovelace@example.com");
        for bad in [
            "",
            "ada",
            "ada@",
            "@example.com",
            "a@b",
            "ada@exa mple.com",
            "\u{212a}@example.com",
            "a\r\nbcc:x@example.com",
            "a..b@example.com",
            "a@-b.com",
            "a@b@example.com",
        ] {
            assert!(bad.parse::<EmailAddress>().is_err(), "{bad:?}");
        }
        assert_eq!(format!("{address:?}"), "EmailAddress(…@example.com)");
    }
}
