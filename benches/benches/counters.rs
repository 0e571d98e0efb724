//! Counting beside the bare conditional update that any counter needs.
//!
//! `cargo bench -p saas-benches --bench counters`. A PostgreSQL of its own that waits for the disk at every commit. Both sides
//! have the same number of connections, and callers who take the next use as soon as they have the answer to the last. One row
//! that all want, then a row, or a tenant, for each caller. The floor counts and nothing else; a use also keeps an idempotency
//! key and an event, asks for the tenant's revision, and is bound to its tenant. What the three rows cost by themselves is shown
//! beside: one statement on tables of the same columns and indexes, without tenants, limits or policies.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use saas_benches::{Contender, Server, nanos, race, ratio, rounds};
use saas_core::{
    Clock as _, IdempotencyKey, MeterKey, PlanCatalog, PlanKey, SystemClock, TenantContext as _, UsageEventId,
    subscription::FixedPlan,
};
use saas_entitlements::{Entitlements, GateClock, Meter, PostgresCounters, PostgresSource, SCHEMA};
use sqlx::PgPool;

const CALLS: MeterKey = MeterKey::from_static("calls");
const CONNECTIONS: u32 = 16;
const TENANTS: usize = 64;

/// Name, callers, tenants, uses per caller and round.
const CELLS: [(&str, usize, usize, usize); 5] = [
    ("hot_row_1_task", 1, 1, 100),
    ("hot_row_8_tasks", 8, 1, 40),
    ("hot_row_64_tasks", 64, 1, 10),
    ("spread_8_tasks", 8, 8, 40),
    ("spread_64_tasks", 64, 64, 10),
];

fn main() {
    let rounds = rounds(21);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let bench = Arc::new(runtime.block_on(Bench::start()).expect("the benchmark starts"));
    for (name, callers, tenants, uses) in CELLS {
        let before = runtime.block_on(bench.recorded());
        let medians = race(
            rounds,
            &mut [
                Contender::new("bare", || {
                    let bench = Arc::clone(&bench);
                    let one = move |caller: usize| {
                        let bench = Arc::clone(&bench);
                        async move { bench.update(caller % tenants).await }
                    };
                    runtime.block_on(timed(callers, uses, one))
                }),
                Contender::new("rows", || {
                    let bench = Arc::clone(&bench);
                    let one = move |caller: usize| {
                        let bench = Arc::clone(&bench);
                        async move { bench.rows(caller % tenants).await }
                    };
                    runtime.block_on(timed(callers, uses, one))
                }),
                Contender::new("meter", || {
                    let bench = Arc::clone(&bench);
                    let one = move |caller: usize| {
                        let bench = Arc::clone(&bench);
                        async move { bench.consume(caller % tenants).await }
                    };
                    runtime.block_on(timed(callers, uses, one))
                }),
            ],
        );
        let [bare, rows, metered] = medians[..] else { unreachable!("three contenders") };
        let after = runtime.block_on(bench.recorded());
        let shared = (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
        println!(
            "{name}: bare update {:.0} us, the three rows {:.0} us ({:.2} of its rate), consume {:.0} us per use; {shared:.1} uses per commit",
            bare / 1e3,
            rows / 1e3,
            bare / rows,
            metered / 1e3
        );
        ratio(&format!("consume_to_bare_update_rate_{name}"), bare / metered, false, 0.9);
    }
    runtime.block_on(bench.check());
}

struct Bench {
    server: Server,
    bare: PgPool,
    meter: Meter,
    next_key: AtomicU64,
    used: AtomicU64,
    _clock: GateClock,
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let server = Server::start(&[&saas_core::SCHEMA, &SCHEMA], TENANTS).await?;
        server
            .make(
                "create table public.bare (id integer primary key, used bigint not null) with (fillfactor = 50);
                 insert into public.bare select n, 0 from generate_series(0, 63) n;
                 create table public.rows_key (like saas.usage_key including all);
                 create table public.rows_event (like saas.usage_event including all)",
            )
            .await?;
        let bare = server.pool("saas_app", CONNECTIONS).await?;
        let pool = server.tenant_pool(CONNECTIONS).await?;
        let catalog = PlanCatalog::from_toml(
            "default_plan = \"free\"\n[meters.calls]\naggregation = \"sum\"\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1\n\
             limits.calls = { max = 1_000_000_000, window = \"month\", overage = \"block\", warn = [80] }",
        )?;
        let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
        let source = Arc::new(PostgresSource::new(pool.clone(), plans));
        let gate = Entitlements::new(catalog, source, Arc::new(SystemClock));
        let clock = gate.start_clock();
        let meter = Meter::new(gate, Arc::new(PostgresCounters::new(pool)));
        Ok(Self { server, bare, meter, next_key: AtomicU64::new(0), used: AtomicU64::new(0), _clock: clock })
    }

    /// The floor: one conditional update, committed by itself.
    async fn update(&self, row: usize) {
        let done = sqlx::query("update public.bare set used = used + 1 where id = $1 and used < $2 returning used")
            .bind(row as i32)
            .bind(1_000_000_000_i64)
            .execute(&self.bare)
            .await
            .expect("the update runs");
        assert_eq!(done.rows_affected(), 1);
    }

    /// What a use writes, and nothing of what it decides.
    async fn rows(&self, row: usize) {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let counted: Option<i64> = sqlx::query_scalar(
            "with counted as (
                 update public.bare set used = used + 1 where id = $1 and used < $2 returning used
             ), key as (
                 insert into public.rows_key (tenant_id, meter, key, amount, event_id, at)
                 select $3, 'calls', $4, 1, $5, now() from counted
                 on conflict (tenant_id, meter, key) do nothing
                 returning true
             ), recorded as (
                 insert into public.rows_event
                     (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
                 select $3, $5, now(), 'calls', 'calls', 'consume', 1, 1, 'month', date_trunc('month', now()), now(), $4, 'bench'
                 from key
             )
             select used from counted",
        )
        .bind(row as i32)
        .bind(1_000_000_000_i64)
        .bind(self.server.tenants()[row].tenant().as_uuid())
        .bind(format!("use-{key}"))
        .bind(UsageEventId::mint_at(SystemClock.now()).as_uuid())
        .fetch_optional(&self.bare)
        .await
        .expect("the rows are written");
        assert!(counted.is_some());
    }

    async fn consume(&self, tenant: usize) {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let key: IdempotencyKey = format!("use-{key}").parse().expect("a key");
        let used = self.meter.consume(&self.server.tenants()[tenant], &CALLS, 1, &key).await.expect("counted");
        assert!(used.is_granted());
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    /// Uses, and the transactions that recorded them.
    async fn recorded(&self) -> (i64, i64) {
        let mut owner = self.server.owner().await.expect("a session");
        sqlx::query_as("select count(*), count(distinct position) from saas.usage_event")
            .fetch_one(&mut owner)
            .await
            .expect("the counts")
    }

    /// Every granted use is in the counters and in the events.
    async fn check(&self) {
        let mut owner = self.server.owner().await.expect("a session");
        let counted: i64 = sqlx::query_scalar("select sum(used + burnt)::bigint from saas.usage_counter")
            .fetch_one(&mut owner)
            .await
            .expect("the sum");
        let used = self.used.load(Ordering::Relaxed) as i64;
        assert_eq!((counted, self.recorded().await.0), (used, used));
    }
}

/// Nanoseconds per use of so many callers, each a task of its own.
async fn timed<F>(callers: usize, uses: usize, one: impl Fn(usize) -> F + Clone + Send + 'static) -> f64
where
    F: Future<Output = ()> + Send,
{
    let begin = Instant::now();
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let one = one.clone();
            tokio::spawn(async move {
                for _ in 0..uses {
                    one(caller).await;
                }
            })
        })
        .collect();
    let all = callers.len() * uses;
    for caller in callers {
        caller.await.expect("the caller ends well");
    }
    nanos(begin.elapsed()) / all as f64
}
