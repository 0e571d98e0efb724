//! Questions that the database answers.

use std::{sync::Arc, time::Instant};

use saas_benches::{
    Contender,
    field::{self, FEATURES, Plans},
    nanos, race as run, ratio,
};
use saas_core::{
    Clock, PlanKey, SystemClock, TenantId, TenantPool, db::pool_options, subscription::FixedPlan, testing::TestDatabase,
};
use saas_entitlements::{Entitlements, PostgresSource, SCHEMA, SnapshotSource};
use uuid::Uuid;

/// Tenants that are asked about per round, each once.
const ASKED: usize = 500;

/// A miss beside the query that it makes: the same source, the same pool, one caller.
pub(crate) fn race(rounds: usize) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let bench = Arc::new(runtime.block_on(Bench::start()));
    // On a worker, as a request is: from outside, every wake-up crosses threads.
    let on_a_worker = |work: fn(Arc<Bench>) -> futures_util::future::BoxFuture<'static, f64>| {
        let (bench, runtime) = (Arc::clone(&bench), &runtime);
        move || runtime.block_on(async { tokio::spawn(work(Arc::clone(&bench))).await.expect("the work ends") })
    };
    let medians = run(
        rounds,
        &mut [
            Contender::new("query", on_a_worker(|bench| Box::pin(async move { bench.query().await }))),
            Contender::new("miss", on_a_worker(|bench| Box::pin(async move { bench.miss().await }))),
        ],
    );
    let [query, miss] = medians[..] else { unreachable!("two contenders") };
    println!("the query {:.0} us, a miss {:.0} us", query / 1e3, miss / 1e3);
    ratio("miss/query", miss / query, true, 1.3);
    runtime.block_on(stampede());
}

struct Bench {
    /// Removed at the end.
    _database: TestDatabase,
    source: Arc<PostgresSource>,
    tenants: Vec<TenantId>,
}

impl Bench {
    async fn start() -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let tenants: Vec<Uuid> = sqlx::query_scalar(
            "insert into saas.tenant (id, slug, name, created_at)
             select gen_random_uuid(), 't' || n, 't' || n, now() from generate_series(1, $1) n returning id",
        )
        .bind(ASKED as i32)
        .fetch_all(&mut database.owner().await)
        .await
        .expect("tenants");
        let pool = pool_options().max_connections(4).connect_with(database.options("saas_app")).await.expect("a pool");
        let pool = TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.expect("a safe login");
        let source = PostgresSource::new(Arc::new(pool), Arc::new(FixedPlan(PlanKey::from_static("p1"))));
        let tenants = tenants.into_iter().map(TenantId::from_uuid).collect();
        Self { _database: database, source: Arc::new(source), tenants }
    }

    async fn query(&self) -> f64 {
        let begin = Instant::now();
        for tenant in &self.tenants {
            let found = self.source.load(*tenant, SystemClock.now()).await.expect("the database answers");
            assert!(found.is_some(), "it exists");
        }
        nanos(begin.elapsed()) / ASKED as f64
    }

    async fn miss(&self) -> f64 {
        let gate = Entitlements::new(field::catalog(), self.source.clone(), Arc::new(SystemClock));
        let handles = field::handles(&gate);
        gate.tick();
        let begin = Instant::now();
        for (asked, tenant) in self.tenants.iter().enumerate() {
            let feature = asked % FEATURES;
            assert_eq!(gate.is_enabled(*tenant, handles[feature]).await, field::grants(1, feature));
        }
        let spent = nanos(begin.elapsed()) / ASKED as f64;
        assert_eq!(gate.stats().loads, ASKED as u64, "each was a miss");
        spent
    }
}

/// A thousand callers miss the same tenant at once: one query.
async fn stampede() {
    let plans = Plans::new(0);
    let gate = field::empty_gate(&field::catalog(), plans.clone(), 100);
    let feature = field::handles(&gate)[0];
    let callers: Vec<_> = (0..1_000).map(|_| tokio::spawn(gate.is_enabled(field::tenant_id(7), feature))).collect();
    for caller in callers {
        assert_eq!(caller.await.expect("the caller ends"), field::grants(field::plan_of(7), 0));
    }
    assert_eq!(plans.loads(), 1);
    ratio("queries_of_1000_misses", plans.loads() as f64, true, 1.0);
}
