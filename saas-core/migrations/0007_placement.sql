-- Where each tenant's own tables live. A tenant without a row lives in the shared tables of this database, at generation 0.

create table saas.placement (
    tenant_id       uuid primary key references saas.tenant (id) on delete restrict,
    mode            text not null check (mode in ('pooled', 'schema', 'database')),
    -- A cluster that the application configures by name; 'control' is the one of this database.
    cluster         text not null check (cluster <> ''),
    -- null: the cluster's shared database.
    database_name   text,
    -- null: the shared tables of that database.
    schema_name     text,
    -- The last migration of the application that was applied there; null while there is none of its own.
    schema_version  bigint,
    -- Grows with every move. A process that knows an older one is refused by saas.enter.
    generation      bigint not null check (generation >= 0),
    state           text not null check (state in ('provisioning', 'active', 'failed', 'moving')),
    reason          text,
    changed_at      timestamptz not null,
    check ((mode = 'pooled') = (schema_name is null and database_name is null)),
    check (mode <> 'schema' or schema_name is not null),
    check (mode <> 'database' or database_name is not null)
);
select saas.fence('saas.placement', 'select');
grant insert, update, delete on saas.placement to saas_system;

-- Who is at home in this database, and whether the door is open. Stands in every database that holds tenants' tables; a
-- tenant without a row is at generation 0, and open.
create table saas.resident (
    tenant_id   uuid primary key references saas.tenant (id) on delete restrict,
    generation  bigint not null check (generation >= 0),
    state       text not null check (state in ('open', 'read_only', 'closed')),
    reason      text
);
select saas.fence('saas.resident', 'select');
grant insert, update, delete on saas.resident to saas_system;

-- The door: part of the round trip that begins a tenant's transaction. Whoever closes it commits the closed row and then
-- takes the same lock exclusively: all who were in have left, and all who come later see the row.
create function saas.enter(of_tenant uuid, at_generation bigint)
returns void
language plpgsql
as $enter$
declare
    home    bigint;
    door    text;
    why     text;
begin
    if pg_catalog.current_setting('transaction_isolation') = 'read committed' then
        perform pg_catalog.pg_advisory_xact_lock_shared(saas.door(of_tenant));
    elsif not pg_catalog.pg_try_advisory_xact_lock_shared(saas.door(of_tenant)) then
        -- Its snapshot is older than the wait would be.
        raise exception 'saas.enter: the tenant is being moved' using errcode = 'serialization_failure';
    end if;
    -- A new snapshot, taken after the lock: what was committed meanwhile is seen.
    select r.generation, r.state, r.reason into home, door, why from saas.resident r where r.tenant_id = of_tenant;
    if coalesce(home, 0) <> at_generation then
        raise exception 'saas.enter: the tenant is at generation % here, not at %', coalesce(home, 0), at_generation
            using errcode = 'SA001', hint = 'It has moved: look up its placement again.';
    elsif door = 'closed' then
        raise exception 'saas.enter: the tenant is closed here: %', coalesce(why, 'it is being moved')
            using errcode = 'SA001', hint = 'Look up its placement again.';
    elsif door = 'read_only' then
        perform pg_catalog.set_config('transaction_read_only', 'on', true);
    end if;
end
$enter$;

-- The lock of a tenant's door.
create function saas.door(of_tenant uuid)
returns bigint
language sql
immutable strict parallel safe
return hashtextextended('saas.resident:' || of_tenant::text, 0);

revoke all on function saas.enter(uuid, bigint), saas.door(uuid) from public;
grant execute on function saas.enter(uuid, bigint), saas.door(uuid) to saas_app, saas_system;
comment on function saas.enter(uuid, bigint) is
    'Refuses a transaction of a tenant that is not at home here at that generation, or whose door is closed.';
