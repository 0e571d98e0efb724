//! A tenant with a million rows moves to another server while it writes, beside a plain `COPY` between the same servers.
//!
//! `cargo bench -p saas-benches --bench relocate`; `ROWS` and `ROUNDS` change the size. Two real PostgreSQL servers that do
//! not wait for the disk. The plain copy fills a table with the same keys and indexes through the same driver, compares
//! nothing, and nobody writes meanwhile: what a move adds is the log, both checksums and whatever was written meanwhile.
#![expect(clippy::expect_used, reason = "a benchmark that cannot start has nothing to report")]
#![expect(clippy::disallowed_types, reason = "places are made with statements of the benchmark's own")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use saas_benches::{median, ratio};
use saas_core::{
    Actor, CoreError, RequestContext, SessionBinding, TenantContext, TenantPool, TenantTx,
    db::{Generation, Place, migrate, pool_options},
    testing::{DevServer, Durability, TestDatabase},
};
use saas_tenancy::{
    SCHEMA,
    relocate::{Address, Audit, Endpoint, Endpoints, Mover, Report},
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions};

const TABLES: &str = "
    create table public.item (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        note       text not null,
        amount     bigint not null,
        at         timestamptz not null default now(),
        primary key (tenant_id, id),
        unique (tenant_id, name)
    );
    select saas.fence('public.item');
    grant usage on schema public to saas_app, saas_system;";
const COLUMNS: &str = "tenant_id, id, name, note, amount, at";
const WRITERS: usize = 2;

fn main() {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i64>().ok());
    let rows = from_env("ROWS").unwrap_or(1_000_000);
    let rounds = from_env("ROUNDS").unwrap_or(3);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut copies, mut moves, mut freezes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let bench = Bench::start(rows).await;
            let copied = bench.copy().await;
            let (moved, report) = bench.relocate().await;
            println!(
                "{rows} rows, {} MB: plain copy {:.0} rows/s, move {:.0} rows/s; {} changes carried over in {} rounds, freeze {:.0} ms",
                report.bytes() / 1_000_000,
                rows as f64 / copied,
                rows as f64 / moved,
                report.carried_over,
                report.rounds,
                report.freeze.as_secs_f64() * 1e3,
            );
            copies.push(copied);
            moves.push(moved);
            freezes.push(report.freeze.as_secs_f64());
        }
        ratio("move/plain_copy", median(&moves) / median(&copies), true, 4.0);
        ratio("freeze_seconds", freezes.iter().copied().fold(0.0, f64::max), true, 1.0);
    });
}

struct Bench {
    database: TestDatabase,
    /// Held for its end.
    _second: DevServer,
    ways: Arc<Ways>,
    tenant: RequestContext,
    target: Address,
}

#[derive(Debug)]
struct Ways {
    control: PgConnectOptions,
    second: PgConnectOptions,
}

impl Ways {
    fn login(&self, address: &Address) -> PgConnectOptions {
        match &address.database {
            Some(database) => self.second.clone().database(database),
            None => self.control.clone(),
        }
    }
}

#[async_trait]
impl Endpoints for Ways {
    async fn endpoint(&self, address: &Address) -> Result<Endpoint, CoreError> {
        Ok(Endpoint::new(self.login(address), "public"))
    }
}

/// The old place until it is refused there.
#[derive(Debug)]
struct Binding {
    here: TenantPool,
    there: TenantPool,
    has_moved: AtomicBool,
}

#[async_trait]
impl SessionBinding for Binding {
    async fn place(&self, _: &dyn TenantContext) -> Result<Place, CoreError> {
        Ok(if self.has_moved.load(Ordering::SeqCst) {
            Place::pooled(&self.there).at_generation(Generation::new(1))
        } else {
            Place::pooled(&self.here).at_generation(Generation::FIRST)
        })
    }

    fn refused(&self, _: saas_core::TenantId) {
        self.has_moved.store(true, Ordering::SeqCst);
    }
}

impl Bench {
    async fn start(rows: i64) -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let second = DevServer::start_own(Durability::None).expect("a second server");
        let mut owner = database.owner().await;
        owner.execute(TABLES).await.expect("the tables");
        let (login,): (String,) =
            sqlx::query_as("select current_user::text").fetch_one(&mut owner).await.expect("a login");
        let (tenant, other) = (database.create_tenant("large").await, database.create_tenant("other").await);
        for (ctx, rows) in [(&tenant, rows), (&other, rows / 4)] {
            sqlx::query(
                "insert into public.item (tenant_id, name, note, amount)
                 select $1, 'item ' || n, repeat(md5(n::text), 3), n from generate_series(1, $2) n",
            )
            .bind(ctx.tenant().as_uuid())
            .bind(rows)
            .execute(&mut owner)
            .await
            .expect("the rows");
        }
        owner.execute("vacuum analyze public.item").await.expect("statistics");
        let ways = Arc::new(Ways {
            control: database.options(&login),
            second: second.admin_url().parse().expect("the second server's address"),
        });
        let bench = Self { database, _second: second, ways, tenant, target: Address::database("second", "moved") };
        for name in ["moved", "copied"] {
            bench.make(name).await;
        }
        bench
    }

    async fn make(&self, name: &str) {
        let mut admin = PgConnection::connect_with(&self.ways.second).await.expect("the second server");
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("a database");
        let login = self.ways.second.clone().database(name);
        migrate(&login, &[&saas_core::SCHEMA]).await.expect("migrated");
        let mut connection = PgConnection::connect_with(&login).await.expect("the database");
        sqlx::query("insert into saas.tenant (id, slug, name, created_at) values ($1, 'large', 'large', now())")
            .bind(self.tenant.tenant().as_uuid())
            .execute(&mut connection)
            .await
            .expect("the tenant's stub");
        connection.execute(TABLES).await.expect("the tables");
    }

    /// Seconds of a plain copy.
    async fn copy(&self) -> f64 {
        let mut source = PgConnection::connect_with(&self.ways.control).await.expect("the source");
        let login = self.ways.second.clone().database("copied");
        let mut target = PgConnection::connect_with(&login).await.expect("the target");
        let out = format!(
            "copy (select {COLUMNS} from public.item where tenant_id = '{}') to stdout (format binary)",
            self.tenant.tenant()
        );
        let begin = Instant::now();
        let mut rows = source.copy_out_raw(&out).await.expect("rows");
        let into = format!("copy public.item ({COLUMNS}) from stdin (format binary)");
        let mut sink = target.copy_in_raw(&into).await.expect("a sink");
        let mut chunk = Vec::new();
        while let Some(row) = rows.next().await {
            chunk.extend_from_slice(&row.expect("a row"));
            if chunk.len() >= 128 * 1024 {
                sink.send(chunk.as_slice()).await.expect("sent");
                chunk.clear();
            }
        }
        sink.send(chunk.as_slice()).await.expect("sent");
        sink.finish().await.expect("stored");
        begin.elapsed().as_secs_f64()
    }

    /// Seconds of a move under writers, who lose nothing.
    async fn relocate(&self) -> (f64, Report) {
        let pool =
            |login: PgConnectOptions| pool_options().max_connections(4).connect_lazy_with(login.username("saas_app"));
        let there =
            TenantPool::open(pool(self.ways.login(&self.target)), &[&saas_core::SCHEMA]).await.expect("a login");
        let here = self.database.tenants().clone();
        let binding = Arc::new(Binding { here, there, has_moved: AtomicBool::new(false) });
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (binding, tenant) = (binding.clone(), self.tenant.clone());
                let (stop, written) = (stop.clone(), written.clone());
                tokio::spawn(async move {
                    let mut turn = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        turn += 1;
                        let mut tx = TenantTx::begin(&*binding, &tenant).await.expect("let in");
                        sqlx::query("insert into public.item (tenant_id, name, note, amount) values ($1, $2, '', 0)")
                            .bind(tenant.tenant().as_uuid())
                            .bind(format!("written {writer} {turn}"))
                            .execute(&mut *tx)
                            .await
                            .expect("written");
                        tx.commit().await.expect("committed");
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let clock = Arc::new(self.database.clock().clone());
        let mover = Mover::new(self.database.system().clone(), self.ways.clone(), clock);
        let begin = Instant::now();
        let actor = Actor::system("benchmark");
        let report =
            mover.move_tenant(self.tenant.tenant(), &self.target, &actor, &|_| {}).await.expect("the tenant moves");
        let took = begin.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("a writer without a failure");
        }
        assert_eq!(report.audit, Audit::Equal);
        let mut target = PgConnection::connect_with(&self.ways.login(&self.target)).await.expect("the target");
        let arrived: i64 =
            sqlx::query_scalar("select count(*) from public.item where tenant_id = $1 and name like 'written %'")
                .bind(self.tenant.tenant().as_uuid())
                .fetch_one(&mut target)
                .await
                .expect("a count");
        assert_eq!(arrived as u64, written.load(Ordering::Relaxed), "every acknowledged write, once");
        (took, report)
    }
}
