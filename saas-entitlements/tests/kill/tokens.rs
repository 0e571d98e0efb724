//! Work that reserves what it may cost, and is in the middle of it whenever its process is killed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use saas_core::{RequestContext, TenantPool};
use saas_entitlements::{Entitlements, PostgresCounters, Reservation, Reservations, Reserved, Settlement};
use tokio::sync::Mutex;

use crate::{
    PATIENCE, TOKENS, TOKENS_LIMIT, Tenants,
    books::Books,
    journal::{Journal, Noted, Pair},
    worker::{answer, is_passing},
};

/// How long what nobody ends is held.
const SHORT: Duration = Duration::from_secs(1);

/// The work of a process: reserved in one second, and ended in the next.
pub(crate) struct Work {
    reservations: Reservations,
    under_way: Mutex<Option<Reservation>>,
}

/// How the work of a key ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With all or some of what was reserved.
    Committed(u64),
    Released,
    /// By nobody: it is held until it is overdue.
    Forgotten,
}

/// What the work of a key may cost, and how it ends.
const fn plan(n: u64) -> (u64, End) {
    let most = 2 + n % 7;
    let end = match n % 4 {
        0 => End::Committed(most),
        1 => End::Committed(most / 2),
        2 => End::Released,
        _ => End::Forgotten,
    };
    (most, end)
}

impl Work {
    pub(crate) fn open(gate: &Entitlements, tenants: &TenantPool) -> Self {
        let store = Arc::new(PostgresCounters::new(Arc::new(tenants.clone())));
        Self { reservations: Reservations::new(gate.clone(), store), under_way: Mutex::default() }
    }

    /// Ends the work of the last second, and begins the next. What a process that was killed had under way is reserved
    /// again under the same key: the same units.
    pub(crate) async fn serve(&self, ctx: &RequestContext, worker: usize, journal: &Journal) {
        self.end(journal).await;
        let (n, granted) = journal.read(Pair::Tokens);
        let (most, end) = plan(n);
        let key = format!("{worker}-{n}").parse().unwrap();
        let life = if end == End::Forgotten { SHORT } else { PATIENCE };
        match answer(is_passing, async || self.reservations.reserve(ctx, &TOKENS, most, &key, life).await).await {
            Reserved::Granted { reservation, over: 0, of_grants: 0, .. } => {
                *self.under_way.lock().await = Some(reservation);
            }
            // Its process was killed between the commit and the note of it.
            Reserved::AlreadyCounted { amount } => {
                assert_eq!(End::Committed(amount), end);
                journal.note(Pair::Tokens, (n + 1, granted + amount));
            }
            Reserved::Exhausted { .. } => journal.note(Pair::Tokens, (n + 1, granted)),
            other => panic!("{other:?}"),
        }
    }

    /// Ends what is under way.
    pub(crate) async fn end(&self, journal: &Journal) {
        let Some(mut reservation) = self.under_way.lock().await.take() else { return };
        let (n, granted) = journal.read(Pair::Tokens);
        let counted = match plan(n).1 {
            End::Committed(actual) => {
                match answer(is_passing, async || reservation.commit(actual).await).await {
                    Settlement::Counted { over: 0, beyond: 0, late: false, .. } => {}
                    Settlement::AlreadyCounted { amount } => assert_eq!(amount, actual),
                    other => panic!("{other:?}"),
                }
                actual
            }
            End::Released => {
                let ended = answer(is_passing, async || reservation.release().await).await;
                assert_eq!(ended, Settlement::Released);
                0
            }
            End::Forgotten => {
                reservation.keep();
                0
            }
        };
        journal.note(Pair::Tokens, (n + 1, granted + counted));
    }

    /// Uses what is left to the last unit, once what was forgotten is overdue; returns how much that was.
    pub(crate) async fn use_the_rest(&self, tenants: &Tenants, until: Instant) -> u64 {
        let mut rest = 0;
        for number in 0.. {
            assert!(Instant::now() < until, "what was forgotten is not given back");
            let key = format!("rest-{number}").parse().unwrap();
            let reserve = async || self.reservations.reserve(&tenants.busy, &TOKENS, 1, &key, PATIENCE).await;
            match answer(is_passing, reserve).await {
                Reserved::Granted { mut reservation, .. } => {
                    drop(answer(is_passing, async || reservation.commit(1).await).await);
                    rest += 1;
                }
                Reserved::Exhausted { held: 0, .. } => break,
                Reserved::Exhausted { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        rest
    }
}

/// Exactly what was committed is counted, and all that was not is free again.
pub(crate) async fn are_accounted_for(books: &Books<'_>, noted: &Noted, rest: u64) {
    assert_eq!(books.stranded_and_recorded(&TOKENS).await, (0, noted.tokens + rest), "committed work");
    assert_eq!(noted.tokens + rest, TOKENS_LIMIT, "the limit was reached, to the last unit");
}
