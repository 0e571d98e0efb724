//! Two servers, a tenant with its rows on one of them, places for it on both, and a plain copy between them.

use std::{sync::Arc, time::Instant};

use futures_util::StreamExt as _;
use saas_core::{
    RequestContext, Schema, TenantContext,
    db::{SchemaName, migrate},
    testing::{DevServer, Durability, TestDatabase},
};
use saas_tenancy::{
    SCHEMA,
    placement::{Clusters, Placements, PoolLimits, Pools},
    relocate::{Address, Mover},
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor, PgConnection, postgres::PgConnectOptions};

use crate::mover::{Task, Work, clusters};

static KERNEL: [&Schema; 1] = [&saas_core::SCHEMA];
const TABLES: &str = "
    create table item (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        note       text not null,
        amount     bigint not null,
        at         timestamptz not null default now(),
        primary key (tenant_id, id),
        unique (tenant_id, name)
    );
    select saas.fence('item');";
const COLUMNS: &str = "tenant_id, id, name, note, amount, at";

pub(crate) struct Servers {
    database: TestDatabase,
    /// Held for its end.
    _second: DevServer,
    control_logins: [String; 3],
    second_logins: [String; 3],
    second: PgConnectOptions,
    pub(crate) rows: i64,
    pub(crate) tenant: RequestContext,
    pub(crate) mover: Mover,
    pub(crate) binding: Placements,
}

impl Servers {
    pub(crate) async fn start(rows: i64) -> Self {
        let database = TestDatabase::start(&[&saas_core::SCHEMA, &SCHEMA]).await;
        let second_server = DevServer::start_own(Durability::None).expect("a second server");
        let mut owner = database.owner().await;
        owner.execute(AssertSqlSafe(format!("set search_path = public; {TABLES}"))).await.expect("the tables");
        owner.execute("grant usage on schema public to saas_app, saas_system").await.expect("a grant");
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
        let second: PgConnectOptions = second_server.admin_url().parse().expect("the second server's address");
        let control_logins =
            [database.url("saas_app"), database.url("saas_system"), database.owner_options().to_url_lossy().into()];
        let second_login = |login: PgConnectOptions| -> String { login.to_url_lossy().into() };
        // The first database of the tenant's own makes the roles there.
        let second_logins = [
            second_login(second.clone().username("saas_app")),
            second_login(second.clone().username("saas_system")),
            second_login(second.clone()),
        ];
        let clusters: Clusters = clusters(&control_logins, &second_logins);
        let clock = Arc::new(saas_core::SystemClock);
        let mover = Mover::new(database.system().clone(), Arc::new(clusters.clone()), clock);
        let limits =
            PoolLimits::default().with_per_database(4).with_acquire_timeout(std::time::Duration::from_secs(60));
        let pools = Pools::new(clusters, &KERNEL, limits).expect("pools");
        let binding = Placements::builder(database.tenants().clone(), database.system().clone(), pools).build();
        Self { database, rows, _second: second_server, control_logins, second_logins, second, tenant, mover, binding }
    }

    async fn connect(&self, place: &Address) -> PgConnection {
        let login = match &place.database {
            Some(name) => self.second.clone().database(name),
            None => self.database.owner_options(),
        };
        let mut connection = PgConnection::connect_with(&login).await.expect("a place");
        let schema = place.schema.as_deref().unwrap_or("public");
        connection.execute(AssertSqlSafe(format!("set search_path = {schema}"))).await.expect("its schema");
        connection
    }

    /// A schema of the tenant's own, beside the shared tables.
    pub(crate) async fn schema(&self) -> Address {
        let name = SchemaName::of(self.tenant.tenant());
        self.make_schema(name.as_str()).await;
        Address::schema("control", name.as_str())
    }

    async fn make_schema(&self, name: &str) {
        let script = format!(
            "create schema {name}; grant usage on schema {name} to saas_app, saas_system; set search_path = {name}; {TABLES}"
        );
        self.database.owner().await.execute(AssertSqlSafe(script)).await.expect("a schema");
    }

    /// A database of the tenant's own, on the second server.
    pub(crate) async fn database(&self) -> Address {
        self.make_database("moved").await;
        Address::database("second", "moved")
    }

    async fn make_database(&self, name: &str) {
        let mut admin = PgConnection::connect_with(&self.second).await.expect("the second server");
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("a database");
        let login = self.second.clone().database(name);
        migrate(&login, &KERNEL).await.expect("migrated");
        let mut connection = PgConnection::connect_with(&login).await.expect("the database");
        sqlx::query("insert into saas.tenant (id, slug, name, created_at) values ($1, 'large', 'large', now())")
            .bind(self.tenant.tenant().as_uuid())
            .execute(&mut connection)
            .await
            .expect("the tenant's stub");
        connection.execute(AssertSqlSafe(format!("set search_path = public; {TABLES}"))).await.expect("the tables");
        connection.execute("grant usage on schema public to saas_app, saas_system").await.expect("a grant");
    }

    /// Starts a mover in a process of its own, and kills it.
    pub(crate) async fn kill(&self, work: Work, phase: &str, times: usize) {
        let task = Task::new(&self.control_logins, &self.second_logins, self.tenant.tenant(), work, phase, times);
        tokio::task::spawn_blocking(move || task.kill()).await.expect("a mover that was killed");
    }

    /// Fills a table on each server that plain copies are taken from, and that nobody else touches. Their schemas look like
    /// those of tenants: a mover refuses to leave tenants' tables behind in any other.
    pub(crate) async fn fill(&self) {
        self.make_schema("saas_t_plain").await;
        self.make_database("plain").await;
        for place in [Address::schema("control", "saas_t_plain"), Address::database("second", "plain")] {
            self.copy_between(&Address::pooled("control"), &place).await;
        }
    }

    /// Seconds of a plain copy of the tenant's first rows between the servers of two places, into a table made for it.
    pub(crate) async fn copy(&self, from: &Address, to: &Address) -> f64 {
        let plain = |of: &Address, name: &str| {
            if of.database.is_some() {
                Address::database("second", name)
            } else {
                Address::schema("control", format!("saas_t_{name}"))
            }
        };
        let to = plain(to, "copied");
        let (login, drop) = if to.database.is_some() {
            self.make_database("copied").await;
            (self.second.clone(), "drop database copied with (force)")
        } else {
            self.make_schema("saas_t_copied").await;
            (self.database.owner_options(), "drop schema saas_t_copied cascade")
        };
        let took = self.copy_between(&plain(from, "plain"), &to).await;
        let mut admin = PgConnection::connect_with(&login).await.expect("an administrator");
        admin.execute(drop).await.expect("dropped");
        took
    }

    async fn copy_between(&self, from: &Address, to: &Address) -> f64 {
        let (mut source, mut target) = (self.connect(from).await, self.connect(to).await);
        let tenant = self.tenant.tenant();
        let begin = Instant::now();
        let out = format!("copy (select {COLUMNS} from item where tenant_id = '{tenant}') to stdout (format binary)");
        let mut rows = source.copy_out_raw(&out).await.expect("rows");
        let into = format!("copy item ({COLUMNS}) from stdin (format binary)");
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

    /// How many rows the writers have at a place.
    pub(crate) async fn written(&self, place: &Address) -> u64 {
        let count = "select count(*) from item where tenant_id = $1 and name like 'written %'";
        let rows: i64 = sqlx::query_scalar(count)
            .bind(self.tenant.tenant().as_uuid())
            .fetch_one(&mut self.connect(place).await)
            .await
            .expect("a count");
        u64::try_from(rows).expect("a number of rows")
    }

    /// Number and digest of the other rows, in another way than a mover compares them.
    pub(crate) async fn untouched(&self, place: &Address) -> (i64, String) {
        let digest = "select count(*), md5(string_agg(md5(t::text), '' order by t.id)) from item t where tenant_id = $1 and name like 'item %'";
        sqlx::query_as(digest)
            .bind(self.tenant.tenant().as_uuid())
            .fetch_one(&mut self.connect(place).await)
            .await
            .expect("a digest")
    }
}
