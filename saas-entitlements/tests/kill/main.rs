//! Ten minutes of traffic, compressed, while everything is killed that can be: the database, Redis, connections, processes.
//!
//! The program runs itself again as each worker. A worker does what an application would do in each second: uses counted one
//! by one under keys, by PostgreSQL and by Redis, uses from memory by leases of PostgreSQL and out of Redis, work that
//! reserves first, uses recorded in batches, and questions to the gate. It writes down what it has begun and what it was
//! answered in files, which survive its death; whoever takes its place repeats what was begun under the same key. The
//! supervisor kills at random moments, changes plans meanwhile, and asks the living database after each kill whether its books
//! balance. `KILL_SEED` repeats a run: the same is killed in the same seconds.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod books;
mod journal;
mod leased;
mod plans;
mod readers;
mod taps;
mod tokens;
mod victims;
mod worker;

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use saas_core::{
    Actor, Clock, FeatureKey, MeterKey, PlanCatalog, RequestContext, SystemClock, TenantContext, TenantId,
    testing::{DevServer, Durability, TestDatabase, leaks},
};
use saas_entitlements::{AssignedPlans, Assignments, Entitlements, PostgresSource, SCHEMA};
use sqlx::Executor as _;

use crate::{
    books::Books,
    journal::{Noted, Units},
    leased::Leased,
    plans::Changer,
    taps::Tap,
    tokens::Work,
    victims::{Scene, Victim},
};

/// Simulated seconds of traffic that each process serves.
const SECONDS: u64 = 600;
const PROCESSES: usize = 4;
/// Kills in a run.
const KILLS: usize = 36;
/// Of the whole test; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// Used under keys, one by one.
const JOBS: MeterKey = MeterKey::from_static("jobs");
/// Used by lease.
const CALLS: MeterKey = MeterKey::from_static("calls");
/// Used by lease out of Redis.
const HITS: MeterKey = MeterKey::from_static("hits");
/// Recorded in batches, without a limit.
const PINGS: MeterKey = MeterKey::from_static("pings");
/// Used under keys, admitted by Redis.
const TAPS: MeterKey = MeterKey::from_static("taps");
/// Reserved, then used.
const TOKENS: MeterKey = MeterKey::from_static("tokens");
/// What the plan that comes and goes has.
const EXPORT: FeatureKey = FeatureKey::from_static("export");
/// Below what the traffic asks for: each limit is reached.
const JOBS_LIMIT: u64 = 8_000;
const CALLS_LIMIT: u64 = 460_000;
const HITS_LIMIT: u64 = 220_000;
const TAPS_LIMIT: u64 = 30_000;
const TOKENS_LIMIT: u64 = 4_000;

const CATALOG: &str = "
default_plan = 'free'
[features.export]
kind = 'boolean'
fail = 'closed'
[meters]
jobs = { aggregation = 'sum' }
calls = { aggregation = 'sum' }
hits = { aggregation = 'sum' }
taps = { aggregation = 'sum' }
tokens = { aggregation = 'sum' }
pings = { aggregation = 'sum' }
[plans.free]
rank = 0
[[plans.free.versions]]
version = 1
limits.jobs = { max = 8_000, window = 'lifetime', overage = 'block' }
limits.calls = { max = 460_000, window = 'lifetime', overage = 'block', warn = [50, 100] }
limits.hits = { max = 220_000, window = 'lifetime', overage = 'block' }
limits.taps = { max = 30_000, window = 'lifetime', overage = 'block' }
limits.tokens = { max = 4_000, window = 'lifetime', overage = 'block' }
[plans.pro]
rank = 1
[[plans.pro.versions]]
version = 1
grants = { export = true }
limits.jobs = { max = 8_000, window = 'lifetime', overage = 'block' }
limits.calls = { max = 460_000, window = 'lifetime', overage = 'block', warn = [50, 100] }
limits.hits = { max = 220_000, window = 'lifetime', overage = 'block' }
limits.taps = { max = 30_000, window = 'lifetime', overage = 'block' }
limits.tokens = { max = 4_000, window = 'lifetime', overage = 'block' }
";

fn main() {
    leaks::listen_if_asked();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match env::var("KILL_WORKER") {
        Ok(number) => runtime.block_on(worker::work(number.parse().unwrap())),
        Err(_) => runtime.block_on(whatever_is_killed_no_unit_is_lost_doubled_or_granted_beyond_the_limit()),
    }
}

fn catalog() -> PlanCatalog {
    PlanCatalog::from_toml(CATALOG).unwrap()
}

/// By the clock of the machine, which all processes share.
fn micros(at: DateTime<Utc>) -> u64 {
    u64::try_from(at.timestamp_micros()).unwrap()
}

/// The tenant under load, and the one whose plan comes and goes.
struct Tenants {
    busy: RequestContext,
    asked: RequestContext,
}

/// A folder for the files of the workers.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

// C1, C2, C4, C5, C6, C11, C16, C17, G4, G11
async fn whatever_is_killed_no_unit_is_lost_doubled_or_granted_beyond_the_limit() {
    let seed = env::var("KILL_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("KILL_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let started = Instant::now();
    // A server of its own: the other tests must not notice.
    let mut server = DevServer::start_own(Durability::None).unwrap();
    let database = TestDatabase::builder().on(&server).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    // What was committed survives the end of the server, though not that of the machine.
    let durable = format!("alter database {} set synchronous_commit = on", database.name());
    database.owner().await.execute(sqlx::AssertSqlSafe(durable)).await.unwrap();
    let tenants = Tenants { busy: database.create_tenant("busy").await, asked: database.create_tenant("asked").await };
    let folder = Folder(env::temp_dir().join(format!("saas-kill-{}", database.name())));
    std::fs::create_dir(&folder.0).unwrap();

    // Every file is there before anybody writes to it.
    drop(Noted::read(&folder.0));
    let mut scene = Scene::open(&database, &folder.0, &tenants);
    let mut changer = Changer::new(&database, &tenants);
    let books = Books::new(&database, tenants.busy.tenant());
    let mut victims: Vec<Box<dyn Victim>> = victims::all();
    // At which of the seconds that all processes serve together something is killed.
    let mut moments: Vec<u64> = (0..KILLS).map(|_| random.u64(1..SECONDS * PROCESSES as u64 * 9 / 10)).collect();
    moments.sort_unstable_by(|left, right| right.cmp(left));
    random.shuffle(&mut victims);
    let (mut served, mut killed) = (0, Vec::new());
    while scene.is_at_work() {
        assert!(started.elapsed() < PATIENCE, "the workers do not get on: {served} seconds of traffic");
        served += scene.hear();
        if served.is_multiple_of(8) {
            changer.change().await;
        }
        while moments.last().is_some_and(|moment| *moment <= served) {
            moments.pop();
            // Each kind at least once, then any.
            let which = if killed.len() < victims.len() { killed.len() } else { random.usize(..victims.len()) };
            let from = micros(SystemClock.now());
            scene.recover();
            // What a victim draws changes nothing for those after it.
            let what = victims[which].kill(&mut scene, &mut server, &mut random.fork());
            println!("at second {served}: {what}");
            changer.outage(from, micros(SystemClock.now()));
            killed.push(what);
            books.balance(&Noted::read(&folder.0)).await;
        }
    }
    assert_eq!(killed.len(), KILLS, "the traffic ended first: {killed:?}");

    let rests = settle(&database, &tenants, &books, &scene.recover(), started + PATIENCE).await;
    readers::have_read_everything(&database, &folder.0, tenants.busy.tenant()).await;
    let noted = Noted::read(&folder.0);
    // One by one, under keys: exactly what was granted.
    assert_eq!(books.stranded_and_recorded(&JOBS).await, (0, noted.jobs), "keyed uses");
    assert_eq!(noted.jobs, JOBS_LIMIT, "the limit was reached, to the last unit");
    // In batches, under keys: exactly what was acknowledged.
    assert_eq!(books.stranded_and_recorded(&PINGS).await, (0, noted.pings), "batched uses");
    tokens::are_accounted_for(&books, &noted, rests.tokens).await;
    let (lost_taps, taps) = taps::are_accounted_for(&books, &noted, rests.taps).await;
    // By lease, without keys: what was granted, and what was lost with a lease.
    let calls = leased::calls_are_accounted_for(&books, &noted, rests.calls).await;
    let hits = leased::hits_are_accounted_for(&books, &noted, rests.hits).await;
    // Each warning once, whoever died between what reached it and the saying so.
    assert_eq!(books.warnings(&CALLS).await, [50, 100]);
    let most_taps = TAPS_LIMIT / 100 * KILLS as u64;
    assert!(lost_taps <= most_taps, "{lost_taps} taps stranded by {KILLS} kills, {most_taps} at most");
    let (refused, late) = changer.after_the_bound(&noted.answers);
    assert!(late.is_empty(), "the gate granted what was taken away, so many microseconds after the bound: {late:?}");
    assert!(changer.changes() > 3 && refused > 100, "{} changes, {refused} answers: too few", changer.changes());
    println!(
        "{served} seconds of traffic of {PROCESSES} processes in {:.1} s; calls: {calls}; hits: {hits}, {} borrows \
         answered by Redis; taps: {taps} recorded, {lost_taps} stranded, {} uses admitted by Redis, {} units refused \
         in doubt; tokens: {} and {} in the end; jobs: {}; pings: {}; gate: {} answers, {} changes of the plan, {refused} \
         refused after the bound, none granted",
        started.elapsed().as_secs_f64(),
        noted.borrowed,
        noted.admitted,
        noted.taps_in_doubt,
        noted.tokens,
        rests.tokens,
        noted.jobs,
        noted.pings,
        noted.answers.len(),
        changer.changes(),
    );
}

/// What was used in the end, to the last unit.
struct Rests {
    calls: Units,
    hits: Units,
    taps: u64,
    tokens: u64,
}

/// Uses what is left of each meter to the last unit, once what the dead held is over.
async fn settle(database: &TestDatabase, tenants: &Tenants, books: &Books<'_>, redis: &str, until: Instant) -> Rests {
    let (gate, _) = services(database);
    let calls = Leased::of_postgres(&gate, database.tenants()).use_the_rest(tenants, until).await;
    let (leased, pools) = Leased::out_of_redis(&gate, database.tenants(), redis);
    let hits = leased.use_the_rest(tenants, until).await;
    assert_eq!(pools.stats().unreadable, 0, "{:?}", pools.stats());
    let taps = Tap::open(&gate, database.tenants(), redis).use_the_rest(tenants, books, until).await;
    let tokens = Work::open(&gate, database.tenants()).use_the_rest(tenants, until).await;
    books.balance(&Noted::default()).await;
    books.leases_are_over().await;
    Rests { calls, hits, taps, tokens }
}

/// The supervisor's own gate, straight on the database.
fn services(database: &TestDatabase) -> (Entitlements, Assignments) {
    let catalog = catalog();
    let binding = Arc::new(database.tenants().clone());
    let plans = Arc::new(AssignedPlans::new(binding.clone(), &catalog));
    let gate = Entitlements::new(catalog, Arc::new(PostgresSource::new(binding, plans)), Arc::new(SystemClock));
    let assignments = Assignments::new(database.system().clone(), gate.clone());
    (gate, assignments)
}

/// Who acts in the supervisor.
static OPERATOR: Actor = Actor::system("operator");

/// The file of a worker.
fn file_of(folder: &Path, worker: usize, what: &str) -> PathBuf {
    folder.join(format!("{worker}-{what}"))
}

/// What a worker is told by its environment.
fn told<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> T {
    env::var(name).unwrap().parse().unwrap()
}

/// The context of a worker's uses.
fn acting_in(tenant: TenantId) -> RequestContext {
    RequestContext::new(tenant, Actor::system("worker"), &SystemClock)
}
