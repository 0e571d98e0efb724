//! Whether the books of the living database balance.

use saas_core::{MeterKey, TenantId, testing::TestDatabase};
use saas_entitlements::{THRESHOLD_TOPIC, ThresholdCrossed};

use crate::{CALLS_LIMIT, HITS_LIMIT, JOBS_LIMIT, TAPS_LIMIT, TOKENS_LIMIT, journal::Noted};

pub(crate) struct Books<'a> {
    database: &'a TestDatabase,
    tenant: TenantId,
}

impl<'a> Books<'a> {
    pub(crate) const fn new(database: &'a TestDatabase, tenant: TenantId) -> Self {
        Self { database, tenant }
    }

    /// Granted = recorded + reserved + stranded, and never more than the limit: at this instant, whatever is under way. What
    /// was `noted` as granted before this instant is in it.
    pub(crate) async fn balance(&self, noted: &Noted) {
        // One statement sees one state.
        let rows: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
            "select c.meter, c.used + c.burnt, c.held,
                    (select coalesce(sum(e.units), 0)::bigint from saas.usage_event e
                     where e.tenant_id = c.tenant_id and e.counter = c.meter and e.window_kind = c.window_kind
                       and e.window_start = c.window_start)
                    + (select coalesce(sum(l.unrecorded), 0)::bigint from saas.usage_lease l
                       where l.tenant_id = c.tenant_id and l.counter = c.meter and l.window_kind = c.window_kind
                         and l.window_start = c.window_start),
                    (select coalesce(sum(l.lent - l.spent - l.returned - l.stranded), 0)::bigint from saas.usage_lease l
                     where l.tenant_id = c.tenant_id and l.counter = c.meter and l.window_kind = c.window_kind
                       and l.window_start = c.window_start and l.ended_at is null)
                    + (select coalesce(sum(r.units), 0)::bigint from saas.usage_reservation r
                       where r.tenant_id = c.tenant_id and r.counter = c.meter and r.window_kind = c.window_kind
                         and r.window_start = c.window_start and r.outcome is null)
             from saas.usage_counter c
             where c.tenant_id = $1",
        )
        .bind(self.tenant.as_uuid())
        .fetch_all(&mut self.database.owner().await)
        .await
        .unwrap();
        for (meter, counted, held, recorded, out) in rows {
            assert_eq!(counted, recorded, "`{meter}`: what is counted is what is recorded and stranded");
            assert_eq!(held, out, "`{meter}`: what is held is what is out");
            let (limit, may_be_out, granted) = match meter.as_str() {
                "jobs" => (JOBS_LIMIT, 0, noted.jobs),
                // What is out at once is all that can be stranded at once.
                "calls" => (CALLS_LIMIT, CALLS_LIMIT / 100, noted.calls.least),
                "hits" => (HITS_LIMIT, HITS_LIMIT / 100, noted.hits.least),
                "taps" => (TAPS_LIMIT, TAPS_LIMIT / 100, noted.taps),
                "tokens" => (TOKENS_LIMIT, TOKENS_LIMIT, noted.tokens),
                "pings" => (u64::MAX, 0, noted.pings),
                other => panic!("`{other}` was counted"),
            };
            let (counted, held) = (u64::try_from(counted).unwrap(), u64::try_from(held).unwrap());
            assert!(counted + held <= limit, "`{meter}`: {counted} + {held} of {limit}");
            assert!(held <= may_be_out, "`{meter}`: {held} are out");
            assert!(granted <= counted + held, "`{meter}`: {granted} were granted, {counted} + {held} are known");
        }
    }

    /// Every lease is over, and every unit of it accounted for.
    pub(crate) async fn leases_are_over(&self) {
        let (ended, all): (i64, i64) = sqlx::query_as(
            "select count(*) filter (where ended_at is not null and spent + returned + stranded = lent), count(*)
             from saas.usage_lease where tenant_id = $1",
        )
        .bind(self.tenant.as_uuid())
        .fetch_one(&mut self.database.owner().await)
        .await
        .unwrap();
        assert_eq!(ended, all);
        assert!(all > 0, "nothing was lent");
    }

    /// The warnings of a meter that were given, in percent.
    pub(crate) async fn warnings(&self, meter: &MeterKey) -> Vec<u16> {
        let payloads: Vec<Vec<u8>> =
            sqlx::query_scalar("select payload from saas.outbox where tenant_id = $1 and topic = $2 order by id")
                .bind(self.tenant.as_uuid())
                .bind(THRESHOLD_TOPIC.as_str())
                .fetch_all(&mut self.database.owner().await)
                .await
                .unwrap();
        let events = payloads.iter().map(|payload| serde_json::from_slice::<ThresholdCrossed>(payload).unwrap());
        let mut percents: Vec<_> = events.filter(|event| event.meter == *meter).map(|event| event.percent).collect();
        percents.sort_unstable();
        percents
    }

    /// Of a meter's units: held.
    pub(crate) async fn held(&self, meter: &MeterKey) -> i64 {
        sqlx::query_scalar("select held from saas.usage_counter where tenant_id = $1 and meter = $2")
            .bind(self.tenant.as_uuid())
            .bind(meter.as_str())
            .fetch_one(&mut self.database.owner().await)
            .await
            .unwrap()
    }

    /// Of a meter's units: stranded, less what turned up later, and recorded.
    pub(crate) async fn stranded_and_recorded(&self, meter: &MeterKey) -> (u64, u64) {
        let (stranded, recorded): (i64, i64) = sqlx::query_as(
            "select coalesce(sum(units) filter (where kind in ('stranded', 'correction')), 0)::bigint,
                    coalesce(sum(units) filter (where kind not in ('stranded', 'correction')), 0)::bigint
             from saas.usage_event where tenant_id = $1 and counter = $2",
        )
        .bind(self.tenant.as_uuid())
        .bind(meter.as_str())
        .fetch_one(&mut self.database.owner().await)
        .await
        .unwrap();
        (stranded.unsigned_abs(), recorded.unsigned_abs())
    }
}
