-- The end of a tenant that has a place of its own, and exports as jobs.

-- An erasure reaches into the place of a tenant's own tables.
alter table saas.erasure
    -- Where the tenant's own tables were when it began; null: among the shared ones of this database.
    add column place text;
alter table saas.erasure_step
    -- Whether the table is in that place. The place itself is the row with the name ''.
    add column at_place boolean not null default false,
    -- Rows that were counted behind the closed door of the place, before any went: what another database has committed is
    -- not known here when a process dies in between. For the place itself, 0 as soon as its door is closed.
    add column rows_found bigint check (rows_found >= 0),
    drop constraint erasure_step_pkey,
    add primary key (tenant_id, at_place, table_name);

-- One row per export that was asked for.
create table saas.export_job (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    id            uuid not null,
    state         text not null check (state in ('requested', 'running', 'done', 'failed', 'removed')),
    requested_by  text not null check (requested_by <> ''),
    requested_at  timestamptz not null check (isfinite(requested_at)),
    tries         integer not null default 0 check (tries >= 0),
    -- Under which ids something of it may lie in the target.
    attempts      uuid[] not null default '{}',
    -- How far it is.
    at_table      text,
    row_count     bigint not null default 0 check (row_count >= 0),
    byte_count    bigint not null default 0 check (byte_count >= 0),
    place         text,
    -- The code of what stopped it.
    failure       text,
    finished_at   timestamptz check (isfinite(finished_at)),
    -- When what lies in the target goes.
    expires_at    timestamptz check (isfinite(expires_at)),
    primary key (tenant_id, id),
    check ((state in ('done', 'failed')) <= (finished_at is not null and expires_at is not null)),
    check (state <> 'done' or place is not null)
);
-- Two at once for a tenant are one.
create unique index export_job_under_way on saas.export_job (tenant_id) where state in ('requested', 'running');
-- The next for a worker.
create index export_job_to_run on saas.export_job (requested_at, id) where state in ('requested', 'running');
-- The next to be removed.
create index export_job_to_remove on saas.export_job (expires_at, id) where state in ('done', 'failed');
select saas.fence('saas.export_job', 'select');
grant insert, update, delete on saas.export_job to saas_system;
select saas.omit_from_export('saas.export_job', 'attempts', 'ids in the vendor''s store'),
       saas.omit_from_export('saas.export_job', 'place', 'where the vendor keeps the files'),
       saas.omit_from_export('saas.export_job', 'failure', 'a note for the vendor''s operators');
