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
    last_active_at  timestamptz,
    near_limit      boolean not null default false
);
select saas.fence('saas.tenant_overview', 'select, update');
grant insert, delete on saas.tenant_overview to saas_system;
