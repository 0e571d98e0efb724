//! The way to Redis: a server or a cluster, each call within a time, and none for a while after several went unanswered.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{
    Client, Cmd, RedisError, RedisResult, ScriptInvocation,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
};
use saas_core::CoreError;
use tokio::sync::Mutex as AsyncMutex;

/// So many calls without an answer, one after the other, open the breaker.
const MOST_FAILURES: u32 = 3;
/// How long connecting may take, in the background of the calls that wait for it.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long the breaker stays open before one call tries again.
const PAUSE: Duration = Duration::from_secs(1);

/// A Redis server, or a Redis Cluster. Nothing is connected before it is needed.
///
/// TLS, logins and timeouts of connections are the clients': choose a TLS feature on your own `redis` dependency. The login
/// needs the commands `eval`, `evalsha`, `script|load`, `info`, `time`, `del`, `publish` and `subscribe`, and those for strings,
/// hashes and expiry on the keys of the tier's and the leases' prefix.
#[derive(Clone)]
pub struct Redis {
    target: Target,
    /// Where subscriptions are made: any node of a cluster passes on what any other is told.
    nodes: Arc<[Client]>,
}

#[derive(Clone)]
enum Target {
    Single(Client),
    Cluster(Box<ClusterClient>),
}

impl Redis {
    /// One server.
    #[must_use]
    pub fn single(client: Client) -> Self {
        Self { nodes: [client.clone()].into(), target: Target::Single(client) }
    }

    /// A cluster; `nodes` are some of its nodes, of which one at a time is listened to.
    #[must_use]
    pub fn cluster(cluster: ClusterClient, nodes: Vec<Client>) -> Self {
        Self { target: Target::Cluster(Box::new(cluster)), nodes: nodes.into() }
    }

    pub(super) fn nodes(&self) -> &[Client] {
        &self.nodes
    }

    async fn connect(&self) -> RedisResult<Connection> {
        Ok(match &self.target {
            Target::Single(client) => {
                // Our own breaker decides when to try again.
                let config = ConnectionManagerConfig::new()
                    .set_number_of_retries(0)
                    .set_connection_timeout(Some(CONNECT_WITHIN))
                    .set_response_timeout(None);
                Connection::Single(Box::new(ConnectionManager::new_lazy_with_config(client.clone(), config)?))
            }
            Target::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The clients know passwords.
        f.debug_struct("Redis").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Connection {
    Single(Box<ConnectionManager>),
    Cluster(ClusterConnection),
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Missed {
    /// It was not sent: the breaker is open, or there is no connection.
    NotSent,
    /// It may have been done, or may be done later.
    Unknown(RedisError),
}

impl Missed {
    /// Whether it may have been done.
    pub(super) const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl From<Missed> for CoreError {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::NotSent => Self::Unavailable { cause: "Redis is not asked at present".into() },
            Missed::Unknown(error) => Self::Unavailable { cause: Box::new(error) },
        }
    }
}

/// Calls to Redis, bounded in time.
pub(super) struct Link {
    redis: Redis,
    answer_within: Duration,
    connection: Arc<AsyncMutex<Option<Connection>>>,
    breaker: Mutex<Breaker>,
}

impl Link {
    pub(super) fn new(redis: Redis, answer_within: Duration) -> Self {
        Self { redis, answer_within, connection: Arc::default(), breaker: Mutex::default() }
    }

    /// Runs a script; its answer is a list of texts.
    pub(super) async fn run(&self, script: &ScriptInvocation<'_>) -> Result<Vec<String>, Missed> {
        self.call(async |connection| match connection {
            Connection::Single(connection) => script.invoke_async(&mut **connection).await,
            Connection::Cluster(connection) => script.invoke_async(connection).await,
        })
        .await
    }

    /// Runs a command whose answer is a number.
    pub(super) async fn command(&self, command: &Cmd) -> Result<i64, Missed> {
        self.call(async |connection| match connection {
            Connection::Single(connection) => command.query_async(&mut **connection).await,
            Connection::Cluster(connection) => command.query_async(connection).await,
        })
        .await
    }

    /// Whether Redis is asked at present, as far as is known.
    pub(super) fn is_asked(&self) -> bool {
        self.breaker().again_at.is_none()
    }

    async fn call<T>(&self, ask: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>) -> Result<T, Missed> {
        if !self.breaker().lets_through() {
            return Err(Missed::NotSent);
        }
        let deadline = tokio::time::Instant::now() + self.answer_within;
        let connected = tokio::time::timeout_at(deadline, self.connection()).await;
        let Ok(Ok(mut connection)) = connected else {
            self.failed();
            return Err(Missed::NotSent);
        };
        let answer = tokio::time::timeout_at(deadline, ask(&mut connection)).await;
        match answer.unwrap_or_else(|_| Err(timed_out())) {
            Ok(answer) => {
                self.breaker().succeeded();
                Ok(answer)
            }
            Err(error) => {
                self.failed();
                Err(Missed::Unknown(error))
            }
        }
    }

    /// The connection, which is made once for all who wait. It goes on being made when nobody waits any more.
    async fn connection(&self) -> RedisResult<Connection> {
        let mut held = Arc::clone(&self.connection).lock_owned().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let redis = self.redis.clone();
        let connecting = tokio::spawn(async move {
            let connected = tokio::time::timeout(CONNECT_WITHIN, redis.connect()).await;
            let connection = connected.map_err(|_| timed_out())??;
            *held = Some(connection.clone());
            Ok(connection)
        });
        connecting.await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Counts a call without an answer. After several, the connection itself is doubted.
    fn failed(&self) {
        let opened = self.breaker().failed();
        if opened && let Ok(mut held) = self.connection.try_lock() {
            *held = None;
        }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("redis", &self.redis).finish_non_exhaustive()
    }
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    /// One call may try at that instant.
    again_at: Option<Instant>,
}

impl Breaker {
    fn lets_through(&mut self) -> bool {
        let Some(again_at) = self.again_at else { return true };
        let now = Instant::now();
        if now < again_at {
            return false;
        }
        // The others wait for what becomes of this one.
        self.again_at = Some(now + PAUSE);
        true
    }

    /// Whether that opened it.
    fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = self.failures >= MOST_FAILURES;
        if opens {
            self.again_at = Some(Instant::now() + PAUSE);
        }
        opens
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // G10
    #[test]
    fn the_breaker_opens_after_failures_in_a_row_and_closes_with_one_answer() {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed() && !breaker.failed());
        breaker.succeeded();
        assert!(!breaker.failed() && !breaker.failed() && breaker.lets_through());
        assert!(breaker.failed());
        assert!(!breaker.lets_through());
        breaker.again_at = Some(Instant::now());
        assert!(breaker.lets_through(), "one tries");
        assert!(!breaker.lets_through(), "the others wait for it");
        breaker.succeeded();
        assert!(breaker.lets_through());
    }
}
