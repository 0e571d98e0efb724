//! The middleware and the extractor for actix-web.
//!
//! ```no_run
//! # use saas_tenancy::{resolve::Entrance, web::actix::{Tenant, enter}};
//! use actix_web::{App, middleware::from_fn, web};
//!
//! # async fn projects(_: Tenant) -> &'static str { "" }
//! # fn example(entrance: Entrance) {
//! let app = App::new().service(
//!     web::scope("")
//!         .app_data(entrance)
//!         .wrap(from_fn(enter)) // inside of what signs people in, which is wrapped later
//!         .route("/projects", web::get().to(projects)),
//! );
//! # }
//! ```

use std::{
    future::{Ready, ready},
    ops::Deref,
};

use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{StatusCode, header::HeaderMap},
    middleware::Next,
};
use saas_core::{RequestContext, trace};
use tracing::Instrument as _;

use super::{Refusal, not_resolved};
use crate::resolve::{Claims, Entrance, Header, Headers, RequestView, SignedIn};

/// Resolves the tenant of every request before the inner service sees it, with the [`Entrance`] in the app's data.
///
/// # Errors
/// Those of the inner service; a request that is not let in is answered.
#[expect(clippy::future_not_send, reason = "actix-web keeps a request on one thread")]
pub async fn enter<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let Some(entrance) = request.app_data::<Entrance>().cloned() else {
        return Err(not_resolved("put an Entrance into the app_data of the scope").into());
    };
    let (person, claims) = {
        let extensions = request.extensions();
        (extensions.get::<SignedIn>().copied(), extensions.get::<Claims>().cloned())
    };
    let view = RequestView::new(request.uri().path(), request.headers())
        .with_authority(request.uri().authority().map(|authority| authority.as_str()))
        .with_claims(claims.as_ref());
    match entrance.resolve(&view, person).await {
        Err(error) => Ok(request.into_response(Refusal::from(&error).error_response()).map_into_right_body()),
        Ok(resolved) => {
            let span = trace::span(&resolved.ctx);
            request.extensions_mut().insert(resolved.ctx);
            Ok(next.call(request).instrument(span).await?.map_into_left_body())
        }
    }
}

/// The tenant of the request, as an argument of a handler: `async fn projects(tenant: Tenant)`.
///
/// Dereferences to the [`RequestContext`]. In a scope without [`enter`] the handler is not run, and the answer is a 500.
#[derive(Debug, Clone)]
pub struct Tenant(pub RequestContext);

impl Deref for Tenant {
    type Target = RequestContext;

    fn deref(&self) -> &RequestContext {
        &self.0
    }
}

impl FromRequest for Tenant {
    type Error = Refusal;
    type Future = Ready<Result<Self, Refusal>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let ctx = request.extensions().get::<RequestContext>().cloned();
        ready(ctx.map(Self).ok_or_else(|| not_resolved("wrap the scope in `enter`")))
    }
}

impl Headers for HeaderMap {
    fn header(&self, name: &str) -> Header<'_> {
        Header::of(self.get_all(name).map(|value| value.to_str().ok()))
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status_code());
        for header in &self.headers {
            response.insert_header(*header);
        }
        response.body(self.body.clone())
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.body)
    }
}
