-- The registry of tenants, and the revision that tells every process that something about a tenant changed.

create table saas.tenant (
    id          uuid primary key,
    slug        text not null,
    name        text not null check (char_length(name) between 1 and 200),
    revision    bigint not null default 1 check (revision > 0),
    created_at  timestamptz not null
);
select saas.fence('saas.tenant', 'select');
grant update (name, revision) on saas.tenant to saas_app;
grant insert, update, delete on saas.tenant to saas_system;

-- Slugs are unique across tenants, which a tenant's own table must not reveal: a table of its own, for the system only.
create table saas.tenant_slug (
    slug        text primary key,
    tenant_id   uuid not null references saas.tenant (id) on delete restrict
);
revoke all on saas.tenant_slug from public;
grant select, insert, update, delete on saas.tenant_slug to saas_system;
select saas.declare_global('saas.tenant_slug', 'slugs are unique across tenants; only the system role reads them', 'system');

-- Whoever changes what the gate answers calls this in the same transaction; every process hears of it at commit.
-- The payload is an id and a number: every role of the database can listen.
create function saas.bump_revision(of_tenant uuid)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    bumped bigint;
begin
    update saas.tenant set revision = revision + 1 where id = of_tenant returning revision into bumped;
    if bumped is not null then
        perform pg_notify('saas_revision', of_tenant::text || ':' || bumped::text);
    end if;
    return bumped;
end
$$;
revoke all on function saas.bump_revision(uuid) from public;
grant execute on function saas.bump_revision(uuid) to saas_app, saas_system;
