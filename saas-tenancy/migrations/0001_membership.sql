-- People, and what they are in which tenant.

-- One row per address, across all tenants, so that a person has one account. Only the system role reads it: whether an
-- address exists is nobody's business.
create table saas.user_account (
    id          uuid primary key,
    email       text not null unique,
    created_at  timestamptz not null
);
revoke all on saas.user_account from public;
grant select, insert, update, delete on saas.user_account to saas_system;
select saas.declare_global('saas.user_account', 'a person has one account across all tenants; only the system role reads it', 'system');

create table saas.membership (
    tenant_id   uuid not null references saas.tenant (id) on delete restrict,
    user_id     uuid not null references saas.user_account (id) on delete restrict,
    role        text not null check (role in ('owner', 'admin', 'billing', 'member', 'viewer')),
    created_at  timestamptz not null,
    primary key (tenant_id, user_id)
);
-- The tenants that a person can enter.
create index membership_by_user on saas.membership (user_id);
-- Reading is the tenant's; every change goes through the service, which checks permission, rank and the last owner.
select saas.fence('saas.membership', 'select');
grant insert, update, delete on saas.membership to saas_system;
