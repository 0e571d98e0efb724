//! A question to a store for each request: Redis, and a join in PostgreSQL.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use redis::Commands;
use saas_benches::{
    Contender,
    field::{self, FEATURES, PLANS, Plans, Popularity, Questions},
    race, ratio,
};
use saas_core::{
    TenantId,
    testing::{DevServer, Durability},
};
use sqlx::{Executor, PgPool, postgres::PgPoolOptions};
use tokio::runtime::Runtime;

use crate::TENANTS;

/// Questions per round.
const ASKED: usize = 2_000;

/// Runs [`race_against`] in a process that has one core, as have the servers that it starts.
pub(crate) fn on_one_core(bound: &str) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let status = Command::new("taskset").args(["--cpu-list", "0"]).arg(&own).env(bound, "yes").status();
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            println!("without taskset ({error}) client and servers have all cores");
            Command::new(&own).env(bound, "no").status()?
        }
    };
    anyhow::ensure!(status.success(), "the stores were not measured");
    Ok(())
}

/// The gate in the same process, beside the stores.
pub(crate) fn race_against(rounds: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let gate = runtime.block_on(field::gate(&field::catalog(), Plans::new(0), TENANTS));
    let handles = field::handles(&gate);
    let redis = Redis::start()?;
    let join = Join::start(&runtime)?;
    let by_gate = |_: usize, id: TenantId, f: usize| gate.is_enabled(id, handles[f]).if_ready() == Some(true);
    let questions = Questions::new(TENANTS, Popularity::Zipf);
    for (tenant, id, feature) in questions.of_thread(0).iter().take(400) {
        let feature = usize::from(*feature);
        let answers = [by_gate(*tenant, *id, feature), redis.ask(*id, feature), join.ask(&runtime, *id, feature)];
        let expected = field::grants(field::plan_of(*tenant), feature);
        anyhow::ensure!(answers == [expected; 3], "{answers:?} where {expected} is right");
    }
    let one_by_one = |ask: &dyn Fn(TenantId, usize) -> bool| {
        let begin = Instant::now();
        for (_, id, feature) in questions.of_thread(0).iter().take(ASKED) {
            std::hint::black_box(ask(*id, usize::from(*feature)));
        }
        saas_benches::nanos(begin.elapsed()) / ASKED as f64
    };
    let medians = race(
        rounds,
        &mut [
            Contender::new("gate", || questions.ask(1, by_gate)),
            Contender::new("redis", || one_by_one(&|id, feature| redis.ask(id, feature))),
            Contender::new("join", || one_by_one(&|id, feature| join.ask(&runtime, id, feature))),
        ],
    );
    let [gate, redis, join] = medians[..] else { unreachable!("three contenders") };
    println!("one core: gate {gate:.1} ns, Redis GET {:.1} us, PostgreSQL join {:.1} us", redis / 1e3, join / 1e3);
    ratio("redis_get/gate_hit", redis / gate, false, 400.0);
    ratio("postgres_join/gate_hit", join / gate, false, 1_000.0);
    Ok(())
}

/// `redis-server` with a bit for each feature in the value of each tenant, 64 bytes, and a connection that is kept.
struct Redis {
    server: Child,
    connection: Mutex<redis::Connection>,
}

impl Redis {
    fn start() -> anyhow::Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server is missing: install it")?;
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
        let patience = Instant::now() + Duration::from_secs(10);
        let connection = loop {
            match client.get_connection() {
                Ok(connection) => break connection,
                Err(error) if Instant::now() > patience => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let redis = Self { server, connection: Mutex::new(connection) };
        for tenant in 0..TENANTS {
            let bits = field::bits(field::plan_of(tenant));
            let value: String = (0..64).map(|feature| if bits >> feature & 1 == 1 { '1' } else { '0' }).collect();
            redis.with(|connection| connection.set::<_, _, ()>(key(field::tenant_id(tenant)), value))?;
        }
        Ok(redis)
    }

    fn with<T>(&self, work: impl FnOnce(&mut redis::Connection) -> redis::RedisResult<T>) -> redis::RedisResult<T> {
        work(&mut self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn ask(&self, id: TenantId, feature: usize) -> bool {
        let value: Option<Vec<u8>> = self.with(|connection| connection.get(key(id))).unwrap_or(None);
        value.is_some_and(|bits| bits.get(feature) == Some(&b'1'))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

fn key(id: TenantId) -> String {
    format!("entitlements:{id}")
}

/// Tenant, plan and feature in three tables, joined by a prepared statement for each question.
struct Join {
    _server: DevServer,
    pool: PgPool,
}

impl Join {
    fn start(runtime: &Runtime) -> anyhow::Result<Self> {
        let server = DevServer::start_own(Durability::Full).map_err(|error| anyhow::anyhow!("{error}"))?;
        let url = server.admin_url();
        let pool = runtime.block_on(async {
            let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
            pool.execute(
                "create table plan (id int primary key, name text not null);
                 create table tenant (id uuid primary key, plan int not null references plan, active boolean not null);
                 create table grants (plan int references plan, feature text, primary key (plan, feature));",
            )
            .await?;
            for plan in 0..PLANS {
                sqlx::query("insert into plan values ($1, 'p' || $1::int)").bind(plan as i32).execute(&pool).await?;
                for feature in (0..FEATURES).filter(|feature| field::grants(plan, *feature)) {
                    let grant = sqlx::query("insert into grants values ($1, $2)");
                    grant.bind(plan as i32).bind(format!("f{feature:02}")).execute(&pool).await?;
                }
            }
            let ids: Vec<_> = (0..TENANTS).map(|tenant| field::tenant_id(tenant).as_uuid()).collect();
            let plans: Vec<_> = (0..TENANTS).map(|tenant| field::plan_of(tenant) as i32).collect();
            sqlx::query("insert into tenant select id, plan, true from unnest($1::uuid[], $2::int[]) t (id, plan)")
                .bind(ids)
                .bind(plans)
                .execute(&pool)
                .await?;
            pool.execute("vacuum analyze").await?;
            Ok::<_, sqlx::Error>(pool)
        })?;
        Ok(Self { _server: server, pool })
    }

    fn ask(&self, runtime: &Runtime, id: TenantId, feature: usize) -> bool {
        let asked = sqlx::query_scalar(
            "select exists (
                 select from tenant t join plan p on p.id = t.plan join grants g on g.plan = p.id
                 where t.id = $1 and t.active and g.feature = $2)",
        );
        let name = format!("f{feature:02}");
        runtime.block_on(asked.bind(id.as_uuid()).bind(name).fetch_one(&self.pool)).unwrap_or(false)
    }
}
