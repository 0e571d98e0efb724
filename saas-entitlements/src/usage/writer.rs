//! Recording what has no limit: many uses in one statement.
//!
//! A use is acknowledged by its [`Ticket`], once it is committed. One that is not acknowledged may or may not be counted;
//! recorded again under the same key it is counted once. What is recorded here is not held against a limit and announces no
//! warning.

use std::{collections::HashMap, fmt, num::NonZeroUsize, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, ErrorKind, IdempotencyKey, MeterKey, SharedClock, SystemPool, SystemTx, TenantId, UsageEventId,
    plan::Window,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::ACTOR;
use crate::{EntitlementsError, Period};

/// One use that is to be recorded, with its window decided, of a meter whose uses add up.
#[derive(Debug, Clone)]
pub struct UsageRecord {
    /// Whose.
    pub tenant: TenantId,
    /// By whom.
    pub actor: Actor,
    /// What was used.
    pub meter: MeterKey,
    /// What counts it: the meter itself, or the one whose units pay for it.
    pub counter: MeterKey,
    /// How much of the meter.
    pub amount: u64,
    /// The same in units of the counter.
    pub units: u64,
    /// The kind of window it counts in.
    pub window: Window,
    /// The window it counts in.
    pub period: Period,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// Names this one use.
    pub key: IdempotencyKey,
    /// By which member of the tenant.
    pub member: Option<String>,
}

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
/// - [`Invalid`](ErrorKind::Invalid) or [`Conflict`](ErrorKind::Conflict): one of them cannot be stored, such as a tenant that
///   is not there; nothing was counted.
/// - [`Unavailable`](ErrorKind::Unavailable) and [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): repeat with the same keys.
pub async fn record_many(
    system: &SystemPool,
    records: &[UsageRecord],
    now: DateTime<Utc>,
) -> Result<Vec<Recorded>, EntitlementsError> {
    record_all(system, &records.iter().collect::<Vec<_>>(), now).await
}

const RECORD: &str = "
    with input as materialized (
        select *
        from unnest($1::integer[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::bigint[], $8::bigint[],
                    $9::text[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[], $13::text[], $14::text[])
             as i (n, tenant_id, meter, counter, key, event_id, amount, units, window_kind, window_start, window_end, at,
                   member, actor)
    ), fresh as (
        insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
        select tenant_id, meter, key, amount, event_id, $15
        from input
        order by tenant_id, meter, key
        on conflict (tenant_id, meter, key) do nothing
        returning event_id
    ), counted as materialized (
        select i.* from input i join fresh using (event_id)
    ), events as (
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member,
             actor)
        select tenant_id, event_id, $15, meter, counter, 'record', amount, units, window_kind, window_start,
               least(at, $15), key, member, actor
        from counted
    ), counters as (
        insert into saas.usage_counter as c (tenant_id, meter, window_kind, window_start, window_end, used)
        select tenant_id, counter, window_kind, window_start, max(window_end), sum(units)::bigint
        from counted
        group by tenant_id, counter, window_kind, window_start
        order by tenant_id, counter, window_kind, window_start
        on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used
        returning tenant_id, meter, window_kind, window_start, by_member
    ), members as (
        insert into saas.usage_member as m (tenant_id, meter, window_kind, window_start, member, used)
        select i.tenant_id, i.counter, i.window_kind, i.window_start, i.member, sum(i.units)::bigint
        from counted i
        join counters c on c.tenant_id = i.tenant_id and c.meter = i.counter and c.window_kind = i.window_kind
                       and c.window_start = i.window_start
        where c.by_member and i.member is not null
        group by i.tenant_id, i.counter, i.window_kind, i.window_start, i.member
        order by i.tenant_id, i.counter, i.window_kind, i.window_start, i.member
        on conflict (tenant_id, meter, window_kind, window_start, member) do update set used = m.used + excluded.used
    )
    select i.n, k.amount
    from input i
    left join fresh f using (event_id)
    left join saas.usage_key k on k.tenant_id = i.tenant_id and k.meter = i.meter and k.key = i.key
    where f.event_id is null";

async fn record_all(
    system: &SystemPool,
    records: &[&UsageRecord],
    now: DateTime<Utc>,
) -> Result<Vec<Recorded>, EntitlementsError> {
    let mut outcomes = vec![Recorded::Counted; records.len()];
    let mut first_of = HashMap::with_capacity(records.len());
    // A key that is twice in here: the first one counts.
    let mut sent: Vec<usize> = Vec::with_capacity(records.len());
    for (n, record) in records.iter().enumerate() {
        let first = *first_of.entry((record.tenant, &record.meter, record.key.as_str())).or_insert(n);
        if first == n {
            sent.push(n);
        } else if records[first].amount == record.amount {
            outcomes[n] = Recorded::AlreadyCounted;
        } else {
            outcomes[n] = Recorded::KeyReused;
        }
    }
    let column = |amount: fn(&UsageRecord) -> u64| {
        let stored = |n: &usize| i64::try_from(amount(records[*n])).map_err(|_| too_large());
        sent.iter().map(stored).collect::<Result<Vec<i64>, _>>()
    };
    let texts = |text: fn(&UsageRecord) -> &str| sent.iter().map(|n| text(records[*n])).collect::<Vec<&str>>();
    let instants = |of: fn(&UsageRecord) -> DateTime<Utc>| sent.iter().map(|n| of(records[*n])).collect::<Vec<_>>();
    let mut tx = SystemTx::begin(system, ACTOR, "record uses").await?;
    let repeated: Vec<(i32, Option<i64>)> = sqlx::query_as(RECORD)
        .bind((0..sent.len()).map(|n| i32::try_from(n).unwrap_or(i32::MAX)).collect::<Vec<_>>())
        .bind(sent.iter().map(|n| records[*n].tenant.as_uuid()).collect::<Vec<_>>())
        .bind(texts(|record| record.meter.as_str()))
        .bind(texts(|record| record.counter.as_str()))
        .bind(texts(|record| record.key.as_str()))
        .bind(sent.iter().map(|_| UsageEventId::mint_at(now).as_uuid()).collect::<Vec<_>>())
        .bind(column(|record| record.amount)?)
        .bind(column(|record| record.units)?)
        .bind(texts(|record| record.window.as_str()))
        .bind(instants(|record| record.period.start))
        .bind(sent.iter().map(|n| records[*n].period.end).collect::<Vec<_>>())
        .bind(instants(|record| record.at))
        .bind(sent.iter().map(|n| records[*n].member.as_deref()).collect::<Vec<_>>())
        .bind(sent.iter().map(|n| records[*n].actor.to_string()).collect::<Vec<_>>())
        .bind(now)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    tx.commit().await?;
    for (position, prior) in repeated {
        let Some(n) = usize::try_from(position).ok().and_then(|position| sent.get(position)) else { continue };
        // A key that another one wrote meanwhile is not seen yet: what it counted is known to its own caller.
        let is_same = prior.is_none_or(|prior| u64::try_from(prior) == Ok(records[*n].amount));
        outcomes[*n] = if is_same { Recorded::AlreadyCounted } else { Recorded::KeyReused };
    }
    Ok(outcomes)
}

fn too_large() -> EntitlementsError {
    saas_core::InvalidInput::new("amount", "is more than a counter holds", "record at most 2^63 - 1 units at once")
        .into()
}
