//! Which parts of a request name its tenant.

use saas_core::{InvalidInput, Slug, TenantId};
use uuid::Uuid;

use super::{Header, Host, RequestView, ResolveError};
use crate::domain::DomainName;

/// The most sources that one resolver may have.
const MAX_SOURCES: usize = 8;

/// Where in a request its tenant is named. All sources are read, and all that name a tenant must name the same one:
/// whoever is signed in to one tenant and opens the address of another meets no tenant at all.
///
/// ```
/// use saas_tenancy::resolve::Resolver;
///
/// let resolver = Resolver::subdomain("example.com")
///     .with_reserved(["status-page"])
///     .or(Resolver::custom_domain())
///     .or(Resolver::header("x-tenant"));
/// # let _ = resolver;
/// ```
///
/// What is wrong with a resolver is said where it is put to use: [`Entrance::new`](super::Entrance::new).
#[derive(Debug, Clone)]
#[must_use]
pub struct Resolver {
    sources: Vec<Source<String>>,
    reserved: Vec<String>,
    own_hosts: Vec<String>,
    trust_forwarded_host: bool,
}

/// One place; `H` is a host, as text or checked.
#[derive(Debug, Clone)]
enum Source<H> {
    Subdomain(H),
    CustomDomain,
    /// As text `/t/{tenant}`; checked, what stands before the tenant.
    Path(String),
    Header(String),
    Claim(String),
}

impl Resolver {
    /// The slug before a base domain: `acme.example.com` under `example.com`.
    ///
    /// The base itself and reserved names (those that [no slug can be](Slug::is_reserved), and
    /// [`with_reserved`](Self::with_reserved)) are the vendor's own and name nobody. A name with a further dot is refused.
    pub fn subdomain(base: impl Into<String>) -> Self {
        Self::of(Source::Subdomain(base.into()))
    }

    /// A tenant's own domain, once its owner has shown that it is theirs: see [`Domains`](crate::domain::Domains).
    ///
    /// Addresses, the base domains of [`subdomain`](Self::subdomain) and [own hosts](Self::with_own_host) name nobody; any
    /// other host that no tenant has is unknown, whatever the other sources say.
    pub fn custom_domain() -> Self {
        Self::of(Source::CustomDomain)
    }

    /// A segment of the path: slug or tenant id after a fixed beginning, such as `/t/{tenant}`.
    pub fn path(pattern: impl Into<String>) -> Self {
        Self::of(Source::Path(pattern.into()))
    }

    /// A header with a slug or a tenant id, sent once.
    pub fn header(name: impl Into<String>) -> Self {
        Self::of(Source::Header(name.into()))
    }

    /// A claim with a slug or a tenant id, from [verified claims](super::VerifiedClaims).
    pub fn claim(name: impl Into<String>) -> Self {
        Self::of(Source::Claim(name.into()))
    }

    fn of(source: Source<String>) -> Self {
        Self { sources: vec![source], reserved: Vec::new(), own_hosts: Vec::new(), trust_forwarded_host: false }
    }

    /// Reads another resolver's sources too.
    pub fn or(mut self, other: Self) -> Self {
        self.sources.extend(other.sources);
        self.reserved.extend(other.reserved);
        self.own_hosts.extend(other.own_hosts);
        self.trust_forwarded_host |= other.trust_forwarded_host;
        self
    }

    /// Reserves further sub-domains for the vendor. A tenant with such a slug cannot be reached by sub-domain.
    pub fn with_reserved<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.reserved.extend(names.into_iter().map(Into::into));
        self
    }

    /// Names a host of the vendor's own, such as `localhost`, that is nobody's custom domain.
    pub fn with_own_host(mut self, host: impl Into<String>) -> Self {
        self.own_hosts.push(host.into());
        self
    }

    /// Believes `X-Forwarded-Host`, where there is one, instead of `Host`. Only behind a proxy that always sets or removes
    /// it: otherwise every client chooses its host.
    pub const fn trusting_forwarded_host(mut self) -> Self {
        self.trust_forwarded_host = true;
        self
    }

    /// Checks everything that the resolver was made from.
    pub(super) fn check(self) -> Result<Rules, InvalidInput> {
        if self.sources.len() > MAX_SOURCES {
            return Err(InvalidInput::new("resolver", "has more than 8 sources", "leave some out"));
        }
        let sources = self.sources.into_iter().map(Source::check).collect::<Result<Vec<_>, _>>()?;
        let own_hosts = self.own_hosts.iter().map(|host| Host::name(host)).collect::<Result<Vec<_>, _>>()?;
        let reserved = self.reserved.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Ok(Rules { sources, reserved, own_hosts, trust_forwarded_host: self.trust_forwarded_host })
    }
}

impl Source<String> {
    fn check(self) -> Result<Source<Host>, InvalidInput> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        Ok(match self {
            Self::Subdomain(base) => {
                Source::Subdomain(Host::name(&base).ok().filter(|h| !h.is_address()).ok_or_else(|| {
                    InvalidInput::new("base domain", "is not a host name", "pass one such as example.com, without *.")
                })?)
            }
            Self::CustomDomain => Source::CustomDomain,
            Self::Path(pattern) => match pattern.strip_suffix("{tenant}") {
                Some(front)
                    if front.starts_with('/') && front.ends_with('/') && !front.contains(['{', '}', '?', '#']) =>
                {
                    Source::Path(front.to_owned())
                }
                Some(_) | None => {
                    return Err(InvalidInput::new("path pattern", "does not fit", "pass one such as /t/{tenant}"));
                }
            },
            Self::Header(name) if !name.is_empty() && name.bytes().all(is_token) => {
                Source::Header(name.to_ascii_lowercase())
            }
            Self::Header(_) => {
                return Err(InvalidInput::new("header name", "is not one", "pass one such as x-tenant"));
            }
            Self::Claim(name) => Source::Claim(name),
        })
    }
}

/// How a request calls a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Id(TenantId),
    Slug(Slug),
    Domain(DomainName),
}

impl Name {
    /// A tenant id in its usual form (no slug looks like one), or a slug.
    fn parse(text: &str) -> Option<Self> {
        const HYPHENATED: usize = 36;
        match Uuid::try_parse(text) {
            Ok(id) => (text.len() == HYPHENATED).then(|| Self::Id(TenantId::from_uuid(id))),
            Err(_) => text.parse().ok().map(Self::Slug),
        }
    }
}

/// What one source says.
enum Said {
    Nothing,
    Tenant(Name),
    /// It is there and can be no tenant's name.
    Nonsense,
}

impl From<Option<Name>> for Said {
    fn from(name: Option<Name>) -> Self {
        name.map_or(Self::Nonsense, Self::Tenant)
    }
}

/// A resolver that was checked.
#[derive(Debug)]
pub(super) struct Rules {
    sources: Vec<Source<Host>>,
    reserved: Vec<String>,
    own_hosts: Vec<Host>,
    trust_forwarded_host: bool,
}

impl Rules {
    /// The different names that a request gives its tenant, at least one.
    ///
    /// # Errors
    /// `Unknown` when there is none, or one that can be no tenant's; `BadHost`.
    pub(super) fn read(&self, view: &RequestView<'_>) -> Result<Vec<Name>, ResolveError> {
        let mut names = Vec::new();
        for source in &self.sources {
            match self.ask(source, view)? {
                Said::Nothing => {}
                Said::Tenant(name) if names.contains(&name) => {}
                Said::Tenant(name) => names.push(name),
                Said::Nonsense => return Err(ResolveError::Unknown),
            }
        }
        if names.is_empty() { Err(ResolveError::Unknown) } else { Ok(names) }
    }

    fn ask(&self, source: &Source<Host>, view: &RequestView<'_>) -> Result<Said, ResolveError> {
        Ok(match source {
            Source::Subdomain(base) => self.subdomain(&self.host(view)?, base),
            Source::CustomDomain => self.custom_domain(&self.host(view)?),
            Source::Path(front) => match view.path.strip_prefix(front.as_str()) {
                None => Said::Nothing,
                Some(rest) => Name::parse(rest.split('/').next().unwrap_or_default()).into(),
            },
            Source::Header(name) => match view.headers.header(name) {
                Header::Absent => Said::Nothing,
                Header::Once(text) => Name::parse(text).into(),
                Header::Unclear => Said::Nonsense,
            },
            Source::Claim(name) => match view.claims.and_then(|claims| claims.claim(name)) {
                None => Said::Nothing,
                Some(text) => Name::parse(text).into(),
            },
        })
    }

    fn subdomain(&self, host: &Host, base: &Host) -> Said {
        match host.under(base) {
            None | Some("") => Said::Nothing,
            Some(front) if Slug::is_reserved(front) || self.reserved.iter().any(|name| name == front) => Said::Nothing,
            Some(front) => front.parse().ok().map(Name::Slug).into(),
        }
    }

    fn custom_domain(&self, host: &Host) -> Said {
        let under_a_base = self.sources.iter().any(|source| match source {
            Source::Subdomain(base) => host.under(base).is_some(),
            Source::CustomDomain | Source::Path(_) | Source::Header(_) | Source::Claim(_) => false,
        });
        if host.is_address() || under_a_base || self.own_hosts.contains(host) {
            return Said::Nothing;
        }
        DomainName::try_from(host).ok().map(Name::Domain).into()
    }

    /// The one host that the request names.
    fn host(&self, view: &RequestView<'_>) -> Result<Host, ResolveError> {
        let read = |name| match view.headers.header(name) {
            Header::Absent => Ok(None),
            Header::Once(text) => Host::parse(text).map(Some).map_err(ResolveError::BadHost),
            Header::Unclear => Err(bad_host("came more than once or is no text")),
        };
        if self.trust_forwarded_host
            && let Some(host) = read("x-forwarded-host")?
        {
            return Ok(host);
        }
        let authority = view.authority.map(Host::parse).transpose().map_err(ResolveError::BadHost)?;
        match (authority, read("host")?) {
            (Some(one), Some(other)) if one != other => Err(bad_host("is not that of the request line")),
            (Some(host), _) | (None, Some(host)) => Ok(host),
            (None, None) => Err(bad_host("is missing")),
        }
    }
}

fn bad_host(why: &'static str) -> ResolveError {
    ResolveError::BadHost(InvalidInput::new("host", why, "send one Host header"))
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
