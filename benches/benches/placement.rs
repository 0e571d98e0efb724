//! Tenants in databases of their own under one budget of connections, and what a pooled tenant costs to make.
//!
//! Durable server, both contenders on the same one; the results are ratios within this run.

#![expect(clippy::disallowed_types, reason = "names databases that it numbers itself")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use saas_benches::{median, ratio, zipf};
use saas_core::{
    Schema, SystemClock, SystemPool, TenantPool,
    db::pool_options,
    migrate,
    testing::{DevServer, Durability},
};
use saas_tenancy::{
    NewTenant, Tenancy, VerifiedEmail,
    placement::{Cluster, Clusters, Database, PoolLimits, Pools},
};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, postgres::PgConnectOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const DATABASES: usize = 200;
const BUDGET: u32 = 40;
const USERS: usize = 16;
const REQUESTS: usize = 4_000;
const TENANTS: usize = 10_000;

static KERNEL: [&Schema; 1] = [&saas_core::SCHEMA];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let server = DevServer::start_own(Durability::Full)?;
    let admin: PgConnectOptions = server.admin_url().parse()?;
    migrate(&admin, &[&saas_core::SCHEMA, &saas_tenancy::SCHEMA]).await?;
    let mut owner = admin.connect().await?;
    pooled_tenants(&admin).await?;
    own_databases(&admin, &mut owner).await
}

/// The cost of one more pooled tenant, among few and among many.
async fn pooled_tenants(admin: &PgConnectOptions) -> Result<(), Failure> {
    let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA];
    let login = |role: &str| admin.clone().username(role);
    let tenants = TenantPool::open(pool_options().connect_lazy_with(login("saas_app")), &schemas).await?;
    let system = SystemPool::open(pool_options().connect_lazy_with(login("saas_system")), &schemas).await?;
    let tenancy = Tenancy::new(tenants, system, Arc::new(SystemClock));
    // Interleaved, so that what else the machine does weighs on both: an owner of its own for each tenant, and one person
    // who owns them all.
    let one_owner = VerifiedEmail::vouched("ada@example.com".parse()?);
    let (mut own, mut same) = (Vec::with_capacity(TENANTS), Vec::with_capacity(TENANTS));
    for n in 0..TENANTS {
        let new_owner = VerifiedEmail::vouched(format!("owner-{n}@example.com").parse()?);
        for (name, owner, millis) in [("own", &new_owner, &mut own), ("same", &one_owner, &mut same)] {
            let new = NewTenant::new(format!("{name}-{n}").parse()?, "A tenant")?;
            let one = Instant::now();
            tenancy.create_tenant(&new, owner).await?;
            millis.push(one.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (name, millis) in [("own", &own), ("same", &same)] {
        let rate = TENANTS as f64 * 1e3 / millis.iter().sum::<f64>();
        let (first, last) = (median(&millis[..1_000]), median(&millis[TENANTS - 1_000..]));
        println!(
            "{name} owner: {rate:.0} tenants/s; {first:.2} ms among the first thousand, {last:.2} ms among the last"
        );
        ratio(&format!("provision.{name}_owner.last_thousand_to_first"), last / first, true, 1.3);
    }
    Ok(())
}

/// Requests to 200 databases with 40 connections in all, beside the same requests to as many as fit at once.
async fn own_databases(admin: &PgConnectOptions, owner: &mut PgConnection) -> Result<(), Failure> {
    owner.execute("create database template_of_places").await?;
    migrate(&admin.clone().database("template_of_places"), &KERNEL).await?;
    let began = Instant::now();
    for n in 0..DATABASES {
        let create = format!("create database place_{n} template template_of_places strategy file_copy");
        owner.execute(AssertSqlSafe(create)).await?;
    }
    println!(
        "{DATABASES} databases from a template: {:.0} ms each",
        began.elapsed().as_secs_f64() * 1e3 / DATABASES as f64
    );
    let login = |role: &str| admin.clone().username(role);
    let cluster = || Clusters::new(Cluster::new(login("saas_app"), login("saas_system")));
    let limits = PoolLimits::default()
        .with_connections(BUDGET)
        .with_openings_per_cluster(8)
        .with_acquire_timeout(Duration::from_secs(60));
    for (name, databases) in [("fit", BUDGET as usize / 2), ("all", DATABASES)] {
        let pools = Pools::new(cluster(), &KERNEL, limits)?;
        let (rate, p99) = storm(&pools, zipf(databases, REQUESTS, 7)).await?;
        let stats = pools.stats();
        println!(
            "{name}: {databases} databases, {USERS} users: {rate:.0} requests/s, p99 {p99:.1} ms, {} opened, {} reaped, {} reserved",
            stats.opened, stats.reaped, stats.reserved
        );
        let connections: i64 = sqlx::query_scalar("select count(*) from pg_stat_activity where datname like 'place%'")
            .fetch_one(&mut *owner)
            .await?;
        ratio(&format!("pools.{name}.connections_to_budget"), connections as f64 / f64::from(BUDGET), true, 1.0);
        for n in 0..databases {
            pools.close(&Database { name: Some(format!("place_{n}").parse()?), ..Database::control() }).await;
        }
    }
    Ok(())
}

/// Requests per second, and the duration that one in a hundred exceeds, in milliseconds.
async fn storm(pools: &Pools, targets: Vec<usize>) -> Result<(f64, f64), Failure> {
    let targets = Arc::new(targets);
    let began = Instant::now();
    let users = (0..USERS).map(|user| {
        let (pools, targets) = (pools.clone(), Arc::clone(&targets));
        tokio::spawn(async move {
            let mut millis = Vec::new();
            for target in targets.iter().skip(user).step_by(USERS) {
                let database = Database { name: Some(format!("place_{target}").parse()?), ..Database::control() };
                let one = Instant::now();
                let lease = pools.lease(&database).await?;
                sqlx::query("select count(*) from saas.tenant").execute(lease.pool().pool()).await?;
                millis.push(one.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, Failure>(millis)
        })
    });
    let mut millis = Vec::new();
    for user in users.collect::<Vec<_>>() {
        millis.extend(user.await??);
    }
    let rate = millis.len() as f64 / began.elapsed().as_secs_f64();
    millis.sort_by(f64::total_cmp);
    Ok((rate, millis[millis.len() * 99 / 100]))
}
