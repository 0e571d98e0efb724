-- Which plan a tenant is on, for applications without billing; and what could be done in the past, and why.

-- A tenant without a row is on the default plan.
create table saas.plan_assignment (
    tenant_id    uuid primary key references saas.tenant (id) on delete restrict,
    -- Plan, version, standing, anchor, end and add-ons; checked against the catalogue before it is written.
    assigned     jsonb not null,
    plan         text not null generated always as (assigned ->> 'plan') stored,
    version      integer not null generated always as ((assigned ->> 'version')::integer) stored,
    assigned_by  text not null check (assigned_by <> ''),
    assigned_at  timestamptz not null
);
-- Who is on a version, page by page.
create index plan_assignment_by_version on saas.plan_assignment (plan, version, tenant_id);
select saas.fence('saas.plan_assignment', 'select, insert, update');

-- One trial for ever: a row is never changed.
create table saas.plan_trial (
    tenant_id    uuid primary key references saas.tenant (id) on delete restrict,
    plan         text not null,
    version      integer not null check (version > 0),
    started_by   text not null check (started_by <> ''),
    started_at   timestamptz not null,
    ends_at      timestamptz not null check (ends_at > started_at)
);
select saas.fence('saas.plan_trial', 'select, insert');

-- What decided from `at` on beside the plan, written in the transaction that changed it. Append-only. The plan is in
-- saas.plan_record.
create table saas.entitlement_history (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    revision     bigint not null check (revision > 0),
    -- Never before the row of an earlier revision, whatever the clocks of the writers say.
    at           timestamptz not null,
    overrides    jsonb not null,
    cohorts      jsonb not null,
    primary key (tenant_id, revision)
);
-- What was in force at an instant, and the latest instant.
create index entitlement_history_by_time on saas.entitlement_history (tenant_id, at, revision);
select saas.fence('saas.entitlement_history', 'select, insert');

-- What was sold, since when. Append-only.
create table saas.catalog_edition (
    number        bigint generated always as identity primary key,
    -- The 64 bits of the catalogue's fingerprint.
    fingerprint   bigint not null,
    document      text not null,
    published_by  text not null check (published_by <> ''),
    published_at  timestamptz not null
);
revoke all on saas.catalog_edition from public;
grant select, insert on saas.catalog_edition to saas_system;
select saas.declare_global('saas.catalog_edition', 'the plan catalogue is the vendor''s; only the system role reads it', 'system');

-- They go with their tenant. Nothing else may delete them.
grant delete on saas.plan_assignment, saas.plan_trial, saas.entitlement_history to saas_system;
