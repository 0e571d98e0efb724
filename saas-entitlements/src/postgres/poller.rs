//! Lets the gate hear of new revisions by asking for them, where nothing can be listened to: behind a transaction pooler
//! or on a server that does not pass notifications on.
//!
//! One indexed query per interval, whatever the number of tenants. It asks for what changed in the transactions that had
//! not all ended when it asked before, so a change that commits late is seen by the next query and none is skipped. What
//! it sees twice changes nothing.

use std::{sync::Arc, time::Duration};

use saas_core::{Actor, CoreError, Revision, SystemPool, SystemTx, TenantId, revision::Holder};
use tokio::{
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use crate::{Entitlements, gate::GateHolder};

/// More changes than this in one interval make everything be read again.
const MOST_CHANGES: i64 = 10_000;
/// How long one query may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Asks for nothing but the present position.
const NOTHING_YET: u64 = u64::MAX;

/// Asks in a task until it is dropped.
#[derive(Debug)]
#[must_use = "the poller stops when it is dropped"]
pub struct RevisionPoller {
    task: JoinHandle<()>,
}

impl RevisionPoller {
    /// Starts to ask every `every`, which takes the place of "one notification" in the staleness bound. While the database
    /// does not answer, the gate's TTL is the bound; afterwards everything is read again.
    ///
    /// A transaction that stays open after it has written holds the position back: the changes since are then asked for
    /// again each time.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when `every` is zero.
    pub fn start(entitlements: Entitlements, pool: SystemPool, every: Duration) -> Self {
        Self { task: tokio::spawn(poll_revisions(Arc::new(GateHolder::new(entitlements, "poll")), pool, every)) }
    }
}

impl Drop for RevisionPoller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for ever, and tells `holder`. Panics at once, not in the task, where `every` is zero.
pub(crate) fn poll_revisions(
    holder: Arc<dyn Holder>,
    pool: SystemPool,
    every: Duration,
) -> impl Future<Output = ()> + Send {
    poll(holder, pool, interval(every))
}

async fn poll(holder: Arc<dyn Holder>, pool: SystemPool, mut interval: Interval) {
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut position = NOTHING_YET;
    let mut last_asked = Instant::now();
    loop {
        interval.tick().await;
        let asking = Instant::now();
        let asked = timeout(ANSWER_WITHIN, changes_since(&pool, position)).await;
        position = match asked.unwrap_or_else(|_| Err(CoreError::Unavailable { cause: "no answer in time".into() })) {
            Ok(seen) => {
                let next = tell(&*holder, position, seen);
                // What is seen now was committed after the last query began, or had been told of then.
                holder.echoed(last_asked.elapsed());
                last_asked = asking;
                next
            }
            Err(error) => {
                tracing::warn!(target: "saas.entitlements.gate.poll", error = &error as &dyn std::error::Error, "cannot ask for revisions");
                // Whoever answers next may be another server, with transactions of its own.
                NOTHING_YET
            }
        };
    }
}

/// What one query saw.
struct Seen {
    /// Where to ask from next: every transaction below has ended, and what it changed was seen.
    next: u64,
    changes: Vec<(TenantId, Revision)>,
}

/// Tells the holder, and returns where to ask from next.
fn tell(holder: &dyn Holder, position: u64, seen: Seen) -> u64 {
    let starts = position == NOTHING_YET || seen.next < position;
    if starts || seen.changes.len() as i64 >= MOST_CHANGES {
        // After the query: what is read from here on shows what had been committed by then.
        holder.flush();
    } else {
        seen.changes.into_iter().for_each(|(tenant, revision)| holder.hear(tenant, revision));
    }
    seen.next
}

async fn changes_since(pool: &SystemPool, position: u64) -> Result<Seen, CoreError> {
    let mut tx = SystemTx::begin(pool, Actor::system("entitlements"), "ask whose revision changed").await?;
    // One statement, one snapshot: its xmin is that of the rows.
    let rows: Vec<(String, Option<Uuid>, Option<i64>)> = sqlx::query_as(
        "select shown.next::text, changed.id, changed.revision
         from (select pg_snapshot_xmin(pg_current_snapshot()) as next) shown
         left join lateral (
             select t.id, t.revision
             from saas.tenant t
             where t.changed_in >= $1::text::xid8
             order by t.changed_in
             limit $2
         ) changed on true",
    )
    .bind(position.to_string())
    .bind(MOST_CHANGES)
    .fetch_all(&mut *tx)
    .await
    .map_err(CoreError::from_database)?;
    tx.rollback().await?;
    let corrupt = |column| CoreError::Corrupt { table: "saas.tenant", column };
    let next = rows.first().and_then(|(next, ..)| next.parse().ok()).ok_or_else(|| corrupt("changed_in"))?;
    let change = |(_, id, revision): (String, Option<Uuid>, Option<i64>)| {
        let revision = u64::try_from(revision?).map(Revision::new).map_err(|_| corrupt("revision"));
        Some(revision.map(|revision| id.map(|id| (TenantId::from_uuid(id), revision))))
    };
    let changes: Result<Vec<_>, _> = rows.into_iter().filter_map(change).collect();
    Ok(Seen { next, changes: changes?.into_iter().flatten().collect() })
}
