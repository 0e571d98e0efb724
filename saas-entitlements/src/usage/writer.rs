//! Recording what has no limit: many uses in one statement.
//!
//! A use is acknowledged by its [`Ticket`], once it is committed. One that is not acknowledged may or may not be counted;
//! recorded again under the same key it is counted once. What is recorded here is not held against a limit and announces no
//! warning.

use std::{collections::HashMap, fmt, num::NonZeroUsize, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{
    CoreError, ErrorKind, MeterKey, SharedClock, SystemPool, SystemTx, TenantId, UsageEventId, plan::Window,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{ACTOR, UsageRecord};
use crate::{EntitlementsError, Period};

/// What became of a recorded use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// It is counted.
    Counted,
    /// Its key was counted before, with the same amount.
    AlreadyCounted,
    /// Its key was counted before, with another amount. Nothing was counted.
    KeyReused,
}

/// Bounds of a [`UsageWriter`].
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    batch: NonZeroUsize,
    buffer: NonZeroUsize,
    pause: Duration,
}

impl Default for WriterOptions {
    /// 1,000 uses in a statement, 10,000 in memory, and a second between tries while the database does not answer.
    fn default() -> Self {
        let at_least_one = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
        Self { batch: at_least_one(1_000), buffer: at_least_one(10_000), pause: Duration::from_secs(1) }
    }
}

impl WriterOptions {
    /// Writes at most this many uses with one statement.
    #[must_use]
    pub const fn with_batch(self, batch: NonZeroUsize) -> Self {
        Self { batch, ..self }
    }

    /// Keeps at most this many uses in memory, beside the batch that is being written; [`UsageWriter::record`] waits
    /// beyond.
    #[must_use]
    pub const fn with_buffer(self, buffer: NonZeroUsize) -> Self {
        Self { buffer, ..self }
    }

    /// Waits this long between tries while the database does not answer.
    #[must_use]
    pub const fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }
}

/// Resolves when a use is committed, or was refused.
#[derive(Debug)]
#[must_use = "a use is not certain before its ticket says so"]
pub struct Ticket(oneshot::Receiver<Result<Recorded, Arc<EntitlementsError>>>);

impl Ticket {
    /// Waits until the use is committed.
    ///
    /// # Errors
    /// What the database says of this use: record it again only after mending that.
    /// [`Unavailable`](EntitlementsError::Unavailable) when the writer ended first: it may be counted or not; record it
    /// again with the same key.
    pub async fn settled(self) -> Result<Recorded, Arc<EntitlementsError>> {
        self.0.await.unwrap_or_else(|_| Err(Arc::new(EntitlementsError::Unavailable { cause: None })))
    }
}

struct Pending {
    record: UsageRecord,
    ticket: oneshot::Sender<Result<Recorded, Arc<EntitlementsError>>>,
}

/// Collects uses in memory and writes what came together with one statement.
pub struct UsageWriter {
    sender: mpsc::Sender<Pending>,
    task: JoinHandle<()>,
}

impl fmt::Debug for UsageWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageWriter").field("room", &self.sender.capacity()).finish_non_exhaustive()
    }
}

impl UsageWriter {
    /// Starts the task that writes. While the database does not answer it tries again and keeps what it has.
    #[must_use]
    pub fn start(system: SystemPool, clock: SharedClock, options: WriterOptions) -> Self {
        let (sender, receiver) = mpsc::channel(options.buffer.get());
        Self { sender, task: tokio::spawn(write(receiver, system, clock, options)) }
    }

    /// Takes a use into memory, waiting for room where there is none. It is certain when the ticket says so.
    ///
    /// # Errors
    /// [`Unavailable`](EntitlementsError::Unavailable) when the writer has ended: nothing was recorded.
    pub async fn record(&self, record: UsageRecord) -> Result<Ticket, EntitlementsError> {
        let (ticket, settled) = oneshot::channel();
        let sent = self.sender.send(Pending { record, ticket }).await;
        sent.map_err(|_| EntitlementsError::Unavailable { cause: None })?;
        Ok(Ticket(settled))
    }

    /// Writes what is left, and ends. Bound it with a timeout of yours: it waits for a database that does not answer.
    pub async fn shut_down(self) {
        drop(self.sender);
        if let Err(failed) = self.task.await {
            tracing::error!(target: "saas.entitlements.usage.writer", %failed, "the writer did not end well");
        }
    }
}

async fn write(mut receiver: mpsc::Receiver<Pending>, system: SystemPool, clock: SharedClock, options: WriterOptions) {
    let mut batch = Vec::with_capacity(options.batch.get());
    while receiver.recv_many(&mut batch, options.batch.get()).await > 0 {
        // Smaller pieces only after a refusal, to find the use that is to blame.
        let mut pieces = vec![std::mem::take(&mut batch)];
        while let Some(mut piece) = pieces.pop() {
            let records: Vec<&UsageRecord> = piece.iter().map(|pending| &pending.record).collect();
            match record_all(&system, &records, clock.now()).await {
                Ok(outcomes) => {
                    for (pending, outcome) in piece.into_iter().zip(outcomes) {
                        // Nobody has to wait for it.
                        drop(pending.ticket.send(Ok(outcome)));
                    }
                }
                Err(error) if error.is_retryable() || error.kind() == ErrorKind::OutcomeUnknown => {
                    tracing::warn!(target: "saas.entitlements.usage.writer", %error, uses = piece.len(), "tries again");
                    pieces.push(piece);
                    tokio::time::sleep(options.pause).await;
                }
                Err(error) if piece.len() == 1 => {
                    tracing::error!(target: "saas.entitlements.usage.writer", %error, "a use cannot be recorded");
                    let error = Arc::new(error);
                    for pending in piece {
                        drop(pending.ticket.send(Err(error.clone())));
                    }
                }
                Err(_) => {
                    let second = piece.split_off(piece.len() / 2);
                    pieces.extend([second, piece]);
                }
            }
        }
    }
}

/// Records all of these uses in one transaction: what became of each, in their order. All are counted or none; a repeat
/// counts only what was not counted before.
///
/// Writers take rows in one order, so that two at once do not wait for each other.
///
/// # Errors
/// - [`Invalid`](ErrorKind::Invalid) or [`Conflict`](ErrorKind::Conflict): one of them cannot be stored, such as one of a
///   tenant that is not there or is being erased (constraint `usage_event_tenant`); nothing was counted.
/// - [`Unavailable`](ErrorKind::Unavailable) and [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): repeat with the same keys.
pub async fn record_many(
    system: &SystemPool,
    records: &[UsageRecord],
    now: DateTime<Utc>,
) -> Result<Vec<Recorded>, EntitlementsError> {
    record_all(system, &records.iter().collect::<Vec<_>>(), now).await
}

const RECORD: &str = "
    select n, prior
    from saas.usage_record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";

/// What many uses of a batch share.
type Place<'a> = (TenantId, &'a MeterKey, &'a MeterKey, Window, Period);

async fn record_all(
    system: &SystemPool,
    records: &[&UsageRecord],
    now: DateTime<Utc>,
) -> Result<Vec<Recorded>, EntitlementsError> {
    let mut outcomes = vec![Recorded::Counted; records.len()];
    let name = |n: usize| (records[n].tenant, &records[n].meter, records[n].key.as_str());
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by_key(|n| name(*n));
    // The sort keeps the order of equals: of a key that is twice in here, the first one counts.
    let mut sent: Vec<usize> = Vec::with_capacity(records.len());
    for n in order {
        match sent.last() {
            Some(first) if name(*first) == name(n) => outcomes[n] = repeated(records[n], records[*first].amount),
            Some(_) | None => sent.push(n),
        }
    }
    let uses = || sent.iter().map(|n| records[*n]);
    let mut places: Vec<Place<'_>> = Vec::new();
    let mut place_of = HashMap::new();
    let mut at_places = Vec::with_capacity(sent.len());
    for record in uses() {
        let place = (record.tenant, &record.meter, &record.counter, record.window, record.period);
        at_places.push(*place_of.entry(place).or_insert_with(|| {
            places.push(place);
            // As the database counts: from 1.
            i32::try_from(places.len()).unwrap_or(i32::MAX)
        }));
    }
    let column = |amount: fn(&UsageRecord) -> u64| {
        let stored = |record| i64::try_from(amount(record)).map_err(|_| too_large());
        uses().map(stored).collect::<Result<Vec<i64>, _>>()
    };
    let mut tx = SystemTx::begin(system, ACTOR, "record uses").await?;
    let known: Vec<(i32, Option<i64>)> = sqlx::query_as(RECORD)
        .bind(places.iter().map(|(tenant, ..)| tenant.as_uuid()).collect::<Vec<_>>())
        .bind(places.iter().map(|(_, meter, ..)| meter.as_str()).collect::<Vec<_>>())
        .bind(places.iter().map(|(_, _, counter, ..)| counter.as_str()).collect::<Vec<_>>())
        .bind(places.iter().map(|(.., window, _)| window.as_str()).collect::<Vec<_>>())
        .bind(places.iter().map(|(.., period)| period.start).collect::<Vec<_>>())
        .bind(places.iter().map(|(.., period)| period.end).collect::<Vec<_>>())
        .bind(at_places)
        .bind(uses().map(|record| record.key.as_str()).collect::<Vec<_>>())
        .bind(uses().map(|_| UsageEventId::mint_at(now).as_uuid()).collect::<Vec<_>>())
        .bind(column(|record| record.amount)?)
        .bind(column(|record| record.units)?)
        .bind(uses().map(|record| record.at).collect::<Vec<_>>())
        .bind(uses().map(|record| record.member.as_deref()).collect::<Vec<_>>())
        .bind(uses().map(|record| record.actor.to_string()).collect::<Vec<_>>())
        .bind(now)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    tx.commit().await?;
    for (place, prior) in known {
        let sent = usize::try_from(place).ok().and_then(|place| sent.get(place.checked_sub(1)?));
        let Some(n) = sent.copied() else { continue };
        // A key that another one wrote meanwhile is not seen yet: what it counted is known to its own caller.
        let prior = prior.map_or(Some(records[n].amount), |prior| u64::try_from(prior).ok());
        outcomes[n] = prior.map_or(Recorded::KeyReused, |prior| repeated(records[n], prior));
    }
    Ok(outcomes)
}

/// What a use is whose key was counted with this amount.
fn repeated(record: &UsageRecord, counted: u64) -> Recorded {
    if record.amount == counted { Recorded::AlreadyCounted } else { Recorded::KeyReused }
}

fn too_large() -> EntitlementsError {
    saas_core::InvalidInput::new("amount", "is more than a counter holds", "record at most 2^63 - 1 units at once")
        .into()
}
