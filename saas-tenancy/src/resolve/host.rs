//! Host names, read strictly: what a browser sends and a certificate can name, and nothing else.

use std::{fmt, net::Ipv4Addr};

use saas_core::InvalidInput;

/// The longest host name, in bytes (RFC 1035, 3.1, without the dots at its ends).
pub(crate) const MAX_HOST: usize = 253;

/// A host name in lower-case ASCII, without port and without the dot at its end; or an IP address.
///
/// International names are kept in the form that travels (`xn--…`); Unicode is refused, so that two names that look the
/// same are not taken for each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    name: String,
    is_address: bool,
}

impl Host {
    /// Reads the `host[:port]` of a request.
    ///
    /// # Errors
    /// When it is empty, longer than 253 bytes, or holds anything but labels of letters, digits and inner hyphens and a
    /// port of digits: user names, wildcards, underscores, Unicode and lists of hosts are refused.
    ///
    /// ```
    /// use saas_tenancy::resolve::Host;
    ///
    /// assert_eq!(Host::parse("Acme.Example.COM.:8443")?.as_str(), "acme.example.com");
    /// assert!(Host::parse("acme.example.com, evil.example").is_err());
    /// # Ok::<(), saas_core::InvalidInput>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, InvalidInput> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(|| refused("opens a bracket and does not close it"))?,
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        if !port.is_empty() {
            port.strip_prefix(':').filter(|port| is_port(port)).ok_or_else(|| refused("has a port that is none"))?;
        }
        if text.starts_with('[') {
            let address: std::net::Ipv6Addr = host.parse().map_err(|_| refused("is not an IPv6 address"))?;
            return Ok(Self { name: address.to_string(), is_address: true });
        }
        Self::name(host)
    }

    /// Reads a name without a port.
    pub(crate) fn name(text: &str) -> Result<Self, InvalidInput> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > MAX_HOST {
            return Err(refused("is empty or longer than 253 bytes"));
        }
        if !text.split('.').all(is_label) {
            return Err(refused("is not made of labels of letters, digits and inner hyphens"));
        }
        let name = text.to_ascii_lowercase();
        // WHATWG URL, 3.5: a host whose last label is a number is an IPv4 address, in whatever notation, or nothing.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_address = last.bytes().all(|b| b.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_address && name.parse::<Ipv4Addr>().is_err() {
            return Err(refused("ends in a number and is not an IPv4 address"));
        }
        Ok(Self { name, is_address })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Whether it is an IP address, which can belong to no tenant.
    #[must_use]
    pub const fn is_address(&self) -> bool {
        self.is_address
    }

    /// What stands in front of `base`: `""` for the base itself, `None` for a host that is not under it.
    pub(crate) fn under(&self, base: &Self) -> Option<&str> {
        let front = self.name.strip_suffix(base.as_str())?;
        if front.is_empty() { Some("") } else { front.strip_suffix('.') }
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn refused(why: &'static str) -> InvalidInput {
    InvalidInput::new("host", why, "send a name such as acme.example.com, international ones as xn--…")
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn port_case_and_the_last_dot_make_no_other_host() {
        for text in
            ["acme.example.com", "ACME.example.Com", "acme.example.com.", "acme.example.com:443", "acme.example.com.:0"]
        {
            assert_eq!(Host::parse(text).unwrap().as_str(), "acme.example.com", "{text}");
        }
        assert_eq!(Host::parse("xn--bcher-kva.example").unwrap().as_str(), "xn--bcher-kva.example");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long_label = format!("{}.com", "a".repeat(64));
        let long_name = vec!["abc"; 64].join(".");
        for text in [
            "",
            ".",
            ":80",
            "a..b",
            ".a.com",
            "a.com..",
            "-a.com",
            "a-.com",
            "a_b.com",
            "*.example.com",
            "bücher.example",
            "a.com:",
            "a.com:x",
            "a.com:65536",
            "a.com:+1",
            "a.com:80:80",
            "user@a.com",
            "a.com/x",
            "a.com, b.com",
            " a.com",
            "a.com\0",
            "a.com\r\n",
            "[::1",
            "[::g]",
            "[::1]x",
            "::1",
            "1.2.3",
            "1.2.3.256",
            "a.0x1f",
            "0x7f.1",
            "a.1",
            "ａcme.example.com",
            &long_label,
            &long_name,
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_address_is_known_as_one() {
        for text in ["127.0.0.1", "127.0.0.1:3000", "[::1]", "[::1]:3000"] {
            assert!(Host::parse(text).unwrap().is_address(), "{text}");
        }
        assert!(!Host::parse("localhost:3000").unwrap().is_address());
    }

    #[test]
    fn under_a_base_means_below_a_dot() {
        let base = Host::parse("example.com").unwrap();
        let front = |text| Host::parse(text).unwrap().under(&base).map(str::to_owned);
        assert_eq!(front("example.com").as_deref(), Some(""));
        assert_eq!(front("acme.example.com").as_deref(), Some("acme"));
        assert_eq!(front("a.b.example.com").as_deref(), Some("a.b"));
        for other in ["badexample.com", "example.com.evil.net", "com"] {
            assert_eq!(front(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn reading_any_text_never_panics_and_what_is_accepted_is_in_one_form(text in ".{0,80}") {
            if let Ok(host) = Host::parse(&text) {
                let shown = if host.is_address() && host.as_str().contains(':') { format!("[{host}]") } else { host.to_string() };
                prop_assert_eq!(Host::parse(&shown).unwrap(), host);
            }
        }

        #[test]
        fn every_spelling_of_a_name_is_the_same_host(
            name in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z][a-z0-9]{0,8}){1,3}",
            upper in any::<u64>(), dot in any::<bool>(), port in proptest::option::of(any::<u16>()),
        ) {
            let mut spelled: String = name
                .chars()
                .enumerate()
                .map(|(n, c)| if upper >> (n % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
                .collect();
            if dot { spelled.push('.'); }
            if let Some(port) = port { spelled += &format!(":{port}"); }
            let host = Host::parse(&spelled).unwrap();
            prop_assert_eq!(host.as_str(), &name);
            prop_assert!(!host.is_address());
        }

        #[test]
        fn an_accepted_name_holds_only_what_dns_and_html_agree_on(text in "[a-zA-Z0-9.:@/\\[\\]_*, \u{e9}-]{0,40}") {
            if let Ok(host) = Host::parse(&text) {
                let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
                prop_assert!(host.as_str().contains(':') && host.is_address() || host.as_str().bytes().all(allowed));
                prop_assert!(host.as_str().len() <= MAX_HOST && !host.as_str().ends_with('.'));
            }
        }
    }
}
