//! A layer for tower: axum, tonic, hyper.
//!
//! In axum, put it on the router that has the tenant's routes, outside of any `nest`: nesting cuts the path that
//! [`Resolver::path`](crate::resolve::Resolver::path) reads.
//!
//! ```no_run
//! # use saas_tenancy::{resolve::Entrance, web::tower::TenantLayer};
//! # fn example(entrance: Entrance) {
//! let layer = TenantLayer::new(entrance); // Router::new().route("/projects", get(projects)).layer(layer)
//! # }
//! ```

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::HeaderName};
use saas_core::trace;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument as _;

use super::Refusal;
use crate::resolve::{Claims, Entrance, Header, Headers, RequestView, SignedIn};

/// Resolves the tenant of every request before the inner service sees it.
#[derive(Debug, Clone)]
pub struct TenantLayer(Entrance);

impl TenantLayer {
    /// A layer before which the adopter's sign-in has put [`SignedIn`] into the extensions.
    #[must_use]
    pub const fn new(entrance: Entrance) -> Self {
        Self(entrance)
    }
}

impl<S> Layer<S> for TenantLayer {
    type Service = TenantService<S>;

    fn layer(&self, inner: S) -> TenantService<S> {
        TenantService { entrance: self.0.clone(), inner }
    }
}

/// What [`TenantLayer`] makes of a service.
#[derive(Debug, Clone)]
pub struct TenantService<S> {
    entrance: Entrance,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for TenantService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: From<String>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call; its clone takes its place.
        let next = self.inner.clone();
        let (mut inner, entrance) = (mem::replace(&mut self.inner, next), self.entrance.clone());
        let (mut parts, body) = request.into_parts();
        Box::pin(async move {
            let view = RequestView::new(parts.uri.path(), &parts.headers)
                .with_authority(parts.uri.authority().map(http::uri::Authority::as_str))
                .with_claims(parts.extensions.get::<Claims>());
            let resolved = entrance.resolve(&view, parts.extensions.get::<SignedIn>().copied()).await;
            match resolved {
                Err(error) => Ok(Refusal::from(&error).into()),
                Ok(resolved) => {
                    let span = trace::span(&resolved.ctx);
                    parts.extensions.insert(resolved.ctx);
                    inner.call(Request::from_parts(parts, body)).instrument(span).await
                }
            }
        })
    }
}

impl Headers for HeaderMap {
    fn header(&self, name: &str) -> Header<'_> {
        Header::of(self.get_all(name).iter().map(|value| value.to_str().ok()))
    }
}

impl<R: From<String>> From<Refusal> for Response<R> {
    fn from(refusal: Refusal) -> Self {
        let mut response = Self::new(R::from(refusal.body));
        *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in refusal.headers {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    }
}
