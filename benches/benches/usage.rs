//! Recording in batches beside the bare statement that any batch needs, and beside the same rows one by one.
//!
//! `cargo bench -p saas-benches --bench usage`. A PostgreSQL of its own that waits for the disk at every commit, with the login
//! of the system on both sides. The floor stores the same rows with one bare unnest upsert: a key, an event and a counter with
//! the same columns, unique keys, indexes and references to the tenant, without fence and parts; it tells no outcome. It runs
//! as the crate does, between a begin and a commit. The goals are against that floor without its references, and against it
//! row by row. Beside them, without a goal: the floor with references, the crate with one use per call, and the counters
//! alone, which nothing can be counted again from.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use chrono::TimeDelta;
use saas_benches::{Contender, Server, nanos, race, ratio, rounds};
use saas_core::{Clock, MeterKey, PlanCatalog, SystemClock, SystemPool, TenantContext, plan::Window};
use saas_entitlements::{
    Period, SCHEMA, Use,
    usage::{Recorded, UsageRecord, record_many},
};
use sqlx::{Connection, PgPool};
use uuid::Uuid;

const CALLS: MeterKey = MeterKey::from_static("calls");
const TENANTS: usize = 8;
/// Uses per flush.
const BATCH: usize = 1_000;
/// Uses per round of those that write them one by one.
const SINGLE: usize = 100;

/// The columns and keys of the crate's own three tables.
const TABLES: &str = "
    create table public.bare_key (
        tenant_id uuid not null, meter text not null, key text not null, amount bigint not null, event_id uuid not null,
        at timestamptz not null, primary key (tenant_id, meter, key));
    create index on public.bare_key (at);
    create table public.bare_event (
        tenant_id uuid not null, id uuid not null, recorded_at timestamptz not null, meter text not null, counter text not null,
        kind text not null, amount bigint not null, units bigint not null, window_kind text not null,
        window_start timestamptz not null, at timestamptz not null, key text not null, member text, item text,
        actor text not null, position bigint not null default (pg_current_xact_id()::text::bigint),
        primary key (tenant_id, id, recorded_at));
    create index on public.bare_event (tenant_id, counter, window_kind, window_start);
    create index on public.bare_event (tenant_id, at);
    create index on public.bare_event (position, tenant_id, id);
    create table public.bare_counter (
        tenant_id uuid not null, meter text not null, window_kind text not null, window_start timestamptz not null,
        window_end timestamptz, used bigint not null, primary key (tenant_id, meter, window_kind, window_start)
    ) with (fillfactor = 50);
    create table public.loose_key (like public.bare_key including all);
    create table public.loose_event (like public.bare_event including all);
    create table public.loose_counter (like public.bare_counter including all);
    alter table public.bare_key add foreign key (tenant_id) references saas.tenant (id);
    alter table public.bare_event add foreign key (tenant_id) references saas.tenant (id);
    alter table public.bare_counter add foreign key (tenant_id) references saas.tenant (id)";

const FLOOR: &str = "
    with input as materialized (
        select * from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::timestamptz[], $7::text[])
            as i (tenant_id, meter, key, event_id, units, window_start, actor)
    ), keys as (
        insert into public.bare_key
        select tenant_id, meter, key, units, event_id, $8 from input on conflict do nothing
    ), events as (
        insert into public.bare_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        select tenant_id, event_id, $8, meter, meter, 'record', units, units, 'day', window_start, $8, key, actor from input
    )
    insert into public.bare_counter as c (tenant_id, meter, window_kind, window_start, used)
    select tenant_id, meter, 'day', window_start, sum(units)::bigint from input group by 1, 2, 4 order by 1, 2, 4
    on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used";

const WITHOUT_REFERENCES: &str = "
    with input as materialized (
        select * from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::timestamptz[], $7::text[])
            as i (tenant_id, meter, key, event_id, units, window_start, actor)
    ), keys as (
        insert into public.loose_key
        select tenant_id, meter, key, units, event_id, $8 from input on conflict do nothing
    ), events as (
        insert into public.loose_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        select tenant_id, event_id, $8, meter, meter, 'record', units, units, 'day', window_start, $8, key, actor from input
    )
    insert into public.loose_counter as c (tenant_id, meter, window_kind, window_start, used)
    select tenant_id, meter, 'day', window_start, sum(units)::bigint from input group by 1, 2, 4 order by 1, 2, 4
    on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used";

const COUNTERS_ALONE: &str = "
    insert into public.bare_counter as c (tenant_id, meter, window_kind, window_start, used)
    select tenant_id, meter, 'day', window_start, sum(units)::bigint
    from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::timestamptz[], $7::text[])
         as i (tenant_id, meter, key, event_id, units, window_start, actor)
    where $8 is not null
    group by 1, 2, 4 order by 1, 2, 4
    on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used";

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let bench = runtime.block_on(Bench::start()).expect("the benchmark starts");
    let medians = race(
        rounds(21),
        &mut [
            Contender::new("bare", || runtime.block_on(bench.bare(FLOOR, BATCH, BATCH))),
            Contender::new("loose", || runtime.block_on(bench.bare(WITHOUT_REFERENCES, BATCH, BATCH))),
            Contender::new("counters", || runtime.block_on(bench.bare(COUNTERS_ALONE, BATCH, BATCH))),
            Contender::new("bare single", || runtime.block_on(bench.bare(FLOOR, SINGLE, 1))),
            Contender::new("flush", || runtime.block_on(bench.record(BATCH, BATCH))),
            Contender::new("single", || runtime.block_on(bench.record(SINGLE, 1))),
        ],
    );
    let [bare, loose, counters, bare_single, flush, single] = medians[..] else { unreachable!("six contenders") };
    println!(
        "per use: bare {:.1} us, without references {:.1} us, counters alone {:.1} us, bare row by row {:.1} us, flush {:.1} us, row by row {:.1} us",
        bare / 1e3,
        loose / 1e3,
        counters / 1e3,
        bare_single / 1e3,
        flush / 1e3,
        single / 1e3
    );
    ratio("usage_flush_to_bare_unnest_rate", loose / flush, false, 0.8);
    ratio("usage_flush_to_row_by_row_rate", bare_single / flush, false, 40.0);
    println!(
        "flush to the floor with references {:.2}, to counters alone {:.2}, to the crate row by row {:.1}; \
         the floor to the floor row by row {:.1}",
        bare / flush,
        counters / flush,
        single / flush,
        bare_single / bare
    );
    runtime.block_on(bench.check());
}

struct Bench {
    server: Server,
    catalog: PlanCatalog,
    bare: PgPool,
    system: SystemPool,
    next: AtomicU64,
    recorded: AtomicU64,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let server = Server::start(&[&saas_core::SCHEMA, &SCHEMA], TENANTS).await?;
        server.make(TABLES).await?;
        let (bare, system) = (server.pool("saas_system", 2).await?, server.system_pool(2).await?);
        // Where a month's events are, once the maintenance has run.
        sqlx::query("select saas.usage_part_make(date_trunc('month', now() at time zone 'UTC')::date)")
            .execute(&bare)
            .await?;
        let catalog = PlanCatalog::from_toml(
            "default_plan = 'free'\n[meters]\ncalls = { aggregation = 'sum' }\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1",
        )?;
        Ok(Self { server, catalog, bare, system, next: AtomicU64::new(0), recorded: AtomicU64::new(0) })
    }

    fn records(&self, uses: usize) -> Vec<UsageRecord> {
        let now = SystemClock.now();
        let start = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        let period = Period { start, end: Some(start + TimeDelta::days(1)) };
        let record = |n: usize| {
            let ctx = &self.server.tenants()[n % TENANTS];
            let key = self.next.fetch_add(1, Ordering::Relaxed);
            let key = format!("use-{key}").parse().expect("a key");
            let (of, day) = (Use::new(CALLS, 1, &key), (Window::Day, period));
            UsageRecord::in_window(&self.catalog, ctx.tenant(), &of, ctx.actor(), day, now).expect("a use of the day")
        };
        (0..uses).map(record).collect()
    }

    /// Nanoseconds per use, written by a statement in pieces of `piece`.
    #[expect(clippy::disallowed_methods, reason = "the floor writes without the crate")]
    async fn bare(&self, sql: &'static str, uses: usize, piece: usize) -> f64 {
        let records = self.records(uses);
        let begin = Instant::now();
        for piece in records.chunks(piece) {
            let mut connection = self.bare.acquire().await.expect("a connection");
            let mut tx = connection.begin().await.expect("a transaction");
            sqlx::query(sql)
                .bind(piece.iter().map(|use_| use_.tenant().as_uuid()).collect::<Vec<Uuid>>())
                .bind(piece.iter().map(|use_| use_.meter().as_str()).collect::<Vec<_>>())
                .bind(piece.iter().map(|use_| use_.key().as_str()).collect::<Vec<_>>())
                .bind(
                    piece.iter().map(|use_| saas_core::UsageEventId::mint_at(use_.at()).as_uuid()).collect::<Vec<_>>(),
                )
                .bind(piece.iter().map(|use_| use_.units() as i64).collect::<Vec<_>>())
                .bind(piece.iter().map(|use_| use_.period().start).collect::<Vec<_>>())
                .bind(piece.iter().map(|use_| use_.actor().to_string()).collect::<Vec<_>>())
                .bind(piece[0].at())
                .execute(&mut *tx)
                .await
                .expect("the statement runs");
            tx.commit().await.expect("the commit succeeds");
        }
        nanos(begin.elapsed()) / uses as f64
    }

    /// The same by the crate.
    async fn record(&self, uses: usize, piece: usize) -> f64 {
        let records = self.records(uses);
        let begin = Instant::now();
        for piece in records.chunks(piece) {
            let outcomes = record_many(&self.system, piece, piece[0].at()).await.expect("recorded");
            assert!(outcomes.iter().all(|outcome| *outcome == Recorded::Counted));
        }
        let took = nanos(begin.elapsed()) / uses as f64;
        self.recorded.fetch_add(uses as u64, Ordering::Relaxed);
        took
    }

    /// Every use is in the counters, the keys and the events.
    async fn check(&self) {
        let sums: (i64, i64, i64) = sqlx::query_as(
            "select (select sum(used)::bigint from saas.usage_counter), (select count(*) from saas.usage_key),
                    (select count(*) from saas.usage_event)",
        )
        .fetch_one(&mut self.server.owner().await.expect("a session"))
        .await
        .expect("the sums");
        let recorded = self.recorded.load(Ordering::Relaxed) as i64;
        assert_eq!(sums, (recorded, recorded, recorded));
    }
}
