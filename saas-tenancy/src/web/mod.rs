//! Thin adapters of [`resolve`](crate::resolve) for web frameworks: they carry a request in and a context or a refusal out.
//!
//! Your sign-in puts [`SignedIn`](crate::resolve::SignedIn), and [`Claims`](crate::resolve::Claims) if there are any, into
//! the request's extensions; the adapter puts the [`RequestContext`](saas_core::RequestContext) there, and runs the rest of
//! the request in its [span](saas_core::trace::span). All adapters answer alike.

use saas_core::ErrorKind;
use serde_json::json;

use crate::{TenancyError, resolve::ResolveError};

#[cfg(feature = "actix")]
pub mod actix;
#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "tower")]
pub mod tower;

/// The answer to a request that was not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// Header names, in lower case, and values.
    pub headers: Vec<(&'static str, &'static str)>,
    /// A JSON object with `code` and `message`.
    pub body: String,
}

impl From<&ResolveError> for Refusal {
    /// Logs what an operator can mend: this is where such an error ends.
    fn from(error: &ResolveError) -> Self {
        let kind = error.kind();
        let status = kind.http_status();
        // A shared cache must not answer one person with what another one was told.
        let mut headers = vec![("content-type", "application/json"), ("cache-control", "no-store")];
        if kind == ErrorKind::Unauthenticated {
            headers.push(("www-authenticate", "Bearer"));
        }
        if error.is_retryable() {
            headers.push(("retry-after", "1"));
        }
        let message = if status < 500 { error.to_string() } else { "try again later".to_owned() };
        // A tenant that may not be entered for now is no fault.
        if matches!(error, ResolveError::Tenancy(TenancyError::Core(_))) {
            tracing::error!(target: "saas.web", error = error as &dyn std::error::Error, code = error.code(), "no tenant for a request");
        }
        Self { status, headers, body: json!({ "code": error.code(), "message": message }).to_string() }
    }
}

/// The answer where a handler asks for a tenant that no adapter resolved: a fault of the set-up.
#[cfg(any(feature = "axum", feature = "actix"))]
pub(crate) fn not_resolved(remedy: &'static str) -> Refusal {
    tracing::error!(target: "saas.web", remedy, "a handler asks for a tenant that nothing resolved");
    let body = json!({ "code": "misconfigured", "message": "try again later" }).to_string();
    Refusal { status: 500, headers: vec![("content-type", "application/json"), ("cache-control", "no-store")], body }
}

#[cfg(test)]
mod tests {
    use saas_core::CoreError;

    use super::*;

    #[test]
    fn what_went_wrong_inside_is_not_for_the_client() {
        let inside = CoreError::Misconfigured { what: "role `saas_app` is secret".into(), remedy: "none".into() };
        let refusal = Refusal::from(&ResolveError::Tenancy(TenancyError::Core(inside)));
        assert_eq!((refusal.status, refusal.body.contains("secret")), (500, false));
        let down = CoreError::Unavailable { cause: "connection refused by 10.0.0.7".into() };
        let refusal = Refusal::from(&ResolveError::Tenancy(TenancyError::Core(down)));
        assert_eq!((refusal.status, refusal.body.contains("10.0.0.7")), (503, false));
        assert!(refusal.headers.contains(&("retry-after", "1")));
    }

    #[test]
    fn a_refusal_is_json_that_no_cache_keeps() {
        let refusal = Refusal::from(&ResolveError::Unknown);
        assert_eq!(refusal.status, 404);
        assert_eq!(refusal.body, r#"{"code":"unknown_tenant","message":"no such tenant"}"#);
        assert_eq!(refusal.headers, [("content-type", "application/json"), ("cache-control", "no-store")]);
        assert!(Refusal::from(&ResolveError::NotSignedIn).headers.contains(&("www-authenticate", "Bearer")));
    }
}
