//! What the tests of places have in common: databases with the foundation's tables, and clusters that lead to them.

use std::time::Duration;

use futures_util::future::join_all;
use saas_core::{RequestId, SCHEMA as CORE, Schema, SystemClock, testing::TestDatabase};
use saas_tenancy::{
    SCHEMA,
    placement::{Cluster, ClusterName, Clusters, Database, PoolLimits, Pools},
};
use sqlx::{AssertSqlSafe, Executor, postgres::PgConnectOptions};

pub(crate) static IN_EVERY_DATABASE: [&Schema; 1] = [&CORE];

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

    pub(crate) async fn finish(self) {
        for name in &self.made {
            let drop = format!("drop database if exists {name} with (force)");
            self.db.owner().await.execute(AssertSqlSafe(drop)).await.unwrap();
        }
    }
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
