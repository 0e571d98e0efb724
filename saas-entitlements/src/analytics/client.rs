//! An HTTP client for sinks, without TLS of its own.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connect, HttpConnector},
    },
    rt::TokioExecutor,
};
use saas_core::Cause;

use super::{HttpAnswer, HttpPost};

/// How much of an answer is kept.
const KEPT: usize = 1_024;

/// Posts over hyper. [`new`](Self::new) speaks plain HTTP, to a relay or a proxy that adds TLS;
/// [`with_connector`](Self::with_connector) takes the application's own TLS, such as the `HttpsConnector` of `hyper-rustls`:
/// ```
/// use hyper_util::client::legacy::connect::HttpConnector;
/// use saas_entitlements::analytics::client::HyperPost;
///
/// let connector = HttpConnector::new(); // or one that adds TLS
/// let http = HyperPost::with_connector(connector);
/// # drop(http);
/// ```
pub struct HyperPost<C = HttpConnector> {
    client: Client<C, Full<Bytes>>,
    deadline: Duration,
}

impl HyperPost {
    /// A client for `http://` addresses.
    #[must_use]
    pub fn new() -> Self {
        Self::with_connector(HttpConnector::new())
    }
}

impl Default for HyperPost {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> HyperPost<C> {
    /// A client over this connector, which decides about TLS. A request may take 30 seconds.
    #[must_use]
    pub fn with_connector(connector: C) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { client, deadline: Duration::from_secs(30) }
    }

    /// Gives a request up after this long.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<HttpAnswer, Cause> {
        let mut answer = self.client.request(request).await?;
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.map(str::to_owned);
        let mut body = Vec::new();
        // What is said after the status is for people: where it breaks off, the status still is the answer.
        while let Some(Ok(frame)) = answer.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            body.extend_from_slice(data.get(..KEPT - body.len()).unwrap_or(&data));
            if body.len() == KEPT {
                break;
            }
        }
        Ok(HttpAnswer { status, retry_after, body })
    }
}

impl<C> fmt::Debug for HyperPost<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperPost").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

#[async_trait]
impl<C: Connect + Clone + Send + Sync + 'static> HttpPost for HyperPost<C> {
    async fn post(&self, url: &str, body: Vec<u8>) -> Result<HttpAnswer, Cause> {
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("saas-entitlements/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))?;
        match tokio::time::timeout(self.deadline, self.ask(request)).await {
            Ok(answer) => answer,
            Err(late) => Err(late.into()),
        }
    }
}
