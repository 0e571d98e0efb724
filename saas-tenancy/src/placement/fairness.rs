//! How much of what tenants share one tenant may take at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use saas_core::{InvalidInput, TenantId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PlacementError;

/// What one tenant may take at a time.
#[derive(Debug, Clone, Copy)]
pub struct Fairness {
    transactions: usize,
    wait: Duration,
    statement_timeout: Option<Duration>,
}

impl Fairness {
    /// A tenant may have `transactions` open in this process; one more waits for at most `wait`.
    ///
    /// Meaningful below the size of the pool that tenants share: what is left is for the others.
    ///
    /// # Errors
    /// When `transactions` is zero.
    pub fn new(transactions: usize, wait: Duration) -> Result<Self, InvalidInput> {
        if transactions == 0 || transactions > Semaphore::MAX_PERMITS {
            return Err(InvalidInput::new("transactions per tenant", "is zero or absurd", "allow at least one"));
        }
        Ok(Self { transactions, wait, statement_timeout: None })
    }

    /// Ends a statement that takes longer. Without it, a statement whose caller went away runs on at the server until it is
    /// done, and counts for nobody.
    #[must_use]
    pub const fn with_statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = Some(timeout);
        self
    }
}

/// Counts the open transactions of each tenant that has any. Nothing is kept of the others.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    fairness: Fairness,
    busy: Arc<Mutex<HashMap<TenantId, Arc<Semaphore>>>>,
}

/// One transaction's turn, or a place in the queue for it.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    tenant: TenantId,
    queue: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new(fairness: Fairness) -> Self {
        Self { fairness, busy: Arc::default() }
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<Semaphore>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn statement_timeout(&self) -> Option<Duration> {
        self.fairness.statement_timeout
    }

    /// Waits for the tenant's turn: first come, first served, no longer than was configured.
    pub(super) async fn wait(&self, tenant: TenantId) -> Result<Turn, PlacementError> {
        let limit = self.fairness.transactions;
        let queue = Arc::clone(self.busy().entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(limit))));
        let mut turn = Turn { turns: self.clone(), tenant, queue: Some(Arc::clone(&queue)), permit: None };
        match tokio::time::timeout(self.fairness.wait, queue.acquire_owned()).await {
            Ok(Ok(permit)) => {
                turn.permit = Some(permit);
                Ok(turn)
            }
            Ok(Err(_)) | Err(_) => Err(PlacementError::TenantBusy { tenant, limit }),
        }
    }
}

impl Drop for Turn {
    /// Forgets the tenant with its last transaction and its last waiter.
    fn drop(&mut self) {
        let mut busy = self.turns.busy();
        drop((self.permit.take(), self.queue.take()));
        if busy.get(&self.tenant).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            busy.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use saas_core::SystemClock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenant_waits_for_its_own_transactions_only_and_nothing_of_it_is_kept() {
        let turns = Turns::new(Fairness::new(2, Duration::from_secs(1)).unwrap());
        let (a, b) = (TenantId::mint(&SystemClock), TenantId::mint(&SystemClock));
        let (first, second) = (turns.wait(a).await.unwrap(), turns.wait(a).await.unwrap());
        let refused = turns.wait(a).await.unwrap_err();
        assert_eq!((refused.code(), refused.is_retryable()), ("tenant_busy", true));
        let other = turns.wait(b).await.unwrap();
        // One that waits gets the turn that is given back; one that gives up leaves nothing behind.
        let (third, ()) = tokio::join!(turns.wait(a), async { drop(first) });
        assert!(tokio::time::timeout(Duration::from_millis(1), turns.wait(a)).await.is_err());
        drop((second, third, other));
        assert!(turns.busy().is_empty());
    }

    #[test]
    fn no_transactions_at_all_is_refused() {
        assert!(Fairness::new(0, Duration::ZERO).is_err());
    }
}
