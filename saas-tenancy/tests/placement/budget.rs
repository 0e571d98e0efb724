//! The budget of connections, as the server and the sockets of this process show it.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use saas_tenancy::placement::{Database, PlacementError};
use sqlx::PgConnection;

use crate::stage::{Stage, limits, pools};

/// Looks again and again how many sessions of the application the server has in these databases. Keeps the most that were
/// open at once. A session whose socket is closed at this end is one that the server is ending.
struct Sampler {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<usize>,
}

impl Sampler {
    fn start(mut server: PgConnection, databases: &[Database]) -> Self {
        let names: Vec<String> = databases.iter().map(|d| d.name.as_ref().unwrap().to_string()).collect();
        let (stop, looks) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, looked) = (Arc::clone(&stop), Arc::clone(&looks));
        let task = tokio::spawn(async move {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                let ports =
                    "select client_port from pg_stat_activity where usename = 'saas_app' and datname = any ($1)";
                let ports: Vec<i32> = sqlx::query_scalar(ports).bind(&names).fetch_all(&mut server).await.unwrap();
                // Asked afterwards: what is open now was open then, together with the others.
                let open = open_ports();
                most = most.max(ports.iter().filter(|port| open.contains(port)).count());
                looked.fetch_add(1, Ordering::Relaxed);
            }
            most
        });
        Self { stop, looks, task }
    }

    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Ports at this end of established connections.
fn open_ports() -> HashSet<i32> {
    const ESTABLISHED: &str = "01";
    let tables: String = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .into_iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .collect();
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, ESTABLISHED, ..] = fields[..] else { return None };
        i32::from_str_radix(local.rsplit(':').next()?, 16).ok()
    };
    tables.lines().filter_map(port).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn however_often_the_server_is_asked_there_are_no_more_open_sessions_than_the_budget() {
    let mut stage = Stage::start().await;
    let databases = stage.databases(6).await;
    let sampler = Sampler::start(stage.db.owner().await, &databases);
    // More workers than shares, and each wants another database next: nearly every request opens one and closes one.
    let pools = pools(stage.clusters(), limits().with_connections(3).with_per_database(1));
    let workers = (0..6_usize).map(|worker| {
        let (pools, databases, looks) = (pools.clone(), databases.clone(), Arc::clone(&sampler.looks));
        tokio::spawn(async move {
            for round in 0.. {
                if round >= 25 && looks.load(Ordering::Relaxed) >= 100 {
                    break;
                }
                let lease = pools.lease(&databases[(worker + round) % databases.len()]).await?;
                sqlx::query("select 1").execute(lease.pool().pool()).await.unwrap();
            }
            Ok::<(), PlacementError>(())
        })
    });
    for worker in join_all(workers).await {
        worker.unwrap().unwrap();
    }
    let most = sampler.finish().await;
    let stats = pools.stats();
    println!("{most} sessions at most; {stats:?}");
    assert!(stats.reaped >= 10, "there was something to see: {stats:?}");
    assert!((2..=3).contains(&most), "{most} sessions at once");
    stage.finish().await;
}
