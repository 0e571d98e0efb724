//! From the commit of a change to the new answer in each of four processes.
//!
//! `cargo bench -p saas-benches --bench coherence`; `CHANGES` says how many changes count (200). One PostgreSQL, four
//! processes of this binary, each with a gate of its own. A process asks about the tenant every 0.2 ms and says when it
//! first got the new answer; the time counts from just before the commit is sent. First the processes listen; then all
//! messages are lost, and the `ttl` has to do.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]
#![expect(clippy::disallowed_methods, reason = "several processes have no other clock in common")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use chrono::TimeDelta;
use saas_benches::{field, ratio};
use saas_core::{
    Actor, Clock, SystemClock, SystemTx, TenantId, TenantPool, db::pool_options, subscription::PlanAssignment,
    testing::TestDatabase,
};
use saas_entitlements::{
    AssignedPlans, Assignments, Entitlements, GateOptions, PostgresSource, RevisionListener, SCHEMA,
};
use sqlx::postgres::PgConnectOptions;

const PROCESSES: usize = 4;
/// Set in the processes: whether they listen.
const CHILD: &str = "SAAS_COHERENCE_CHILD";
const URL: &str = "SAAS_COHERENCE_URL";
/// Two plans, and whether they have the first feature.
const PLANS: [(&str, bool); 2] = [("p0", field::grants(0, 0)), ("p2", field::grants(2, 0))];
const ASK_EVERY: Duration = Duration::from_micros(200);
/// Where all messages are lost.
const TTL: TimeDelta = TimeDelta::milliseconds(1_000);

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    if let Ok(listens) = std::env::var(CHILD) {
        return runtime.block_on(serve(&runtime.handle().clone(), listens == "yes"));
    }
    let changes = std::env::var("CHANGES").ok().and_then(|changes| changes.parse().ok()).unwrap_or(200);
    runtime.block_on(async {
        let bench = Bench::start().await;
        let heard = bench.measure("yes", changes).await;
        ratio("commit_to_four_processes_ms listening median", at(&heard, 50), true, 10.0);
        let deaf = bench.measure("no", changes / 8).await;
        let bound = TTL.num_milliseconds() as f64;
        ratio("commit_to_four_processes/ttl all messages lost, worst", at(&deaf, 100) / bound, true, 1.0);
    });
}

/// A gate on the database, and what keeps it going.
async fn gate(options: PgConnectOptions, ttl: TimeDelta) -> Entitlements {
    let pool = pool_options().max_connections(2).connect_with(options).await.expect("a pool");
    let pool = Arc::new(TenantPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.expect("a safe login"));
    let catalog = field::catalog();
    let plans = Arc::new(AssignedPlans::new(pool.clone(), &catalog));
    let source = Arc::new(PostgresSource::new(pool, plans));
    let options = GateOptions::default().with_ttl(ttl);
    Entitlements::with_options(catalog, source, Arc::new(SystemClock), options).expect("valid options")
}

/// One of the processes: for each line `<tenant> <wanted>` it asks about the first feature until the answer is `wanted`.
async fn serve(runtime: &tokio::runtime::Handle, listens: bool) {
    let options: PgConnectOptions = std::env::var(URL).expect("an address").parse().expect("an address");
    let ttl = if listens { TimeDelta::hours(1) } else { TTL };
    let gate = gate(options.clone(), ttl).await;
    let _clock = gate.start_clock();
    let _listener = listens.then(|| RevisionListener::start(gate.clone(), options));
    while listens && gate.stats().flushes == 0 {
        tokio::task::yield_now().await;
    }
    let runtime = runtime.clone();
    let asking = std::thread::spawn(move || {
        let feature = field::handles(&gate)[0];
        for line in std::io::stdin().lines() {
            let line = line.expect("a line");
            let (tenant, wanted) = line.split_once(' ').expect("a tenant and an answer");
            let (tenant, wanted): (TenantId, bool) =
                (tenant.parse().expect("a tenant"), wanted.parse().expect("an answer"));
            let ask = || runtime.block_on(gate.is_enabled(tenant, feature));
            let mut answer = ask();
            // The one before the change is in memory now.
            println!("asked");
            while answer != wanted {
                std::thread::sleep(ASK_EVERY);
                answer = ask();
            }
            println!("{}", micros());
        }
    });
    tokio::task::spawn_blocking(move || asking.join()).await.expect("waited").expect("asked to the end");
}

fn micros() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros()
}

struct Bench {
    database: TestDatabase,
    assignments: Assignments,
    tenant: TenantId,
}

impl Bench {
    async fn start() -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let tenant = saas_core::TenantContext::tenant(&database.create_tenant("asked-about").await);
        let own = gate(database.options("saas_app"), TTL).await;
        let assignments = Assignments::new(database.system().clone(), own);
        Self { database, assignments, tenant }
    }

    /// Milliseconds from before each commit to the last of the processes' new answers, ascending.
    async fn measure(&self, listens: &str, changes: usize) -> Vec<f64> {
        let mut processes: Vec<_> = (0..PROCESSES).map(|_| Process::start(&self.database, listens)).collect();
        let mut spent = Vec::new();
        self.commit(PLANS[0].0).await;
        for change in 1..=changes {
            let (plan, wanted) = PLANS[change % 2];
            for process in &mut processes {
                writeln!(process.input, "{} {wanted}", self.tenant).expect("it reads");
            }
            processes.iter_mut().for_each(|process| assert_eq!(process.hear(), "asked"));
            // At another point of the answer's life each time.
            tokio::time::sleep(Duration::from_micros(fastrand::u64(1_000..40_000))).await;
            let begin = self.commit(plan).await;
            let last = processes.iter_mut().map(Process::instant).max().expect("there are some");
            spent.push(last.saturating_sub(begin) as f64 / 1e3);
        }
        spent.sort_by(f64::total_cmp);
        let [p50, p90, p99, worst] = [50, 90, 99, 100].map(|percent| at(&spent, percent));
        println!(
            "{changes} changes, {PROCESSES} processes, listening: {listens}: median {p50:.2} ms, 90 % {p90:.2} ms, 99 % \
             {p99:.2} ms, worst {worst:.2} ms"
        );
        spent
    }

    /// Puts the tenant on a plan, and says when its commit was about to be sent.
    async fn commit(&self, plan: &str) -> u128 {
        let actor = Actor::system("bench");
        let mut tx =
            SystemTx::begin(self.database.system(), actor.clone(), "change a plan").await.expect("a transaction");
        let plan = PlanAssignment::active(plan.parse().expect("a plan"));
        let put = self.assignments.put_assignment_in(&mut tx, self.tenant, plan, &actor, SystemClock.now()).await;
        put.expect("the change");
        let begin = micros();
        tx.commit().await.expect("the commit");
        begin
    }
}

/// The figure that so many of a hundred do not exceed.
fn at(ascending: &[f64], percent: usize) -> f64 {
    let last = ascending.len().saturating_sub(1);
    ascending.get((ascending.len() * percent / 100).min(last)).copied().unwrap_or(f64::NAN)
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(database: &TestDatabase, listens: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .env(CHILD, listens)
            .env(URL, database.url("saas_app"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).expect("it writes"), 0, "the process ended");
        line.trim_end().to_owned()
    }

    /// When it got the new answer.
    fn instant(&mut self) -> u128 {
        self.hear().parse().expect("an instant")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
