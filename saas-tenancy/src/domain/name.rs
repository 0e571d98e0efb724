//! Domain names that a tenant may claim.

use std::{fmt, str::FromStr};

use saas_core::InvalidInput;

use crate::resolve::{Host, MAX_HOST};

/// Stands before a domain where its proof is published.
pub const CHALLENGE_LABEL: &str = "_saas-challenge";

/// A domain that a tenant can own: at least two labels, in lower-case ASCII.
///
/// Refused: addresses, wildcards, Unicode (pass `xn--…`), single labels such as `com` and `localhost`, names so long that
/// the challenge before them has no room, and names that never exist in public DNS (RFC 6761, 6762, 7686, 9476).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

/// Last labels that nobody can own.
const NOT_PUBLIC: &[&str] = &["alt", "arpa", "internal", "invalid", "local", "localhost", "onion"];

impl DomainName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the proof is published as a TXT record: `_saas-challenge.<domain>`.
    #[must_use]
    pub fn challenge(&self) -> String {
        format!("{CHALLENGE_LABEL}.{}", self.0)
    }

    /// Whether it is `host` or below it.
    #[must_use]
    pub fn is_within(&self, host: &Host) -> bool {
        self.0.strip_suffix(host.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    }
}

impl TryFrom<&Host> for DomainName {
    type Error = InvalidInput;

    fn try_from(host: &Host) -> Result<Self, InvalidInput> {
        let refuse = |why| Err(InvalidInput::new("domain", why, "pass a public domain such as app.customer.com"));
        let name = host.as_str();
        if host.is_address() {
            return refuse("is an IP address");
        }
        let Some((_, last)) = name.rsplit_once('.') else { return refuse("is a single label, which nobody can own") };
        if NOT_PUBLIC.contains(&last) {
            return refuse("does not exist in public DNS");
        }
        if name.len() + CHALLENGE_LABEL.len() + 1 > MAX_HOST {
            return refuse("is too long for a challenge before it");
        }
        Ok(Self(name.to_owned()))
    }
}

impl FromStr for DomainName {
    type Err = InvalidInput;

    /// Case is folded and one dot at the end dropped; a port is refused.
    fn from_str(text: &str) -> Result<Self, InvalidInput> {
        let host = Host::name(text).map_err(|_| {
            InvalidInput::new(
                "domain",
                "is not a host name",
                "pass one such as app.customer.com, without scheme, port, path or *., international ones as xn--…",
            )
        })?;
        Self::try_from(&host)
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_tenant_can_own_is_refused_with_a_reason() {
        let longest = MAX_HOST - "_saas-challenge.".len();
        let long = |length: usize| format!("{}.com", "abc.".repeat(64).get(..length - 4).unwrap());
        for (text, why) in [
            ("127.0.0.1", "IP address"),
            ("com", "single label"),
            ("localhost", "single label"),
            ("printer.local", "public DNS"),
            ("1.0.0.127.in-addr.arpa", "public DNS"),
            ("*.customer.com", "without scheme, port, path or *."),
            ("https://customer.com", "without scheme"),
            ("customer.com:443", "without scheme, port"),
            ("bücher.example", "xn--"),
            ("_dmarc.customer.com", "is not a host name"),
            ("", "is not a host name"),
        ] {
            let error = text.parse::<DomainName>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(long(longest).parse::<DomainName>().unwrap().challenge().len(), MAX_HOST);
        assert!(long(longest + 1).parse::<DomainName>().unwrap_err().to_string().contains("too long"));
        assert_eq!("App.Customer.COM.".parse::<DomainName>().unwrap().as_str(), "app.customer.com");
    }

    #[test]
    fn within_a_host_means_the_host_or_below_a_dot() {
        let own = Host::name("example.com").unwrap();
        let within = |text: &str| text.parse::<DomainName>().unwrap().is_within(&own);
        assert!(within("example.com") && within("a.example.com") && within("a.b.example.com"));
        assert!(!within("badexample.com") && !within("example.com.net"));
    }
}
