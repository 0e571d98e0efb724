//! What the tests of places have in common: databases with the foundation's tables, clusters that lead to them, and an
//! application's tables.

use std::{sync::Arc, sync::OnceLock, time::Duration};

use futures_util::future::join_all;
use saas_core::{
    CoreError, RequestContext, RequestId, SCHEMA as CORE, Schema, SessionBinding, SystemClock, SystemTx, TenantContext,
    TenantId, TenantTx,
    db::TenantWork,
    testing::{DevServer, Durability, TestDatabase},
};
use saas_tenancy::{
    SCHEMA,
    placement::{
        Blueprint, Cluster, ClusterName, Clusters, Database, KnownVersions, Placement, Placements, PlacementsBuilder,
        PoolLimits, Pools, Provisioner, record,
    },
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Executor, PgConnection, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};

pub(crate) static IN_EVERY_DATABASE: [&Schema; 1] = [&CORE];

pub(crate) const PROJECT: &str = "create table project (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        primary key (tenant_id, id)
    );
    select saas.fence('project');";
pub(crate) const TASK: &str = "create table task (
        tenant_id   uuid not null references saas.tenant (id),
        id          uuid not null default gen_random_uuid(),
        project_id  uuid not null,
        title       text not null,
        primary key (tenant_id, id),
        foreign key (tenant_id, project_id) references project (tenant_id, id) on delete cascade
    );
    create index task_by_project on task (tenant_id, project_id);
    select saas.fence('task');";
pub(crate) const ARCHIVED: &str = "alter table project add column archived boolean not null default false;";

/// An application's migrations, numbered from 1.
pub(crate) fn blueprint(files: &[&'static str]) -> Blueprint {
    let one = |(n, sql): (i64, &&'static str)| {
        Migration::new(n, format!("step {n}").into(), MigrationType::Simple, (*sql).into_sql_str(), false)
    };
    Blueprint::new(&Migrator::with_migrations((1..).zip(files).map(one).collect())).unwrap()
}

pub(crate) struct Stage {
    pub(crate) db: TestDatabase,
    made: Vec<String>,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        Self { db: TestDatabase::start(&[&CORE, &SCHEMA]).await, made: Vec::new() }
    }

    /// Databases with the kernel's tables, beside the control database.
    pub(crate) async fn databases(&mut self, count: usize) -> Vec<Database> {
        let names: Vec<String> = (0..count).map(|_| name()).collect();
        for name in &names {
            self.db.owner().await.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        }
        self.made.extend(names.clone());
        join_all(names.iter().map(|name| async {
            saas_core::migrate(&self.db.owner_options().database(name), &IN_EVERY_DATABASE).await.unwrap();
        }))
        .await;
        names.iter().map(|name| on_control(name)).collect()
    }

    pub(crate) fn cluster(&self) -> Cluster {
        Cluster::new(self.db.options("saas_app"), self.db.options("saas_system")).with_admin(self.db.owner_options())
    }

    pub(crate) fn clusters(&self) -> Clusters {
        Clusters::new(self.cluster())
    }

    /// The control cluster, and `eu`, a second server.
    pub(crate) fn two_clusters(&self) -> Clusters {
        let login = |role: &str| second_server().username(role).database("postgres");
        let eu = Cluster::new(login("saas_app"), login("saas_system")).with_admin(second_server());
        self.clusters().with_cluster("eu".parse().unwrap(), eu).unwrap()
    }

    pub(crate) fn provisioner(&self, files: &[&'static str]) -> Provisioner {
        let clock = Arc::new(self.db.clock().clone());
        Provisioner::new(self.db.system().clone(), self.two_clusters(), blueprint(files), clock)
    }

    pub(crate) fn placements(&self) -> PlacementsBuilder {
        let pools = pools(self.two_clusters(), limits());
        Placements::builder(self.db.tenants().clone(), self.db.system().clone(), pools)
    }

    /// A binding that serves the newest version of `files`.
    pub(crate) fn serving(&self, files: &[&'static str]) -> Placements {
        self.placements().serving(KnownVersions::newest(&blueprint(files))).build()
    }

    pub(crate) async fn placement(&self, tenant: TenantId) -> Option<Placement> {
        let mut tx = self.system("look at a placement").await;
        record::find_in(&mut tx, tenant).await.unwrap()
    }

    pub(crate) async fn system(&self, reason: &'static str) -> SystemTx {
        SystemTx::begin(self.db.system(), saas_core::Actor::system("test"), reason).await.unwrap()
    }

    /// A superuser's connection to a database.
    pub(crate) async fn owner_of(&self, database: &Database) -> Result<PgConnection, sqlx::Error> {
        let options =
            if database.cluster == ClusterName::control() { self.db.owner_options() } else { second_server() };
        match &database.name {
            Some(name) => options.database(name.as_str()).connect().await,
            None => options.connect().await,
        }
    }

    /// Makes the shared tables, as an application does that has no other places.
    pub(crate) async fn shared_tables(&self, files: &[&'static str]) {
        let mut owner = self.db.owner().await;
        for file in files {
            owner.execute(*file).await.unwrap();
        }
    }

    pub(crate) async fn finish(self) {
        for name in &self.made {
            let drop = format!("drop database if exists {name} with (force)");
            self.db.owner().await.execute(AssertSqlSafe(drop)).await.unwrap();
        }
    }
}

/// Another PostgreSQL, ended with the process.
fn second_server() -> PgConnectOptions {
    static SERVER: OnceLock<DevServer> = OnceLock::new();
    SERVER.get_or_init(|| DevServer::start_own(Durability::None).unwrap()).admin_url().parse().unwrap()
}

/// A name that tells its age, so that a later run sweeps what a killed one leaves.
fn name() -> String {
    format!("saas_test_{}", RequestId::mint(&SystemClock).as_uuid().simple())
}

pub(crate) fn on_control(name: &str) -> Database {
    Database { cluster: ClusterName::control(), name: Some(name.parse().unwrap()) }
}

pub(crate) fn on(cluster: &str, name: &str) -> Database {
    Database { cluster: cluster.parse().unwrap(), name: Some(name.parse().unwrap()) }
}

/// Limits of a test: generous, so that a slow machine changes nothing but the duration.
pub(crate) fn limits() -> PoolLimits {
    PoolLimits::default().with_acquire_timeout(Duration::from_secs(30)).with_connect_timeout(Duration::from_secs(20))
}

pub(crate) fn pools(clusters: Clusters, limits: PoolLimits) -> Pools {
    Pools::new(clusters, &IN_EVERY_DATABASE, limits).unwrap()
}

pub(crate) fn at(options: PgConnectOptions, address: std::net::SocketAddr) -> PgConnectOptions {
    options.host(&address.ip().to_string()).port(address.port())
}

/// What every tenant does, in whichever mode: the same code for all.
pub(crate) async fn add_project(
    binding: &dyn SessionBinding,
    ctx: &RequestContext,
    name: &str,
) -> Result<(), CoreError> {
    let mut tx = TenantTx::begin(binding, ctx).await?;
    sqlx::query("insert into project (tenant_id, name) values ($1, $2)")
        .bind(ctx.tenant().as_uuid())
        .bind(name)
        .execute(&mut *tx)
        .await
        .map_err(CoreError::from_database)?;
    tx.commit().await
}

pub(crate) async fn projects(binding: &Placements, ctx: &RequestContext) -> Result<Vec<String>, CoreError> {
    binding
        .read(ctx, async |tx| {
            sqlx::query_scalar("select name from project order by name")
                .fetch_all(&mut **tx)
                .await
                .map_err(CoreError::from_database)
        })
        .await
}
