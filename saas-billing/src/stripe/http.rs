//! One try over HTTP.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use saas_core::{Cause, IdempotencyKey, InvalidInput};
use secrecy::ExposeSecret;

use super::{answer::Answer, call::Call, config::StripeConfig, key::Present};
use crate::provider::WebAddress;

/// The largest answer that is read: a page of a hundred large invoices has a few megabytes.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below what load balancers keep an idle connection for.
const IDLE: Duration = Duration::from_secs(50);

#[cfg(feature = "stripe-rustls-ring")]
type Connector = hyper_rustls::HttpsConnector<HttpConnector>;
#[cfg(not(feature = "stripe-rustls-ring"))]
type Connector = HttpConnector;

/// Why there was no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// Nothing was sent.
    NotSent(Cause),
    /// Something was sent, and may have been received.
    NoAnswer(Cause),
}

/// The connections to Stripe.
#[derive(Debug)]
pub(super) struct Http {
    client: Client<Connector, Full<Bytes>>,
    base: String,
    /// Of the stream of readings.
    stream: String,
    version: HeaderValue,
    account: Option<HeaderValue>,
}

/// What an answer says beside its meaning.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) answer: Answer,
    /// Stripe's clock.
    pub(super) date: Option<DateTime<Utc>>,
}

impl Http {
    pub(super) fn new(config: &StripeConfig) -> Result<Self, InvalidInput> {
        let base = config.address.as_ref().map_or("https://api.stripe.com", WebAddress::as_str);
        let base = base.trim_end_matches('/').to_owned();
        let stream = config.stream_address.as_ref().or(config.address.as_ref());
        let stream = stream.map_or("https://meter-events.stripe.com", WebAddress::as_str);
        let stream = stream.trim_end_matches('/').to_owned();
        let is_tls = cfg!(feature = "stripe-rustls-ring");
        if [&base, &stream].iter().any(|address| address.starts_with("https://")) && !is_tls {
            return Err(InvalidInput::new(
                "the address of Stripe",
                "needs TLS, and none was compiled in",
                "switch on the feature stripe-rustls-ring",
            ));
        }
        let text = |what: &'static str, text: &str| {
            HeaderValue::try_from(text)
                .map_err(|_| InvalidInput::new(what, "does not fit into a header", "pass visible ASCII"))
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector()?);
        Ok(Self {
            client,
            base,
            stream,
            version: text("the API version", &config.version)?,
            account: config.account.as_ref().map(|id| text("the connected account", id.as_str())).transpose()?,
        })
    }

    /// Sends once and reads the whole answer, within `timeout`.
    pub(super) async fn send(
        &self,
        call: &Call,
        key: Option<&IdempotencyKey>,
        present: &Present,
        timeout: Duration,
    ) -> Result<Heard, Silence> {
        let request = self.request(call, key, present).map_err(Silence::NotSent)?;
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(heard) => heard,
            // It may have been the connecting that took so long; that it was is not worth the difference.
            Err(_) => Err(Silence::NoAnswer(format!("no answer within {timeout:?}").into())),
        }
    }

    fn request(
        &self,
        call: &Call,
        key: Option<&IdempotencyKey>,
        present: &Present,
    ) -> Result<Request<Full<Bytes>>, Cause> {
        let (base, bearer) = match &call.session {
            Some(token) => (&self.stream, format!("Bearer {}", token.expose_secret())),
            None => (&self.base, present.bearer()),
        };
        let mut bearer = HeaderValue::try_from(bearer)?;
        bearer.set_sensitive(true);
        let mut request = Request::builder()
            .method(call.verb.as_str())
            .uri(format!("{base}{}", call.target()))
            .header(AUTHORIZATION, bearer)
            .header(USER_AGENT, concat!("saas-billing/", env!("CARGO_PKG_VERSION")))
            .header("stripe-version", &self.version);
        if let Some(account) = &self.account {
            request = request.header("stripe-account", account);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key.as_str());
        }
        let body = call.body();
        if call.json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        } else if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        Ok(request.body(Full::new(Bytes::from(body)))?)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Heard, Silence> {
        let response = self.client.request(request).await.map_err(|why| match why.is_connect() {
            true => Silence::NotSent(Box::new(why)),
            false => Silence::NoAnswer(Box::new(why)),
        })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = body(response).await.map_err(Silence::NoAnswer)?;
        let word = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let answer = Answer {
            status,
            replayed: word("idempotent-replayed") == Some("true"),
            should_retry: word("stripe-should-retry").and_then(|word| word.parse().ok()),
            retry_after: word(RETRY_AFTER.as_str()).and_then(|word| word.parse().ok()).map(Duration::from_secs),
            body,
        };
        Ok(Heard { answer, date: date(&headers) })
    }
}

async fn body(response: Response<Incoming>) -> Result<Vec<u8>, Cause> {
    let collected = Limited::new(response.into_body(), MAX_ANSWER).collect().await?;
    Ok(collected.to_bytes().to_vec())
}

fn date(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    let text = headers.get(DATE)?.to_str().ok()?;
    Some(DateTime::parse_from_rfc2822(text).ok()?.to_utc())
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    tcp
}

#[cfg(not(feature = "stripe-rustls-ring"))]
#[expect(clippy::unnecessary_wraps, reason = "with TLS it can fail")]
fn connector() -> Result<Connector, InvalidInput> {
    Ok(tcp())
}

/// The provider of cryptography is named: the process may have no default, or another library's.
#[cfg(feature = "stripe-rustls-ring")]
fn connector() -> Result<Connector, InvalidInput> {
    let mut tcp = tcp();
    tcp.enforce_http(false);
    let tls = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .map_err(|_| {
            InvalidInput::new(
                "the TLS provider",
                "has no usable protocol version",
                "look at the versions of rustls and ring",
            )
        })?;
    Ok(tls.https_or_http().enable_http1().wrap_connector(tcp))
}
