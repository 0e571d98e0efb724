//! Direct uses that share flights: while one of a tenant is under way, those that come meanwhile go together in the next.
//!
//! Uses of a tenant queue up at the row of its counter anyway, each for as long as the flush to disk of the one before takes.
//! Here they queue up in the process instead, and one transaction counts them all. The rule is `saas.usage_consume` either
//! way, asked once per use, in the order in which they came. Tenants fly beside each other: a transaction is of one tenant.

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, RequestContext, SessionBinding, TenantId,
    db::{Literal, TenantWork},
    group::{Group, Shared},
};
use sqlx::Row;

use super::counters::{CONSUME, Call, Decided};
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

/// The parameters of [`CONSUME`] under the same numbers, but for the tenant as arrays. In this order everywhere, so that two
/// transactions that count on several rows do not wait for each other.
const CONSUME_MANY: &str = "
    select i.n, c.outcome, c.revision, c.before, c.after, c.prior, c.prior_item, c.relimited, c.due, c.burnt, c.room,
           c.member_before
    from (
        select *
        from unnest(
            $2::text::bigint[], $3::text::text[], $4::text::text[], $5::text::text[], $6::text::uuid[], $7::text::bigint[],
            $8::text::bigint[], $9::text::text[], $10::text::timestamptz[], $11::text::bigint[], $12::text::bigint[],
            $13::text::text[], $14::text::text[], $15::text::text[], $16::text::timestamptz[], $17::text::boolean[],
            $18::text::text[], $19::text::text[], $20::text::text[], $21::text::text[], $22::text::bigint[],
            $23::text::timestamptz[])
            with ordinality as i (revision, meter, counter, key, event, amount, units, window_kind, window_start, cap,
                                  limit_units, marks, mark_units, actor, now, whole, kind, aggregation, item, member,
                                  member_cap, at, n)
        order by counter, window_kind, window_start, n
    ) i
    cross join lateral saas.usage_consume(
        i.kind, $1::uuid, i.revision, i.meter, i.counter, i.key, i.event, i.amount, i.units, i.window_kind, i.window_start,
        i.cap, nullif(i.limit_units, -1), i.marks::integer[], i.mark_units::bigint[], i.actor, i.now, i.whole, i.aggregation,
        nullif(i.item, ''), nullif(i.member, ''), nullif(i.member_cap, -1), i.at) c";

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
        let calls: Vec<Call> = uses.iter().map(|use_| Call::new(*tenant, use_.actor.clone(), &use_.draw)).collect();
        let rows: Vec<_> =
            calls.iter().zip(uses).map(|(call, use_)| call.values(&use_.draw, use_.now, false)).collect();
        let columns: Vec<String> = (1..rows.first().map_or(0, |row| row.len()))
            .map(|column| Literal::array(rows.iter().map(|row| row[column])))
            .collect();
        let values: Vec<Literal<'_>> = [Literal::Uuid(tenant.as_uuid())]
            .into_iter()
            .chain(columns.iter().map(|column| Literal::Text(column)))
            .collect();
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

const fn corrupt() -> CoreError {
    CoreError::Corrupt { table: "saas.usage_counter", column: "used" }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}
