//! Direct uses that share flights: while one of a tenant is under way, those that come meanwhile go together in the next.
//!
//! Uses of a tenant queue up at the row of its counter anyway, each for as long as the flush to disk of the one before takes.
//! Here they queue up in the process instead, and one transaction counts them all. The rule is `saas.usage_consume` either
//! way, asked once per use, in the order in which they came. Tenants fly beside each other: a transaction is of one tenant.

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, RequestContext, SessionBinding, TenantId, UsageEventId,
    db::{Literal, TenantWork},
    group::{Group, Shared},
};
use sqlx::Row;

use super::counters::{CONSUME, Call, Decided, limit_units, stored};
use crate::Draw;

/// How long a flight may take. The role's own bounds on statements and locks are below it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Uses of one tenant that may wait.
const ROOM: usize = 4_096;
/// Who opens the session of a flight, which is of no single caller. Each use keeps its own actor.
const ACTOR: Actor = Actor::system("saas.meter");

/// One use that is to be counted.
#[derive(Debug)]
pub(super) struct Use {
    pub(super) draw: Draw,
    pub(super) actor: String,
    pub(super) now: DateTime<Utc>,
}

/// How uses get to the database.
pub(super) struct Flights {
    binding: Arc<dyn SessionBinding>,
}

/// The way in for direct uses.
pub(super) fn group(binding: Arc<dyn SessionBinding>) -> Arc<Group<Flights>> {
    Arc::new(Group::new(Flights { binding }, PATIENCE, ROOM))
}

/// In this order everywhere, so that two transactions that count on several rows do not wait for each other.
const CONSUME_MANY: &str = "select i.n, c.outcome, c.revision, c.before, c.after, c.prior, c.relimited, c.due, c.burnt, c.room
    from (
        select *
        from unnest(
            $2::text::text[], $3::text::bigint[], $4::text::text[], $5::text::text[], $6::text::text[], $7::text::uuid[],
            $8::text::bigint[], $9::text::bigint[], $10::text::text[], $11::text::bigint[], $12::text::bigint[],
            $13::text::bigint[], $14::text::text[], $15::text::text[], $16::text::text[], $17::text::bigint[])
            with ordinality as i (kind, revision, meter, counter, key, event, amount, units, window_kind, window_start, cap,
                                  limit_units, marks, mark_units, actor, now, n)
        order by counter, window_kind, window_start, n
    ) i
    cross join lateral saas.usage_consume(
        i.kind, $1::uuid, i.revision, i.meter, i.counter, i.key, i.event, i.amount, i.units, i.window_kind,
        timestamptz 'epoch' + i.window_start * interval '1 microsecond', i.cap, i.limit_units, i.marks::integer[],
        i.mark_units::bigint[], i.actor, timestamptz 'epoch' + i.now * interval '1 microsecond', false) c";

impl Shared for Flights {
    type Key = TenantId;
    type Item = Use;
    type Answer = Decided;

    const ITEMS: usize = 64;
    const BYTES: usize = 256 * 1024;

    fn bytes(use_: &Use) -> usize {
        const REST: usize = 512;
        use_.draw.key.as_str().len() + use_.actor.len() + REST
    }

    async fn alone(&self, tenant: &TenantId, use_: &Use) -> Result<Decided, CoreError> {
        let call = Call::new(*tenant, use_.actor.clone(), &use_.draw);
        let ctx = RequestContext::new_at(*tenant, ACTOR, use_.now);
        let rows = self.binding.write_once(&ctx, CONSUME, &call.values(&use_.draw, use_.now, false)).await?;
        Decided::read(rows.first().ok_or_else(corrupt)?)
    }

    async fn together(&self, tenant: &TenantId, uses: &[&Use]) -> Result<Vec<Decided>, CoreError> {
        let numbers = |number: &dyn Fn(&Use) -> i64| array(uses.iter().map(|use_| number(use_).to_string()));
        let texts = |text: &dyn Fn(&Use) -> &str| array(uses.iter().map(|use_| quoted(text(use_))));
        let calls: Vec<Call> = uses.iter().map(|use_| Call::new(*tenant, use_.actor.clone(), &use_.draw)).collect();
        let columns = [
            texts(&|use_| use_.draw.kind.as_str()),
            numbers(&|use_| stored(use_.draw.revision.get())),
            texts(&|use_| use_.draw.meter.as_str()),
            texts(&|use_| use_.draw.counter.as_str()),
            texts(&|use_| use_.draw.key.as_str()),
            array(uses.iter().map(|use_| UsageEventId::mint_at(use_.now).to_string())),
            numbers(&|use_| stored(use_.draw.amount)),
            numbers(&|use_| stored(use_.draw.units)),
            texts(&|use_| use_.draw.window.as_str()),
            numbers(&|use_| use_.draw.period.start.timestamp_micros()),
            numbers(&|use_| stored(use_.draw.cap)),
            array(uses.iter().map(|use_| limit_units(&use_.draw).map_or_else(|| "null".to_owned(), |n| n.to_string()))),
            array(calls.iter().map(|call| quoted(&call.marks))),
            array(calls.iter().map(|call| quoted(&call.mark_units))),
            texts(&|use_| &use_.actor),
            numbers(&|use_| use_.now.timestamp_micros()),
        ];
        let mut values = vec![Literal::Uuid(tenant.as_uuid())];
        values.extend(columns.iter().map(|column| Literal::Text(column)));
        let now = uses.iter().map(|use_| use_.now).max().unwrap_or_default();
        let ctx = RequestContext::new_at(*tenant, ACTOR, now);
        let rows = self.binding.write_once(&ctx, CONSUME_MANY, &values).await?;
        let mut decided = rows
            .iter()
            .map(|row| Ok((row.try_get::<i64, _>("n").map_err(CoreError::from_database)?, Decided::read(row)?)))
            .collect::<Result<Vec<_>, CoreError>>()?;
        decided.sort_unstable_by_key(|(n, _)| *n);
        Ok(decided.into_iter().map(|(_, decided)| decided).collect())
    }
}

/// An array as PostgreSQL reads it.
fn array(elements: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", elements.collect::<Vec<_>>().join(","))
}

/// A text as an element of an array.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

const fn corrupt() -> CoreError {
    CoreError::Corrupt { table: "saas.usage_counter", column: "used" }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}
