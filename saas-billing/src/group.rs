//! Group commit for receipts: deliveries that come in while an insert is under way share the next one.
//!
//! A burst costs one flush to disk for many deliveries instead of one each, and a single delivery waits for nobody. Promises
//! that an answer is given only after the receipt's own commit; that one receipt which the database refuses fails alone;
//! that a caller who goes away takes nobody along. Leaves deadlines to the caller.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use saas_core::CoreError;
use sqlx::PgPool;
use tokio::sync::oneshot;

use crate::postgres::receipt::{self, Key, NewReceipt};

/// Receipts of one insert.
const MAX_RECEIPTS: usize = 64;
/// Bytes of one insert, unless a single receipt has more.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Inserts at once: while one waits for the disk, the next is being sent.
const MAX_FLUSHERS: usize = 2;

/// The way in for receipts of one service.
#[derive(Debug)]
pub(crate) struct Group {
    pool: PgPool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    flushers: usize,
}

#[derive(Debug)]
struct Waiting {
    receipt: NewReceipt,
    done: oneshot::Sender<Result<bool, CoreError>>,
}

impl Group {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, queue: Mutex::default() }
    }

    /// Stores a receipt durably. `false` when the event's id is already there.
    pub(crate) async fn store(self: &Arc<Self>, receipt: NewReceipt) -> Result<bool, CoreError> {
        let (done, stored) = oneshot::channel();
        let flusher = {
            let mut queue = self.queue();
            queue.waiting.push(Waiting { receipt, done });
            (queue.flushers < MAX_FLUSHERS).then(|| {
                queue.flushers += 1;
                Flusher { group: Arc::clone(self), retired: false }
            })
        };
        if let Some(flusher) = flusher {
            // A task of its own: the caller may go away, and others wait for the same insert.
            tokio::spawn(async move { flusher.run().await });
        }
        stored.await.unwrap_or_else(|gone| Err(CoreError::Unavailable { cause: Box::new(gone) }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to insert; given back when nothing waits, also by a panic.
struct Flusher {
    group: Arc<Group>,
    retired: bool,
}

impl Flusher {
    async fn run(mut self) {
        while let Some(mut batch) = self.next() {
            let receipts: Vec<&NewReceipt> = batch.iter().map(|waiting| &waiting.receipt).collect();
            match (receipt::store_many(&self.group.pool, &receipts).await, batch.len()) {
                (Ok(stored), _) => answer(batch, stored),
                (Err(error), 1) => {
                    if let Some(alone) = batch.pop() {
                        drop(alone.done.send(Err(error)));
                    }
                }
                (Err(_), _) => self.one_by_one(batch).await,
            }
        }
    }

    /// One receipt may have failed all: each on its own, so that only that one does.
    async fn one_by_one(&self, batch: Vec<Waiting>) {
        for waiting in batch {
            let stored = receipt::store_many(&self.group.pool, &[&waiting.receipt]).await;
            // Whoever asked may have gone.
            drop(waiting.done.send(stored.map(|stored| !stored.is_empty())));
        }
    }

    /// The next batch. Retires under the same lock that a new receipt takes, so that none is left without a flusher.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = self.group.queue();
        let mut bytes = 0;
        let fits = |waiting: &&Waiting| {
            bytes += waiting.receipt.body.len();
            bytes <= MAX_BYTES
        };
        let fitting = queue.waiting.iter().take(MAX_RECEIPTS).take_while(fits).count();
        let count = fitting.max(1).min(queue.waiting.len());
        if count == 0 {
            queue.flushers -= 1;
            self.retired = true;
            return None;
        }
        Some(queue.waiting.drain(..count).collect())
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        if !self.retired {
            self.group.queue().flushers -= 1;
        }
    }
}

/// Tells each whether its receipt is new. Of two with one key, the first is.
fn answer(batch: Vec<Waiting>, stored: Vec<Key>) {
    let mut stored: HashSet<Key> = stored.into_iter().collect();
    for waiting in batch {
        let is_new = stored.remove(&waiting.receipt.key());
        drop(waiting.done.send(Ok(is_new)));
    }
}
