//! An adopter's own tables, soundly fenced.

use saas_core::{SCHEMA as CORE, testing::TestDatabase};
use saas_tenancy::SCHEMA;
use sqlx::Executor as _;

/// What an adopter writes in a migration of their own.
pub(crate) const TABLES: &str = "
    create table public.project (
        tenant_id  uuid not null references saas.tenant (id),
        id         uuid not null default gen_random_uuid(),
        name       text not null,
        primary key (tenant_id, id),
        unique (tenant_id, name)
    );
    create table public.task (
        tenant_id   uuid not null references saas.tenant (id),
        id          uuid not null default gen_random_uuid(),
        project_id  uuid not null,
        title       text not null,
        primary key (tenant_id, id),
        foreign key (tenant_id, project_id) references public.project (tenant_id, id) on delete cascade
    );
    create table public.event (
        tenant_id  uuid not null,
        at         timestamptz not null,
        what       text not null,
        primary key (tenant_id, at)
    ) partition by range (at);
    create table public.event_2026 partition of public.event for values from ('2026-01-01') to ('2027-01-01');
    create view public.project_names with (security_invoker = true) as select tenant_id, name from public.project;
    grant select on public.project_names to saas_app;
    create table public.country (code text primary key, name text not null);
    insert into public.country values ('DE', 'Germany');
    revoke all on public.country from public;
    grant select on public.country to saas_app;
    select saas.declare_global('public.country', 'the same list for everybody');
    select saas.fence('public.project'), saas.fence('public.task'), saas.fence('public.event');";

pub(crate) async fn start() -> TestDatabase {
    let database = TestDatabase::start(&[&CORE, &SCHEMA]).await;
    database.owner().await.execute(TABLES).await.unwrap();
    database
}
