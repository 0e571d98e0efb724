//! The tier keeps the contract of every counter store, on one server and on a cluster: as it comes, and where it lends as
//! much and as often as it can.

use std::{sync::Arc, time::Duration};

use saas_core::{Revision, testing::TestDatabase};
use saas_entitlements::{
    PostgresCounters, Redis, RedisTier, SCHEMA, TierOptions, conformance::Fixture, counter_store_conformance,
};

use super::{clustered, server, single};

async fn fixture(redis: Redis, options: TierOptions) -> Fixture {
    let database = TestDatabase::builder().max_connections(8).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let tenants = [database.create_tenant("acme").await, database.create_tenant("globex").await];
    let counters = PostgresCounters::new(Arc::new(database.tenants().clone()));
    // A machine that is busy with other tests is not a Redis that is down.
    let options = options.with_answer_within(Duration::from_secs(10));
    let tier = RedisTier::start(counters, redis, Arc::new(database.clock().clone()), options);
    Fixture::new(Arc::new(tier), tenants, Revision::new(1), database)
}

/// Slices of one unit and more, of all that is left, at every use.
fn greedy() -> TierOptions {
    TierOptions::default().with_exposed_share(1).with_size(1, 1_000).with_pause(Duration::ZERO)
}

async fn as_it_comes() -> Fixture {
    fixture(single(&server().url()), TierOptions::default()).await
}

async fn greedily() -> Fixture {
    fixture(single(&server().url()), greedy()).await
}

async fn greedily_on_a_cluster() -> Fixture {
    fixture(clustered(), greedy()).await
}

counter_store_conformance!(on_one_server, as_it_comes);
counter_store_conformance!(on_one_server_that_lends_greedily, greedily);
counter_store_conformance!(on_a_cluster_that_lends_greedily, greedily_on_a_cluster);
