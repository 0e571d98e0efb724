//! A tenant with a million rows moves through all modes while it writes, and its mover is killed at every step.
//!
//! `cargo bench -p saas-benches --bench relocate`; `ROWS` changes the size. Two real PostgreSQL servers that do not wait for
//! the disk: pooled → schema on one, → a database on the other, → pooled. The mover is a process of its own, ended by
//! SIGKILL at every phase before the switch and followed by another; the last one comes through, and its freeze counts. No
//! acknowledged write may be lost or doubled, and what nobody wrote must be the same in the end, to the last bit.
//!
//! Before and after each leg, a plain `COPY` between the same servers: into a table with the same keys and indexes through
//! the same driver, comparing nothing, with nobody writing meanwhile; their mean counts. The time of a move is that of its work which was not lost to a
//! kill: from a mover that begins to copy until all is there and verified, and of the one that carries the changes over,
//! switches and audits. What a move adds is the log, the checksums and whatever was written meanwhile.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]
#![expect(clippy::disallowed_types, reason = "places are made with statements of the benchmark's own")]

#[path = "relocate/mover.rs"]
mod mover;
#[path = "relocate/servers.rs"]
mod servers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use saas_benches::ratio;
use saas_core::{TenantContext, TenantTx};
use saas_tenancy::relocate::{Address, Audit, Report};
use tokio::task::JoinHandle;

use mover::{Task, Work};
use servers::Servers;

const WRITERS: usize = 2;
/// Where each mover is killed.
const DEATHS: [&str; 9] = ["Planned", "Capture", "Copy", "Verify", "CatchUp", "Freeze", "Drain", "Close", "Switch"];

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if let Some(task) = Task::from_environment() {
        return runtime.block_on(task.run());
    }
    let rows = std::env::var("ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    runtime.block_on(measure(rows));
}

async fn measure(rows: i64) {
    let servers = Servers::start(rows).await;
    let legs =
        [Address::pooled("control"), servers.schema().await, servers.database().await, Address::pooled("control")];
    let untouched = servers.untouched(&legs[0]).await;
    servers.fill().await;
    let (mut written, mut freezes) = (0, 0.0_f64);
    for (number, leg) in legs.windows(2).enumerate() {
        let (from, to) = (&leg[0], &leg[1]);
        let before = servers.copy(from, to).await;
        let writers = Writers::start(&servers, number);
        let (moved, report) = relocate(&servers, to).await;
        written += writers.finish().await;
        let copied = f64::midpoint(before, servers.copy(from, to).await);
        let freeze = report.freeze.as_secs_f64();
        println!(
            "{from} -> {to}: {} rows, {} MB; plain copy {:.0} rows/s, move {:.0} rows/s; {} changes carried over in {} rounds, freeze {:.0} ms",
            report.rows(),
            report.bytes() / 1_000_000,
            rows as f64 / copied,
            report.rows() as f64 / moved,
            report.carried_over,
            report.rounds,
            freeze * 1e3,
        );
        assert_eq!(report.audit, Audit::Equal);
        let name = format!(
            "move/plain_copy {}",
            ["pooled_to_schema", "schema_to_database", "database_to_pooled"]
                [usize::from(from.cluster != "control") * 2 + usize::from(from.schema.is_some())]
        );
        ratio(&name, (moved / report.rows() as f64) / (copied / rows as f64), true, 4.0);
        freezes = freezes.max(freeze);
        servers.mover.confirm(servers.tenant.tenant(), &|_| {}).await.expect("the source is given up");
    }
    assert_eq!(servers.written(&legs[3]).await, written, "every acknowledged write, once");
    assert_eq!(servers.untouched(&legs[3]).await, untouched, "what nobody wrote, to the last bit");
    println!("{written} acknowledged writes, {} movers killed", 3 * DEATHS.len());
    ratio("freeze_seconds", freezes, true, 1.0);
}

/// Through all deaths. Answers the seconds of what was not lost to them.
async fn relocate(servers: &Servers, to: &Address) -> (f64, Report) {
    let mut took = 0.0;
    for phase in DEATHS {
        // A long copy tells of itself every 4 MB: it is killed in the middle.
        let times = if phase == "Copy" { 1 + usize::try_from(servers.rows / 200_000).unwrap_or(0) } else { 1 };
        let work = if phase == "Planned" { Work::Move(to.clone()) } else { Work::Resume };
        let begin = Instant::now();
        servers.kill(work, phase, times).await;
        // Whoever is killed when all has arrived has copied and verified it.
        if phase == "CatchUp" {
            took += begin.elapsed().as_secs_f64();
        }
    }
    let begin = Instant::now();
    let report = servers.mover.resume(servers.tenant.tenant(), &|_| {}).await.expect("the tenant moves");
    (took + begin.elapsed().as_secs_f64(), report)
}

/// The tenant at work, wherever it lives.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(servers: &Servers, leg: usize) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..WRITERS)
            .map(|writer| {
                let (binding, tenant) = (servers.binding.clone(), servers.tenant.clone());
                let (stop, written) = (stop.clone(), written.clone());
                tokio::spawn(async move {
                    let mut turn = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        // Refused between the doors of a mover that was killed there: until the next one comes.
                        let Ok(mut tx) = TenantTx::begin(&binding, &tenant).await else { continue };
                        turn += 1;
                        sqlx::query("insert into item (tenant_id, name, note, amount) values ($1, $2, '', 0)")
                            .bind(tenant.tenant().as_uuid())
                            .bind(format!("written {leg} {writer} {turn}"))
                            .execute(&mut *tx)
                            .await
                            .expect("written");
                        tx.commit().await.expect("committed");
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, written, tasks }
    }

    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer without a failure");
        }
        self.written.load(Ordering::Relaxed)
    }
}
