//! A few connections at hand: what was just used is used next.
//!
//! `sqlx` hands connections out in turn, so that ten that are open are all used once before the first is used again. On the
//! server each is a process with caches of its own, and whoever comes rarely finds them cold: a transaction takes up to twice
//! as long. And every return to the pool is a message and its answer. So those that have proven to be clean wait here for a
//! moment, the latest on top.
//!
//! Promises: nobody waits for one of these longer than twice a [`MOMENT`] while it lies here, whatever else asks the same pool; only
//! what leaves others in the pool is kept; and after [`STREAK`] a connection goes home in any case, so that the pool's own
//! limits on its life hold.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::runtime::Handle;

/// How long a connection lies here unused: about twice that at most.
const MOMENT: Duration = Duration::from_millis(10);
/// How long it may be away from its pool.
const STREAK: Duration = Duration::from_secs(1);
/// Lying here at once.
const MOST: usize = 4;

/// A pool, and what of it is at hand.
#[derive(Clone)]
pub(crate) struct Warm(Arc<Inner>);

struct Inner {
    pool: PgPool,
    hand: Mutex<Hand>,
}

#[derive(Default)]
struct Hand {
    /// The latest last.
    lying: Vec<Lying>,
    /// Where they can be sent home from: whoever drops the pool need not be in a runtime.
    runtime: Option<Handle>,
    /// Somebody looks after it.
    is_watched: bool,
}

struct Lying {
    taken: Taken,
    since: Instant,
}

/// A connection, and since when it is away from its pool.
pub(crate) struct Taken {
    pub(crate) connection: PoolConnection<Postgres>,
    since: Instant,
}

impl Warm {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self(Arc::new(Inner { pool, hand: Mutex::default() }))
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    /// The connection that was used last, or one of the pool's.
    #[expect(clippy::disallowed_methods, reason = "the one place that takes connections")]
    pub(crate) async fn take(&self) -> Result<Taken, sqlx::Error> {
        let lying = self.0.hand().lying.pop();
        match lying {
            Some(lying) if !self.0.pool.is_closed() => return Ok(lying.taken),
            Some(_) | None => {}
        }
        Ok(Taken { connection: self.0.pool.acquire().await?, since: Instant::now() })
    }

    /// Keeps a clean connection at hand, or lets it go home.
    pub(crate) fn give(&self, taken: Taken) {
        let now = Instant::now();
        let pool = &self.0.pool;
        // One that nobody could have instead is not kept from anybody.
        if pool.num_idle() == 0 || pool.is_closed() || now.duration_since(taken.since) > STREAK {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let mut hand = self.0.hand();
        if hand.lying.len() >= MOST {
            return;
        }
        // Whoever looked after it is in a runtime that nobody drives.
        let is_left_alone = hand.lying.first().is_some_and(|lying| now.duration_since(lying.since) > STREAK);
        hand.lying.push(Lying { taken, since: now });
        let is_watched = std::mem::replace(&mut hand.is_watched, true) && !is_left_alone;
        hand.runtime = Some(runtime.clone());
        // A runtime that ends drops what it is given at once, and that looks at the hand, too.
        drop(hand);
        if !is_watched {
            runtime.spawn(watch(Watch { inner: Arc::downgrade(&self.0), goes_on: true }));
        }
    }
}

impl Inner {
    fn hand(&self) -> std::sync::MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Hand { lying, runtime, .. } = std::mem::take(&mut *self.hand());
        let _entered = runtime.as_ref().map(Handle::enter);
        drop(lying);
    }
}

/// Lets go home what lies unused, until nothing lies here.
async fn watch(mut watch: Watch) {
    while watch.goes_on {
        tokio::time::sleep(MOMENT).await;
        let Some(inner) = watch.inner.upgrade() else { return };
        let gone = {
            let mut hand = inner.hand();
            let unused = hand.lying.iter().take_while(|lying| lying.since.elapsed() >= MOMENT).count();
            let gone: Vec<Lying> = hand.lying.drain(..unused).collect();
            hand.is_watched = !hand.lying.is_empty();
            watch.goes_on = hand.is_watched;
            gone
        };
        drop(gone);
    }
}

/// The runtime may end before the pool does. What belongs to it is let go then.
struct Watch {
    inner: Weak<Inner>,
    goes_on: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade().filter(|_| self.goes_on) else { return };
        let gone = std::mem::take(&mut *inner.hand());
        drop(gone);
    }
}

impl fmt::Debug for Warm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm").field("pool", &self.0.pool).finish_non_exhaustive()
    }
}
