-- A tenant's life after its creation: whether it may be served, what leaves with it, and what outlives it.

-- Absence of a row means: active.
create table saas.tenant_status (
    tenant_id   uuid primary key references saas.tenant (id) on delete restrict,
    state       text not null check (state in ('read_only', 'suspended', 'maintenance', 'erasing', 'erased')),
    -- For operators and the audit log, not for members.
    reason      text not null check (char_length(reason) between 1 and 500),
    changed_by  text not null check (changed_by <> ''),
    since       timestamptz not null check (isfinite(since))
);
-- A tenant reads its own status and cannot lift it: only the system writes.
select saas.fence('saas.tenant_status', 'select');
grant insert, update, delete on saas.tenant_status to saas_system;

-- Columns and tables that an export leaves out, such as secrets. column_name '' stands for the whole table.
create table saas.export_omission (
    name         text not null,
    column_name  text not null,
    reason       text not null check (reason <> ''),
    primary key (name, column_name)
);
-- Tables that an erasure keeps, and the law or the money that they are kept for.
create table saas.retained_table (
    name    text primary key,
    reason  text not null check (reason <> '')
);
revoke all on saas.export_omission, saas.retained_table from public;
grant select on saas.export_omission, saas.retained_table to saas_app, saas_system;
select saas.declare_global('saas.export_omission', 'names of tables and columns'),
       saas.declare_global('saas.retained_table', 'names of tables');

create function saas.omit_from_export(target regclass, omitted name, reason text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if omitted is not null and not exists (
        select from pg_attribute a where a.attrelid = target and a.attname = omitted and a.attnum > 0 and not a.attisdropped)
    then
        raise exception 'saas.omit_from_export: % has no column "%"', target, omitted
            using errcode = 'undefined_column', hint = 'Name one of its columns, or null for the whole table.';
    end if;
    insert into saas.export_omission (name, column_name, reason)
    select format('%I.%I', n.nspname, c.relname), coalesce(omitted, ''), omit_from_export.reason
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = target
    on conflict (name, column_name) do update set reason = excluded.reason;
end
$$;
revoke all on function saas.omit_from_export(regclass, name, text) from public;
comment on function saas.omit_from_export(regclass, name, text) is
    'Leaves a column, or with null the whole table, out of every tenant''s export, for a reason.';

create function saas.retain(target regclass, reason text)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into saas.retained_table (name, reason)
    select format('%I.%I', n.nspname, c.relname), retain.reason
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = target
    on conflict (name) do update set reason = excluded.reason
$$;
revoke all on function saas.retain(regclass, text) from public;
comment on function saas.retain(regclass, text) is
    'Keeps a table''s rows when their tenant is erased, for a reason that stands in every report.';

-- Opens the cursor "saas_export" over one tenant's rows of a table. Runs with the caller's rights: what a policy hides from
-- the caller, the cursor does not see. Here because identifiers from the catalogue are quoted where they come from.
create function saas.open_export(target regclass, columns name[], of_tenant uuid)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    rows  refcursor := 'saas_export';
    list  text := (select string_agg(quote_ident(u.name), ', ' order by u.place)
                   from unnest(columns) with ordinality as u (name, place));
begin
    open rows no scroll for execute
        format('select %s from %s where %I = $1', coalesce(list, ''), target,
               case when target = 'saas.tenant'::regclass then 'id' else 'tenant_id' end)
        using of_tenant;
end
$$;
revoke all on function saas.open_export(regclass, name[], uuid) from public;
grant execute on function saas.open_export(regclass, name[], uuid) to saas_app, saas_system;

select saas.omit_from_export('saas.idempotency_key', 'response', 'an answer already given; the rows it tells of are here'),
       saas.omit_from_export('saas.idempotency_key', 'fingerprint', 'a hash of the request'),
       saas.omit_from_export('saas.outbox', 'payload', 'messages on their way may hold links that sign someone in'),
       saas.omit_from_export('saas.outbox', 'lease', 'a token between workers'),
       saas.omit_from_export('saas.tenant_status', 'reason', 'a note of the vendor''s operators'),
       saas.omit_from_export('saas.tenant_status', 'changed_by', 'one of the vendor''s operators'),
       saas.omit_from_export('saas.placement', null, 'where the vendor keeps the tenant'),
       saas.omit_from_export('saas.resident', null, 'where the vendor keeps the tenant');

-- Which version each part of the schema is at, for exports: the tables of migrations are one per part.
create function saas.schema_versions()
returns table (module text, version bigint)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    ledger record;
begin
    for ledger in
        select c.oid::regclass as name, substr(c.relname, length('_migrations_') + 1) as part
        from pg_class c
        where c.relnamespace = 'saas'::regnamespace and c.relkind = 'r' and starts_with(c.relname, '_migrations_')
        order by c.relname
    loop
        module := ledger.part;
        execute format('select coalesce(max(version), 0) from %s where success', ledger.name) into version;
        return next;
    end loop;
end
$$;
revoke all on function saas.schema_versions() from public;
grant execute on function saas.schema_versions() to saas_app, saas_system;

-- Erases one batch of a tenant's rows, and says how many; 0 means that none are left. Runs with the caller's rights.
-- A row goes after the rows of its own table that refer to it. Rows that refer to each other in a circle go together.
create function saas.erase_batch(target regclass, of_tenant uuid, batch integer)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    erased     bigint;
    partition  oid;
    is_leaf    text;
begin
    select string_agg(
        format('not exists (select from %s c where c.tenant_id = $1 and (c.tableoid, c.ctid) <> (t.tableoid, t.ctid) and %s)',
               target, (
            select string_agg(format('c.%I = t.%I', mine.attname, theirs.attname), ' and ')
            from unnest(k.conkey, k.confkey) as pair (mine, theirs)
            join pg_attribute mine on mine.attrelid = k.conrelid and mine.attnum = pair.mine
            join pg_attribute theirs on theirs.attrelid = k.confrelid and theirs.attnum = pair.theirs)), ' and ')
    into is_leaf
    from pg_constraint k
    where k.contype = 'f' and k.conrelid = target and k.confrelid = target and k.conparentid = 0;
    is_leaf := coalesce(is_leaf, 'true');
    -- One partition at a time: a ctid means a row only together with its table.
    execute format('select t.tableoid from %s t where t.tenant_id = $1 and %s limit 1', target, is_leaf)
        into partition using of_tenant;
    if partition is null then
        execute format('delete from %s t where t.tenant_id = $1', target) using of_tenant;
    else
        execute format(
            'delete from %1$s t where t.tenant_id = $1 and t.tableoid = $2 and t.ctid = any (array('
            || 'select t.ctid from %1$s t where t.tenant_id = $1 and t.tableoid = $2 and %2$s limit $3))',
            target, is_leaf)
            using of_tenant, partition, batch;
    end if;
    get diagnostics erased = row_count;
    return erased;
end
$$;
revoke all on function saas.erase_batch(regclass, uuid, integer) from public;
grant execute on function saas.erase_batch(regclass, uuid, integer) to saas_system;

-- How many rows of a table are a tenant's; null when the caller may not read it.
create function saas.count_rows(target regclass, of_tenant uuid)
returns bigint
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    counted bigint;
begin
    if not has_table_privilege(target, 'select') then
        return null;
    end if;
    execute format('select count(*) from %s where %I = $1', target,
                   case when target = 'saas.tenant'::regclass then 'id' else 'tenant_id' end)
        into counted using of_tenant;
    return counted;
end
$$;
revoke all on function saas.count_rows(regclass, uuid) from public;
grant execute on function saas.count_rows(regclass, uuid) to saas_system;

-- What the foundation's own tables are kept for. The audit log names people by ids, which mean nobody once their accounts
-- are gone, so it is kept whole: a log with holes proves nothing.
select saas.retain('saas.tenant', 'the tombstone: its id is never given again; its name is taken away'),
       saas.retain('saas.tenant_slug', 'the tombstone: its address, unless the erasure freed it'),
       saas.retain('saas.tenant_status', 'the tombstone: says that the tenant was erased'),
       saas.retain('saas.placement', 'the tombstone: where it lived'),
       saas.retain('saas.resident', 'the tombstone: closes the door to processes that remember the tenant'),
       saas.retain('saas.audit', 'accountability: who did what, the erasure included');
