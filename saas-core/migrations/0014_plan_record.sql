-- Which plan each tenant was on, since when: so that the past can be asked, whatever answers for plans.

-- Written by the source of plans, in the transaction that raises the revision. Append-only.
create table saas.plan_record (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    -- The name of whoever answers for plans: what a test mode told is not what real money bought.
    source       text not null check (source ~ '^[a-z][a-z0-9._-]{0,62}$'),
    revision     bigint not null check (revision > 0),
    -- Never before the row of an earlier revision, whatever the clocks of the writers say.
    at           timestamptz not null,
    -- Plan, version, standing, anchor, end, add-ons, since when and what before; null: nothing was ever bought, and the
    -- default plan holds.
    assignment   jsonb,
    primary key (tenant_id, source, revision)
);
-- What was in force at an instant, and the latest instant.
create index plan_record_by_time on saas.plan_record (tenant_id, source, at, revision);
select saas.fence('saas.plan_record', 'select, insert');

-- It goes with its tenant. Nothing else may delete it.
grant delete on saas.plan_record to saas_system;
