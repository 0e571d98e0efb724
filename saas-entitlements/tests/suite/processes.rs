//! Several processes of the application on one database: this binary, started again by the tests themselves.

use std::{
    any::Any,
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use saas_core::{SystemClock, SystemPool, SystemTx, TenantContext, TenantId, TenantPool, db, revision};
use saas_entitlements::{Entitlements, GateOptions, PostgresSource, RevisionListener, RevisionPoller, SCHEMA};
use sqlx::postgres::PgConnectOptions;

use crate::{
    postgres::{App, PlanTable},
    stage::{EXPORT, catalog},
};

/// Set in a process that a test starts: how it hears of changes.
const CHILD: &str = "SAAS_GATE_CHILD";
const APP_URL: &str = "SAAS_GATE_APP";
const SYSTEM_URL: &str = "SAAS_GATE_SYSTEM";
const POLL_EVERY: Duration = Duration::from_millis(25);
const DEAF_TTL: TimeDelta = TimeDelta::milliseconds(1_000);
const TICK: Duration = Duration::from_millis(20);

/// A process of the application: answers questions on standard input until that closes.
async fn serve(hears_by: &str) {
    let schemas = [&saas_core::SCHEMA, &SCHEMA];
    let login = |url| PgConnectOptions::from_str(&env::var(url).unwrap()).unwrap().application_name(CHILD);
    let (login, system) = (login(APP_URL), login(SYSTEM_URL));
    let pool = db::pool_options().max_connections(2).connect_with(login.clone()).await.unwrap();
    let tenants = TenantPool::open(pool, &schemas).await.unwrap();
    let plans = Arc::new(PlanTable(tenants.clone()));
    let source = Arc::new(PostgresSource::new(Arc::new(tenants), plans));
    let ttl = if hears_by == "nothing" { DEAF_TTL } else { TimeDelta::hours(1) };
    let options = GateOptions::default().with_ttl(ttl).with_tick(TICK);
    let gate = Entitlements::with_options(catalog(), source, Arc::new(SystemClock), options).unwrap();
    let _clock = gate.start_clock();
    let _ear: Option<Box<dyn Any + Send>> = match hears_by {
        "notify" => Some(Box::new(RevisionListener::start(gate.clone(), login))),
        "poll" => {
            let system = db::pool_options().max_connections(1).connect_with(system).await.unwrap();
            let system = SystemPool::open(system, &schemas).await.unwrap();
            Some(Box::new(RevisionPoller::start(gate.clone(), system, POLL_EVERY)))
        }
        #[cfg(feature = "redis")]
        url if url.starts_with("redis://") => {
            let redis = crate::redis::single(url);
            Some(Box::new(saas_entitlements::RedisRevisions::start(gate.clone(), redis)))
        }
        _ => None,
    };
    while gate.stats().flushes == 0 && hears_by != "nothing" {
        tokio::task::yield_now().await;
    }
    say("ready");
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        let (tenant, wanted) = line.trim_end().split_once(' ').unwrap();
        let (tenant, wanted): (TenantId, bool) = (tenant.parse().unwrap(), wanted.parse().unwrap());
        line.clear();
        let begin = Instant::now();
        let mut wrong_until = Duration::ZERO;
        loop {
            let asked = begin.elapsed();
            if gate.is_feature_enabled(tenant, &EXPORT).await == wanted {
                break;
            }
            wrong_until = asked;
            assert!(asked < Duration::from_secs(30), "the change was never seen");
            tokio::task::yield_now().await;
        }
        say(&wrong_until.as_micros().to_string());
    }
}

/// The name stands on a line of its own, whatever the test harness writes around it.
fn say(what: &str) {
    println!("\n> {what}");
    std::io::stdout().flush().unwrap();
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(app: &App, test: &str, hears_by: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, hears_by)
            .env(APP_URL, app.database.url("saas_app"))
            .env(SYSTEM_URL, app.database.url("saas_system"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut process = Self { child, input, output };
        assert_eq!(process.hear(), "ready");
        process
    }

    /// Has it ask until the answer is `wanted`.
    fn ask(&mut self, tenant: TenantId, wanted: bool) {
        writeln!(self.input, "{tenant} {wanted}").unwrap();
    }

    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the process ended");
            if let Some(said) = line.trim_end().strip_prefix("> ") {
                return said.to_owned();
            }
        }
    }

    /// For how long after the question the answer was another one.
    fn wrong_for(&mut self) -> Duration {
        Duration::from_micros(self.hear().parse().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Changes the plan back and forth; each time every process must come to answer the new one. Returns for how long they
/// answered the old one.
async fn change_and_ask(app: &App, processes: &mut [Process], rounds: usize) -> Vec<Duration> {
    let ctx = app.database.create_tenant(&format!("asked-by-{}", processes.len())).await;
    let mut wrong = Vec::new();
    processes.iter_mut().for_each(|process| process.ask(ctx.tenant(), false));
    processes.iter_mut().for_each(|process| drop(process.hear()));
    for round in 0..rounds {
        let pro = round % 2 == 0;
        app.change_plan(&ctx, if pro { "pro" } else { "free" }).await;
        processes.iter_mut().for_each(|process| process.ask(ctx.tenant(), pro));
        wrong.extend(processes.iter_mut().map(Process::wrong_for));
    }
    wrong
}

async fn four_processes(test: &str, hears_by: &str) {
    if let Ok(hears_by) = env::var(CHILD) {
        return serve(&hears_by).await;
    }
    let app = App::start().await;
    let mut processes: Vec<_> = (0..4).map(|_| Process::start(&app, test, hears_by)).collect();
    let wrong = change_and_ask(&app, &mut processes, 10).await;
    assert_eq!(wrong.len(), 40);
    // One is killed, and every connection of the others is cut: listeners', pollers', pools'.
    drop(processes.pop());
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and application_name = 'SAAS_GATE_CHILD'";
    assert!(app.count(cut).await > 3);
    let wrong = change_and_ask(&app, &mut processes, 10).await;
    assert_eq!(wrong.len(), 30, "each of those that are left comes to answer the new plan");
}

// G4
#[tokio::test]
async fn a_change_reaches_four_processes_by_notification_also_after_their_connections_are_cut() {
    let test = "processes::a_change_reaches_four_processes_by_notification_also_after_their_connections_are_cut";
    four_processes(test, "notify").await;
}

// G4
#[tokio::test]
async fn a_change_reaches_four_processes_by_polling_also_after_their_connections_are_cut() {
    let test = "processes::a_change_reaches_four_processes_by_polling_also_after_their_connections_are_cut";
    four_processes(test, "poll").await;
}

// G4: two relays, one of which is lost; the subscriptions are cut with everything else. The relays run while this waits.
#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_four_processes_over_redis_also_after_their_connections_are_cut() {
    if let Ok(hears_by) = env::var(CHILD) {
        return serve(&hears_by).await;
    }
    let test = "processes::a_change_reaches_four_processes_over_redis_also_after_their_connections_are_cut";
    let (app, server) = (App::start().await, saas_core::testing::RedisServer::start().unwrap());
    let login = app.database.options("saas_app");
    let relay = || saas_entitlements::RevisionRelay::listening(login.clone(), crate::redis::single(&server.url()));
    let (lost, _kept) = (relay(), relay());
    let mut processes: Vec<_> = (0..4).map(|_| Process::start(&app, test, &server.url())).collect();
    assert_eq!(change_and_ask(&app, &mut processes, 10).await.len(), 40);
    drop((processes.pop(), lost));
    let cut: i64 = crate::redis::ask(&server.url(), &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert!(cut >= 3, "{cut}");
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and query ~* '^(listen|select pg_notify)'";
    assert!(app.count(cut).await >= 1);
    assert_eq!(change_and_ask(&app, &mut processes, 10).await.len(), 30);
}

// G4: all messages dropped.
#[tokio::test]
async fn four_processes_that_hear_nothing_answer_the_new_plan_within_the_ttl() {
    if let Ok(hears_by) = env::var(CHILD) {
        return serve(&hears_by).await;
    }
    let test = "processes::four_processes_that_hear_nothing_answer_the_new_plan_within_the_ttl";
    let app = App::start().await;
    let mut processes: Vec<_> = (0..4).map(|_| Process::start(&app, test, "nothing")).collect();
    let wrong = change_and_ask(&app, &mut processes, 4).await;
    assert!(wrong.iter().any(|wrong| !wrong.is_zero()), "nobody told them");
    // A busy machine may keep the clock's thread waiting.
    let bound = DEAF_TTL.to_std().unwrap() + TICK + Duration::from_millis(500);
    assert!(wrong.iter().all(|wrong| *wrong < bound), "{wrong:?}");
}

// The one that begins first commits last: whoever asks for "above the last one seen" would skip it.
#[tokio::test]
async fn a_poller_misses_no_change_that_commits_out_of_order() {
    let app = App::start().await;
    let (early, late) = (app.database.create_tenant("early").await, app.database.create_tenant("late").await);
    let _poller = RevisionPoller::start(app.gate.clone(), app.database.system().clone(), Duration::from_millis(5));
    app.until(async || app.gate.stats().flushes > 0).await;
    assert!(!app.export(&early).await && !app.export(&late).await);
    let mut held_back =
        SystemTx::begin(app.database.system(), saas_core::Actor::system("test"), "commit last").await.unwrap();
    sqlx::query("insert into tenant_plan (tenant_id, plan) values ($1, 'pro')")
        .bind(early.tenant().as_uuid())
        .execute(&mut *held_back)
        .await
        .unwrap();
    revision::bump_in(&mut held_back, early.tenant()).await.unwrap();
    app.change_plan(&late, "pro").await;
    app.until(async || app.export(&late).await).await;
    let heard = app.gate.stats().announcements;
    app.until(async || app.gate.stats().announcements > heard + 2).await;
    assert!(!app.export(&early).await, "not committed");
    held_back.commit().await.unwrap();
    app.until(async || app.export(&early).await).await;
    assert_eq!(app.gate.stats().flushes, 1, "by its revision, not by distrusting everything");
}
