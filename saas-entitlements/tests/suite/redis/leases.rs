//! Leases out of Redis keep the contract of every lease store, on one server and on a cluster.

use std::{sync::Arc, time::Duration};

use saas_core::{Revision, testing::TestDatabase};
use saas_entitlements::{
    PostgresLeases, Redis, RedisLeaseOptions, RedisLeases, SCHEMA, lease_conformance::Fixture, lease_store_conformance,
};

use super::{clustered, server, single};

async fn fixture(redis: Redis, options: RedisLeaseOptions) -> Fixture {
    let database = TestDatabase::builder().max_connections(8).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let tenants = [database.create_tenant("acme").await, database.create_tenant("globex").await];
    let leases = PostgresLeases::new(Arc::new(database.tenants().clone()));
    // A machine that is busy with other tests is not a Redis that is down, and nobody ticks but the test.
    let options = options
        .with_answer_within(Duration::from_secs(10))
        .with_tick(Duration::from_secs(3_600))
        .with_pause(Duration::ZERO);
    let store = RedisLeases::start(leases, redis, Arc::new(database.clock().clone()), options);
    Fixture::new(Arc::new(store), tenants, Revision::new(1), database)
}

async fn on_a_server() -> Fixture {
    fixture(single(&server().url()), RedisLeaseOptions::default()).await
}

async fn on_a_server_that_lends_one_lease_at_once() -> Fixture {
    fixture(single(&server().url()), RedisLeaseOptions::default().with_pool_of(1)).await
}

async fn on_a_cluster() -> Fixture {
    fixture(clustered(), RedisLeaseOptions::default()).await
}

lease_store_conformance!(on_one_server, on_a_server);
lease_store_conformance!(on_one_server_in_pools_of_one_lease, on_a_server_that_lends_one_lease_at_once);
lease_store_conformance!(in_a_cluster, on_a_cluster);
