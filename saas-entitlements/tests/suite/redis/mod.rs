//! A real Redis, alone and as a cluster, beside a real PostgreSQL.

mod attacks;
mod cluster;
mod coherence;
mod counters;
mod leases;
mod lending;
mod shop;
mod values;

use std::{sync::OnceLock, time::Duration};

use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection, cluster::ClusterClient};
use saas_core::testing::{RedisCluster, RedisServer};
use saas_entitlements::Redis;

/// One for all tests that do not break it.
pub(crate) fn server() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(|| RedisServer::start().unwrap())
}

fn cluster() -> &'static RedisCluster {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    CLUSTER.get_or_init(|| RedisCluster::start().unwrap())
}

pub(crate) fn single(url: &str) -> Redis {
    Redis::single(Client::open(url).unwrap())
}

fn clustered() -> Redis {
    on(cluster())
}

fn on(cluster: &RedisCluster) -> Redis {
    let urls = cluster.urls();
    let nodes = urls.iter().map(|url| Client::open(url.as_str()).unwrap()).collect();
    Redis::cluster(ClusterClient::new(urls).unwrap(), nodes)
}

/// One that waits for a machine that is busy with other tests.
pub(crate) async fn connect(url: &str) -> MultiplexedConnection {
    let patience = Some(Duration::from_secs(60));
    let config = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
    Client::open(url).unwrap().get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Sends a command of plain words.
pub(crate) async fn ask<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> T {
    let mut connection = connect(url).await;
    let (command, rest) = words.split_first().unwrap();
    redis::cmd(command).arg(rest).query_async(&mut connection).await.unwrap()
}
