//! A PostgreSQL of the benchmark's own that keeps its promises: every commit waits for the disk.

use std::sync::Arc;

use saas_core::{
    Actor, Clock, RequestContext, Schema, SystemClock, SystemPool, TenantId, TenantPool, UserId,
    db::pool_options,
    migrate,
    testing::{DevServer, Durability},
};
use sqlx::{
    ConnectOptions, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

/// The server, with the tables of some schemas and tenants in it.
#[derive(Debug)]
pub struct Server {
    admin: PgConnectOptions,
    schemas: Vec<&'static Schema>,
    tenants: Vec<RequestContext>,
    _server: DevServer,
}

impl Server {
    /// Starts a server and makes `tenants` tenants.
    ///
    /// # Errors
    /// When it cannot be had, with what to do.
    pub async fn start(schemas: &[&'static Schema], tenants: usize) -> anyhow::Result<Self> {
        let server = DevServer::start_own(Durability::Full)?;
        let admin: PgConnectOptions = server.admin_url().parse()?;
        migrate(&admin, schemas).await?;
        let mut owner = admin.connect().await?;
        let durable: (String, String) =
            sqlx::query_as("select current_setting('fsync'), current_setting('synchronous_commit')")
                .fetch_one(&mut owner)
                .await?;
        anyhow::ensure!(durable == ("on".into(), "on".into()), "the server does not wait for the disk: {durable:?}");
        let now = SystemClock.now();
        let ids: Vec<TenantId> = (0..tenants).map(|_| TenantId::mint_at(now)).collect();
        sqlx::query(
            "insert into saas.tenant (id, slug, name, created_at)
             select id, 't' || n, 't' || n, $2 from unnest($1::uuid[]) with ordinality as t (id, n)",
        )
        .bind(ids.iter().map(|id| id.as_uuid()).collect::<Vec<Uuid>>())
        .bind(now)
        .execute(&mut owner)
        .await?;
        let context = |id| RequestContext::new_at(id, Actor::user(UserId::mint_at(now)), now);
        let tenants = ids.into_iter().map(context).collect();
        Ok(Self { admin, schemas: schemas.to_vec(), tenants, _server: server })
    }

    /// The tenants.
    #[must_use]
    pub fn tenants(&self) -> &[RequestContext] {
        &self.tenants
    }

    /// A session of the superuser.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn owner(&self) -> anyhow::Result<PgConnection> {
        Ok(self.admin.connect().await?)
    }

    /// Makes tables of a floor, which the application's login may read and change.
    ///
    /// # Errors
    /// When the statements fail.
    pub async fn make(&self, tables: &'static str) -> anyhow::Result<()> {
        let mut owner = self.owner().await?;
        owner.execute(tables).await?;
        owner
            .execute(
                "select saas.declare_global(c.oid::regclass, 'the floor of a benchmark')
                 from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r';
                 grant usage on schema public to saas_app, saas_system;
                 grant select, insert, update on all tables in schema public to saas_app, saas_system",
            )
            .await?;
        Ok(())
    }

    /// A pool of `login` with so many connections, all of them open.
    ///
    /// # Errors
    /// When they cannot be had.
    pub async fn pool(&self, login: &str, connections: u32) -> anyhow::Result<PgPool> {
        let options: PgPoolOptions = pool_options().max_connections(connections).min_connections(connections);
        Ok(options.connect_with(self.admin.clone().username(login)).await?)
    }

    /// Where `login` reaches the database, for another process.
    #[must_use]
    pub fn url(&self, login: &str) -> String {
        self.admin.clone().username(login).to_url_lossy().to_string()
    }

    /// The pool that services of tenants get.
    ///
    /// # Errors
    /// As [`pool`](Self::pool).
    pub async fn tenant_pool(&self, connections: u32) -> anyhow::Result<Arc<TenantPool>> {
        Ok(Arc::new(TenantPool::open(self.pool("saas_app", connections).await?, &self.schemas).await?))
    }

    /// The pool that workers get.
    ///
    /// # Errors
    /// As [`pool`](Self::pool).
    pub async fn system_pool(&self, connections: u32) -> anyhow::Result<SystemPool> {
        Ok(SystemPool::open(self.pool("saas_system", connections).await?, &self.schemas).await?)
    }
}
