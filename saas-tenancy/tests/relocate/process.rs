//! Movers in processes of their own, ended by SIGKILL at every step.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use saas_core::{SCHEMA as CORE, SystemClock, SystemPool, TenantContext, TenantId, db::pool_options};
use saas_tenancy::{
    SCHEMA,
    relocate::{Address, Audit, Mover, Phase, State},
};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use uuid::Uuid;

use crate::{
    work::Work,
    world::{Ways, World, operator},
};

const TEST: &str = "process::a_mover_killed_at_every_step_is_followed_by_another_through_all_modes_and_back";
const TASK: &str = "SAAS_TEST_MOVER";
/// Rows in each of the five tables; more by `SAAS_TEST_MOVE_ROWS`.
const ROWS: i32 = 3_000;

const BEFORE_THE_SWITCH: [(Phase, usize); 9] = [
    (Phase::Planned, 1),
    (Phase::Capture, 2),
    (Phase::Copy, 2),
    (Phase::Verify, 2),
    (Phase::CatchUp, 1),
    (Phase::Freeze, 1),
    (Phase::Drain, 1),
    (Phase::Close, 1),
    (Phase::Switch, 1),
];

/// What a process is to do, and when it stops for its end.
#[derive(Serialize, Deserialize)]
struct Task {
    control: String,
    system: String,
    second: String,
    tenant: Uuid,
    work: Do,
    /// The phase, as it is shown, and the how manieth of it.
    stop: (String, usize),
}

#[derive(Serialize, Deserialize)]
enum Do {
    Move(Address),
    Resume,
    RollBack,
    Confirm,
}

impl Task {
    fn from_environment() -> Option<Self> {
        std::env::var(TASK).ok().map(|task| serde_json::from_str(&task).unwrap())
    }

    /// In the process that is killed. Ends by itself only if it is never to stop.
    async fn run(self) {
        let pool = pool_options().max_connections(3).connect_lazy_with(self.system.parse().unwrap());
        let system = SystemPool::open(pool, &[&CORE, &SCHEMA]).await.unwrap();
        let (control, second) = (self.control.parse().unwrap(), self.second.parse().unwrap());
        let ways = Arc::new(Ways { control, second, keeps_databases: AtomicBool::new(false) });
        let (mover, tenant) = (Mover::new(system, ways, Arc::new(SystemClock)), TenantId::from_uuid(self.tenant));
        let (phase, times) = self.stop;
        let seen = AtomicUsize::new(0);
        let listener = move |told: saas_tenancy::relocate::Progress<'_>| {
            if format!("{:?}", told.phase) == phase && seen.fetch_add(1, Ordering::Relaxed) + 1 == times {
                println!("\n{TASK} stands at {phase}");
                loop {
                    std::thread::park();
                }
            }
        };
        match self.work {
            Do::Move(to) => drop(mover.move_tenant(tenant, &to, &operator(), &listener).await.unwrap()),
            Do::Resume => drop(mover.resume(tenant, &listener).await.unwrap()),
            Do::RollBack => mover.roll_back(tenant, &listener).await.unwrap(),
            Do::Confirm => mover.confirm(tenant, &listener).await.unwrap(),
        }
    }
}

impl World {
    /// Lets another process do something, and kills it where it stands.
    async fn kill(&self, work: Do, at: Phase, times: usize) {
        let task = Task {
            control: self.ways.control.to_url_lossy().to_string(),
            system: self.db.url("saas_system"),
            second: self.ways.second.to_url_lossy().to_string(),
            tenant: self.acme.tenant().as_uuid(),
            work,
            stop: (format!("{at:?}"), times),
        };
        let task = serde_json::to_string(&task).unwrap();
        tokio::task::spawn_blocking(move || {
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", TEST, "--nocapture"])
                .env(TASK, task)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let told = BufReader::new(process.stdout.take().unwrap());
            let stands = told.lines().map(Result::unwrap).any(|line| line.starts_with(TASK));
            process.kill().unwrap();
            process.wait().unwrap();
            assert!(stands, "it ended before {at:?} was told {times} times");
        })
        .await
        .unwrap();
        self.require_served(at).await;
    }

    /// Only between the doors may a killed mover leave the tenant outside, until another one comes.
    async fn require_served(&self, at: Phase) {
        let state = self.mover.find(self.acme.tenant()).await.unwrap().map(|status| status.state);
        let is_served = saas_core::TenantTx::begin(&*self.binding, &self.acme).await.is_ok();
        assert!(is_served || (at == Phase::Switch && state == Some(State::Switching)), "{at:?}: {state:?}");
    }

    /// Number and digest of the rows that the writers leave alone, and the number of rings.
    async fn untouched_at(&self, address: &Address) -> (Vec<(i64, String)>, i64) {
        let mut connection = self.ways.connect(address).await;
        let mut all = Vec::new();
        for from in [
            "project t where name like 'project %'",
            "(select tenant_id, id, project_id, detail, moods, cost, at, blob, shown from task) t where true",
            "entry t where what not like 'work %'",
            "event t where true",
        ] {
            let query = format!(
                "select count(*), md5(coalesce(string_agg(to_json(t)::text, e'\\n' order by to_json(t)::text), '')) from {from} and tenant_id = $1"
            );
            let rows = sqlx::query_as(AssertSqlSafe(query)).bind(self.acme.tenant().as_uuid());
            all.push(rows.fetch_one(&mut connection).await.unwrap());
        }
        let rings = sqlx::query_scalar("select count(*) from rung where tenant_id = $1")
            .bind(self.acme.tenant().as_uuid())
            .fetch_one(&mut connection)
            .await
            .unwrap();
        (all, rings)
    }
}

/// Killed at each step before the switch, and each time followed by another process that goes on; the last one comes
/// through. Then the same for what comes after.
async fn move_through_deaths(world: &World, work: &Work, from: &Address, to: &Address) {
    let tenant = world.acme.tenant();
    for (phase, times) in BEFORE_THE_SWITCH {
        let task = if phase == Phase::Planned { Do::Move(to.clone()) } else { Do::Resume };
        world.kill(task, phase, times).await;
        if phase != Phase::Switch {
            work.go_on(3).await;
        }
    }
    let report = world.mover.resume(tenant, &|_| {}).await.unwrap();
    println!(
        "{from} -> {to}: {} rows, {} carried over, freeze {:?}",
        report.rows(),
        report.carried_over,
        report.freeze
    );
    assert_eq!(report.audit, Audit::Equal);
    work.go_on(10).await;
    world.kill(Do::Confirm, Phase::Clear, 1).await;
    world.mover.confirm(tenant, &|_| {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mover_killed_at_every_step_is_followed_by_another_through_all_modes_and_back() {
    if let Some(task) = Task::from_environment() {
        return task.run().await;
    }
    let world = World::start().await;
    let (pooled, tenant) = (Address::pooled("control"), world.acme.tenant());
    let rows = std::env::var("SAAS_TEST_MOVE_ROWS").ok().map_or(ROWS, |rows| rows.parse().unwrap());
    world.db.owner().await.execute("delete from task; delete from project; delete from event").await.unwrap();
    world.seed(&world.acme, rows).await;
    let (untouched, rings) = world.untouched_at(&pooled).await;
    let others = world.rows_at(&pooled, &world.other).await;
    let work = Work::start(&world, 1);

    let (schema, database) = (world.make_schema().await, world.make_database().await);
    move_through_deaths(&world, &work, &pooled, &schema).await;
    move_through_deaths(&world, &work, &schema, &database).await;
    move_through_deaths(&world, &work, &database, &pooled).await;
    assert_eq!(world.untouched_at(&pooled).await.0, untouched);
    assert_eq!(world.traces_at(&pooled).await, 0);

    // Once the copying has begun, each time given up instead.
    let database = world.make_database().await;
    for (phase, times) in BEFORE_THE_SWITCH.into_iter().skip(3) {
        world.kill(Do::Move(database.clone()), phase, times).await;
        if phase == Phase::Verify {
            world.kill(Do::RollBack, Phase::Clear, 2).await;
        }
        world.mover.roll_back(tenant, &|_| {}).await.unwrap();
        assert_eq!(world.count_at(&database).await, 0, "{phase:?}");
        assert_eq!(world.traces_at(&pooled).await, 0, "{phase:?}");
        work.go_on(3).await;
    }

    // Killed after the switch, which stays.
    let schema = world.make_schema().await;
    for (to, phase) in [(&schema, Phase::Switched), (&database, Phase::Audit), (&pooled, Phase::Switched)] {
        world.kill(Do::Move(to.clone()), phase, 1).await;
        work.go_on(3).await;
        assert_eq!(world.mover.resume(tenant, &|_| {}).await.unwrap().audit, Audit::Missed);
        world.mover.confirm(tenant, &|_| {}).await.unwrap();
    }

    let ledger = work.finish(&world, &pooled).await;
    let (unchanged, rung) = world.untouched_at(&pooled).await;
    assert_eq!(unchanged, untouched);
    let committed = i64::try_from(ledger.committed.load(Ordering::Relaxed)).unwrap();
    assert_eq!(rung, rings + committed, "each acknowledged transaction once, and no other");
    assert_eq!(world.rows_at(&pooled, &world.other).await, others);
    println!(
        "{committed} transactions were acknowledged, {} refused meanwhile",
        ledger.refused.load(Ordering::Relaxed)
    );
}
