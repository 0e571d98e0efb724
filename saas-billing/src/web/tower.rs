//! The endpoint as a tower service: for axum, hyper, and whatever else takes one.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use saas_billing::{WebhookProcessor, web::tower::WebhookEndpoint};
//! # fn example(billing: Arc<dyn WebhookProcessor>) {
//! let endpoint = WebhookEndpoint::new(billing);
//! // axum: Router::new().route_service("/webhooks/stripe", endpoint)
//! # }
//! ```
//!
//! Put nothing around it that reads or changes the body, such as a layer that decompresses or signs people in. It needs
//! tokio's clock, for the body's deadline.

use std::{
    convert::Infallible,
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes},
    header::{ALLOW, CONNECTION, HeaderValue},
};
use tower_service::Service;

use super::Answer;
use crate::{SIGNATURE_HEADER, WebhookProcessor};

/// Accepts deliveries, and nothing but POST.
#[derive(Debug, Clone)]
pub struct WebhookEndpoint {
    processor: Arc<dyn WebhookProcessor>,
}

impl WebhookEndpoint {
    /// The endpoint of a processor.
    #[must_use]
    pub const fn new(processor: Arc<dyn WebhookProcessor>) -> Self {
        Self { processor }
    }

    async fn answer<B>(self, request: Request<B>) -> Answer
    where
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send,
    {
        if request.method() != Method::POST {
            return Answer::wrong_method();
        }
        let (limit, deadline) = (self.processor.body_limit(), self.processor.body_deadline());
        let (head, body) = request.into_parts();
        let Ok(read) = tokio::time::timeout(deadline, Limited::new(body, limit).collect()).await else {
            return Answer::too_slow(deadline);
        };
        let body = match read {
            Ok(body) => body.to_bytes(),
            Err(why) if why.is::<LengthLimitError>() => return Answer::too_large(limit),
            Err(_) => return Answer::cut_off(),
        };
        let signature = head.headers.get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.processor.process(&body, signature).await.into()
    }
}

impl<B> Service<Request<B>> for WebhookEndpoint
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answered = self.clone().answer(request);
        Box::pin(async move {
            let Answer { status, allow, closes } = answered.await;
            let mut response = Response::new(Empty::new());
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            if let Some(allow) = allow {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
            }
            if closes {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        })
    }
}
