//! The endpoint as a resource of actix-web 4.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use saas_billing::WebhookProcessor;
//! use actix_web::App;
//! use saas_billing::web::actix::endpoint;
//!
//! # fn example(billing: Arc<dyn WebhookProcessor>) {
//! let app = App::new().service(endpoint("/webhooks/stripe", billing));
//! # }
//! ```
//!
//! Put nothing around it that reads or changes the body, such as a middleware that decompresses or signs people in.

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse, Resource,
    body::BoxBody,
    http::{StatusCode, header::ALLOW},
    web,
};
use futures_util::StreamExt as _;

use super::Answer;
use crate::{SIGNATURE_HEADER, WebhookProcessor};

/// Accepts deliveries at `path`, and nothing but POST.
#[must_use]
pub fn endpoint(path: &str, processor: Arc<dyn WebhookProcessor>) -> Resource {
    web::resource(path).to(move |request: HttpRequest, payload: web::Payload| {
        let processor = Arc::clone(&processor);
        async move { respond(answer(&*processor, &request, payload).await) }
    })
}

#[expect(clippy::future_not_send, reason = "actix-web keeps a request on one thread")]
async fn answer(processor: &dyn WebhookProcessor, request: &HttpRequest, mut payload: web::Payload) -> Answer {
    if request.method() != actix_web::http::Method::POST {
        return Answer::wrong_method();
    }
    let limit = processor.body_limit();
    let mut body = web::BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let Ok(chunk) = chunk else { return Answer::cut_off() };
        if body.len().saturating_add(chunk.len()) > limit {
            return Answer::too_large(limit);
        }
        body.extend_from_slice(&chunk);
    }
    let signature = request.headers().get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    processor.process(&body, signature).await.into()
}

fn respond(Answer { status, allow }: Answer) -> HttpResponse<BoxBody> {
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    if let Some(allow) = allow {
        response.insert_header((ALLOW, allow));
    }
    response.finish()
}
