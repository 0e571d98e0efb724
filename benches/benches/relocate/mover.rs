//! A mover in a process of its own, which stops at a phase and waits there for its end.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use saas_core::{Actor, SystemClock, SystemPool, TenantId, db::pool_options};
use saas_tenancy::{
    SCHEMA,
    placement::{Cluster, Clusters},
    relocate::{Address, Mover, Progress},
};
use serde_json::{Value, json};

const TASK: &str = "RELOCATE_BENCH_MOVER";

/// What a mover is to do.
pub(crate) enum Work {
    Move(Address),
    Resume,
}

/// The way to both servers, and when to stop.
pub(crate) struct Task(Value);

impl Task {
    pub(crate) fn new(
        control: &[String; 3],
        second: &[String; 3],
        tenant: TenantId,
        work: Work,
        phase: &str,
        times: usize,
    ) -> Self {
        let to = match work {
            Work::Move(to) => Some(to),
            Work::Resume => None,
        };
        Self(
            json!({ "control": control, "second": second, "tenant": tenant.as_uuid(), "to": to, "phase": phase, "times": times }),
        )
    }

    pub(crate) fn from_environment() -> Option<Self> {
        std::env::var(TASK).ok().map(|task| Self(serde_json::from_str(&task).expect("a task")))
    }

    /// Starts a process, and kills it where it stands.
    pub(crate) fn kill(&self) {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .env(TASK, self.0.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let told = BufReader::new(process.stdout.take().expect("its output"));
        let stands = told.lines().map_while(Result::ok).any(|line| line.starts_with(TASK));
        process.kill().expect("SIGKILL");
        process.wait().expect("its end");
        assert!(stands, "it ended before {}", self.0["phase"]);
    }

    /// In that process.
    pub(crate) async fn run(self) {
        let logins = |name: &str| serde_json::from_value::<[String; 3]>(self.0[name].clone()).expect("three logins");
        let (control, second) = (logins("control"), logins("second"));
        let clusters = clusters(&control, &second);
        let pool = pool_options().max_connections(3).connect_lazy_with(control[1].parse().expect("a login"));
        let system = SystemPool::open(pool, &[&saas_core::SCHEMA, &SCHEMA]).await.expect("the control database");
        let mover = Mover::new(system, Arc::new(clusters), Arc::new(SystemClock));
        let tenant = TenantId::from_uuid(self.0["tenant"].as_str().and_then(|id| id.parse().ok()).expect("an id"));
        let (phase, times) = (self.0["phase"].as_str().unwrap_or_default(), self.0["times"].as_u64().unwrap_or(1));
        let seen = AtomicUsize::new(0);
        let listener = |told: Progress<'_>| {
            if format!("{:?}", told.phase) == phase && seen.fetch_add(1, Ordering::Relaxed) as u64 + 1 == times {
                println!("{TASK} stands at {phase}");
                loop {
                    std::thread::park();
                }
            }
        };
        let to: Option<Address> = serde_json::from_value(self.0["to"].clone()).expect("an address");
        let done = match to {
            Some(to) => mover.move_tenant(tenant, &to, &Actor::system("benchmark"), &listener).await,
            None => mover.resume(tenant, &listener).await,
        };
        done.expect("a move without a failure");
    }
}

/// Application's, system's and administrator's login of both servers.
pub(crate) fn clusters(control: &[String; 3], second: &[String; 3]) -> Clusters {
    let cluster = |[app, system, admin]: &[String; 3]| {
        let login = |url: &String| url.parse().expect("a login");
        Cluster::new(login(app), login(system)).with_admin(login(admin))
    };
    Clusters::new(cluster(control)).with_cluster("second".parse().expect("a name"), cluster(second)).expect("two names")
}
