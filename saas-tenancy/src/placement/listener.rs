//! Hears on PostgreSQL's notification channel that something about a tenant changed, and forgets where it lives.
//!
//! What is sent while nobody listens is lost: so every loss of the connection, and every new one, forgets all tenants.

use std::time::Duration;

use saas_core::revision::{CHANNEL, parse_notification};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::task::JoinHandle;

use super::Placements;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long a silent connection is believed to be alive.
const PING_EVERY: Duration = Duration::from_secs(15);
/// How long connecting, listening or a ping may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Listens in a task until it is dropped.
#[derive(Debug)]
#[must_use = "the listener stops when it is dropped"]
pub struct PlacementListener {
    task: JoinHandle<()>,
}

impl PlacementListener {
    /// Starts to listen, on a connection of its own that is opened with `options` and kept.
    ///
    /// Any login of the control database will do, and it must reach the server itself: a transaction pooler in between
    /// drops notifications. Without a listener, a change is seen when the database refuses the old place, or after the TTL.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(placements: Placements, options: PgConnectOptions) -> Self {
        Self { task: tokio::spawn(listen(placements, options)) }
    }
}

impl Drop for PlacementListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(placements: Placements, options: PgConnectOptions) {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect(&options).await {
            Ok(mut listener) => {
                placements.forget_all();
                pause = FIRST_PAUSE;
                hear(&placements, &mut listener).await;
                placements.forget_all();
                tracing::warn!(target: "saas.tenancy.placements", "cut off from changes of placements; listening again");
            }
            Err(error) => {
                tracing::warn!(
                    target: "saas.tenancy.placements", error = &error as &dyn std::error::Error,
                    "cannot listen to changes of placements"
                );
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
    let listening = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        // Off: a loss must come back to us, not be mended behind our back.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    tokio::time::timeout(ANSWER_WITHIN, listening).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}

/// Forgets what changes, until the connection is lost. A message that is no announcement is ignored: any session can send
/// one.
async fn hear(placements: &Placements, listener: &mut PgListener) {
    loop {
        match tokio::time::timeout(PING_EVERY, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                if let Ok((tenant, _)) = parse_notification(notification.payload()) {
                    placements.forget(tenant);
                }
            }
            Ok(Ok(None) | Err(_)) => return,
            Err(_) => {
                let ping = sqlx::query("select 1").execute(&mut *listener);
                if !matches!(tokio::time::timeout(ANSWER_WITHIN, ping).await, Ok(Ok(_))) {
                    return;
                }
            }
        }
    }
}
