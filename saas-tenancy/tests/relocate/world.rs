//! A control database, a second server, the application's tables in all three kinds of place, and a binding that follows the
//! placement.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use saas_core::{
    Actor, CoreError, RequestContext, SCHEMA as CORE, SessionBinding, SystemTx, TenantContext, TenantId, TenantPool,
    db::{Generation, Place, SchemaName, migrate, pool_options},
    testing::{DevServer, Durability, TestDatabase},
};
use saas_tenancy::{
    SCHEMA,
    relocate::{Address, Endpoint, Endpoints, Mover},
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

/// What an application's migration holds: the same in every mode.
pub(crate) const TABLES: &str = "
    create table country (code text primary key);
    insert into country values ('de'), ('fr');
    select saas.declare_global('country', 'the same for everyone');
    grant select on country to saas_app, saas_system;
    create table project (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        parent     uuid,
        country    text references country (code),
        primary key (tenant_id, id),
        unique (tenant_id, name),
        foreign key (tenant_id, parent) references project (tenant_id, id)
    );
    create type mood as enum ('fine', 'so so');
    create table task (
        tenant_id   uuid not null references saas.tenant (id),
        id          uuid not null default gen_random_uuid(),
        project_id  uuid not null,
        \"Count\"   bigint not null default 0,
        detail      json,
        moods       mood[] not null default '{fine}',
        cost        numeric(12, 4),
        at          timestamptz not null default now(),
        blob        bytea,
        shown       text generated always as ('#' || coalesce(cost, 0)::text) stored,
        primary key (tenant_id, id),
        foreign key (tenant_id, project_id) references project (tenant_id, id) on delete cascade
    );
    create table entry (
        tenant_id  uuid not null references saas.tenant (id),
        number     bigint generated always as identity,
        what       text not null,
        primary key (tenant_id, number)
    );
    create table event (
        tenant_id  uuid not null references saas.tenant (id),
        at         timestamptz not null,
        what       text not null,
        primary key (tenant_id, at)
    ) partition by range (at);
    create table event_old partition of event for values from (minvalue) to ('2026-01-01');
    create table event_new partition of event for values from ('2026-01-01') to (maxvalue);
    -- What must not happen once more because a row is moved.
    create table rung (tenant_id uuid not null references saas.tenant (id), id uuid primary key default gen_random_uuid());
    alter table rung drop constraint rung_pkey, add primary key (tenant_id, id);
    create function ring() returns trigger language plpgsql as $$ begin
        execute format('insert into %I.rung (tenant_id) values ($1)', tg_table_schema) using new.tenant_id; return null;
    end $$;
    create trigger bell after insert on project for each row execute function ring();
    select saas.fence('project'), saas.fence('task'), saas.fence('entry'), saas.fence('event'), saas.fence('rung');";

pub(crate) const NAMES: [&str; 5] = ["project", "task", "entry", "event", "rung"];

/// Tables: name, number of rows, hash of them.
pub(crate) type Rows = Vec<(&'static str, usize, u64)>;

/// A second server for the whole process.
fn second() -> &'static DevServer {
    static SERVER: OnceLock<DevServer> = OnceLock::new();
    SERVER.get_or_init(|| DevServer::start_own(Durability::None).unwrap())
}

pub(crate) struct World {
    pub(crate) db: TestDatabase,
    pub(crate) acme: RequestContext,
    pub(crate) other: RequestContext,
    pub(crate) binding: Arc<Binding>,
    pub(crate) mover: Mover,
    pub(crate) ways: Arc<Ways>,
}

/// The way to each place, for the mover.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) control: PgConnectOptions,
    pub(crate) second: PgConnectOptions,
    pub(crate) keeps_databases: AtomicBool,
}

impl Ways {
    pub(crate) fn login(&self, address: &Address) -> PgConnectOptions {
        let login = if address.cluster == "control" { &self.control } else { &self.second };
        match &address.database {
            Some(database) => login.clone().database(database),
            None => login.clone(),
        }
    }

    pub(crate) async fn connect(&self, address: &Address) -> PgConnection {
        let mut connection = PgConnection::connect_with(&self.login(address)).await.unwrap();
        let schema = address.schema.clone().unwrap_or_else(|| "public".into());
        connection.execute(AssertSqlSafe(format!("set search_path = {schema}"))).await.unwrap();
        connection
    }
}

#[async_trait]
impl Endpoints for Ways {
    async fn endpoint(&self, address: &Address) -> Result<Endpoint, CoreError> {
        if !["control", "second"].contains(&address.cluster.as_str()) {
            return Err(CoreError::Misconfigured {
                what: format!("no cluster {}", address.cluster),
                remedy: "-".into(),
            });
        }
        let schema = address.schema.clone().unwrap_or_else(|| "public".into());
        let endpoint = Endpoint::new(self.login(address), schema);
        // A database that is to be used again keeps standing, without the tenant's rows.
        Ok(if self.keeps_databases.load(Ordering::Relaxed) {
            endpoint
        } else {
            endpoint.with_maintenance(self.second.clone())
        })
    }
}

/// Follows `saas.placement`, and remembers it until it is refused.
#[derive(Debug)]
pub(crate) struct Binding {
    system: saas_core::SystemPool,
    control: TenantPool,
    ways: Arc<Ways>,
    pools: tokio::sync::Mutex<HashMap<String, TenantPool>>,
    known: Mutex<HashMap<TenantId, (Address, i64)>>,
}

impl Binding {
    async fn look_up(&self, tenant: TenantId) -> Result<(Address, i64), CoreError> {
        if let Some(known) = self.known.lock().unwrap().get(&tenant) {
            return Ok(known.clone());
        }
        let mut tx = SystemTx::begin(&self.system, Actor::system("test"), "look a placement up").await?;
        let row: Option<(String, Option<String>, Option<String>, i64)> = sqlx::query_as(
            "select cluster, database_name, schema_name, generation from saas.placement where tenant_id = $1",
        )
        .bind(tenant.as_uuid())
        .fetch_optional(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
        let found = match row {
            None => (Address::pooled("control"), 0),
            Some((cluster, Some(database), _, generation)) => (Address::database(cluster, database), generation),
            Some((cluster, None, Some(schema), generation)) => (Address::schema(cluster, schema), generation),
            Some((cluster, None, None, generation)) => (Address::pooled(cluster), generation),
        };
        self.known.lock().unwrap().insert(tenant, found.clone());
        Ok(found)
    }
}

#[async_trait]
impl SessionBinding for Binding {
    async fn place(&self, ctx: &dyn TenantContext) -> Result<Place, CoreError> {
        let (address, generation) = self.look_up(ctx.tenant()).await?;
        let place = match &address.database {
            None => Place::pooled(&self.control),
            Some(name) => {
                let mut pools = self.pools.lock().await;
                if !pools.contains_key(name) {
                    let login = self.ways.login(&address).username("saas_app");
                    let pool = pool_options().max_connections(6).connect_lazy_with(login);
                    pools.insert(name.clone(), TenantPool::open(pool, &[&CORE]).await?);
                }
                Place::pooled(&pools[name])
            }
        };
        let place = place.at_generation(Generation::new(generation));
        Ok(match &address.schema {
            Some(schema) => place.in_schema(schema.parse::<SchemaName>()?),
            // Shared tables are in `public`, which is on the search path of every login.
            None => place,
        })
    }

    fn refused(&self, tenant: TenantId) {
        self.known.lock().unwrap().remove(&tenant);
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let db = TestDatabase::builder().max_connections(8).max_system_connections(6).start(&[&CORE, &SCHEMA]).await;
        let mut owner = db.owner().await;
        owner.execute(TABLES).await.unwrap();
        owner.execute("grant usage on schema public to saas_app, saas_system").await.unwrap();
        let (acme, other) = (db.create_tenant("acme").await, db.create_tenant("other").await);
        let admin: PgConnectOptions = second().admin_url().parse().unwrap();
        let (name,): (String,) = sqlx::query_as("select current_user::text").fetch_one(&mut owner).await.unwrap();
        let ways =
            Arc::new(Ways { control: db.options(&name), second: admin, keeps_databases: AtomicBool::new(false) });
        let binding = Arc::new(Binding {
            system: db.system().clone(),
            control: db.tenants().clone(),
            ways: ways.clone(),
            pools: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        });
        let mover = Mover::new(db.system().clone(), ways.clone(), Arc::new(db.clock().clone()));
        let world = Self { db, acme, other, binding, mover, ways };
        for ctx in [&world.acme, &world.other] {
            world.seed(ctx, 200).await;
        }
        world
    }

    /// Rows of every kind.
    pub(crate) async fn seed(&self, ctx: &RequestContext, rows: i32) {
        let mut owner = self.db.owner().await;
        let tenant = ctx.tenant().as_uuid();
        for statement in [
            "insert into project (tenant_id, name, country) select $1, 'project ' || n, 'de' from generate_series(1, $2) n",
            "update project p set parent = (select id from project q where q.tenant_id = $1 and q.name = 'project ' || (1 + $2 - split_part(p.name, ' ', 2)::int)) where tenant_id = $1",
            "insert into task (tenant_id, project_id, detail, moods, cost, blob)
             select tenant_id, id, '{\"a\": \"\\u0000\", \"a\": 1.0}', '{fine,\"so so\"}', 1.5, '\\x00ff' from project where tenant_id = $1 and $2 > 0",
            "insert into entry (tenant_id, what) select $1, 'it''s \"' || chr(233) || n || E'\\t\\n\\\\' from generate_series(1, $2) n",
            "insert into event select $1, '2025-12-31'::timestamptz + n * interval '10 minutes 1 microsecond', 'seen' from generate_series(1, $2) n",
        ] {
            sqlx::query(statement).bind(tenant).bind(rows).execute(&mut owner).await.unwrap();
        }
    }

    /// Makes a schema of the tenant's own in the control database.
    pub(crate) async fn make_schema(&self) -> Address {
        let schema = SchemaName::of(self.acme.tenant());
        let schema = schema.as_str();
        let mut owner = self.db.owner().await;
        let script = format!(
            "create schema {schema}; grant usage on schema {schema} to saas_app, saas_system; set search_path = {schema}; {TABLES}"
        );
        owner.execute(AssertSqlSafe(script)).await.unwrap();
        Address::schema("control", schema)
    }

    /// Makes a database of the tenant's own on the second server.
    pub(crate) async fn make_database(&self) -> Address {
        let name = format!("t_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect_with(&self.ways.second).await.unwrap();
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let address = Address::database("second", &name);
        migrate(&self.ways.login(&address), &[&CORE]).await.unwrap();
        let mut connection = self.ways.connect(&address).await;
        sqlx::query("insert into saas.tenant (id, slug, name, created_at) values ($1, 'acme', 'acme', now())")
            .bind(self.acme.tenant().as_uuid())
            .execute(&mut connection)
            .await
            .unwrap();
        connection.execute(TABLES).await.unwrap();
        connection.execute("grant usage on schema public to saas_app, saas_system").await.unwrap();
        address
    }

    /// Every row of a tenant at an address, as number and hash, table by table: independent of how the mover compares.
    pub(crate) async fn rows_at(&self, address: &Address, ctx: &RequestContext) -> Rows {
        let mut connection = self.ways.connect(address).await;
        let mut all = Vec::new();
        for name in NAMES {
            let query = format!("select to_json(t)::text from {name} t where tenant_id = $1 order by 1");
            let rows = sqlx::query_scalar(AssertSqlSafe(query)).bind(ctx.tenant().as_uuid());
            let rows: Vec<String> = rows.fetch_all(&mut connection).await.unwrap();
            let mut hash = DefaultHasher::new();
            rows.hash(&mut hash);
            all.push((name, rows.len(), hash.finish()));
        }
        all
    }

    pub(crate) async fn count_at(&self, address: &Address) -> usize {
        self.rows_at(address, &self.acme).await.iter().map(|(_, rows, _)| rows).sum()
    }

    /// Where the placement says that the tenant lives.
    pub(crate) async fn home(&self) -> (String, Option<String>, Option<String>, i64) {
        sqlx::query_as(
            "select coalesce(max(mode), 'pooled'), max(database_name), max(schema_name), coalesce(max(generation), 0)
             from saas.placement where tenant_id = $1",
        )
        .bind(self.acme.tenant().as_uuid())
        .fetch_one(&mut self.db.owner().await)
        .await
        .unwrap()
    }

    /// Triggers and log lines that a move left at an address.
    pub(crate) async fn traces_at(&self, address: &Address) -> i64 {
        sqlx::query_scalar(
            "select (select count(*) from pg_trigger where tgname like 'saas\\_move%') + (select count(*) from saas.move_change)",
        )
        .fetch_one(&mut self.ways.connect(address).await)
        .await
        .unwrap()
    }
}

pub(crate) fn operator() -> Actor {
    Actor::system("operator")
}
