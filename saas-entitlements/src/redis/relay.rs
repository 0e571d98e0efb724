//! Passes announcements of revisions on from the database to Redis, after they are committed.
//!
//! PostgreSQL tells of a revision when its transaction has committed, so what the relay passes on is never too early. It
//! writes nothing down: what it knows and could not send, or could not hear, it makes up for by telling everyone to distrust
//! what they hold. A relay that ends between the commit and its message leaves that one revision to the other relays, and
//! to the TTL of those who listen. Run several: hearing of a revision twice changes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use saas_core::{
    Revision, SystemPool, TenantId,
    revision::{CHANNEL, Holder, Listener},
};
use sqlx::postgres::PgConnectOptions;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Redis,
    link::{Link, Missed},
    revisions::DISTRUST,
};
use crate::postgres::poll_revisions;

/// Announcements that wait to be sent. More than that are one word of distrust.
const MOST_WAITING: usize = 10_000;
/// How long Redis may take for one message.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// The pause after a message that was not taken.
const PAUSE: Duration = Duration::from_millis(200);

/// Passes on in tasks until it is dropped.
#[derive(Debug)]
#[must_use = "the relay stops when it is dropped"]
pub struct RevisionRelay {
    _hears: Hears,
    sends: JoinHandle<()>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held only to be dropped")]
enum Hears {
    Listening(Listener),
    Polling(Stopped),
}

#[derive(Debug)]
struct Stopped(JoinHandle<()>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RevisionRelay {
    /// Passes on what PostgreSQL notifies of, on a connection of its own that is opened with `options`, as for
    /// [`RevisionListener`](crate::RevisionListener).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listening(options: PgConnectOptions, redis: Redis) -> Self {
        Self::start(redis, |outbox| Hears::Listening(Listener::start(outbox, options)))
    }

    /// Passes on what is found by asking every `every`, as for [`RevisionPoller`](crate::RevisionPoller).
    ///
    /// # Panics
    /// Outside a tokio runtime, and when `every` is zero.
    pub fn polling(pool: SystemPool, every: Duration, redis: Redis) -> Self {
        Self::start(redis, |outbox| Hears::Polling(Stopped(tokio::spawn(poll_revisions(outbox, pool, every)))))
    }

    fn start(redis: Redis, hears: impl FnOnce(Arc<Outbox>) -> Hears) -> Self {
        let (waiting, received) = mpsc::channel(MOST_WAITING);
        let distrust = Arc::new(AtomicBool::new(false));
        let outbox = Arc::new(Outbox { waiting, distrust: Arc::clone(&distrust) });
        let link = Link::new(redis, ANSWER_WITHIN);
        Self { _hears: hears(outbox), sends: tokio::spawn(send(link, received, distrust)) }
    }
}

impl Drop for RevisionRelay {
    fn drop(&mut self) {
        self.sends.abort();
    }
}

/// What was heard and is to be sent.
#[derive(Debug)]
struct Outbox {
    /// `None`: look whether to distrust.
    waiting: mpsc::Sender<Option<(TenantId, Revision)>>,
    distrust: Arc<AtomicBool>,
}

impl Holder for Outbox {
    fn hear(&self, tenant: TenantId, revision: Revision) {
        if self.waiting.try_send(Some((tenant, revision))).is_err() {
            self.distrust.store(true, Ordering::SeqCst);
        }
    }

    fn flush(&self) {
        self.distrust.store(true, Ordering::SeqCst);
        // Full: whoever empties it looks after each.
        let _ = self.waiting.try_send(None);
    }

    fn count_unreadable(&self) {}
}

async fn send(link: Link, mut waiting: mpsc::Receiver<Option<(TenantId, Revision)>>, distrust: Arc<AtomicBool>) {
    while let Some(announced) = waiting.recv().await {
        if let Some((tenant, revision)) = announced
            && let Err(missed) = publish(&link, &format!("{tenant}:{revision}")).await
        {
            warn(missed);
            distrust.store(true, Ordering::SeqCst);
        }
        // Cleared first: what comes up while it is sent is sent again.
        while distrust.swap(false, Ordering::SeqCst) {
            if let Err(missed) = publish(&link, DISTRUST).await {
                warn(missed);
                distrust.store(true, Ordering::SeqCst);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn publish(link: &Link, text: &str) -> Result<i64, Missed> {
    link.command(redis::cmd("PUBLISH").arg(CHANNEL).arg(text)).await
}

fn warn(missed: Missed) {
    let error = saas_core::CoreError::from(missed);
    tracing::warn!(target: "saas.entitlements.gate.relay", error = &error as &dyn std::error::Error, "a revision could not be passed on; everyone will be told to read again");
}
