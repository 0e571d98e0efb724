//! A thousand tenants in schemas of their own: what a session of the server has to remember of them, what bounds it and
//! what the bound costs, and whether making and migrating the thousandth schema costs what the first one did.

#![expect(clippy::disallowed_types, reason = "makes an application's tables")]

use std::{fmt::Write as _, num::NonZeroU32, sync::Arc, time::Instant};

use saas_benches::{median, ratio};
use saas_core::{
    Actor, CoreError, RequestContext, Schema, SystemClock, SystemPool, SystemTx, TenantContext, TenantId, TenantPool,
    TenantTx,
    db::{TenantWork, pool_options},
    migrate,
    testing::{DevServer, Durability},
};
use saas_tenancy::{
    NewTenant, Tenancy, VerifiedEmail,
    placement::{
        Blueprint, Cluster, ClusterName, Clusters, Fleet, Placements, PlacementsBuilder, PoolLimits, Pools,
        Provisioner, Target, fleet::Shared,
    },
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor, PgConnection, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SCHEMAS: usize = 1_000;
const ENDS: usize = 100;
/// Of an application, each with a primary key and one more index.
const TABLES: usize = 6;
const LATER_MIGRATIONS: i64 = 2;
const REQUESTS: usize = 3_000;
const MIB: f64 = 1024.0 * 1024.0;

static SHAPE: [&Schema; 2] = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA];
static KERNEL: [&Schema; 1] = [&saas_core::SCHEMA];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let server = DevServer::start_own(Durability::Full)?;
    let stage = Stage::new(server.admin_url().parse()?).await?;
    let tenants = stage.tenants().await?;
    stage.provision(&tenants).await?;
    stage.migrate().await?;
    stage.remember(&tenants).await?;
    stage.serve(&tenants).await
}

/// The first so many of an application's migrations: its tables, and then a column for one of them each time. None of them
/// references `saas.tenant`: each reference is two more triggers on that table, as `docs/modes.md` says.
fn blueprint(files: i64) -> Result<Blueprint, Failure> {
    let tables = tables()?;
    let files = (1..=files).map(|version| {
        let sql = if version == 1 { tables.clone() } else { format!("alter table t1 add column c{version} text") };
        let sql = AssertSqlSafe(sql).into_sql_str();
        Migration::new(version, format!("step {version}").into(), MigrationType::Simple, sql, false)
    });
    Ok(Blueprint::new(&Migrator::with_migrations(files.collect()))?)
}

fn tables() -> Result<String, Failure> {
    let mut tables = String::new();
    for n in 0..TABLES {
        write!(
            tables,
            "create table t{n} (
                tenant_id uuid not null, id uuid not null, name text not null,
                at timestamptz not null, primary key (tenant_id, id));
             create index t{n}_by_time on t{n} (tenant_id, at);
             select saas.fence('t{n}');"
        )?;
    }
    Ok(tables)
}

struct Stage {
    admin: PgConnectOptions,
    system: SystemPool,
}

impl Stage {
    async fn new(admin: PgConnectOptions) -> Result<Self, Failure> {
        migrate(&admin, &SHAPE).await?;
        // For this measurement only: the backend tells what its memory is used for.
        let mut owner = admin.connect().await?;
        owner.execute("grant execute on function pg_get_backend_memory_contexts() to saas_app").await?;
        owner.execute("grant select on pg_backend_memory_contexts to saas_app").await?;
        let login = admin.clone().username("saas_system");
        let system = SystemPool::open(pool_options().connect_lazy_with(login), &SHAPE).await?;
        Ok(Self { admin, system })
    }

    async fn tenants(&self) -> Result<Vec<RequestContext>, Failure> {
        let tenancy = Tenancy::new(self.pool(1).await?, self.system.clone(), Arc::new(SystemClock));
        let owner = VerifiedEmail::vouched("ada@example.com".parse()?);
        let bench = Actor::system("bench");
        let mut tx = SystemTx::begin(&self.system, bench.clone(), "make tenants").await?;
        let mut tenants = Vec::with_capacity(SCHEMAS);
        for n in 0..SCHEMAS {
            let new = NewTenant::new(format!("tenant-{n}").parse()?, "A tenant")?;
            let tenant: TenantId = tenancy.create_tenant_in(&mut tx, &new, &owner).await?.tenant;
            tenants.push(RequestContext::new(tenant, bench.clone(), &SystemClock));
        }
        tx.commit().await?;
        Ok(tenants)
    }

    async fn pool(&self, connections: u32) -> Result<TenantPool, Failure> {
        let login = self.admin.clone().username("saas_app");
        let pool = pool_options().max_connections(connections).connect_lazy_with(login);
        Ok(TenantPool::open(pool, &SHAPE).await?)
    }

    fn clusters(&self) -> Clusters {
        let login = |role: &str| self.admin.clone().username(role);
        Clusters::new(Cluster::new(login("saas_app"), login("saas_system")).with_admin(self.admin.clone()))
    }

    /// A binding with one connection.
    async fn binding(&self) -> Result<PlacementsBuilder, Failure> {
        let pools = Pools::new(self.clusters(), &KERNEL, PoolLimits::default())?;
        Ok(Placements::builder(self.pool(1).await?, self.system.clone(), pools))
    }

    /// Makes the schemas: tables, fence, audit. The first and the last hundred one by one, with now and then the floor in
    /// between: the same tables in a transaction that is rolled back. Those in the middle as fast as two workers can.
    async fn provision(&self, tenants: &[RequestContext]) -> Result<(), Failure> {
        let provisioner = Provisioner::new(self.system.clone(), self.clusters(), blueprint(1)?, Arc::new(SystemClock));
        let mut owner = self.admin.connect().await?;
        let (head, rest) = tenants.split_at(ENDS);
        let (middle, tail) = rest.split_at(rest.len() - ENDS);
        let first = one_by_one(&provisioner, &mut owner, head).await?;
        let halves = middle.chunks(middle.len().div_ceil(2)).map(|half| {
            let (provisioner, half) = (provisioner.clone(), half.to_vec());
            tokio::spawn(async move {
                for ctx in half {
                    provisioner.provision(ctx.tenant(), &Target::Schema(ClusterName::control())).await?;
                }
                Ok::<_, Failure>(())
            })
        });
        for half in halves.collect::<Vec<_>>() {
            half.await??;
        }
        let last = one_by_one(&provisioner, &mut owner, tail).await?;
        println!(
            "provision: {:.0} ms a schema among the first hundred ({:.0} ms for its tables alone), {:.0} ms ({:.0} ms) among \
             the last of {SCHEMAS}",
            first.0, first.1, last.0, last.1
        );
        ratio(
            "schemas.provision.last_hundred_to_first_in_bare_tables",
            (last.0 / last.1) / (first.0 / first.1),
            true,
            1.5,
        );
        Ok(())
    }

    /// Migrates all of them, a few times.
    async fn migrate(&self) -> Result<(), Failure> {
        let mut runs = Vec::new();
        for later in 1..=LATER_MIGRATIONS {
            let fleet = Fleet::new(self.system.clone(), self.clusters(), blueprint(1 + later)?, Arc::new(SystemClock))
                .with_shared(Shared::Excluded);
            let report = fleet.run().await?;
            runs.push(report.sites.iter().map(|site| site.took.as_secs_f64() * 1e3).collect::<Vec<f64>>());
        }
        let ends = |millis: &Vec<f64>| (median(&millis[..ENDS]), median(&millis[millis.len() - ENDS..]));
        let (first, last): (Vec<f64>, Vec<f64>) = runs.iter().map(ends).unzip();
        let ratios: Vec<f64> = first.iter().zip(&last).map(|(first, last)| last / first).collect();
        let (first, last) = (median(&first), median(&last));
        println!("migrate: {first:.1} ms a schema among the first hundred, {last:.1} ms among the last");
        ratio("schemas.migrate.last_hundred_to_first", median(&ratios), true, 1.25);
        Ok(())
    }

    /// What a session remembers after all schemas, without a bound and with the one that is there unless set.
    async fn remember(&self, tenants: &[RequestContext]) -> Result<(), Failure> {
        let unbounded = self.binding().await?.with_schemas_per_connection(NonZeroU32::MAX).build();
        let (first, grown) = memory(&unbounded, tenants).await?;
        println!("unbounded: {first:.1} MiB after one schema, {grown:.1} MiB after {SCHEMAS} of {TABLES} tables each");
        let bounded = self.binding().await?.build();
        let (_, most) = memory(&bounded, tenants).await?;
        println!("bounded: {most:.1} MiB at most");
        ratio("schemas.mib_per_backend", most, true, 64.0);
        ratio("schemas.memory.unbounded_to_bounded", grown / most, false, 3.0);
        Ok(())
    }

    /// What the bound costs: the same requests to schemas in no order, interleaved, over one connection each.
    async fn serve(&self, tenants: &[RequestContext]) -> Result<(), Failure> {
        let bounded = self.binding().await?.build();
        let unbounded = self.binding().await?.with_schemas_per_connection(NonZeroU32::MAX).build();
        for ctx in tenants {
            touch(&unbounded, ctx, &[0, 1]).await?;
            touch(&bounded, ctx, &[0, 1]).await?;
        }
        let mut random = fastrand::Rng::with_seed(11);
        let mut millis: [Vec<f64>; 2] = Default::default();
        for _ in 0..REQUESTS {
            let ctx = &tenants[random.usize(..SCHEMAS)];
            for (binding, millis) in [&bounded, &unbounded].into_iter().zip(&mut millis) {
                let began = Instant::now();
                touch(binding, ctx, &[0, 1]).await?;
                millis.push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
        let [bounded, unbounded] = millis.map(|millis| millis.iter().sum::<f64>() / millis.len() as f64);
        println!(
            "a request of two reads: {bounded:.2} ms bounded, {unbounded:.2} ms in a session that knows all schemas"
        );
        ratio("schemas.request.bounded_to_unbounded", bounded / unbounded, true, 3.0);
        Ok(())
    }
}

/// Milliseconds of a schema from the provisioner, and of its tables alone: medians.
async fn one_by_one(
    provisioner: &Provisioner,
    owner: &mut PgConnection,
    tenants: &[RequestContext],
) -> Result<(f64, f64), Failure> {
    let tables = format!("begin; create schema bare; set local search_path = bare; {}; rollback", tables()?);
    let (mut made, mut bare) = (Vec::new(), Vec::new());
    for (n, ctx) in tenants.iter().enumerate() {
        let began = Instant::now();
        provisioner.provision(ctx.tenant(), &Target::Schema(ClusterName::control())).await?;
        made.push(began.elapsed().as_secs_f64() * 1e3);
        if n % 4 == 0 {
            let began = Instant::now();
            owner.execute(AssertSqlSafe(tables.clone())).await?;
            bare.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok((median(&made), median(&bare)))
}

/// Reads from some of the tenant's tables.
async fn touch(binding: &Placements, ctx: &RequestContext, tables: &[usize]) -> Result<(), Failure> {
    binding.read(ctx, async |tx| read(tx, tables).await).await?;
    Ok(())
}

async fn read(tx: &mut TenantTx, tables: &[usize]) -> Result<(), CoreError> {
    for table in tables {
        let statement =
            AssertSqlSafe(format!("select id, name from t{table} where tenant_id = $1 order by at limit 1"));
        sqlx::query(statement)
            .bind(tx.tenant().as_uuid())
            .fetch_optional(&mut **tx)
            .await
            .map_err(CoreError::from_database)?;
    }
    Ok(())
}

/// Mebibytes of the backend after the first schema, and the most that it ever has in a run through all of them, with
/// every table of each.
async fn memory(binding: &Placements, tenants: &[RequestContext]) -> Result<(f64, f64), Failure> {
    const USED: &str = "select sum(total_bytes)::float8 from pg_backend_memory_contexts";
    let all: Vec<usize> = (0..TABLES).collect();
    let (mut first, mut most) = (None, 0.0_f64);
    for (n, ctx) in tenants.iter().enumerate() {
        let look = n % 10 == 9 || n == 0;
        let used: f64 = binding
            .read(ctx, async |tx| {
                read(tx, &all).await?;
                if !look {
                    return Ok(0.0);
                }
                sqlx::query_scalar(USED).fetch_one(&mut **tx).await.map_err(CoreError::from_database)
            })
            .await?;
        first.get_or_insert(used);
        most = most.max(used);
    }
    Ok((first.unwrap_or(0.0) / MIB, most / MIB))
}
