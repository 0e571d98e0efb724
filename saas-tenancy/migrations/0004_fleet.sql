-- What is known about the places that hold the application's own tables: how far they are migrated, and how making one is
-- getting on. Only the system role reads and writes it.

-- One row per place: the shared tables of a cluster, or those of one tenant.
create table saas.fleet_site (
    cluster         text not null,
    -- '': the cluster's shared database.
    database_name   text not null,
    -- '': the schema public.
    schema_name     text not null,
    -- null: several tenants live there.
    tenant_id       uuid references saas.tenant (id) on delete restrict,
    -- The last migration of the application that was applied; null for none.
    version         bigint,
    -- The last try, if it failed: at which migration (null: before the first), and why.
    failed          boolean not null default false,
    failed_version  bigint,
    error           text,
    tries           integer not null default 0 check (tries >= 0),
    changed_at      timestamptz not null,
    primary key (cluster, database_name, schema_name)
);
-- The operators' list of what failed.
create index fleet_site_failed on saas.fleet_site (changed_at) where failed;

-- One row per migration that was applied in a place.
create table saas.fleet_step (
    cluster         text not null,
    database_name   text not null,
    schema_name     text not null,
    version         bigint not null,
    description     text not null,
    applied_at      timestamptz not null,
    -- null: it was applied by someone else, or by a process that did not live to tell.
    took_us         bigint check (took_us >= 0),
    primary key (cluster, database_name, schema_name, version),
    foreign key (cluster, database_name, schema_name) references saas.fleet_site on delete cascade
);

-- How far the making of a tenant's place has come. The row goes away when the place is served or abandoned.
create table saas.provisioning (
    tenant_id   uuid primary key references saas.tenant (id) on delete restrict,
    -- The last step that is complete.
    step        text not null check (step in ('requested', 'created', 'prepared', 'migrated', 'examined')),
    tries       integer not null default 0 check (tries >= 0),
    changed_at  timestamptz not null
);

revoke all on saas.fleet_site, saas.fleet_step, saas.provisioning from public;
grant select, insert, update, delete on saas.fleet_site, saas.fleet_step, saas.provisioning to saas_system;
select saas.declare_global('saas.fleet_site', 'operators migrate all places; only the system role reads it', 'system'),
       saas.declare_global('saas.fleet_step', 'operators migrate all places; only the system role reads it', 'system'),
       saas.declare_global('saas.provisioning', 'operators make places; only the system role reads it', 'system');
