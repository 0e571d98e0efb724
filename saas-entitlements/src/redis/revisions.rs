//! Hears of new revisions over Redis, in processes that have no session of the database to listen on.
//!
//! As over PostgreSQL: messages are not stored, so any lost connection distrusts everything that is held, and a new one
//! subscribes first and then distrusts once more. A message that is no announcement is counted and ignored.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use redis::{
    Client, RedisResult,
    aio::{PubSubSink, PubSubStream},
};
use saas_core::revision::{CHANNEL, Holder, parse_notification};
use tokio::{task::JoinHandle, time::timeout};

use super::Redis;
use crate::{Entitlements, gate::GateHolder};

/// Says that something may have been missed by whoever sends: nothing that is held may be believed.
pub(super) const DISTRUST: &str = "distrust";

/// The first and the longest pause before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long a silent connection is believed to be alive.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long connecting, subscribing or a ping may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often messages that are no announcements are logged at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Listens in a task until it is dropped.
#[derive(Debug)]
#[must_use = "the listener stops when it is dropped"]
pub struct RedisRevisions {
    task: JoinHandle<()>,
}

impl RedisRevisions {
    /// Starts to listen, on a connection of its own. Somewhere at least one [`RevisionRelay`](super::RevisionRelay) must run.
    ///
    /// Returns at once; until the first connection stands, while no relay runs, and for a revision whose relay was lost
    /// between its commit and the message, the gate's TTL is the bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(entitlements: Entitlements, redis: Redis) -> Self {
        let holder = Arc::new(GateHolder::new(entitlements, "redis"));
        Self { task: tokio::spawn(async move { listen(&*holder, &redis).await }) }
    }
}

impl Drop for RedisRevisions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(holder: &dyn Holder, redis: &Redis) {
    let mut pause = FIRST_PAUSE;
    for node in redis.nodes().iter().cycle() {
        match timeout(ANSWER_WITHIN, subscribe(node)).await {
            Ok(Ok((sink, stream))) => {
                // Subscribed since a moment: what was read before may have missed something.
                holder.flush();
                pause = FIRST_PAUSE;
                let why = hear(holder, sink, stream).await;
                holder.flush();
                tracing::warn!(target: "saas.entitlements.gate.redis", why, "cut off from revisions; subscribing again");
            }
            Ok(Err(error)) => {
                tracing::warn!(target: "saas.entitlements.gate.redis", error = &error as &dyn std::error::Error, "cannot subscribe to revisions");
            }
            Err(_) => {
                tracing::warn!(target: "saas.entitlements.gate.redis", "cannot subscribe to revisions: no answer in time");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    tracing::error!(target: "saas.entitlements.gate.redis", "no node to subscribe at; the gate's TTL is the bound");
}

async fn subscribe(node: &Client) -> RedisResult<(PubSubSink, PubSubStream)> {
    let (mut sink, stream) = node.get_async_pubsub().await?.split();
    sink.subscribe(CHANNEL).await?;
    Ok((sink, stream))
}

/// Passes announcements on until something is wrong, and says what.
async fn hear(holder: &dyn Holder, mut sink: PubSubSink, mut stream: PubSubStream) -> &'static str {
    let mut warned: Option<Instant> = None;
    loop {
        match timeout(PING_EVERY, stream.next()).await {
            Ok(Some(message)) => {
                let text: RedisResult<String> = message.get_payload();
                let text = text.unwrap_or_default();
                match parse_notification(&text) {
                    Ok((tenant, revision)) => holder.hear(tenant, revision),
                    Err(_) if text == DISTRUST => holder.flush(),
                    Err(_) => {
                        holder.count_unreadable();
                        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                            warned = Some(Instant::now());
                            tracing::warn!(target: "saas.entitlements.gate.redis", "ignoring messages that are no announcements");
                        }
                    }
                }
            }
            Ok(None) => return "the connection was lost",
            Err(_) => {
                let asked = Instant::now();
                match timeout(ANSWER_WITHIN, sink.ping::<redis::Value>()).await {
                    Ok(Ok(_)) => holder.echoed(asked.elapsed()),
                    Ok(Err(_)) | Err(_) => return "the connection does not answer",
                }
            }
        }
    }
}
