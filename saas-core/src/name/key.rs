//! Keys of the catalogue and of the code: features, meters, plans, roles, topics.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::shorten;
use crate::InvalidInput;

/// Whether `text` is a key: 1 to 64 of `a-z 0-9 . - _`, starting with a letter, not ending in a separator.
const fn is_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes.len() > 64 || !bytes[0].is_ascii_lowercase() {
        return false;
    }
    let mut i = 0;
    while i < bytes.len() {
        if !(bytes[i].is_ascii_lowercase() || bytes[i].is_ascii_digit() || matches!(bytes[i], b'.' | b'-' | b'_')) {
            return false;
        }
        i += 1;
    }
    !matches!(bytes[bytes.len() - 1], b'.' | b'-' | b'_')
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident: $example:literal),+ $(,)?) => {$(
        $(#[$doc])*
        ///
        /// 1 to 64 characters of `a-z`, `0-9`, `.`, `-`, `_`; starts with a letter, does not end in a separator.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Cow<'static, str>);

        impl $name {
            /// A key from a literal; a bad one fails to compile when the result is a `const`.
            ///
            /// # Panics
            /// When the literal is not a key and the call is not evaluated at compile time.
            #[must_use]
            pub const fn from_static(text: &'static str) -> Self {
                if !is_key(text) {
                    panic!("a key is 1 to 64 of a-z 0-9 . - _, starts with a letter and does not end in a separator");
                }
                Self(Cow::Borrowed(text))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidInput;

            fn from_str(text: &str) -> Result<Self, InvalidInput> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidInput;

            fn try_from(text: String) -> Result<Self, InvalidInput> {
                if is_key(&text) {
                    return Ok(Self(Cow::Owned(text)));
                }
                Err(InvalidInput::new(
                    stringify!($name),
                    format!("{:?} is not a key", shorten(&text)),
                    concat!("use 1 to 64 of a-z 0-9 . - _, starting with a letter, such as `", $example, "`"),
                ))
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> String {
                key.0.into_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.0)
            }
        }
    )+};
}

keys! {
    /// A feature of the catalogue.
    FeatureKey: "reports.csv-export",
    /// A meter of the catalogue.
    MeterKey: "api-calls",
    /// A plan of the catalogue.
    PlanKey: "pro",
    /// An add-on of the catalogue.
    AddOnKey: "extra-storage",
    /// A role inside a tenant.
    RoleName: "owner",
    /// A kind of outbox job; one handler serves it.
    Topic: "mail",
    /// A kind of message: what the words in every language are kept under.
    MessageKey: "payment-failed",
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: FeatureKey = FeatureKey::from_static("reports.csv-export");

    #[test]
    fn keys_are_lower_case_words_with_separators() {
        assert_eq!(CSV.as_str(), "reports.csv-export");
        for bad in ["", "A", "1a", "a b", "a.", "a\0", "ä", &"a".repeat(65)] {
            assert!(bad.parse::<FeatureKey>().is_err(), "{bad:?}");
        }
    }
}
