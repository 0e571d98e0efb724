//! Every counter store keeps the contract; PostgreSQL's keeps it with the rest of the database.

use std::sync::Arc;

use saas_core::{Actor, Clock, RequestContext, Revision, TenantId, UserId, testing::TestDatabase};
use saas_entitlements::{
    PostgresCounters, SCHEMA, conformance::Fixture, counter_store_conformance, memory::MemoryCounters,
};

async fn postgres() -> Fixture {
    let database = TestDatabase::builder().max_connections(8).start(&[&saas_core::SCHEMA, &SCHEMA]).await;
    let tenants = [database.create_tenant("acme").await, database.create_tenant("globex").await];
    let store = PostgresCounters::new(Arc::new(database.tenants().clone()));
    Fixture::new(Arc::new(store), tenants, Revision::new(1), database)
}

async fn memory() -> Fixture {
    let clock = saas_core::TestClock::starting("2026-01-15T12:00:00Z");
    let tenant = || {
        let actor = Actor::user(UserId::mint(&clock));
        RequestContext::new_at(TenantId::mint(&clock), actor, clock.now())
    };
    Fixture::new(Arc::new(MemoryCounters::new()), [tenant(), tenant()], Revision::new(1), ())
}

counter_store_conformance!(on_postgres, postgres);
counter_store_conformance!(in_memory, memory);
