//! Recording in batches beside the bare statement that any batch needs, and beside the same rows one by one.
//!
//! `cargo bench -p saas-benches --bench usage`. A real PostgreSQL, the one of the tests: it does not wait for the disk. The
//! floor writes the same key, event and counter of each use from the same arrays with one statement, into plain tables
//! without a fence, foreign keys, parts or further indexes, and tells no outcome. A second floor upserts the counters alone.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use chrono::TimeDelta;
use saas_benches::{Contender, nanos, race, ratio};
use saas_core::{
    Clock, MeterKey, RequestContext, TenantContext, db::pool_options, plan::Window, testing::TestDatabase,
};
use saas_entitlements::{
    Period, SCHEMA,
    usage::{Recorded, UsageRecord, record_many},
};
use sqlx::{Executor, PgPool};
use uuid::Uuid;

const CALLS: MeterKey = MeterKey::from_static("calls");
const TENANTS: usize = 8;
/// Uses per flush.
const BATCH: usize = 1_000;
/// Uses per round of the slow contender.
const SINGLE: usize = 100;

const FLOOR: &str = "
    with input as materialized (
        select * from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::timestamptz[])
            as i (tenant_id, meter, key, event_id, units, window_start)
    ), keys as (
        insert into public.bare_key select tenant_id, meter, key, event_id from input on conflict do nothing
    ), events as (
        insert into public.bare_event select tenant_id, event_id, meter, key, units, window_start from input
    )
    insert into public.bare_counter as c (tenant_id, meter, window_start, used)
    select tenant_id, meter, window_start, sum(units)::bigint from input group by 1, 2, 3 order by 1, 2, 3
    on conflict (tenant_id, meter, window_start) do update set used = c.used + excluded.used";

const COUNTERS_ALONE: &str = "
    insert into public.bare_counter as c (tenant_id, meter, window_start, used)
    select tenant_id, meter, window_start, sum(units)::bigint
    from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::timestamptz[])
         as i (tenant_id, meter, key, event_id, units, window_start)
    group by 1, 2, 3 order by 1, 2, 3
    on conflict (tenant_id, meter, window_start) do update set used = c.used + excluded.used";

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(7);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let bench = runtime.block_on(Bench::start());
    let medians = race(
        rounds,
        &mut [
            Contender::new("bare", || runtime.block_on(bench.bare(FLOOR, BATCH, BATCH))),
            Contender::new("counters", || runtime.block_on(bench.bare(COUNTERS_ALONE, BATCH, BATCH))),
            Contender::new("single", || runtime.block_on(bench.bare(FLOOR, SINGLE, 1))),
            Contender::new("flush", || runtime.block_on(bench.flush())),
        ],
    );
    let [bare, counters, single, flush] = medians[..] else { unreachable!("four contenders") };
    println!(
        "per use: bare {:.1} us, counters alone {:.1} us, row by row {:.1} us, flush {:.1} us",
        bare / 1e3,
        counters / 1e3,
        single / 1e3,
        flush / 1e3
    );
    ratio("usage_flush/bare_unnest (speed)", bare / flush, false, 0.8);
    ratio("usage_flush/row_by_row (speed)", single / flush, false, 40.0);
    println!("usage_flush/counters_alone (speed): {:.2}, which keeps neither keys nor events", counters / flush);
    runtime.block_on(bench.check());
}

struct Bench {
    database: TestDatabase,
    bare: PgPool,
    tenants: Vec<RequestContext>,
    next: AtomicU64,
    recorded: AtomicU64,
}

impl Bench {
    async fn start() -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            tenants.push(database.create_tenant(&format!("tenant-{number}")).await);
        }
        database
            .owner()
            .await
            .execute(
                "create table public.bare_key (tenant_id uuid, meter text, key text, event_id uuid, primary key (tenant_id, meter, key));
                 create table public.bare_event (tenant_id uuid, id uuid, meter text, key text, units bigint,
                     window_start timestamptz, primary key (tenant_id, id));
                 create table public.bare_counter (tenant_id uuid, meter text, window_start timestamptz, used bigint not null,
                     primary key (tenant_id, meter, window_start)) with (fillfactor = 50)",
            )
            .await
            .expect("the tables of the floor");
        let bare = pool_options().max_connections(1).connect_with(database.owner_options()).await.expect("a pool");
        Self { database, bare, tenants, next: AtomicU64::new(0), recorded: AtomicU64::new(0) }
    }

    fn records(&self, uses: usize) -> Vec<UsageRecord> {
        let now = self.database.clock().now();
        let period = Period { start: now, end: Some(now + TimeDelta::days(1)) };
        let record = |n: usize| {
            let ctx = &self.tenants[n % TENANTS];
            let key = self.next.fetch_add(1, Ordering::Relaxed);
            UsageRecord {
                tenant: ctx.tenant(),
                actor: ctx.actor().clone(),
                meter: CALLS,
                counter: CALLS,
                amount: 1,
                units: 1,
                window: Window::Day,
                period,
                at: now,
                key: format!("use-{key}").parse().expect("a key"),
                member: None,
            }
        };
        (0..uses).map(record).collect()
    }

    /// Nanoseconds per use, written by a statement in pieces of `piece`.
    async fn bare(&self, sql: &'static str, uses: usize, piece: usize) -> f64 {
        let records = self.records(uses);
        let begin = Instant::now();
        for piece in records.chunks(piece) {
            sqlx::query(sql)
                .bind(piece.iter().map(|use_| use_.tenant.as_uuid()).collect::<Vec<Uuid>>())
                .bind(piece.iter().map(|use_| use_.meter.as_str()).collect::<Vec<_>>())
                .bind(piece.iter().map(|use_| use_.key.as_str()).collect::<Vec<_>>())
                .bind(piece.iter().map(|use_| saas_core::UsageEventId::mint_at(use_.at).as_uuid()).collect::<Vec<_>>())
                .bind(vec![1_i64; piece.len()])
                .bind(piece.iter().map(|use_| use_.period.start).collect::<Vec<_>>())
                .execute(&self.bare)
                .await
                .expect("the statement runs");
        }
        nanos(begin.elapsed()) / uses as f64
    }

    async fn flush(&self) -> f64 {
        let records = self.records(BATCH);
        let now = self.database.clock().now();
        let begin = Instant::now();
        let outcomes = record_many(self.database.system(), &records, now).await.expect("recorded");
        let took = nanos(begin.elapsed()) / BATCH as f64;
        assert!(outcomes.iter().all(|outcome| *outcome == Recorded::Counted));
        self.recorded.fetch_add(BATCH as u64, Ordering::Relaxed);
        took
    }

    /// Every use is in the counters, the keys and the events.
    async fn check(&self) {
        let sums: (i64, i64, i64) = sqlx::query_as(
            "select (select sum(used)::bigint from saas.usage_counter), (select count(*) from saas.usage_key),
                    (select count(*) from saas.usage_event)",
        )
        .fetch_one(&mut self.database.owner().await)
        .await
        .expect("the sums");
        let recorded = self.recorded.load(Ordering::Relaxed) as i64;
        assert_eq!(sums, (recorded, recorded, recorded));
    }
}
