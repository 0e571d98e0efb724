//! Events handed to somebody else, such as billing: in batches with an id, at least once, each item with its own outcome.
//!
//! A batch is written down before it is handed out, and its outcome in one transaction afterwards. Whatever ends in between,
//! the next run hands out the same batch under the same id. An item's own id is the event's, made when it was recorded: a
//! receiver that remembers it takes each event once, in whatever batch it comes.

use std::{fmt, str::FromStr};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saas_core::{CoreError, MeterKey, SystemTx, TenantId, UsageEventId};
use serde::Serialize;
use uuid::Uuid;

use super::{ACTOR, UsagePipeline, position};
use crate::EntitlementsError;

/// Events of one batch.
const BATCH: i64 = 500;
/// How often an item is sent before it is left to a person.
const ATTEMPTS: i32 = 20;

/// Events that are handed over together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageBatch {
    /// The same each time this batch is handed out.
    pub id: Uuid,
    /// The events, in the order of the reader.
    pub rows: Vec<UsageRow>,
}

/// One event, as it is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UsageRow {
    /// Made when it was recorded: what a receiver remembers to take it once.
    pub id: UsageEventId,
    /// Whose.
    pub tenant: TenantId,
    /// What it tells of.
    pub kind: UsageKind,
    /// What was used.
    pub meter: MeterKey,
    /// What counted it.
    pub counter: MeterKey,
    /// How much of the meter; below 0 for a correction.
    pub amount: i64,
    /// What it added to the counter.
    pub units: i64,
    /// The first instant of the window that it counts in.
    pub window_start: DateTime<Utc>,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// By which member of the tenant.
    pub member: Option<String>,
}

/// What an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageKind {
    /// A use, or the uses that a lease reported together.
    Use,
    /// A correction by a person.
    Correction,
    /// What a process that was lost had not reported: counted as used, and perhaps it was not.
    Stranded,
}

/// What became of one item of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver has it.
    Taken,
    /// Not now: it goes again.
    Retry {
        /// Why. Shown to operators.
        why: String,
    },
    /// Never: it is kept for a person.
    Refused {
        /// Why. Shown to operators.
        why: String,
    },
}

/// Takes usage events.
///
/// # Contract
/// - *Idempotent*: a row whose `id` was taken before is [`Delivery::Taken`] and changes nothing, in whatever batch it comes.
/// - *Complete*: one answer per row, in the order of the rows. An error answers for none of them, and the whole batch comes
///   again under the same id.
#[async_trait]
pub trait UsageExport: fmt::Debug + Send + Sync {
    /// Takes one batch.
    async fn deliver(&self, batch: &UsageBatch) -> Result<Vec<Delivery>, EntitlementsError>;
}

/// What one run of an export did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExportReport {
    /// Items that the receiver has.
    pub taken: u64,
    /// Items that go again with the next run.
    pub retried: u64,
    /// Items that are kept for a person.
    pub refused: u64,
}

type Row = (Uuid, Uuid, String, String, String, i64, i64, DateTime<Utc>, DateTime<Utc>, Option<String>, DateTime<Utc>);

/// A batch that is written down, and when its rows were recorded.
struct Claimed {
    batch: UsageBatch,
    recorded: Vec<DateTime<Utc>>,
    is_again: bool,
}

impl UsagePipeline {
    /// Hands what is new since the last run of the reader `name` to `receiver`, after what it could not take before. The
    /// first run begins with the oldest event that is kept.
    ///
    /// Two runs of one reader at once can hand out the same batch twice, under the same id; nothing is left out.
    ///
    /// # Errors
    /// What the receiver answers: its batch comes again. [`Misconfigured`](saas_core::ErrorKind::Misconfigured) when it
    /// does not answer for each row. [`ForeignPositions`](EntitlementsError::ForeignPositions) after a restore into another
    /// server: nothing new was handed out.
    #[tracing::instrument(name = "saas.entitlements.usage.export", level = "debug", skip_all, fields(reader = name))]
    pub async fn export(&self, name: &str, receiver: &dyn UsageExport) -> Result<ExportReport, EntitlementsError> {
        let mut report = ExportReport::default();
        if let Some(again) = self.claim_again(name).await? {
            self.hand_over(name, receiver, again, &mut report).await?;
        }
        while let Some(claimed) = self.claim(name).await? {
            self.hand_over(name, receiver, claimed, &mut report).await?;
        }
        Ok(report)
    }

    async fn hand_over(
        &self,
        name: &str,
        receiver: &dyn UsageExport,
        claimed: Claimed,
        report: &mut ExportReport,
    ) -> Result<(), EntitlementsError> {
        let answers = if claimed.batch.rows.is_empty() { Vec::new() } else { receiver.deliver(&claimed.batch).await? };
        if answers.len() != claimed.batch.rows.len() {
            let what =
                format!("the receiver of `{name}` answered {} of {} rows", answers.len(), claimed.batch.rows.len());
            let remedy = "return one `Delivery` per row, in the order of the rows".to_owned();
            return Err(CoreError::Misconfigured { what, remedy }.into());
        }
        if !self.settle(name, &claimed, &answers).await? {
            return Ok(());
        }
        for answer in answers {
            match answer {
                Delivery::Taken => report.taken += 1,
                Delivery::Retry { .. } => report.retried += 1,
                Delivery::Refused { .. } => report.refused += 1,
            }
        }
        Ok(())
    }

    /// The batch that is not answered for, or else the next one, written down.
    async fn claim(&self, name: &str) -> Result<Option<Claimed>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take a batch of usage events").await?;
        position::check(&mut tx).await?;
        sqlx::query("insert into saas.usage_consumer (name) values ($1) on conflict (name) do nothing")
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        let pending: Option<Uuid> =
            sqlx::query_scalar("select batch_id from saas.usage_consumer where name = $1 for update")
                .bind(name)
                .fetch_one(&mut *tx)
                .await
                .map_err(CoreError::from_database)?;
        let id = match pending {
            Some(id) => id,
            None => {
                let id = UsageEventId::mint_at(self.clock.now()).as_uuid();
                let marked = sqlx::query(
                    "update saas.usage_consumer c
                     set batch_id = $2, upto_position = last.position, upto_tenant = last.tenant_id, upto_event = last.id
                     from (
                         select next.position, next.tenant_id, next.id
                         from saas.usage_consumer mark
                         cross join lateral (
                             select e.position, e.tenant_id, e.id
                             from saas.usage_event e -- of every tenant, in the order of the reader
                             where (e.position, e.tenant_id, e.id)
                                       > (mark.after_position, mark.after_tenant, mark.after_event)
                               and e.position < (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint)
                             order by e.position, e.tenant_id, e.id
                             limit $3
                         ) next
                         where mark.name = $1
                         order by next.position desc, next.tenant_id desc, next.id desc
                         limit 1
                     ) last
                     where c.name = $1",
                )
                .bind(name)
                .bind(id)
                .bind(BATCH)
                .execute(&mut *tx)
                .await
                .map_err(CoreError::from_database)?;
                if marked.rows_affected() == 0 {
                    tx.commit().await?;
                    return Ok(None);
                }
                id
            }
        };
        let rows: Vec<Row> = sqlx::query_as(
            "select e.id, e.tenant_id, e.kind, e.meter, e.counter, e.amount, e.units, e.window_start, e.at, e.member, e.recorded_at
             from saas.usage_consumer c
             join saas.usage_event e -- of every tenant, in the order of the reader
               on (e.position, e.tenant_id, e.id) > (c.after_position, c.after_tenant, c.after_event)
              and (e.position, e.tenant_id, e.id) <= (c.upto_position, c.upto_tenant, c.upto_event)
             where c.name = $1
             order by e.position, e.tenant_id, e.id",
        )
        .bind(name)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        Ok(Some(claimed(id, rows, false)?))
    }

    /// The items that could not be taken before, as a batch that is written down.
    async fn claim_again(&self, name: &str) -> Result<Option<Claimed>, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "take usage events again").await?;
        let pending: Option<Uuid> = sqlx::query_scalar(
            "select batch_id
             from saas.usage_undelivered -- of every tenant
             where consumer = $1 and not refused and batch_id is not null
             limit 1",
        )
        .bind(name)
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let id = pending.unwrap_or_else(|| UsageEventId::mint_at(self.clock.now()).as_uuid());
        if pending.is_none() {
            sqlx::query(
                "update saas.usage_undelivered
                 set batch_id = $2
                 where (tenant_id, consumer, event_id) in (
                     select tenant_id, consumer, event_id
                     from saas.usage_undelivered
                     where consumer = $1 and not refused and batch_id is null
                     order by tenant_id, event_id
                     limit $3
                     for update skip locked
                 )",
            )
            .bind(name)
            .bind(id)
            .bind(BATCH)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        }
        let rows: Vec<Row> = sqlx::query_as(
            "select e.id, e.tenant_id, e.kind, e.meter, e.counter, e.amount, e.units, e.window_start, e.at, e.member, e.recorded_at
             from saas.usage_undelivered u
             join saas.usage_event e on e.tenant_id = u.tenant_id and e.id = u.event_id and e.recorded_at = u.recorded_at
             where u.consumer = $1 and u.batch_id = $2 and not u.refused
             order by e.position, e.tenant_id, e.id",
        )
        .bind(name)
        .bind(id)
        .fetch_all(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        tx.commit().await?;
        if rows.is_empty() { Ok(None) } else { Ok(Some(claimed(id, rows, true)?)) }
    }

    /// Writes down what became of a batch. `false` when another run did.
    async fn settle(&self, name: &str, claimed: &Claimed, answers: &[Delivery]) -> Result<bool, EntitlementsError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "note what became of usage events").await?;
        let (mut tenants, mut events, mut recorded) = (Vec::new(), Vec::new(), Vec::new());
        let (mut refused, mut reasons) = (Vec::new(), Vec::new());
        for ((row, at), answer) in claimed.batch.rows.iter().zip(&claimed.recorded).zip(answers) {
            let (is_refused, why) = match answer {
                Delivery::Taken => continue,
                Delivery::Retry { why } => (false, why),
                Delivery::Refused { why } => (true, why),
            };
            tenants.push(row.tenant.as_uuid());
            events.push(row.id.as_uuid());
            recorded.push(*at);
            refused.push(is_refused);
            reasons.push(why.chars().filter(|c| *c != '\0').take(500).collect::<String>());
        }
        let is_ours = if claimed.is_again {
            // Those that were taken go; what was not comes back below.
            sqlx::query(
                "delete from saas.usage_undelivered u -- of every tenant
                 where u.consumer = $1 and u.batch_id = $2 and not u.refused
                   and (u.tenant_id, u.event_id) not in (select * from unnest($3::uuid[], $4::uuid[]))",
            )
            .bind(name)
            .bind(claimed.batch.id)
            .bind(&tenants)
            .bind(&events)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
            sqlx::query(
                "update saas.usage_undelivered u
                 set batch_id = null, attempts = u.attempts + 1, reason = n.reason,
                     refused = n.refused or u.attempts + 1 >= $7
                 from unnest($3::uuid[], $4::uuid[], $5::boolean[], $6::text[]) as n (tenant_id, event_id, refused, reason)
                 where u.consumer = $1 and u.batch_id = $2 and u.tenant_id = n.tenant_id and u.event_id = n.event_id",
            )
            .bind(name)
            .bind(claimed.batch.id)
            .bind(&tenants)
            .bind(&events)
            .bind(&refused)
            .bind(&reasons)
            .bind(ATTEMPTS)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
            true
        } else {
            let moved = sqlx::query(
                "update saas.usage_consumer
                 set after_position = upto_position, after_tenant = upto_tenant, after_event = upto_event,
                     batch_id = null, upto_position = null, upto_tenant = null, upto_event = null
                 where name = $1 and batch_id = $2",
            )
            .bind(name)
            .bind(claimed.batch.id)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
            moved.rows_affected() == 1
        };
        if is_ours && !claimed.is_again && !events.is_empty() {
            sqlx::query(
                "insert into saas.usage_undelivered (tenant_id, consumer, event_id, recorded_at, refused, reason)
                 select n.tenant_id, $1, n.event_id, n.recorded_at, n.refused, n.reason
                 from unnest($2::uuid[], $3::uuid[], $4::timestamptz[], $5::boolean[], $6::text[])
                      as n (tenant_id, event_id, recorded_at, refused, reason)",
            )
            .bind(name)
            .bind(&tenants)
            .bind(&events)
            .bind(&recorded)
            .bind(&refused)
            .bind(&reasons)
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        }
        tx.commit().await?;
        Ok(is_ours)
    }
}

fn claimed(id: Uuid, rows: Vec<Row>, is_again: bool) -> Result<Claimed, CoreError> {
    let recorded = rows.iter().map(|(.., recorded_at)| *recorded_at).collect();
    let rows = rows.into_iter().map(usage_row).collect::<Result<_, _>>()?;
    Ok(Claimed { batch: UsageBatch { id, rows }, recorded, is_again })
}

fn usage_row(
    (id, tenant, kind, meter, counter, amount, units, window_start, at, member, _): Row,
) -> Result<UsageRow, CoreError> {
    let key = |text: &str, column| {
        MeterKey::from_str(text).map_err(|_| CoreError::Corrupt { table: "saas.usage_event", column })
    };
    let kind = match kind.as_str() {
        "consume" | "commit" | "record" | "lease" => UsageKind::Use,
        "correction" => UsageKind::Correction,
        "stranded" => UsageKind::Stranded,
        _ => return Err(CoreError::Corrupt { table: "saas.usage_event", column: "kind" }),
    };
    Ok(UsageRow {
        id: UsageEventId::from_uuid(id),
        tenant: TenantId::from_uuid(tenant),
        kind,
        meter: key(&meter, "meter")?,
        counter: key(&counter, "counter")?,
        amount,
        units,
        window_start,
        at,
        member,
    })
}
