//! The address of a tenant.

use serde::{Deserialize, Serialize};

use super::{plain_text, shorten};
use crate::InvalidInput;

/// The address of a tenant in URLs: a DNS label that nobody can mistake for one of the vendor's own.
///
/// 3 to 63 of `a-z`, `0-9`, `-`; starts and ends with a letter or digit; not reserved, not punycode, not a UUID: where an
/// address and an id are both accepted, nobody can take the id of another tenant for their address.
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
        if uuid::Uuid::try_parse(&text).is_ok() {
            return refuse(format!("{shown:?} looks like an id"), "choose a name");
        }
        if Self::is_reserved(&text) {
            return refuse(format!("{shown:?} is reserved"), "choose another");
        }
        Ok(Self(text))
    }
}

plain_text!(Slug);

impl Slug {
    /// Whether the name is one of the vendor's own (`www`, `api`, …), which no tenant can have.
    #[must_use]
    pub fn is_reserved(text: &str) -> bool {
        RESERVED_SLUGS.contains(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // O22
    #[test]
    fn a_slug_cannot_be_mistaken_for_the_vendor() {
        for bad in ["admin", "api", "www", "xn--pple-43d", "acme-", "-acme", "ab", "Acme", "acme.io", "аcme"] {
            assert!(bad.parse::<Slug>().is_err(), "{bad:?}");
        }
        for id in ["018f2d5e-0000-7000-8000-000000000001", "018f2d5e000070008000000000000001"] {
            assert!(id.parse::<Slug>().is_err(), "{id:?}");
        }
        assert_eq!("acme-2".parse::<Slug>().unwrap().as_str(), "acme-2");
    }
}
