-- Places that were made ahead, for tenants to come. Only the system role reads and writes it.

-- One row per place. It goes away in the transaction that gives the place to a tenant, whose placement then names it.
create table saas.ready_place (
    cluster         text not null check (cluster <> ''),
    -- '': the cluster's shared database.
    database_name   text not null,
    -- '': the schema public.
    schema_name     text not null,
    mode            text not null check (mode in ('schema', 'database')),
    -- 'making' and 'removing' belong to the one refill that is under way, or to the next one if that was killed.
    state           text not null check (state in ('making', 'ready', 'failed', 'removing')),
    -- The last migration of the application that was applied there; null while it is being made for the first time.
    version         bigint,
    -- Why it could not be made.
    reason          text,
    changed_at      timestamptz not null,
    primary key (cluster, database_name, schema_name),
    check ((mode = 'schema') = (schema_name <> '') and (mode = 'database') = (database_name <> '')),
    check (state <> 'ready' or version is not null)
);
-- The oldest one that fits, for whoever claims.
create index ready_place_claim on saas.ready_place (cluster, mode, changed_at) where state = 'ready';

revoke all on saas.ready_place from public;
grant select, insert, update, delete on saas.ready_place to saas_system;
select saas.declare_global('saas.ready_place', 'nobody''s yet: places made ahead; only the system role reads it', 'system');
