//! Four processes share one limit, and two of them are killed in the middle: with leases of PostgreSQL, and out of Redis.
//!
//! The program runs itself again as each worker. A worker keeps, per task, what it has begun and what it was granted in a file:
//! what the kernel has taken survives the kill of the process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    env,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use saas_core::{
    Actor, Clock, MeterKey, PlanCatalog, PlanKey, RequestContext, SystemClock, TenantContext, TenantId, TenantPool,
    plan::Window,
    subscription::FixedPlan,
    testing::{TestDatabase, leaks},
};
use saas_entitlements::{
    Balance, Entitlements, LeaseOptions, LeaseStore, LeasedUse, Leases, PostgresLeases, PostgresSource, SCHEMA,
    period_at,
};

const CALLS: MeterKey = MeterKey::from_static("calls");
const LIMIT: u64 = 1_000_000;
const PROCESSES: usize = 4;
const TASKS: usize = 8;
/// Units per use.
const AMOUNT: u64 = 5;
const LIFE: Duration = Duration::from_secs(2);
/// Of the whole test; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() {
    leaks::listen_if_asked();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match env::var("LEASE_WORKER") {
        Ok(file) => runtime.block_on(work(Path::new(&file))),
        Err(_) => {
            runtime.block_on(a_kill_loses_no_unit_and_admits_none_too_many(None));
            #[cfg(feature = "redis")]
            {
                let redis = saas_core::testing::RedisServer::start().unwrap();
                runtime.block_on(a_kill_loses_no_unit_and_admits_none_too_many(Some(redis.url())));
            }
        }
    }
}

/// Leases out of Redis where there is one, or else of PostgreSQL alone.
fn store(binding: Arc<TenantPool>, redis: Option<&str>) -> Arc<dyn LeaseStore> {
    let leases = PostgresLeases::new(binding);
    #[cfg(feature = "redis")]
    if let Some(url) = redis {
        use saas_entitlements::{Redis, RedisLeaseOptions, RedisLeases};
        let redis = Redis::single(redis::Client::open(url).unwrap());
        // A machine that is busy with other tests is not a Redis that is down.
        let options = RedisLeaseOptions::default()
            .with_life(LIFE)
            .with_tick(Duration::from_millis(100))
            .with_answer_within(Duration::from_secs(10));
        return Arc::new(RedisLeases::start(leases, redis, Arc::new(SystemClock), options));
    }
    assert!(redis.is_none(), "without the feature `redis`");
    Arc::new(leases)
}

/// The service of one process.
fn service(pool: &TenantPool, redis: Option<&str>) -> (Entitlements, Arc<dyn LeaseStore>, Leases) {
    let catalog = PlanCatalog::from_toml(
        "default_plan = 'free'\n[meters.calls]\naggregation = 'sum'\n[plans.free]\nrank = 0\n\
         [[plans.free.versions]]\nversion = 1\n\
         limits.calls = { max = 1_000_000, window = 'lifetime', overage = 'block' }",
    )
    .unwrap();
    let binding = Arc::new(pool.clone());
    let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
    let source = Arc::new(PostgresSource::new(binding.clone(), plans));
    let gate = Entitlements::new(catalog, source, Arc::new(SystemClock));
    let store = store(binding, redis);
    let options = LeaseOptions::default().with_life(LIFE).with_tick(Duration::from_millis(100));
    let leases = Leases::new(gate.clone(), store.clone(), options);
    (gate, store, leases)
}

/// Uses until nothing is left: per task two numbers in the file, granted with the use under way, and granted.
async fn work(file: &Path) {
    let login = env::var("LEASE_DATABASE").unwrap();
    let pool = saas_core::db::pool_options().max_connections(3).connect(&login).await.unwrap();
    let pool = TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.unwrap();
    let redis = env::var("LEASE_REDIS").ok();
    let (_, _, leases) = service(&pool, redis.as_deref());
    let tenant: TenantId = env::var("LEASE_TENANT").unwrap().parse().unwrap();
    let file = Arc::new(File::options().write(true).open(file).unwrap());
    // All begin together: who came late would find nothing left.
    println!("ready");
    assert_ne!(std::io::stdin().read_line(&mut String::new()).unwrap(), 0, "whoever started this is gone");
    let tasks: Vec<_> = (0..TASKS as u64)
        .map(|task| {
            let (file, leases) = (Arc::clone(&file), leases.clone());
            tokio::spawn(async move {
                let ctx = RequestContext::new(tenant, Actor::system("worker"), &SystemClock);
                let note = |place: u64, units: u64| {
                    file.write_all_at(&units.to_le_bytes(), task * 16 + place * 8).unwrap();
                };
                let mut granted = 0;
                loop {
                    note(0, granted + AMOUNT);
                    match leases.consume(&ctx, &CALLS, AMOUNT).await.unwrap() {
                        LeasedUse::Granted => granted += AMOUNT,
                        LeasedUse::Exhausted { .. } => break note(0, granted),
                        denied @ LeasedUse::Denied(_) => panic!("{denied:?}"),
                    }
                    note(1, granted);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    leases.shutdown().await.unwrap();
}

/// What a worker has noted: granted at most, and granted at least.
fn noted(file: &Path) -> (u64, u64) {
    let bytes = std::fs::read(file).unwrap();
    let sum = |place: usize| {
        bytes.chunks(16).map(|task| u64::from_le_bytes(task[place * 8..place * 8 + 8].try_into().unwrap())).sum()
    };
    (sum(0), sum(1))
}

/// Kills the process that a panic would leave behind.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// C1, C11, C16, C17
async fn a_kill_loses_no_unit_and_admits_none_too_many(redis: Option<String>) {
    let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let ctx = database.create_tenant("acme").await;
    let (gate, store, leases) = service(database.tenants(), redis.as_deref());
    let rule = gate.snapshot(ctx.tenant()).await.limit(&CALLS).unwrap();
    let period = period_at(&rule, None, SystemClock.now());
    let balance = || async { store.balance(&ctx, &CALLS, Window::Lifetime, period).await.unwrap() };
    let folder = env::temp_dir().join(format!("saas-lease-{}", database.name()));
    std::fs::create_dir(&folder).unwrap();
    let files: Vec<_> = (0..PROCESSES).map(|worker| folder.join(worker.to_string())).collect();
    let mut workers: Vec<_> = files
        .iter()
        .map(|file| {
            std::fs::write(file, [0; TASKS * 16]).unwrap();
            let mut command = Command::new(env::current_exe().unwrap());
            command.env("LEASE_WORKER", file).env("LEASE_DATABASE", database.url("saas_app"));
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            if let Some(redis) = &redis {
                command.env("LEASE_REDIS", redis);
            }
            Worker(command.env("LEASE_TENANT", ctx.tenant().to_string()).spawn().unwrap())
        })
        .collect();
    for Worker(worker) in &mut workers {
        let said = BufReader::new(worker.stdout.take().unwrap()).read_line(&mut String::new());
        assert_ne!(said.unwrap(), 0, "a worker ended before it began");
    }
    for Worker(worker) in &mut workers {
        worker.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    let started = Instant::now();
    let killed = [0, 1];
    // In the middle: all have been granted something, those to be killed too, and some of it is out.
    loop {
        assert!(started.elapsed() < PATIENCE, "the workers do not get on");
        let Balance { used, held } = balance().await;
        assert!(used + held <= LIMIT);
        if used > LIMIT / 5 && held > 0 && files.iter().all(|file| noted(file).1 > 0) {
            break;
        }
    }
    for worker in killed {
        workers[worker].0.kill().unwrap();
        workers[worker].0.wait().unwrap();
    }
    let middle = balance().await;
    assert!(middle.used < LIMIT, "the kill came too late to say anything");
    for worker in &mut workers[2..] {
        assert!(worker.0.wait().unwrap().success());
    }

    // What the killed ones had is counted as used once its life is over; then the rest can be used to the last unit.
    let mut rest = 0;
    loop {
        assert!(started.elapsed() < PATIENCE, "{:?}", balance().await);
        match leases.consume(&ctx, &CALLS, 1).await.unwrap() {
            LeasedUse::Granted => rest += 1,
            LeasedUse::Exhausted { held: 0, .. } => break,
            LeasedUse::Exhausted { .. } => {}
            denied @ LeasedUse::Denied(_) => panic!("{denied:?}"),
        }
    }
    leases.shutdown().await.unwrap();
    assert_eq!(balance().await, Balance { used: LIMIT, held: 0 });

    let mut owner = database.owner().await;
    let (recorded, stranded): (i64, i64) = sqlx::query_as(
        "select coalesce(sum(units) filter (where kind = 'lease'), 0)::bigint,
                coalesce(sum(units) filter (where kind = 'stranded'), 0)::bigint
         from saas.usage_event where tenant_id = $1",
    )
    .bind(ctx.tenant().as_uuid())
    .fetch_one(&mut owner)
    .await
    .unwrap();
    let (recorded, stranded) = (recorded.unsigned_abs(), stranded.unsigned_abs());
    assert_eq!(recorded + stranded, LIMIT);
    assert!(stranded <= LIMIT / 100, "{stranded} units were stranded");
    let (most, least) =
        files.iter().map(|file| noted(file)).fold((rest, rest), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(least <= LIMIT, "{least} units were admitted");
    let under_way = killed.len() as u64 * TASKS as u64 * AMOUNT;
    // What the two had under way when they were killed is all that is not known exactly.
    assert!(most - least <= under_way, "{most} {least}");
    assert!(LIMIT - least <= LIMIT / 100 + under_way, "{least} units were admitted");
    // What Redis found to be lost is reported with what was used.
    assert!(redis.is_some() || most >= recorded, "{recorded} units were recorded as used, and at most {most} were");
    let conserved: bool = sqlx::query_scalar(
        "select coalesce(bool_and(ended_at is not null and spent + returned + stranded = lent), false)
         from saas.usage_lease where tenant_id = $1",
    )
    .bind(ctx.tenant().as_uuid())
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert!(conserved, "every lease is accounted for");
    std::fs::remove_dir_all(&folder).unwrap();
    println!(
        "{}: killed at {} of {LIMIT}; admitted {least} to {most}, recorded {recorded}, stranded {stranded}, in {:.1} s",
        redis.map_or("PostgreSQL", |_| "Redis"),
        middle.used,
        started.elapsed().as_secs_f64()
    );
}
