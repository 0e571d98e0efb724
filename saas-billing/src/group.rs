//! Group commit for receipts: what comes in while an insert is under way shares the next.
//!
//! Alone, a caller inserts for itself, without a detour. In a burst, the others wait together, and one flush to disk serves
//! them all: a receipt that shares an insert costs a fraction of one that has its own, and the other connections of the pool
//! stay free. Promises that an answer is given only after the receipt's own commit; that a receipt which the database
//! refuses fails alone; that a caller who goes away takes nobody along; that an insert which never ends holds up nobody for
//! longer than the patience.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use saas_core::CoreError;
use sqlx::PgPool;
use tokio::{runtime::Handle, sync::oneshot};

use crate::postgres::receipt::{self, Key, NewReceipt};

/// Receipts of one insert.
const MAX_RECEIPTS: usize = 64;
/// Bytes of one insert, unless a single receipt has more.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The way in for receipts of one service.
#[derive(Debug)]
pub(crate) struct Group {
    pool: PgPool,
    /// How long an insert for several may take.
    patience: Duration,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Whether somebody has the slot.
    taken: bool,
    /// Receipts of the last insert: more than one in a burst.
    last: usize,
}

#[derive(Debug)]
struct Waiting {
    receipt: NewReceipt,
    done: oneshot::Sender<Result<bool, CoreError>>,
}

impl Group {
    pub(crate) fn new(pool: PgPool, patience: Duration) -> Self {
        Self { pool, patience, queue: Mutex::default() }
    }

    /// Stores a receipt durably. `false` when the event's id is already there.
    pub(crate) async fn store(self: &Arc<Self>, receipt: NewReceipt) -> Result<bool, CoreError> {
        let (slot, receipt) = match self.take_slot(receipt) {
            Ok(alone) => alone,
            Err(stored) => {
                return stored.await.unwrap_or_else(|gone| Err(CoreError::Unavailable { cause: Box::new(gone) }));
            }
        };
        let stored = receipt::store(&self.pool, &receipt).await;
        drop(slot);
        stored
    }

    /// A slot to insert in, or a place among those who wait.
    fn take_slot(
        self: &Arc<Self>,
        receipt: NewReceipt,
    ) -> Result<(Slot, NewReceipt), oneshot::Receiver<Result<bool, CoreError>>> {
        let mut queue = self.queue();
        let free = !std::mem::replace(&mut queue.taken, true);
        if free && queue.last <= 1 {
            return Ok((Slot { group: Arc::clone(self), begun: true }, receipt));
        }
        if queue.waiting.len().is_multiple_of(MAX_RECEIPTS) {
            // Whoever gave up has been told so: Stripe delivers again.
            queue.waiting.retain(|waiting| !waiting.done.is_closed());
        }
        let (done, stored) = oneshot::channel();
        queue.waiting.push(Waiting { receipt, done });
        drop(queue);
        if free {
            // In a burst others are about to come: they share this insert.
            drop(Slot { group: Arc::clone(self), begun: true });
        }
        Err(stored)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to insert, which one at a time has. Dropped, however that comes about, it goes to those who wait.
struct Slot {
    group: Arc<Group>,
    /// Whether its task has run at all: one that never did was dropped by a runtime that is shutting down.
    begun: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut queue = self.group.queue();
        match Handle::try_current() {
            Ok(runtime) if self.begun && !queue.waiting.is_empty() => {
                drop(queue); // A runtime that is shutting down drops the task on the spot, which comes back here.
                let slot = Self { group: Arc::clone(&self.group), begun: false };
                drop(runtime.spawn(slot.serve()));
            }
            Ok(_) | Err(_) => {
                // Nobody waits, or nobody will be served: those who wait hear that it is over.
                queue.waiting.clear();
                queue.taken = false;
            }
        }
    }
}

impl Slot {
    /// Inserts one batch of those who wait; the slot's end hands it on.
    async fn serve(mut self) {
        self.begun = true;
        // Those who were just answered, and those who are being read, get to the queue first.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let batch = self.next();
        if batch.is_empty() {
            return;
        }
        if tokio::time::timeout(self.group.patience, self.insert(batch)).await.is_err() {
            tracing::error!(target: "saas.billing.webhook.receive", "an insert of receipts did not end in time");
        }
    }

    async fn insert(&self, batch: Vec<Waiting>) {
        let receipts: Vec<&NewReceipt> = batch.iter().map(|waiting| &waiting.receipt).collect();
        match receipt::store_many(&self.group.pool, &receipts).await {
            Ok(stored) => answer(batch, stored),
            Err(_) => self.one_by_one(batch).await,
        }
    }

    /// One receipt may have failed all: each on its own, so that only that one does.
    async fn one_by_one(&self, batch: Vec<Waiting>) {
        for waiting in batch {
            let stored = receipt::store(&self.group.pool, &waiting.receipt).await;
            // Whoever asked may have gone.
            drop(waiting.done.send(stored));
        }
    }

    fn next(&self) -> Vec<Waiting> {
        let mut queue = self.group.queue();
        let mut bytes = 0;
        let fits = |waiting: &&Waiting| {
            bytes += waiting.receipt.body.as_column().len();
            bytes <= MAX_BYTES
        };
        let fitting = queue.waiting.iter().take(MAX_RECEIPTS).take_while(fits).count();
        let count = fitting.max(1).min(queue.waiting.len());
        queue.last = count;
        queue.waiting.drain(..count).collect()
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
