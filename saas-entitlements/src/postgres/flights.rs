//! Direct uses that share flights: while one of a tenant's meter is under way, those that come meanwhile go together in the
//! next.
//!
//! Uses of one meter queue up at the row of its counter anyway, each for as long as the flush to disk of the one before
//! takes. Here they queue up in the process instead, and one transaction counts them all, with one statement for all of them
//! where each fits, and otherwise by the same rule as each alone, in the order in which they came. Flights of different tenants
//! and meters share transactions in turn ([`lanes`](super::lanes)).

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, CoreError, MeterKey, RequestContext, SessionBinding, TenantId, UsageEventId,
    db::{Errand, Literal},
    group::{Group, Shared},
};
use sqlx::Row;

use super::{
    counters::{CONSUME, Call, Decided, stored},
    lanes::Lanes,
};
use crate::Draw;

/// How long a flight may take. The bounds of its lane, and the role's on locks, are below it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Uses of one meter that may wait.
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
    lanes: Lanes,
}

/// The way in for direct uses.
pub(super) fn group(binding: Arc<dyn SessionBinding>) -> Arc<Group<Flights>> {
    Arc::new(Group::new(Flights { lanes: Lanes::new(binding) }, PATIENCE, ROOM))
}

/// Uses that differ in nothing but what is an array here.
const CONSUME_TOGETHER: &str = "
    select n, outcome, revision, before, after, prior, prior_item, relimited, due, burnt, room, member_before
    from saas.usage_consume_together(
        $1::text, $2::uuid, $3::bigint, $4::text, $5::text, $6::text, $7::timestamptz, $8::bigint, nullif($9::bigint, -1),
        $10::text::integer[], $11::text::bigint[], $12::text, nullif($13::bigint, -1), $14::text::text[], $15::text::uuid[],
        $16::text::bigint[], $17::text::bigint[], $18::text::text[], $19::text::timestamptz[], $20::text::text[],
        $21::text::text[], $22::text::timestamptz[])";

impl Shared for Flights {
    /// Whose use, and of what.
    type Key = (TenantId, MeterKey);
    type Item = Use;
    type Answer = Decided;

    const ITEMS: usize = 64;
    const BYTES: usize = 256 * 1024;

    fn bytes(use_: &Use) -> usize {
        const REST: usize = 512;
        use_.draw.key.as_str().len() + use_.actor.len() + REST
    }

    async fn alone(&self, (tenant, _): &Self::Key, use_: &Use) -> Result<Decided, CoreError> {
        let call = Call::new(*tenant, use_.actor.clone(), &use_.draw);
        let ctx = RequestContext::new_at(*tenant, ACTOR, use_.now);
        let errand = Errand::new(ctx, CONSUME, &call.values(&use_.draw, use_.now, false))?;
        let rows = self.lanes.run(errand).await?;
        Decided::read(rows.first().ok_or_else(corrupt)?)
    }

    async fn together(&self, (tenant, _): &Self::Key, uses: &[&Use]) -> Result<Vec<Decided>, CoreError> {
        let Some((first, others)) = uses.split_first() else { return Ok(Vec::new()) };
        if !others.iter().all(|other| are_alike(&first.draw, &other.draw)) {
            // A window or a plan has just changed: each goes by itself.
            return Err(CoreError::Unavailable { cause: "these uses are decided in different ways".into() });
        }
        let call = Call::new(*tenant, String::new(), &first.draw);
        let array = |of: fn(&Use) -> Literal<'_>| Literal::array(uses.iter().map(|use_| of(use_)));
        let columns = [
            array(|use_| Literal::Text(use_.draw.key.as_str())),
            array(|use_| Literal::Uuid(UsageEventId::mint_at(use_.now).as_uuid())),
            array(|use_| Literal::Integer(stored(use_.draw.amount))),
            array(|use_| Literal::Integer(stored(use_.draw.units))),
            array(|use_| Literal::Text(&use_.actor)),
            array(|use_| Literal::Timestamp(use_.now)),
            array(|use_| Literal::Text(use_.draw.item.as_deref().unwrap_or_default())),
            array(|use_| Literal::Text(use_.draw.member.as_deref().unwrap_or_default())),
            array(|use_| Literal::Timestamp(use_.draw.at)),
        ];
        let values: Vec<Literal<'_>> =
            call.common(&first.draw).into_iter().chain(columns.iter().map(|column| Literal::Text(column))).collect();
        let ctx = RequestContext::new_at(*tenant, ACTOR, uses.iter().map(|use_| use_.now).max().unwrap_or_default());
        let rows = self.lanes.run(Errand::new(ctx, CONSUME_TOGETHER, &values)?).await?;
        let mut decided = rows
            .iter()
            .map(|row| Ok((row.try_get::<i64, _>("n").map_err(CoreError::from_database)?, Decided::read(row)?)))
            .collect::<Result<Vec<_>, CoreError>>()?;
        decided.sort_unstable_by_key(|(n, _)| *n);
        Ok(decided.into_iter().map(|(_, decided)| decided).collect())
    }
}

/// Whether two uses of a meter are decided in the same way.
fn are_alike(a: &Draw, b: &Draw) -> bool {
    (a.revision, a.kind, &a.counter, a.aggregation) == (b.revision, b.kind, &b.counter, b.aggregation)
        && (a.window, a.period, a.cap, a.member_cap) == (b.window, b.period, b.cap, b.member_cap)
        && (a.limit, &a.thresholds) == (b.limit, &b.thresholds)
}

const fn corrupt() -> CoreError {
    CoreError::Corrupt { table: "saas.usage_counter", column: "used" }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}
