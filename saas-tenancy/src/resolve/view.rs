//! A request as resolution sees it, whatever the web framework.

use std::{fmt, sync::Arc};

use saas_core::UserId;
use serde_json::{Map, Value};

/// One header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header<'a> {
    /// It did not come.
    Absent,
    /// It came once, as text.
    Once(&'a str),
    /// It came more than once, or holds bytes that are no visible ASCII. Different readers would take different values
    /// for it, so none is taken.
    Unclear,
}

impl<'a> Header<'a> {
    /// Makes one of all the values under a name; `None` stands for a value that is no text.
    pub fn of(mut values: impl Iterator<Item = Option<&'a str>>) -> Self {
        match (values.next(), values.next()) {
            (None, _) => Self::Absent,
            (Some(Some(value)), None) => Self::Once(value),
            (Some(_), _) => Self::Unclear,
        }
    }
}

/// The headers of a request.
///
/// # Contract
/// - *Names* are asked for in lower case and match in any.
/// - *All values* under the name are looked at: [`Header::of`].
pub trait Headers: Sync {
    /// The header of that name.
    fn header(&self, name: &str) -> Header<'_>;
}

/// Name and value pairs, for tests and for frameworks without an adapter.
impl Headers for &[(&str, &str)] {
    fn header(&self, name: &str) -> Header<'_> {
        let named = self.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        Header::of(named.map(|(_, value)| Some(*value)))
    }
}

/// What an identity provider said about the signed-in user, *after* signature, issuer, audience and expiry were checked.
///
/// The foundation verifies no tokens: implement this over the claims of your JWT library, or hand over a JSON object of
/// them. Never make one from a token that was only decoded.
pub trait VerifiedClaims: fmt::Debug + Send + Sync + 'static {
    /// The text under a name; `None` when there is none or it is no text.
    fn claim(&self, name: &str) -> Option<&str>;
}

impl VerifiedClaims for Map<String, Value> {
    fn claim(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }
}

/// The verified claims of a request. Put it into the request's extensions beside [`SignedIn`].
#[derive(Debug, Clone)]
pub struct Claims(pub Arc<dyn VerifiedClaims>);

/// The signed-in user of a request, as the adopter's sign-in established it. Put it into the request's extensions; no
/// adapter reads credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedIn(pub UserId);

/// What resolution reads of a request.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    pub(crate) path: &'a str,
    pub(crate) headers: &'a dyn Headers,
    pub(crate) authority: Option<&'a str>,
    pub(crate) claims: Option<&'a dyn VerifiedClaims>,
}

impl<'a> RequestView<'a> {
    /// A request for `path`: as it came, not decoded, without the query.
    #[must_use]
    pub const fn new(path: &'a str, headers: &'a dyn Headers) -> Self {
        Self { path, headers, authority: None, claims: None }
    }

    /// Adds the authority of the request line (`:authority` in HTTP/2). It must name the same host as a `Host` header.
    #[must_use]
    pub const fn with_authority(mut self, authority: Option<&'a str>) -> Self {
        self.authority = authority;
        self
    }

    /// Adds what the identity provider said.
    #[must_use]
    pub fn with_claims(mut self, claims: Option<&'a Claims>) -> Self {
        self.claims = claims.map(|claims| &*claims.0);
        self
    }
}

impl fmt::Debug for RequestView<'_> {
    /// No headers: they hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestView")
            .field("path", &self.path)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}
