//! One process of the application, which goes on where the one that was killed has ended.

use std::{
    env,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{
    Actor, Clock, ErrorKind, RequestContext, SystemClock, SystemPool, TenantContext, TenantPool, db, plan::Window,
};
use saas_entitlements::{
    AssignedPlans, Consumption, Entitlements, EntitlementsError, GateOptions, Meter, Period, PostgresCounters,
    PostgresSource, RedisLeases, RedisRevisions, RevisionListener, RevisionRelay, SCHEMA, Use,
    usage::{Recorded, UsageRecord, UsageWriter, WriterOptions},
};
use sqlx::postgres::PgConnectOptions;

use crate::{
    EXPORT, JOBS, PINGS, SECONDS, acting_in, catalog, file_of,
    journal::{Answer, Journal, Pair},
    leased::Leased,
    micros,
    readers::Readers,
    taps::{self, Tap},
    tokens::Work,
    told,
};

/// The gate's bound while nothing is heard.
pub(crate) const TTL: Duration = Duration::from_millis(250);
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// Between tries, so that a server that is down is not asked without pause.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);
const PINGS_A_SECOND: u64 = 3;
/// How often the readers of usage events run.
const SECONDS_A_RUN: u64 = 10;
const QUESTIONS_A_SECOND: usize = 10;

/// Whether the same call can be repeated, and is; anything else fails the test.
pub(crate) fn is_passing(error: &EntitlementsError) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)
}

/// Repeats until there is an answer.
pub(crate) async fn answer<T, E: std::fmt::Debug>(
    mut passing: impl FnMut(&E) -> bool,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) if passing(&error) => tokio::time::sleep(PAUSE).await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

struct Process {
    worker: usize,
    journal: Journal,
    answers: File,
    busy: RequestContext,
    asked: RequestContext,
    gate: Entitlements,
    meter: Meter,
    calls: Leased,
    hits: Leased,
    pools: RedisLeases,
    tap: Tap,
    work: Work,
    writer: UsageWriter,
    readers: Readers,
}

pub(crate) async fn work(worker: usize) {
    let login = |name| PgConnectOptions::from_str(&env::var(name).unwrap()).unwrap();
    let schemas = [&saas_core::SCHEMA, &SCHEMA];
    let tenants = answer(
        |_: &saas_core::CoreError| true,
        async || {
            TenantPool::open(db::pool_options().max_connections(4).connect_lazy_with(login("KILL_APP")), &schemas).await
        },
    )
    .await;
    let system = answer(
        |_: &saas_core::CoreError| true,
        async || {
            let pool = db::pool_options().max_connections(2).connect_lazy_with(login("KILL_SYSTEM"));
            SystemPool::open(pool, &schemas).await
        },
    )
    .await;
    let (catalog, binding) = (catalog(), Arc::new(tenants.clone()));
    let source = PostgresSource::new(binding.clone(), Arc::new(AssignedPlans::new(binding.clone(), &catalog)));
    let options = GateOptions::default()
        .with_ttl(TimeDelta::from_std(TTL).unwrap())
        .with_tick(TICK)
        .with_retry_after(TimeDelta::milliseconds(10));
    let gate = Entitlements::with_options(catalog, Arc::new(source), Arc::new(SystemClock), options).unwrap();
    let _clock = gate.start_clock();
    let redis_url: String = told("KILL_REDIS");
    let _hears = Hears::start(worker, &gate, login("KILL_LISTEN"), &redis_url);
    let folder: PathBuf = told("KILL_FOLDER");
    let (hits, pools) = Leased::out_of_redis(&gate, &tenants, &redis_url);
    let process = Process {
        worker,
        journal: Journal::open(&folder, worker),
        answers: answers(&folder, worker),
        busy: acting_in(told("KILL_BUSY")),
        asked: acting_in(told("KILL_ASKED")),
        meter: Meter::new(gate.clone(), Arc::new(PostgresCounters::new(binding))),
        calls: Leased::of_postgres(&gate, &tenants),
        hits,
        pools,
        tap: Tap::open(&gate, &tenants, &redis_url),
        work: Work::open(&gate, &tenants),
        readers: Readers::new(system.clone(), &folder, worker),
        writer: UsageWriter::start(system, Arc::new(SystemClock), WriterOptions::default().with_pause(PAUSE)),
        gate,
    };
    let served = process.journal.read(Pair::Served).0;
    let (admitted, borrowed) = process.journal.read(Pair::FromRedis);
    for second in served..SECONDS {
        process.serve_a_second().await;
        if second.is_multiple_of(SECONDS_A_RUN) {
            match process.readers.run().await {
                Err(error) if !is_passing(&error) => panic!("{error:?}"),
                Ok(()) | Err(_) => {}
            }
        }
        process.note_what_redis_did((admitted, borrowed));
        process.journal.note(Pair::Served, (second + 1, 0));
        say("second");
    }
    process.work.end(&process.journal).await;
    process.tap.shutdown().await;
    process.calls.shutdown().await;
    process.hits.shutdown().await;
    process.writer.shut_down().await;
    say("done");
}

/// How a process hears of changes. Each passes them on; every other one hears of them over Redis alone.
enum Hears {
    Listening { _listener: RevisionListener, _relay: RevisionRelay },
    OverRedis { _revisions: RedisRevisions, _relay: RevisionRelay },
}

impl Hears {
    fn start(worker: usize, gate: &Entitlements, login: PgConnectOptions, redis: &str) -> Self {
        let _relay = RevisionRelay::listening(login.clone(), taps::redis(redis));
        if worker.is_multiple_of(2) {
            Self::Listening { _listener: RevisionListener::start(gate.clone(), login), _relay }
        } else {
            Self::OverRedis { _revisions: RedisRevisions::start(gate.clone(), taps::redis(redis)), _relay }
        }
    }
}

fn answers(folder: &Path, worker: usize) -> File {
    File::options().append(true).create(true).open(file_of(folder, worker, "answers")).unwrap()
}

fn say(what: &str) {
    println!("{what}");
    std::io::stdout().flush().unwrap();
}

impl Process {
    /// Everything that an application does with this crate. What else can be in use goes here.
    async fn serve_a_second(&self) {
        tokio::join!(
            self.use_by_key(0),
            self.use_by_key(1),
            self.record(),
            self.calls.serve(&self.busy, Pair::Calls(0), &self.journal),
            self.calls.serve(&self.busy, Pair::Calls(1), &self.journal),
            self.hits.serve(&self.busy, Pair::Hits, &self.journal),
            self.tap.serve(&self.busy, self.worker, &self.journal),
            self.work.serve(&self.busy, self.worker, &self.journal),
            self.ask()
        );
    }

    /// A use under a key, which is repeated until there is an answer, by this process or the next.
    async fn use_by_key(&self, task: usize) {
        let (n, granted) = self.journal.read(Pair::Jobs(task));
        let key = format!("{}-{task}-{n}", self.worker).parse().unwrap();
        let amount = 1 + n % 3;
        let used = answer(is_passing, async || self.meter.consume(&self.busy, &JOBS, amount, &key).await).await;
        let units = match used {
            Consumption::Granted { .. } | Consumption::AlreadyCounted => amount,
            Consumption::Exhausted { .. } => 0,
            denied @ Consumption::Denied { .. } => panic!("{denied:?}"),
        };
        self.journal.note(Pair::Jobs(task), (n + 1, granted + units));
    }

    /// Uses that are recorded in batches; one that is not acknowledged is recorded again under its key.
    async fn record(&self) {
        let (n, units) = self.journal.read(Pair::Pings);
        for n in n..n + PINGS_A_SECOND {
            // Two tries at once: it is counted once.
            let records = [self.ping(n), self.ping(n)];
            for record in records {
                let recorded = answer(
                    |_: &()| true,
                    async || {
                        let ticket = self.writer.record(record.clone()).await.map_err(drop)?;
                        ticket.settled().await.map_err(drop)
                    },
                );
                assert_ne!(recorded.await, Recorded::KeyReused);
            }
        }
        self.journal.note(Pair::Pings, (n + PINGS_A_SECOND, units + PINGS_A_SECOND));
    }

    fn ping(&self, n: u64) -> UsageRecord {
        let key = format!("{}-{n}", self.worker).parse().unwrap();
        let always = (Window::Lifetime, Period { start: DateTime::<Utc>::UNIX_EPOCH, end: None });
        let (of, actor) = (Use::new(PINGS, 1, &key), Actor::system("worker"));
        let (catalog, now) = (self.gate.catalog(), SystemClock.now());
        UsageRecord::in_window(catalog, self.busy.tenant(), &of, &actor, always, now).unwrap()
    }

    /// Notes what Redis has answered, `before` that to the processes before this one.
    fn note_what_redis_did(&self, before: (u64, u64)) {
        let pools = self.pools.stats();
        assert_eq!(pools.unreadable, 0, "values of nobody's: {pools:?}");
        self.journal.note(Pair::FromRedis, (before.0 + self.tap.admitted(), before.1 + pools.from_redis));
    }

    async fn ask(&self) {
        for _ in 0..QUESTIONS_A_SECOND {
            let asked = micros(SystemClock.now());
            let granted = self.gate.is_feature_enabled(self.asked.tenant(), &EXPORT).await;
            let answer = Answer { asked, answered: micros(SystemClock.now()), granted };
            (&self.answers).write_all(&answer.bytes()).unwrap();
            tokio::task::yield_now().await;
        }
    }
}
