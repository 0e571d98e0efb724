//! The extractor for axum, behind [`TenantLayer`](super::tower::TenantLayer).

use std::ops::Deref;

use axum_core::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::request::Parts;
use saas_core::RequestContext;

use super::{Refusal, not_resolved};

/// The tenant of the request, as an argument of a handler: `async fn projects(tenant: Tenant)`.
///
/// Dereferences to the [`RequestContext`]. On a route without the layer the handler is not run, and the answer is a 500.
#[derive(Debug, Clone)]
pub struct Tenant(pub RequestContext);

impl Deref for Tenant {
    type Target = RequestContext;

    fn deref(&self) -> &RequestContext {
        &self.0
    }
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let ctx = parts.extensions.get::<RequestContext>().cloned();
        ctx.map(Self).ok_or_else(|| not_resolved("put a TenantLayer on the route"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.into()
    }
}
