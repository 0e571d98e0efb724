//! Group commit for receipts: what comes in while all connections are busy shares the next insert.
//!
//! While connections are free, each caller inserts for itself, without a detour. In a burst, those who find none free wait
//! together, and one flush to disk serves them all. Promises that an answer is given only after the receipt's own commit;
//! that a receipt which the database refuses fails alone; that a caller who goes away takes nobody along. Leaves deadlines
//! to the caller.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// Inserts at once: as many as there are connections.
    slots: u32,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    taken: u32,
}

#[derive(Debug)]
struct Waiting {
    receipt: NewReceipt,
    done: oneshot::Sender<Result<bool, CoreError>>,
}

impl Group {
    pub(crate) fn new(pool: PgPool) -> Self {
        let slots = pool.options().get_max_connections().max(1);
        Self { pool, slots, queue: Mutex::default() }
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
        if queue.taken < self.slots {
            queue.taken += 1;
            return Ok((Slot { group: Arc::clone(self), begun: true }, receipt));
        }
        let (done, stored) = oneshot::channel();
        queue.waiting.push(Waiting { receipt, done });
        Err(stored)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to insert. Dropped, however that comes about, it goes to those who wait.
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
                queue.taken -= 1;
            }
        }
    }
}

impl Slot {
    /// Inserts one batch of those who wait; the slot's end hands it on.
    async fn serve(mut self) {
        self.begun = true;
        let batch = self.next();
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
            bytes += waiting.receipt.body.len();
            bytes <= MAX_BYTES
        };
        let fitting = queue.waiting.iter().take(MAX_RECEIPTS).take_while(fits).count();
        let count = fitting.max(1).min(queue.waiting.len());
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
