//! Hears of new revisions on PostgreSQL's notification channel.
//!
//! Notifications are not stored: whatever is sent while nobody listens is lost. So any error and any lost connection
//! distrusts everything that the gate holds, and a new connection listens first and then distrusts once more. Between the
//! two nothing is missed; what was read in the gap is read again.
//!
//! Any session can send on the channel. A message that is no announcement is counted and ignored: were it a reason to
//! distrust, one tenant could keep the answers of all others from being held.

use std::time::Duration;

use saas_core::revision::{CHANNEL, parse_notification};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::{task::JoinHandle, time::Instant};

use crate::{Entitlements, gate::count};

/// The first and the longest pause before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long a silent connection is believed to be alive.
const PING_EVERY: Duration = Duration::from_secs(15);
/// How long connecting, listening or a ping may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often messages that are no announcements are logged at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Listens in a task until it is dropped.
#[derive(Debug)]
#[must_use = "the listener stops when it is dropped"]
pub struct RevisionListener {
    task: JoinHandle<()>,
}

impl RevisionListener {
    /// Starts to listen, on a connection of its own that is opened with `options` and kept.
    ///
    /// Any login of the database will do, and it must reach the server itself: a transaction pooler in between drops
    /// notifications. Returns at once; until the first connection stands, the gate's TTL is the bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(entitlements: Entitlements, options: PgConnectOptions) -> Self {
        Self { task: tokio::spawn(listen(entitlements, options)) }
    }
}

impl Drop for RevisionListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(entitlements: Entitlements, options: PgConnectOptions) {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect(&options).await {
            Ok(mut listener) => {
                // Listening since a moment: what was read before may have missed something.
                entitlements.flush();
                pause = FIRST_PAUSE;
                let why = hear(&entitlements, &mut listener).await;
                entitlements.flush();
                tracing::warn!(target: "saas.entitlements.listener", why, "cut off from revisions; listening again");
            }
            Err(error) => {
                tracing::warn!(target: "saas.entitlements.listener", error = &error as &dyn std::error::Error, "cannot listen to revisions");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    // A pool of one: the listener must not take a connection from those that serve requests.
    let pool =
        PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER_WITHIN).connect_lazy_with(options.clone());
    let timeout = |_| sqlx::Error::PoolTimedOut;
    let listening = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        // Off: a loss must come back to us, not be mended behind our back.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    tokio::time::timeout(ANSWER_WITHIN, listening).await.map_err(timeout)?
}

/// Passes announcements on until something is wrong, and says what.
async fn hear(entitlements: &Entitlements, listener: &mut PgListener) -> &'static str {
    let mut warned: Option<Instant> = None;
    loop {
        match tokio::time::timeout(PING_EVERY, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => match parse_notification(notification.payload()) {
                Ok((tenant, revision)) => entitlements.hear(tenant, revision),
                Err(_) => {
                    count(&entitlements.core.counters.unreadable_announcements);
                    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                        warned = Some(Instant::now());
                        tracing::warn!(target: "saas.entitlements.listener", "ignoring messages that are no announcements");
                    }
                }
            },
            Ok(Ok(None)) => return "the connection was lost",
            Ok(Err(_)) => return "the connection failed",
            Err(_) => match tokio::time::timeout(ANSWER_WITHIN, ping(listener)).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return "the connection does not answer",
            },
        }
    }
}

/// Whether the server still answers: a connection whose other side vanished never says so by itself.
async fn ping(listener: &mut PgListener) -> bool {
    sqlx::query("select 1").execute(listener).await.is_ok()
}
