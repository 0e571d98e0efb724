//! Receipts that share an insert: a burst of deliveries costs few flushes to disk.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use saas_core::{
    CoreError,
    group::{Group, Shared},
};
use sqlx::PgPool;

use crate::postgres::receipt::{self, Key, NewReceipt};

/// Flights under way at once: while one waits for the disk, another one is worked on.
const LANES: u64 = 2;
/// Receipts that may wait in each: more than Stripe delivers at once.
const ROOM: usize = 10_000;

/// The way in for receipts of one service.
#[derive(Debug)]
pub(crate) struct ReceiptGroup(Arc<Group<Receipts>>);

impl ReceiptGroup {
    /// An insert may take as long as `patience`.
    pub(crate) fn new(pool: PgPool, patience: Duration) -> Self {
        Self(Arc::new(Group::new(Receipts { pool }, patience, ROOM)))
    }

    /// Stores a receipt durably. `false` when the event's id is already there; `OutcomeUnknown` when it took too long.
    pub(crate) async fn store(&self, receipt: NewReceipt) -> Result<bool, CoreError> {
        // Two of one event share a lane, and mostly an insert.
        let mut hash = DefaultHasher::new();
        receipt.event_id.hash(&mut hash);
        self.0.join(&(hash.finish() % LANES), receipt).await
    }
}

#[derive(Debug)]
struct Receipts {
    pool: PgPool,
}

impl Shared for Receipts {
    type Key = u64;
    type Item = NewReceipt;
    type Answer = bool;

    const ITEMS: usize = 64;
    const BYTES: usize = 4 * 1024 * 1024;
    /// One statement on its own.
    const IN_PLACE: bool = true;

    fn bytes(receipt: &NewReceipt) -> usize {
        receipt.body.as_column().len()
    }

    async fn alone(&self, _: &u64, receipt: &NewReceipt) -> Result<bool, CoreError> {
        receipt::store(&self.pool, receipt).await
    }

    async fn together(&self, _: &u64, receipts: &[&NewReceipt]) -> Result<Vec<bool>, CoreError> {
        // Of two with one key the first is stored, and the other one compared with it.
        let mut keys = HashSet::new();
        let firsts: Vec<&NewReceipt> = receipts.iter().copied().filter(|receipt| keys.insert(receipt.key())).collect();
        let mut stored: HashSet<Key> = receipt::store_many(&self.pool, &firsts).await?.into_iter().collect();
        Ok(receipts.iter().map(|receipt| stored.remove(&receipt.key())).collect())
    }
}
