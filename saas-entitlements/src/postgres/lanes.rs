//! Lanes to the database, each of which takes what waits for it in one transaction, whoever's it is.
//!
//! Alone, a flight goes at once. While the lanes are taken, flights of different tenants and meters wait, and the next
//! transaction serves all of a lane: they share its flush to disk and everything else that a transaction costs. Each statement
//! is bound to its own tenant, so row-level security holds within the transaction as it does between two.
//!
//! Promises that nobody waits long for another tenant's lock: what does not get its own within [`PATIENCE`], or fails, is
//! rolled back with the others of its transaction, and each of them then goes by itself on a connection of its own.

use std::{
    error::Error as _,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use saas_core::{
    CoreError, SessionBinding, TenantContext,
    db::{Errand, TenantWork},
    group::{Group, Shared},
};
use sqlx::postgres::PgRow;

/// Transactions under way at the same time: enough to keep several processors of a server busy, few enough to be shared.
const LANES: usize = 2;
/// How long a lock is waited for on behalf of others.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a transaction may take that waits for no lock.
const WHOLE: Duration = Duration::from_secs(30);
/// Flights that may wait in a lane.
const ROOM: usize = 4_096;

/// The lanes of one store.
pub(super) struct Lanes {
    binding: Arc<dyn SessionBinding>,
    group: Arc<Group<Lane>>,
    /// In each lane, under way or waiting.
    loads: [AtomicUsize; LANES],
}

impl Lanes {
    pub(super) fn new(binding: Arc<dyn SessionBinding>) -> Self {
        let group = Arc::new(Group::new(Lane { binding: Arc::clone(&binding) }, WHOLE, ROOM));
        Self { binding, group, loads: Default::default() }
    }

    /// Runs an errand, committed, alone or with others.
    pub(super) async fn run(&self, errand: Errand) -> Result<Vec<PgRow>, CoreError> {
        let answered = {
            let load = self.enter();
            self.group.join(&load.lane, errand.clone()).await?
        };
        match answered {
            Ok(rows) => Ok(rows),
            // Nobody was reached: to try once more would take as long again.
            Err(error) if !is_of_server(&error) => Err(CoreError::Unavailable { cause: Box::new(error) }),
            Err(_) => self.binding.write_errand(&errand).await,
        }
    }

    /// A place in the lane that has the least to do.
    fn enter(&self) -> Load<'_> {
        let load = |lane: &usize| self.loads.get(*lane).map_or(usize::MAX, |load| load.load(Ordering::Relaxed));
        let lane = (0..LANES).min_by_key(load).unwrap_or_default();
        let count = self.loads.get(lane);
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Load { lane, count }
    }
}

/// Whether the database itself said no, for which there can be a reason in another errand of the transaction.
fn is_of_server(error: &CoreError) -> bool {
    let is_unavailable = matches!(error, CoreError::Unavailable { .. });
    let answer = error.source().and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    !is_unavailable || answer.is_some_and(|answer| answer.as_database_error().is_some())
}

struct Load<'a> {
    lane: usize,
    count: Option<&'a AtomicUsize>,
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.count {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How a lane gets to the database.
struct Lane {
    binding: Arc<dyn SessionBinding>,
}

impl Shared for Lane {
    type Key = usize;
    type Item = Errand;
    /// An error that says that nothing was done.
    type Answer = Result<Vec<PgRow>, Arc<CoreError>>;

    const ITEMS: usize = 32;
    const BYTES: usize = 256 * 1024;

    fn bytes(errand: &Errand) -> usize {
        errand.size()
    }

    async fn alone(&self, _: &usize, errand: &Errand) -> Result<Self::Answer, CoreError> {
        let mut answers = self.together(&0, &[errand]).await?;
        answers.pop().ok_or_else(|| CoreError::OutcomeUnknown { cause: "there is no answer".into() })
    }

    async fn together(&self, _: &usize, errands: &[&Errand]) -> Result<Vec<Self::Answer>, CoreError> {
        // In the order in which everybody locks the counters of several tenants.
        let mut order: Vec<usize> = (0..errands.len()).collect();
        order.sort_by_key(|at| errands.get(*at).map(|errand| errand.ctx().tenant()));
        let sorted: Vec<&Errand> = order.iter().filter_map(|at| errands.get(*at).copied()).collect();
        match self.binding.write_errands(&sorted, PATIENCE).await {
            Ok(rows) => {
                let mut answers: Vec<(usize, Self::Answer)> = order.into_iter().zip(rows.into_iter().map(Ok)).collect();
                answers.sort_unstable_by_key(|(at, _)| *at);
                Ok(answers.into_iter().map(|(_, answer)| answer).collect())
            }
            Err(error @ CoreError::OutcomeUnknown { .. }) => Err(error),
            Err(error) => {
                let error = Arc::new(error);
                Ok(errands.iter().map(|_| Err(Arc::clone(&error))).collect())
            }
        }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lanes")
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lane")
    }
}
