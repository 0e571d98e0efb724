-- One row per tenant for operators' lists. Each crate writes its own columns, in the transaction that changes them.

create table saas.tenant_overview (
    tenant_id       uuid primary key references saas.tenant (id) on delete restrict,
    name            text not null,
    -- billing
    plan            text,
    standing        text not null default 'active' check (standing in ('active', 'grace', 'suspended')),
    mrr_minor       bigint not null default 0,
    currency        text check (currency ~ '^[a-z]{3}$'),
    -- tenancy
    seats           integer not null default 0 check (seats >= 0),
    -- entitlements
    last_active_at  timestamptz check (isfinite(last_active_at)),
    -- when the last open window with a warning ends; a flag would outlive its window
    near_limit_until timestamptz
);
-- The operators' filters, each in the order of the list.
create index tenant_overview_by_plan on saas.tenant_overview (plan, tenant_id);
create index tenant_overview_by_standing on saas.tenant_overview (standing, tenant_id);
create index tenant_overview_near_limit on saas.tenant_overview (tenant_id, near_limit_until)
    where near_limit_until is not null;
select saas.fence('saas.tenant_overview', 'select');
-- What a tenant's own use changes; the rest is the system's.
grant update (last_active_at, near_limit_until) on saas.tenant_overview to saas_app;
grant insert, update, delete on saas.tenant_overview to saas_system;
