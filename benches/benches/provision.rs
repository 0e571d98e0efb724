//! What one more pooled tenant costs, among a thousand, ten thousand and a hundred thousand.
//!
//! Durable server. The floor is one durable insert of one row with the same unique keys, which weighs as much in the
//! write-ahead log, into a table that grows with the tenants. Both are interleaved one by one, and each window begins after
//! a checkpoint, so that what the disk and the machine do besides weighs on both.

use std::{sync::Arc, time::Instant};

use saas_benches::{median, ratio};
use saas_core::{
    Actor, RequestId, SystemClock, SystemPool, SystemTx, TenantPool, db::pool_options, migrate, testing::DevServer,
    testing::Durability,
};
use saas_tenancy::{NewTenant, Tenancy, VerifiedEmail};
use sqlx::{ConnectOptions, Executor, PgConnection, postgres::PgConnectOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Of each contender, at each size.
const WINDOW: usize = 400;
/// Tenants that are made in one transaction while the table is filled.
const BATCH: usize = 500;
/// How many transactions fill at a time.
const FILLERS: usize = 2;

/// What a tenant may cost in bare inserts: it is eight rows in seven tables, and one commit.
const COST: f64 = 8.0;

const FLOOR: &str = "
    create table floor (id uuid primary key, slug text not null unique, email text not null unique, rest bytea not null);
    alter table floor alter rest set storage plain";
const INSERT_FLOOR: &str = "insert into floor (id, slug, email, rest) values ($1, $2, $3, $4)";
const FILL_FLOOR: &str = "
    insert into floor
    select lpad(to_hex(n), 32, '0')::uuid, md5('slug' || n), md5('mail' || n) || '@example.com', $3
    from generate_series($1::bigint, $2) n";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let server = DevServer::start_own(Durability::Full)?;
    let admin: PgConnectOptions = server.admin_url().parse()?;
    let schemas = [&saas_core::SCHEMA, &saas_tenancy::SCHEMA];
    migrate(&admin, &schemas).await?;
    let login = |role: &str| admin.clone().username(role);
    let tenants = TenantPool::open(pool_options().connect_lazy_with(login("saas_app")), &schemas).await?;
    let system = SystemPool::open(pool_options().connect_lazy_with(login("saas_system")), &schemas).await?;
    let tenancy = Tenancy::new(tenants, system.clone(), Arc::new(SystemClock));
    let mut floor = Floor::new(admin.connect().await?).await?;

    let one_owner = VerifiedEmail::vouched("ada@example.com".parse()?);
    let mut made = 0;
    let mut rows: Vec<[f64; 3]> = Vec::new();
    for size in SIZES {
        fill(&tenancy, &system, size - made).await?;
        floor.fill(made, size).await?;
        made = size;
        let figures = window(&tenancy, &mut floor, &one_owner).await?;
        made += 2 * WINDOW;
        rows.push(figures);
        let [own, same, bare] = figures;
        println!(
            "among {size}: {own:.2} ms a tenant with an owner of its own ({:.0}/s), {same:.2} ms with an owner of many, \
             {bare:.2} ms a bare row; {:.0} bytes of log",
            1e3 / own,
            floor.bytes
        );
        ratio(&format!("provision.among_{size}.cost_in_bare_inserts"), own / bare, true, COST);
    }
    if let ([first, ..], [.., last]) = (&rows[..], &rows[..]) {
        for (name, at) in [("own", 0), ("same", 1)] {
            let (first, last) = (first[at] / first[2], last[at] / last[2]);
            ratio(&format!("provision.{name}_owner.last_to_first_in_bare_inserts"), last / first, true, 1.25);
        }
    }
    Ok(())
}

/// Milliseconds of a tenant with a new owner, of one with an owner of many, and of a bare row: medians.
async fn window(tenancy: &Tenancy, floor: &mut Floor, one_owner: &VerifiedEmail) -> Result<[f64; 3], Failure> {
    floor.connection.execute("checkpoint").await?;
    // The floor's row weighs what a tenant weighs: measured before the first window, on tenants that do not count.
    if floor.payload.is_empty() {
        let before = floor.log_position().await?;
        for _ in 0..100 {
            create(tenancy, &new_owner()?).await?;
        }
        let weight = (floor.log_position().await? - before) / 100.0;
        floor.weigh(weight).await?;
    }
    let mut millis: [Vec<f64>; 3] = Default::default();
    for _ in 0..WINDOW {
        let owner = new_owner()?;
        millis[0].push(create(tenancy, &owner).await?);
        millis[2].push(floor.insert().await?);
        millis[1].push(create(tenancy, one_owner).await?);
        millis[2].push(floor.insert().await?);
    }
    Ok(millis.map(|millis| median(&millis)))
}

/// Addresses and slugs as people choose them: in no order.
fn new_owner() -> Result<VerifiedEmail, Failure> {
    Ok(VerifiedEmail::vouched(format!("{:016x}@example.com", fastrand::u64(..)).parse()?))
}

fn new_tenant() -> Result<NewTenant, Failure> {
    Ok(NewTenant::new(format!("t{:016x}", fastrand::u64(..)).parse()?, "A tenant")?)
}

async fn create(tenancy: &Tenancy, owner: &VerifiedEmail) -> Result<f64, Failure> {
    let new = new_tenant()?;
    let began = Instant::now();
    tenancy.create_tenant(&new, owner).await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Makes `count` more tenants, many to a transaction.
async fn fill(tenancy: &Tenancy, system: &SystemPool, count: usize) -> Result<(), Failure> {
    let fillers = (0..FILLERS).map(|filler| {
        let (tenancy, system) = (tenancy.clone(), system.clone());
        let mut left = count / FILLERS + usize::from(filler < count % FILLERS);
        tokio::spawn(async move {
            while left > 0 {
                let batch = left.min(BATCH);
                let mut tx = SystemTx::begin(&system, Actor::system("bench"), "fill the tables").await?;
                for _ in 0..batch {
                    tenancy.create_tenant_in(&mut tx, &new_tenant()?, &new_owner()?).await?;
                }
                tx.commit().await?;
                left -= batch;
            }
            Ok::<_, Failure>(())
        })
    });
    for filler in fillers.collect::<Vec<_>>() {
        filler.await??;
    }
    Ok(())
}

/// Durable inserts of one row.
struct Floor {
    connection: PgConnection,
    payload: Vec<u8>,
    /// Of the write-ahead log, per tenant.
    bytes: f64,
}

impl Floor {
    async fn new(mut connection: PgConnection) -> Result<Self, Failure> {
        connection.execute(FLOOR).await?;
        Ok(Self { connection, payload: Vec::new(), bytes: 0.0 })
    }

    /// Makes a row as heavy in the log as `bytes`.
    async fn weigh(&mut self, bytes: f64) -> Result<(), Failure> {
        let before = self.log_position().await?;
        for _ in 0..100 {
            self.insert().await?;
        }
        let own = (self.log_position().await? - before) / 100.0;
        self.payload = vec![7; (bytes - own).max(1.0) as usize];
        self.bytes = bytes;
        Ok(())
    }

    async fn log_position(&mut self) -> Result<f64, Failure> {
        let position = sqlx::query_scalar("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(position)
    }

    async fn insert(&mut self) -> Result<f64, Failure> {
        // In the order of time, as a tenant's.
        let key = RequestId::mint(&SystemClock).as_uuid();
        let (slug, email) = (format!("t{:016x}", fastrand::u64(..)), format!("{:016x}@example.com", fastrand::u64(..)));
        let began = Instant::now();
        sqlx::query(INSERT_FLOOR)
            .bind(key)
            .bind(slug)
            .bind(email)
            .bind(&self.payload)
            .execute(&mut self.connection)
            .await?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Grows from `from` rows to `to`.
    async fn fill(&mut self, from: usize, to: usize) -> Result<(), Failure> {
        sqlx::query(FILL_FLOOR)
            .bind(i64::try_from(from)? + 1)
            .bind(i64::try_from(to)?)
            .bind(&self.payload)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }
}
