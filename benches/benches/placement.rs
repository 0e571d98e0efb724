//! Two hundred tenants in databases of their own under a budget of forty connections.
//!
//! Beside the same requests to one database that holds all forty connections, and to the same databases with a connection
//! made for each request; round by round on one durable server. All the while the open sockets are counted, and the server
//! is asked for its sessions: it needs a moment more to end one whose socket is closed.

#![expect(clippy::disallowed_types, reason = "names databases that it numbers itself")]
#![expect(clippy::disallowed_methods, reason = "the peers use the driver's own pool and connections")]

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use saas_benches::{median, ratio, zipf};
use saas_core::{
    Schema,
    db::pool_options,
    migrate,
    testing::{DevServer, Durability},
};
use saas_tenancy::placement::{Cluster, Clusters, Database, PoolLimits, Pools};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::{sync::Semaphore, task::JoinHandle};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const DATABASES: usize = 200;
const BUDGET: u32 = 40;
/// At once, on one cluster.
const OPENINGS: usize = 8;
/// More than there are connections, so that some always wait.
const USERS: usize = 64;
const ROUNDS: usize = 5;
const REQUESTS: usize = 1_500;
/// What a user does once it has a database, a few times: more would hide what finding the database costs.
const STATEMENT: &str = "select count(*) from saas.tenant";
const STATEMENTS: usize = 3;

static KERNEL: [&Schema; 1] = [&saas_core::SCHEMA];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let server = DevServer::start_own(Durability::Full)?;
    let admin: PgConnectOptions = server.admin_url().parse()?;
    migrate(&admin, &KERNEL).await?;
    let mut owner = admin.connect().await?;
    make_databases(&admin, &mut owner).await?;
    // Every request to another database than the last ones: the worst there is, and no service's traffic.
    contest("uniform", &admin, uniform, Goals { to_one: 0.02, to_each: 0.7, slowest: 4.0 }).await?;
    contest("skewed", &admin, skewed, Goals { to_one: 0.04, to_each: 1.2, slowest: 4.0 }).await
}

/// Every database is as likely as any other.
fn uniform(seed: u64) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..REQUESTS).map(|_| random.usize(..DATABASES)).collect()
}

/// Some databases are asked for far more often than others.
fn skewed(seed: u64) -> Vec<usize> {
    zipf(DATABASES, REQUESTS, seed)
}

async fn make_databases(admin: &PgConnectOptions, owner: &mut PgConnection) -> Result<(), Failure> {
    owner.execute("create database template_of_places").await?;
    migrate(&admin.clone().database("template_of_places"), &KERNEL).await?;
    let began = Instant::now();
    for n in 0..DATABASES {
        let create = format!("create database place_{n} template template_of_places strategy file_copy");
        owner.execute(AssertSqlSafe(create)).await?;
    }
    let each = began.elapsed().as_secs_f64() * 1e3 / DATABASES as f64;
    println!("{DATABASES} databases from a template: {each:.0} ms each");
    Ok(())
}

struct Goals {
    to_one: f64,
    to_each: f64,
    slowest: f64,
}

/// Runs all three on the same requests, `ROUNDS` times.
async fn contest(
    name: &str,
    admin: &PgConnectOptions,
    targets: fn(u64) -> Vec<usize>,
    goals: Goals,
) -> Result<(), Failure> {
    let login = |role: &str| admin.clone().username(role).application_name(name);
    let limits = PoolLimits::default()
        .with_connections(BUDGET)
        .with_per_database(1)
        .with_openings_per_cluster(OPENINGS)
        .with_acquire_timeout(Duration::from_secs(60));
    let clusters = Clusters::new(Cluster::new(login("saas_app"), login("saas_system")));
    let pools = Pools::new(clusters, &KERNEL, limits)?;
    let peer = admin.clone().username("saas_app");
    let one = pool_options().max_connections(BUDGET).connect_lazy_with(peer.clone().database("template_of_places"));
    let each = Box::new(Each { login: peer, turns: Arc::new(Semaphore::new(BUDGET as usize)) });
    let watch = Watch::begin(admin, name).await?;

    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut waits: HashMap<usize, Vec<f64>> = HashMap::new();
    for round in 0..ROUNDS {
        let targets: Arc<[usize]> = targets(round as u64).into();
        let contenders = [Target::Pools(pools.clone()), Target::One(one.clone()), Target::Each(each.clone())];
        for (contender, rates) in contenders.into_iter().zip(&mut rates) {
            let ours = matches!(contender, Target::Pools(_));
            let (rate, millis) = storm(contender, &targets).await?;
            rates.push(rate);
            if ours {
                for (target, millis) in millis {
                    waits.entry(target).or_default().push(millis);
                }
            }
        }
    }
    let Most { open, sessions, looks } = watch.end().await?;
    let stats = pools.stats();
    let to = |peer: usize| median(&rates[0].iter().zip(&rates[peer]).map(|(a, b)| a / b).collect::<Vec<_>>());
    println!(
        "{name}: {:.0} requests/s; {:.0} to one database, {:.0} with a connection each; {} opened, {} reaped; \
         at most {open} open connections and {sessions} sessions in {looks} looks",
        median(&rates[0]),
        median(&rates[1]),
        median(&rates[2]),
        stats.opened,
        stats.reaped
    );
    ratio(&format!("pools.{name}.connections_to_budget"), open as f64 / f64::from(BUDGET), true, 1.0);
    // No more can be ending than are being opened in their place.
    let with_openings = 1.0 + OPENINGS as f64 / f64::from(BUDGET);
    ratio(&format!("pools.{name}.sessions_to_budget"), sessions as f64 / f64::from(BUDGET), true, with_openings);
    ratio(&format!("pools.{name}.rate_to_one_database"), to(1), false, goals.to_one);
    ratio(&format!("pools.{name}.rate_to_a_connection_each"), to(2), false, goals.to_each);
    let tenants: Vec<f64> = waits.values().filter(|waits| waits.len() >= 10).map(|waits| median(waits)).collect();
    let slowest = tenants.iter().copied().fold(0.0, f64::max);
    println!("{name}: the middle tenant waits {:.1} ms, the slowest {slowest:.1} ms", median(&tenants));
    ratio(&format!("pools.{name}.slowest_tenant_to_median"), slowest / median(&tenants), true, goals.slowest);
    one.close().await;
    for n in 0..DATABASES {
        pools.close(&place(n)?).await;
    }
    Ok(())
}

fn place(n: usize) -> Result<Database, Failure> {
    Ok(Database { name: Some(format!("place_{n}").parse()?), ..Database::control() })
}

/// Where requests go.
#[derive(Clone)]
enum Target {
    Pools(Pools),
    One(PgPool),
    Each(Box<Each>),
}

/// A connection for each request, no more at a time than the budget.
#[derive(Clone)]
struct Each {
    login: PgConnectOptions,
    turns: Arc<Semaphore>,
}

impl Target {
    async fn ask(&self, target: usize) -> Result<(), Failure> {
        match self {
            Self::Pools(pools) => {
                let lease = pools.lease(&place(target)?).await?;
                ask(&mut *lease.pool().pool().acquire().await?).await
            }
            Self::One(pool) => ask(&mut *pool.acquire().await?).await,
            Self::Each(each) => {
                let Each { login, turns } = &**each;
                let _turn = turns.acquire().await?;
                let mut connection = login.clone().database(&format!("place_{target}")).connect().await?;
                ask(&mut connection).await?;
                connection.close().await?;
                Ok(())
            }
        }
    }
}

async fn ask(connection: &mut PgConnection) -> Result<(), Failure> {
    for _ in 0..STATEMENTS {
        connection.execute(sqlx::query(STATEMENT)).await?;
    }
    Ok(())
}

/// Requests per second, and how many milliseconds each request took.
async fn storm(target: Target, targets: &Arc<[usize]>) -> Result<(f64, Vec<(usize, f64)>), Failure> {
    let began = Instant::now();
    let users = (0..USERS).map(|user| {
        let (target, targets) = (target.clone(), Arc::clone(targets));
        tokio::spawn(async move {
            let mut millis = Vec::new();
            for place in targets.iter().skip(user).step_by(USERS) {
                let one = Instant::now();
                target.ask(*place).await?;
                millis.push((*place, one.elapsed().as_secs_f64() * 1e3));
            }
            Ok::<_, Failure>(millis)
        })
    });
    let mut millis = Vec::new();
    for user in users.collect::<Vec<_>>() {
        millis.extend(user.await??);
    }
    Ok((millis.len() as f64 / began.elapsed().as_secs_f64(), millis))
}

/// Counts an application's connections, again and again.
struct Watch {
    over: Arc<AtomicBool>,
    counting: JoinHandle<Result<Most, Failure>>,
}

/// The most that there were, and how often was looked.
#[derive(Default)]
struct Most {
    /// Sockets of this process that were open.
    open: usize,
    /// Sessions that the server had.
    sessions: usize,
    looks: usize,
}

const PORTS: &str = "select client_port from pg_stat_activity where application_name = $1 and usename = 'saas_app'";
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

impl Watch {
    async fn begin(admin: &PgConnectOptions, name: &str) -> Result<Self, Failure> {
        let (mut connection, name) = (admin.connect().await?, name.to_owned());
        let (server, over) = (admin.get_port(), Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&over);
        let counting = tokio::spawn(async move {
            let mut most = Most::default();
            while !ended.load(Ordering::Relaxed) {
                // The sockets first: one that is closed after this look was open at its time.
                let sockets = open_sockets_to(server)?;
                let ports: Vec<i32> = sqlx::query_scalar(PORTS).bind(&name).fetch_all(&mut connection).await?;
                let open = ports.iter().filter(|port| u16::try_from(**port).is_ok_and(|port| sockets.contains(&port)));
                most.open = most.open.max(open.count());
                most.sessions = most.sessions.max(ports.len());
                most.looks += 1;
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            Ok(most)
        });
        Ok(Self { over, counting })
    }

    async fn end(self) -> Result<Most, Failure> {
        self.over.store(true, Ordering::Relaxed);
        self.counting.await?
    }
}

/// The ports of this machine's established connections to a port, as `proc_pid_net(5)` lists them.
fn open_sockets_to(server: u16) -> Result<HashSet<u16>, Failure> {
    const ESTABLISHED: &str = "01";
    let port = |address: &str| address.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
    let listed = std::fs::read_to_string("/proc/net/tcp")?;
    let open = listed.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        (state == ESTABLISHED && port(remote) == Some(server)).then(|| port(local)).flatten()
    });
    Ok(open.collect())
}
