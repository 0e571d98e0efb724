//! One tenant's uses from leases of 1,000, of PostgreSQL and out of Redis, beside one row there and a counter here.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use redis::{Script, aio::MultiplexedConnection};
use saas_benches::{Server, median, ratio, rounds};
use saas_core::{MeterKey, PlanCatalog, PlanKey, SystemClock, subscription::FixedPlan};
use saas_entitlements::{
    Entitlements, GateClock, LeaseOptions, LeaseStore, Leases, PostgresLeases, PostgresSource, RedisLeaseOptions,
    RedisLeases, SCHEMA,
};
use sqlx::PgPool;
use tokio::runtime::Runtime;

const CALLS: MeterKey = MeterKey::from_static("calls");
const LEASE: u64 = 1_000;
/// How long a contender runs in a round.
const TURN: Duration = Duration::from_millis(150);
const CONNECTIONS: u32 = 16;
/// Each holder has leases of its own, as a process has.
const HOLDERS: [usize; 3] = [1, 2, MOST_HOLDERS];
const MOST_HOLDERS: usize = 4;
/// Uses of a task between two looks at the clock.
const STRIDE: u64 = 100;

pub(super) fn race(runtime: &Runtime) -> anyhow::Result<()> {
    let stores = runtime.block_on(Postgres::start())?;
    let redis = runtime.block_on(Redis::start());
    if let Err(why) = &redis {
        println!("without Redis: {why}");
    }
    let on_postgres: Vec<_> = (0..MOST_HOLDERS).map(|_| leases(&stores.gate, Arc::new(stores.store.clone()))).collect();
    let out_of_redis = redis.as_ref().ok().map(|redis| {
        runtime
            .block_on(async { (0..MOST_HOLDERS).map(|_| stores.leases_out_of(redis)).unzip::<_, _, Vec<_>, Vec<_>>() })
    });
    let [mut leased, mut from_redis] = [(); 2].map(|()| vec![Vec::new(); HOLDERS.len()]);
    let [mut row, mut scripted] = [(); 2].map(|()| vec![Vec::new(); 3]);
    for round in 0..=rounds(11) {
        let rates = HOLDERS.map(|holders| runtime.block_on(stores.leased(on_postgres.iter().take(holders), 0)));
        let redis_rates = HOLDERS.map(|holders| {
            let (leases, _) = out_of_redis.as_ref()?;
            Some(runtime.block_on(stores.leased(leases.iter().take(holders), 1)))
        });
        let rows = [1, 8, 16].map(|callers| runtime.block_on(stores.row(callers)));
        let scripts = [1, 16, 64].map(|callers| redis.as_ref().ok().map(|redis| runtime.block_on(redis.run(callers))));
        if round == 0 {
            continue;
        }
        for (all, rate) in leased.iter_mut().zip(rates).chain(row.iter_mut().zip(rows)) {
            all.push(rate?);
        }
        for (all, rate) in from_redis.iter_mut().zip(redis_rates).chain(scripted.iter_mut().zip(scripts)) {
            all.extend(rate.transpose()?);
        }
    }
    println!("per second, leases of {LEASE} of {HOLDERS:?} processes: {}", medians(&leased));
    println!("per second, a row of PostgreSQL by 1, 8 and 16 callers: {}", medians(&row));
    ratio("leases_on_postgres_to_its_hot_row_rate", best(&leased) / best(&row), false, 500.0);
    if let Some((leases, lent)) = out_of_redis {
        println!("per second, leases of {LEASE} out of Redis of {HOLDERS:?} processes: {}", medians(&from_redis));
        println!("per second, a script of Redis by 1, 16 and 64 callers: {}", medians(&scripted));
        ratio("leases_out_of_redis_to_best_redis_rate", best(&from_redis) / best(&scripted), false, 60.0);
        println!("leases of PostgreSQL alone to the best rate of Redis: {:.1}", best(&leased) / best(&scripted));
        for (leases, store) in leases.iter().zip(&lent) {
            runtime.block_on(leases.shutdown())?;
            let stats = store.stats();
            println!("{stats:?}");
            anyhow::ensure!(stats.from_redis > stats.filled, "Redis lent nothing");
        }
    }
    for leases in &on_postgres {
        runtime.block_on(leases.shutdown())?;
    }
    runtime.block_on(stores.check())
}

/// The best of the medians.
fn best(rates: &[Vec<f64>]) -> f64 {
    rates.iter().map(|rates| median(rates)).fold(0.0, f64::max)
}

fn medians(rates: &[Vec<f64>]) -> String {
    rates.iter().map(|rates| format!("{:.0}", median(rates))).collect::<Vec<_>>().join(", ")
}

struct Postgres {
    server: Server,
    bare: PgPool,
    gate: Entitlements,
    store: PostgresLeases,
    _clock: GateClock,
}

impl Postgres {
    async fn start() -> anyhow::Result<Self> {
        let server = Server::start(&[&saas_core::SCHEMA, &SCHEMA], 2).await?;
        server
            .make(
                "create table public.bare (id integer primary key, used bigint not null) with (fillfactor = 50);
                 insert into public.bare values (1, 0)",
            )
            .await?;
        let bare = server.pool("saas_app", CONNECTIONS).await?;
        let pool = server.tenant_pool(4).await?;
        let catalog = PlanCatalog::from_toml(
            "default_plan = 'free'\n[meters.calls]\naggregation = 'sum'\n[plans.free]\nrank = 0\n\
             [[plans.free.versions]]\nversion = 1\n\
             limits.calls = { max = 9_000_000_000_000_000, window = 'lifetime', overage = 'block' }",
        )?;
        let plans = Arc::new(FixedPlan(PlanKey::from_static("free")));
        let source = Arc::new(PostgresSource::new(pool.clone(), plans));
        let gate = Entitlements::new(catalog, source, Arc::new(SystemClock));
        let clock = gate.start_clock();
        let store = PostgresLeases::new(pool);
        Ok(Self { server, bare, gate, store, _clock: clock })
    }

    fn leases_out_of(&self, redis: &Redis) -> (Leases, RedisLeases) {
        let redis = saas_entitlements::Redis::single(redis.client.clone());
        let options = RedisLeaseOptions::default();
        let store = RedisLeases::start(self.store.clone(), redis, Arc::new(SystemClock), options);
        (leases(&self.gate, Arc::new(store.clone())), store)
    }

    /// Uses per second of a tenant from the leases of so many, by two tasks of each.
    async fn leased(&self, holders: impl Iterator<Item = &Leases>, tenant: usize) -> anyhow::Result<f64> {
        let ctx = &self.server.tenants()[tenant];
        let rates = holders.map(|leases| {
            let (leases, ctx) = (leases.clone(), ctx.clone());
            rate(2, move || {
                let (leases, ctx) = (leases.clone(), ctx.clone());
                async move {
                    for _ in 0..STRIDE {
                        anyhow::ensure!(leases.consume(&ctx, &CALLS, 1).await?.is_granted(), "within the limit");
                    }
                    Ok(STRIDE)
                }
            })
        });
        Ok(try_join_all(rates).await?.into_iter().sum())
    }

    /// Updates of one row per second under a condition.
    async fn row(&self, callers: usize) -> anyhow::Result<f64> {
        let pool = self.bare.clone();
        rate(callers, move || {
            let pool = pool.clone();
            async move {
                sqlx::query("update public.bare set used = used + 1 where id = $1 and used < $2 returning used")
                    .bind(1)
                    .bind(i64::MAX)
                    .execute(&pool)
                    .await?;
                Ok(1)
            }
        })
        .await
    }

    /// What was lent is used or back.
    async fn check(&self) -> anyhow::Result<()> {
        let (used, held, recorded): (i64, i64, i64) = sqlx::query_as(
            "select (select sum(used)::bigint from saas.usage_counter), (select sum(held)::bigint from saas.usage_counter),
                    (select sum(units)::bigint from saas.usage_event)",
        )
        .fetch_one(&mut self.server.owner().await?)
        .await?;
        anyhow::ensure!(held == 0 && used == recorded, "used {used}, held {held}, recorded {recorded}");
        Ok(())
    }
}

fn leases(gate: &Entitlements, store: Arc<dyn LeaseStore>) -> Leases {
    Leases::new(gate.clone(), store, LeaseOptions::default().with_size(LEASE, LEASE))
}

/// A server of our own.
struct Redis {
    client: redis::Client,
    connection: MultiplexedConnection,
    _server: Killed,
}

/// Counts one unit if it is within the limit.
const CHECK_AND_ADD: &str = "
    local used = tonumber(redis.call('get', KEYS[1]) or '0')
    if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return -1 end
    return redis.call('incrby', KEYS[1], ARGV[1])";

impl Redis {
    async fn start() -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    anyhow::anyhow!("there is no `redis-server`; on Debian: apt-get install redis-server")
                }
                _ => error.into(),
            })?;
        let server = Killed(server);
        let client = redis::Client::open(("127.0.0.1", port))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let connection = loop {
            match client.get_multiplexed_async_connection().await {
                Ok(connection) => break connection,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        Ok(Self { client, connection, _server: server })
    }

    /// Calls per second, one unit each.
    async fn run(&self, callers: usize) -> anyhow::Result<f64> {
        let (connection, script) = (self.connection.clone(), Arc::new(Script::new(CHECK_AND_ADD)));
        rate(callers, move || {
            let (mut connection, script) = (connection.clone(), Arc::clone(&script));
            async move {
                for _ in 0..STRIDE {
                    let used: i64 =
                        script.key("used").arg(1).arg(i64::MAX / 1_024).invoke_async(&mut connection).await?;
                    anyhow::ensure!(used > 0, "within the limit");
                }
                Ok(STRIDE)
            }
        })
        .await
    }
}

/// A process that ends with this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `callers` tasks get done per second; `make` makes one piece of work, which says how much it was.
async fn rate<F>(callers: usize, make: impl Fn() -> F + Clone + Send + Sync + 'static) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<u64>> + Send,
{
    let begin = Instant::now();
    let work = || {
        let make = make.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while begin.elapsed() < TURN {
                done += make().await?;
            }
            anyhow::Ok(done)
        })
    };
    let mut total = 0;
    for done in (0..callers).map(|_| work()).collect::<Vec<_>>() {
        total += done.await??;
    }
    Ok(total as f64 / begin.elapsed().as_secs_f64())
}
