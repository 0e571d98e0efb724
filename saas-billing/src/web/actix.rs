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

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use actix_web::{
    HttpRequest, HttpResponse, Resource,
    body::{BodySize, BoxBody, MessageBody},
    http::{StatusCode, header::ALLOW},
    web,
};
use futures_util::StreamExt as _;

use super::Answer;
use crate::{SIGNATURE_HEADER, WebhookProcessor};

/// Accepts deliveries at `path`, and nothing but POST.
#[must_use]
pub fn endpoint(path: &str, processor: Arc<dyn WebhookProcessor>) -> Resource {
    web::resource(path).to(move |request: HttpRequest, mut payload: web::Payload| {
        let processor = Arc::clone(&processor);
        async move { respond(answer(&*processor, &request, &mut payload).await, payload) }
    })
}

#[expect(clippy::future_not_send, reason = "actix-web keeps a request on one thread")]
async fn answer(processor: &dyn WebhookProcessor, request: &HttpRequest, payload: &mut web::Payload) -> Answer {
    if request.method() != actix_web::http::Method::POST {
        return Answer::wrong_method();
    }
    let deadline = processor.body_deadline();
    let Ok(read) = actix_web::rt::time::timeout(deadline, read(payload, processor.body_limit())).await else {
        return Answer::too_slow(deadline);
    };
    let body = match read {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let signature = request.headers().get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    processor.process(&body, signature).await.into()
}

#[expect(clippy::future_not_send, reason = "actix-web keeps a request on one thread")]
async fn read(payload: &mut web::Payload, limit: usize) -> Result<web::BytesMut, Answer> {
    let mut body = web::BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let Ok(chunk) = chunk else { return Err(Answer::cut_off()) };
        if body.len().saturating_add(chunk.len()) > limit {
            return Err(Answer::too_large(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn respond(Answer { status, allow, closes }: Answer, payload: web::Payload) -> HttpResponse<BoxBody> {
    let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    if let Some(allow) = allow {
        response.insert_header((ALLOW, allow));
    }
    if closes {
        response.force_close();
    }
    response.message_body(BoxBody::new(Held(payload))).unwrap_or_else(|_| HttpResponse::InternalServerError().finish())
}

/// An empty body that lets go of the request's when it is sent. actix-web waits without end for the rest of a chunked body that
/// was let go of before the answer, and closes the connection on one that was not.
struct Held(#[expect(dead_code, reason = "it is dropped in time")] web::Payload);

impl MessageBody for Held {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(0)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<web::Bytes, Infallible>>> {
        Poll::Ready(None)
    }
}
