//! The door over HTTP: Stripe's API and a few pages on a port of the loopback.

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::{BodyExt, Limited, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use saas_core::InvalidInput;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    api::{ApiRequest, ApiResponse, Manner},
    pages,
    simulator::StripeSimulator,
};
use crate::provider::WebAddress;

/// The largest request that is read.
const MAX_REQUEST: usize = 1024 * 1024;

type Body = BoxBody<Bytes, Infallible>;

/// A simulator behind a port, until it is dropped.
///
/// Speaks Stripe's API under `/v1/` and `/v2/`, and shows the pages that sessions lead to: paying, the portal, an invoice. They are
/// plain forms, for a person or a test's browser.
pub struct SimulatorServer {
    address: WebAddress,
    accepting: JoinHandle<()>,
}

impl SimulatorServer {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(simulator: Arc<StripeSimulator>) -> io::Result<Self> {
        Self::listen(simulator, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Listens on this address.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn listen(simulator: Arc<StripeSimulator>, at: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let text = format!("http://{}", listener.local_addr()?);
        let address = WebAddress::try_from(text).map_err(|why: InvalidInput| io::Error::other(why.to_string()))?;
        simulator.set_address(address.as_str());
        let accepting = tokio::spawn(accept(listener, simulator));
        Ok(Self { address, accepting })
    }

    /// Where it listens, as [`with_address`](crate::stripe::StripeConfig::with_address) takes it.
    #[must_use]
    pub const fn address(&self) -> &WebAddress {
        &self.address
    }
}

impl Drop for SimulatorServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl fmt::Debug for SimulatorServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatorServer").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, simulator: Arc<StripeSimulator>) {
    // Connections end with the server: what hangs in one is dropped with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let simulator = Arc::clone(&simulator);
                let service = service_fn(move |request| serve(Arc::clone(&simulator), request));
                let connection =
                    http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(connection.await) });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve(simulator: Arc<StripeSimulator>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_REQUEST).collect().await;
    let body = body.map_err(|_| io::Error::other("a request that is too large or was cut off"))?.to_bytes();
    let path = head.uri.path();
    if !path.starts_with("/v1/") && !path.starts_with("/v2/") {
        return Ok(page(pages::handle(&simulator, head.method.as_str(), path, &body)));
    }
    let header = |name: &str| text(&head.headers, name);
    let request = ApiRequest {
        method: head.method.as_str().to_owned(),
        path: path.to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body: body.to_vec(),
        authorization: header(AUTHORIZATION.as_str()),
        idempotency_key: header("idempotency-key"),
        version: header("stripe-version"),
    };
    let (response, manner) = simulator.answer(&request);
    let mut response = match manner {
        Manner::Whole => whole(response),
        Manner::Cut => return Err(io::Error::other("cut")),
        Manner::Silent => std::future::pending().await,
        Manner::Stuck => stuck(response),
    };
    // By its own clock: whoever reads an object dates it by this, and its events have that clock's seconds.
    let date = simulator.now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(date) = HeaderValue::try_from(date) {
        response.headers_mut().insert(DATE, date);
    }
    Ok(response)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn head(response: &ApiResponse) -> hyper::http::response::Builder {
    let mut builder = Response::builder().status(response.status).header(CONTENT_TYPE, "application/json");
    if response.replayed {
        builder = builder.header("idempotent-replayed", "true");
    }
    if let Some(seconds) = response.retry_after {
        builder = builder.header(RETRY_AFTER, seconds);
    }
    builder
}

fn whole(response: ApiResponse) -> Response<Body> {
    let builder = head(&response);
    built(builder.body(full(response.body)))
}

/// The first half, and then nothing for ever.
fn stuck(response: ApiResponse) -> Response<Body> {
    let builder = head(&response);
    let half = Bytes::copy_from_slice(response.body.split_at(response.body.len() / 2).0);
    built(builder.body(Half(Some(half)).boxed()))
}

/// A body that does not end.
struct Half(Option<Bytes>);

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Nobody is woken again: whoever reads this gives up by itself.
        self.0.take().map_or(Poll::Pending, |half| Poll::Ready(Some(Ok(Frame::data(half)))))
    }
}

fn page(page: pages::Page) -> Response<Body> {
    let mut builder = Response::builder().status(page.status).header(CONTENT_TYPE, "text/html; charset=utf-8");
    if let Some(location) = page.location {
        builder = builder.header(LOCATION, location);
    }
    built(builder.body(full(page.html.into_bytes())))
}

fn full(bytes: Vec<u8>) -> Body {
    http_body_util::Full::new(Bytes::from(bytes)).boxed()
}

/// What does not fit into a header is a mistake of the scenario, which sees a 500.
fn built(response: Result<Response<Body>, hyper::http::Error>) -> Response<Body> {
    response.unwrap_or_else(|_| {
        let mut response = Response::new(full(Vec::new()));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
