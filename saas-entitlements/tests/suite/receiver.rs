//! A product analytics service on a loopback port: it keeps what it is sent and answers as it is told to.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    future::pending,
    io,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use saas_core::UsageEventId;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

/// What it does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Answers, having taken the events where the status is 200.
    Answer { status: u16, retry_after: Option<&'static str>, body: &'static str },
    /// Takes the events and closes the connection instead of answering.
    TakeAndCut,
    /// Takes the events, and closes the connection in the middle of the answer's body.
    TakeAndCutTheBody,
    /// Never answers.
    Nothing,
}

impl Does {
    pub(crate) fn say(status: u16) -> Self {
        Self::Answer { status, retry_after: None, body: "said so" }
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) content_type: String,
    pub(crate) bytes: usize,
    pub(crate) body: Value,
}

/// Refuses, for what is in it, a request of which this is true.
type Refuses = fn(&Value) -> bool;

#[derive(Default)]
struct State {
    /// What it does with the next requests; afterwards it takes everything.
    script: VecDeque<Does>,
    refuses: Option<Refuses>,
    received: Vec<Received>,
    /// How often each event counts: services know them by their ids.
    counted: BTreeMap<UsageEventId, usize>,
    taken: BTreeMap<UsageEventId, Value>,
}

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) base: String,
    state: Arc<Mutex<State>>,
    _serving: Arc<Serving>,
}

struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| serve(request, state.clone()));
                    // A connection that is cut is what the test wants.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { base, state, _serving: Arc::new(Serving(serving)) }
    }

    pub(crate) fn then(&self, does: impl IntoIterator<Item = Does>) {
        self.state.lock().unwrap().script.extend(does);
    }

    pub(crate) fn refuse(&self, refuses: Refuses) {
        self.state.lock().unwrap().refuses = Some(refuses);
    }

    /// The requests since this was asked last.
    pub(crate) fn received(&self) -> Vec<Received> {
        std::mem::take(&mut self.state.lock().unwrap().received)
    }

    pub(crate) fn counted(&self) -> BTreeMap<UsageEventId, usize> {
        self.state.lock().unwrap().counted.clone()
    }

    /// The events that it has, as they were sent, in the order of their ids.
    pub(crate) fn taken(&self) -> Vec<Value> {
        self.state.lock().unwrap().taken.values().cloned().collect()
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("base", &self.base).finish_non_exhaustive()
    }
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

async fn serve(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Answer, io::Error> {
    let path = request.uri().path().to_owned();
    let content_type = request.headers()["content-type"].to_str().unwrap().to_owned();
    let bytes = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    let does = {
        let mut state = state.lock().unwrap();
        state.received.push(Received { path, content_type, bytes: bytes.len(), body: body.clone() });
        let refused = state.refuses.is_some_and(|refuses| refuses(&body));
        let does = state.script.pop_front().unwrap_or_else(|| Does::say(if refused { 400 } else { 200 }));
        let takes = matches!(does, Does::TakeAndCut | Does::TakeAndCutTheBody | Does::Answer { status: 200, .. });
        for event in body["batch"].as_array().unwrap().iter().filter(|_| takes) {
            let id = event["uuid"].as_str().or(event["messageId"].as_str()).unwrap();
            let id: UsageEventId = id.parse().unwrap();
            state.counted.insert(id, 1);
            let first = state.taken.entry(id).or_insert_with(|| event.clone());
            assert_eq!(first, event, "an id names one event for ever");
        }
        does
    };
    let whole = |text: &'static str| Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed();
    match does {
        Does::Nothing => pending().await,
        Does::TakeAndCut => Err(io::Error::other("cut")),
        Does::TakeAndCutTheBody => {
            let frames = [Ok(Frame::data(Bytes::from("half"))), Err(io::Error::other("cut"))];
            Ok(Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed()))
        }
        Does::Answer { status, retry_after, body } => {
            let mut answer = Response::builder().status(status);
            if let Some(wait) = retry_after {
                answer = answer.header("retry-after", wait);
            }
            Ok(answer.body(whole(body)).unwrap())
        }
    }
}
