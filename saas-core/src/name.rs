//! Names that people choose or write in the catalogue: checked once, at the edge, and a type from then on.
//!
//! A bad literal fails to compile; bad input gives an [`InvalidInput`] that says what, why and what to do.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

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
    /// A role inside a tenant.
    RoleName: "owner",
    /// A kind of outbox job; one handler serves it.
    Topic: "mail",
}

/// The address of a tenant in URLs: a DNS label that nobody can mistake for one of the vendor's own.
///
/// 3 to 63 of `a-z`, `0-9`, `-`; starts and ends with a letter or digit; not reserved, not punycode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slug(String);

/// Names that a vendor's own hosts and paths use; a tenant with one of them could impersonate the vendor.
const RESERVED_SLUGS: &[&str] = &[
    "account",
    "admin",
    "api",
    "app",
    "assets",
    "auth",
    "billing",
    "blog",
    "cdn",
    "console",
    "dashboard",
    "dev",
    "docs",
    "ftp",
    "help",
    "imap",
    "internal",
    "localhost",
    "login",
    "logout",
    "mail",
    "ns1",
    "ns2",
    "oauth",
    "operator",
    "pop",
    "postmaster",
    "public",
    "root",
    "saas",
    "security",
    "settings",
    "signup",
    "smtp",
    "staging",
    "static",
    "status",
    "support",
    "system",
    "test",
    "webhook",
    "webhooks",
    "webmaster",
    "www",
];

impl Slug {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Slug {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        let refuse = |why: String, remedy: &'static str| Err(InvalidInput::new("slug", why, remedy));
        let shown = shorten(&text);
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(3..=63).contains(&text.len()) || !text.bytes().all(allowed) {
            return refuse(format!("{shown:?} is not a slug"), "use 3 to 63 of a-z, 0-9 and -");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return refuse(format!("{shown:?} starts or ends with a hyphen"), "start and end with a letter or a digit");
        }
        // RFC 5891, 4.2.3.1: hyphens in the third and fourth place announce an encoded (confusable) label.
        if text.as_bytes().get(2..4) == Some(b"--") {
            return refuse(format!("{shown:?} looks like punycode"), "do not put -- in the third and fourth place");
        }
        if RESERVED_SLUGS.contains(&text.as_str()) {
            return refuse(format!("{shown:?} is reserved"), "choose another");
        }
        Ok(Self(text))
    }
}

impl FromStr for Slug {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        Self::try_from(text.to_owned())
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> String {
        slug.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An e-mail address in its one normal form, which is what uniqueness is decided on.
///
/// Lower-cased here, in Rust, and nowhere else: databases and libraries disagree about `K` (U+212A) and `İ` (U+0130).
/// ASCII only; a non-ASCII local part needs a mail system that most receivers do not have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EmailAddress(String);

impl EmailAddress {
    /// The normal form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

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

impl FromStr for EmailAddress {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        Self::try_from(text.to_owned())
    }
}

impl From<EmailAddress> for String {
    fn from(address: EmailAddress) -> String {
        address.0
    }
}

impl fmt::Display for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hides the local part: addresses do not belong in logs.
impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmailAddress(…@{})", self.0.rsplit_once('@').map_or("", |(_, domain)| domain))
    }
}

/// Names one attempt to change something, so that a repeat is recognised. 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IdempotencyKey {
    type Error = InvalidInput;

    fn try_from(text: String) -> Result<Self, InvalidInput> {
        if (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(text));
        }
        Err(InvalidInput::new(
            "idempotency key",
            format!("{:?} is empty, longer than 255 or holds a character that is not visible ASCII", shorten(&text)),
            "pass a key that names this one attempt, such as a UUID",
        ))
    }
}

impl FromStr for IdempotencyKey {
    type Err = InvalidInput;

    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        Self::try_from(text.to_owned())
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> String {
        key.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first characters of untrusted text, so that an error message stays one line.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CSV: FeatureKey = FeatureKey::from_static("reports.csv-export");

    #[test]
    fn keys_are_lower_case_words_with_separators() {
        assert_eq!(CSV.as_str(), "reports.csv-export");
        for bad in ["", "A", "1a", "a b", "a.", "a\0", "ä", &"a".repeat(65)] {
            assert!(bad.parse::<FeatureKey>().is_err(), "{bad:?}");
        }
    }

    // O22
    #[test]
    fn a_slug_cannot_be_mistaken_for_the_vendor() {
        for bad in ["admin", "api", "www", "xn--pple-43d", "acme-", "-acme", "ab", "Acme", "acme.io", "аcme"] {
            assert!(bad.parse::<Slug>().is_err(), "{bad:?}");
        }
        assert_eq!("acme-2".parse::<Slug>().unwrap().as_str(), "acme-2");
    }

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

    proptest! {
        #[test]
        fn parsing_any_text_never_panics_and_accepted_addresses_are_stable(text in ".{0,300}") {
            let _ = text.parse::<Slug>();
            let _ = text.parse::<FeatureKey>();
            let _ = text.parse::<IdempotencyKey>();
            if let Ok(address) = text.parse::<EmailAddress>() {
                prop_assert_eq!(address.as_str().parse::<EmailAddress>().unwrap(), address);
            }
        }
    }
}
