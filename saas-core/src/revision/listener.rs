//! Hears of new revisions on PostgreSQL's notification channel, for whatever holds answers that a revision can change.
//!
//! Notifications are not stored: whatever is sent while nobody listens is lost. So any error and any lost connection
//! distrusts everything that is held, and a new connection listens first and then distrusts once more. Between the two
//! nothing is missed; what was read in the gap is read again.
//!
//! Any session can send on the channel. A message that is no announcement is counted and ignored: were it a reason to
//! distrust, one tenant could keep the answers of all others from being held.
//!
//! From time to time the listener sends a message to itself. When that comes back, the channel works, and says how long a
//! message takes. When it does not, whatever stands between (a transaction pooler, say) passes no messages on.

use std::{fmt, sync::Arc, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::{task::JoinHandle, time::Instant};

use super::{CHANNEL, Revision, parse_notification};
use crate::TenantId;

/// The first and the longest pause before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often the listener sends a message to itself, and how long it waits for one.
const ECHO_EVERY: Duration = Duration::from_secs(15);
/// How long connecting, listening or sending may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often messages that are no announcements are logged at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Holds answers that a new revision can make wrong.
///
/// # Contract
/// - *Quick*: called on the listener's task; must not block.
/// - *Not overtaken*: an answer whose reading began before [`hear`](Self::hear) or [`flush`](Self::flush) was called is
///   not held after it.
pub trait Holder: fmt::Debug + Send + Sync + 'static {
    /// The tenant is at this revision: nothing older may be answered any more.
    fn hear(&self, tenant: TenantId, revision: Revision);
    /// Something may have been missed: nothing that is held may be believed.
    fn flush(&self);
    /// A message that the listener sent to itself came back after this long, as an announcement would have. Whoever keeps
    /// no figures needs nothing here.
    fn echoed(&self, _after: Duration) {}
    /// Someone sent what is no announcement. There is nothing to do but to count it.
    fn count_unreadable(&self);
}

/// Listens in a task until it is dropped.
#[derive(Debug)]
#[must_use = "the listener stops when it is dropped"]
pub struct Listener {
    task: JoinHandle<()>,
}

impl Listener {
    /// Starts to listen, on a connection of its own that is opened with `options` and kept.
    ///
    /// Any login of the database will do, and it must reach the server itself: a transaction pooler in between drops
    /// notifications. Returns at once; until the first connection stands, the holder's own TTL is the bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(holder: Arc<dyn Holder>, options: PgConnectOptions) -> Self {
        Self { task: tokio::spawn(async move { listen(&*holder, &options).await }) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(holder: &dyn Holder, options: &PgConnectOptions) {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect(options).await {
            Ok((mut listener, echo)) => {
                // Listening since a moment: what was read before may have missed something.
                holder.flush();
                pause = FIRST_PAUSE;
                let why = hear(holder, &mut listener, &echo).await;
                holder.flush();
                tracing::warn!(target: "saas.revision.listener", why, "cut off from revisions; listening again");
            }
            Err(error) => {
                tracing::warn!(target: "saas.revision.listener", error = &error as &dyn std::error::Error, "cannot listen to revisions");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// A connection that listens, and the name of the channel that the listener writes to itself on.
async fn connect(options: &PgConnectOptions) -> Result<(PgListener, String), sqlx::Error> {
    // A pool of one: the listener must not take a connection from those that serve requests.
    let pool =
        PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER_WITHIN).connect_lazy_with(options.clone());
    let timeout = |_| sqlx::Error::PoolTimedOut;
    let listening = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        // Off: a loss must come back to us, not be mended behind our back.
        listener.eager_reconnect(false);
        let echo = format!("saas_echo_{:016x}", fastrand::u64(..));
        listener.listen_all([CHANNEL, &echo]).await?;
        Ok((listener, echo))
    };
    tokio::time::timeout(ANSWER_WITHIN, listening).await.map_err(timeout)?
}

/// Passes announcements on until something is wrong, and says what.
async fn hear(holder: &dyn Holder, listener: &mut PgListener, echo: &str) -> &'static str {
    let mut warned: Option<Instant> = None;
    let mut sent: Option<Instant> = None;
    let mut send_at = Instant::now();
    loop {
        match tokio::time::timeout_at(send_at, listener.try_recv()).await {
            Ok(Ok(Some(notification))) if notification.channel() == echo => {
                // One that nobody waits for was sent by somebody else.
                if let Some(sent) = sent.take() {
                    holder.echoed(sent.elapsed());
                }
            }
            Ok(Ok(Some(notification))) => match parse_notification(notification.payload()) {
                Ok((tenant, revision)) => holder.hear(tenant, revision),
                Err(_) => {
                    holder.count_unreadable();
                    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                        warned = Some(Instant::now());
                        tracing::warn!(target: "saas.revision.listener", "ignoring messages that are no announcements");
                    }
                }
            },
            Ok(Ok(None)) => return "the connection was lost",
            Ok(Err(_)) => return "the connection failed",
            Err(_) if sent.is_some() => return "the connection does not pass messages on",
            Err(_) => {
                let now = Instant::now();
                (sent, send_at) = (Some(now), now + ECHO_EVERY);
                match tokio::time::timeout(ANSWER_WITHIN, send(listener, echo)).await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return "the connection does not answer",
                }
            }
        }
    }
}

/// Sends to itself. Also shows whether the server still answers: a connection whose other side vanished never says so by
/// itself.
async fn send(listener: &mut PgListener, echo: &str) -> bool {
    sqlx::query("select pg_notify($1, '')").bind(echo).execute(listener).await.is_ok()
}
