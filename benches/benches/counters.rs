//! Counting beside the bare conditional update that any counter needs.
//!
//! `cargo bench -p saas-benches --bench counters`. A real PostgreSQL, the one of the tests: it does not wait for the disk,
//! which favours the floor. One hot row, then one tenant per task. Both are one
//! round trip; a use also keeps an idempotency key and an event, and is bound to its tenant: the difference is their price.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use saas_benches::{Contender, nanos, race, ratio};
use saas_core::{
    IdempotencyKey, MeterKey, PlanCatalog, PlanKey, RequestContext, TenantPool, db::pool_options,
    subscription::FixedPlan, testing::TestDatabase,
};
use saas_entitlements::{Entitlements, Meter, PostgresCounters, PostgresSource, SCHEMA};
use sqlx::{Executor, PgPool, postgres::PgPoolOptions};

const CALLS: MeterKey = MeterKey::from_static("calls");
const TASKS: usize = 8;
/// Uses per task and round.
const USES: usize = 40;

fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let bench = runtime.block_on(Bench::start());
    let cells =
        [("hot_row_1_task", 1, 1, 6.0), ("hot_row_8_tasks", TASKS, 1, 10.0), ("spread_8_tasks", TASKS, TASKS, 6.0)];
    for (name, tasks, tenants, goal) in cells {
        let medians = race(
            rounds,
            &mut [
                Contender::new("bare", || runtime.block_on(bench.bare(tasks, tenants))),
                Contender::new("meter", || runtime.block_on(bench.metered(tasks, tenants))),
            ],
        );
        let [bare, metered] = medians[..] else { unreachable!("two contenders") };
        println!("{name}: bare update {:.0} us, consume {:.0} us per use", bare / 1e3, metered / 1e3);
        ratio(&format!("consume/bare_update {name}"), metered / bare, true, goal);
    }
    runtime.block_on(bench.check());
}

struct Bench {
    database: TestDatabase,
    bare: PgPool,
    meter: Meter,
    tenants: Vec<RequestContext>,
    next_key: AtomicU64,
    used: AtomicU64,
}

impl Bench {
    async fn start() -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let mut tenants = Vec::new();
        for number in 0..TASKS {
            tenants.push(database.create_tenant(&format!("tenant-{number}")).await);
        }
        let mut owner = database.owner().await;
        owner
            .execute(
                "create table public.bare (id integer primary key, used bigint not null) with (fillfactor = 50);
                 insert into public.bare select n, 0 from generate_series(0, 7) n;
                 select saas.declare_global('public.bare', 'the floor of a benchmark');
                 grant usage on schema public to saas_app;
                 grant select, update on public.bare to saas_app",
            )
            .await
            .expect("the table of the floor");
        let login = database.options("saas_app");
        let options = |options: PgPoolOptions| options.max_connections(TASKS as u32).min_connections(TASKS as u32);
        let bare =
            options(PgPoolOptions::new().test_before_acquire(false)).connect_with(login.clone()).await.expect("a pool");
        let pool = options(pool_options()).connect_with(login).await.expect("a pool");
        let pool = Arc::new(TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.expect("a safe login"));
        let catalog = PlanCatalog::from_toml(
            "default_plan = \"free\"\n[meters.calls]\naggregation = \"sum\"\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1\n\
             limits.calls = { max = 1_000_000_000, window = \"month\", overage = \"block\", warn = [80] }",
        )
        .expect("the benchmark's catalogue is valid");
        let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
        let source = Arc::new(PostgresSource::new(pool.clone(), plans));
        let gate = Entitlements::new(catalog, source, Arc::new(database.clock().clone()));
        gate.tick();
        let meter = Meter::new(gate, Arc::new(PostgresCounters::new(pool)));
        Self { database, bare, meter, tenants, next_key: AtomicU64::new(0), used: AtomicU64::new(0) }
    }

    /// Nanoseconds per use of the floor: one conditional update, committed by itself.
    async fn bare(&self, tasks: usize, rows: usize) -> f64 {
        let run = async |task: usize| {
            for _ in 0..USES {
                let done =
                    sqlx::query("update public.bare set used = used + 1 where id = $1 and used < $2 returning used")
                        .bind((task % rows) as i32)
                        .bind(1_000_000_000_i64)
                        .execute(&self.bare)
                        .await
                        .expect("the update runs");
                assert_eq!(done.rows_affected(), 1);
            }
        };
        timed(tasks, run).await
    }

    async fn metered(&self, tasks: usize, tenants: usize) -> f64 {
        let run = async |task: usize| {
            for _ in 0..USES {
                let key = self.next_key.fetch_add(1, Ordering::Relaxed);
                let key: IdempotencyKey = format!("use-{key}").parse().expect("a key");
                let used = self.meter.consume(&self.tenants[task % tenants], &CALLS, 1, &key).await.expect("counted");
                assert!(used.is_granted());
                self.used.fetch_add(1, Ordering::Relaxed);
            }
        };
        timed(tasks, run).await
    }

    /// Every granted use is in the counters and in the events.
    async fn check(&self) {
        let mut owner = self.database.owner().await;
        let (counted, events): (i64, i64) = sqlx::query_as(
            "select (select sum(used + burnt)::bigint from saas.usage_counter), (select count(*) from saas.usage_event)",
        )
        .fetch_one(&mut owner)
        .await
        .expect("the sums");
        let used = self.used.load(Ordering::Relaxed) as i64;
        assert_eq!((counted, events), (used, used));
    }
}

/// Runs `tasks` at once and returns the nanoseconds per use.
async fn timed(tasks: usize, run: impl AsyncFn(usize)) -> f64 {
    let begin = Instant::now();
    futures_util::future::join_all((0..tasks).map(|task| run(task))).await;
    nanos(begin.elapsed()) / (tasks * USES) as f64
}
