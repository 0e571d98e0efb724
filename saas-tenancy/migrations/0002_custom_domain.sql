-- Domains of tenants' own: who claims one, and who has shown that it is theirs.

-- What one tenant claims. Others may claim the same; nobody sees that of another.
create table saas.custom_domain (
    tenant_id      uuid not null references saas.tenant (id) on delete restrict,
    domain         text not null check (domain ~ '^[a-z0-9-]+(\.[a-z0-9-]+)+$' and length(domain) <= 237),
    -- What the tenant publishes. Random, and new with every claim, so that an old record proves nothing.
    token          uuid not null,
    state          text not null default 'pending' check (state in ('pending', 'active', 'lost')),
    claimed_at     timestamptz not null check (isfinite(claimed_at)),
    verified_at    timestamptz check (isfinite(verified_at)),
    -- Since when an active domain has been without its proof.
    failing_since  timestamptz check (isfinite(failing_since)),
    primary key (tenant_id, domain),
    check (state <> 'active' or verified_at is not null)
);
-- Reading is the tenant's; every change goes through the service, which asks for the proof.
select saas.fence('saas.custom_domain', 'select');
grant insert, update, delete on saas.custom_domain to saas_system;

-- A domain leads to one tenant, across all of them, which a tenant's own table must not reveal: a table of its own, for
-- the system only.
create table saas.active_domain (
    domain       text primary key,
    tenant_id    uuid not null,
    -- The start of the last look that found the proof.
    proven_at    timestamptz not null check (isfinite(proven_at)),
    -- The start of the last look, whatever it found.
    checked_at   timestamptz not null check (isfinite(checked_at)),
    -- What is not claimed leads nowhere, also when a tenant is erased.
    foreign key (tenant_id, domain) references saas.custom_domain (tenant_id, domain) on delete cascade
);
-- The next to be looked at again.
create index active_domain_by_check on saas.active_domain (checked_at, domain);
-- The foreign key's other side.
create index active_domain_by_tenant on saas.active_domain (tenant_id);
revoke all on saas.active_domain from public;
grant select, insert, update, delete on saas.active_domain to saas_system;
select saas.declare_global('saas.active_domain', 'a domain leads to one tenant; only the system role reads which', 'system');
