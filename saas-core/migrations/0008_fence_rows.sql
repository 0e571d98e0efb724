-- Two more fences: rows of one person inside a tenant, and the fence again for what changed under it.

-- Which tables show a member only their own rows, and to which roles they show all. `doctor` compares the policy with it.
create table saas.row_fence (
    name         text primary key,
    owner_column text not null,
    sees_all     text[] not null
);
revoke all on saas.row_fence from public;
grant select on saas.row_fence to saas_app, saas_system;
select saas.declare_global('saas.row_fence', 'names of tables, columns and roles');

-- A transaction names who acts in it as `saas.member`: "user id" or "user id role"; empty when no person does (a job, an
-- API key). A person without a role, or with one that is not listed, sees and writes their own rows only.
create function saas.fence_rows(target regclass, owner_column text, sees_all text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $fence$
declare
    mine    text;
    bad     text;
begin
    if not exists (select from saas.fenced_table f where f.name = target::text) then
        raise exception 'saas.fence_rows: % is not fenced', target
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('First: select saas.fence(%L);', target::text);
    end if;
    if not exists (select from pg_attribute a
                   where a.attrelid = target and a.attname = owner_column and a.atttypid = 'uuid'::regtype
                     and a.attnotnull and not a.attisdropped) then
        raise exception 'saas.fence_rows: % has no column "% uuid not null"', target, owner_column
            using errcode = 'undefined_column',
                  hint = 'Name the column that holds the id of the user whose row it is.';
    end if;
    select r into bad from unnest(sees_all) r where r !~ '^[a-z][a-z0-9_.-]*$' or r is null limit 1;
    if sees_all is null or found then
        raise exception 'saas.fence_rows: "%" is not the name of a role', bad
            using errcode = 'invalid_parameter_value',
                  hint = 'Pass the roles that see every row of the tenant, such as array[''owner'', ''admin''].';
    end if;
    -- Each setting is read once per statement; only the owner's column differs between rows.
    mine := format(
        'coalesce((select nullif(current_setting(''saas.member'', true), '''')), '''') = '''' '
        'or (select split_part(current_setting(''saas.member'', true), '' '', 2)) = any (%L::text[]) '
        'or %I = (select nullif(split_part(current_setting(''saas.member'', true), '' '', 1), '''')::uuid)',
        sees_all, owner_column);
    execute format('drop policy if exists saas_rows on %s', target);
    -- Restrictive, beside the tenant's: it can only take away.
    execute format('create policy saas_rows on %s as restrictive for all to saas_app using (%s) with check (%2$s)',
                   target, mine);
    insert into saas.row_fence (name, owner_column, sees_all) values (target::text, owner_column, sees_all)
    on conflict (name) do update set owner_column = excluded.owner_column, sees_all = excluded.sees_all;
end
$fence$;
revoke all on function saas.fence_rows(regclass, text, text[]) from public;
comment on function saas.fence_rows(regclass, text, text[]) is
    'Lets members see and write only their own rows of a fenced table, except those with one of the roles.';

-- The fence again: policies as this version makes them, and no grants on partitions, also on those attached since.
create function saas.fence_refresh(target regclass default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $refresh$
declare
    fenced    record;
    relation  regclass;
begin
    if target is not null and not exists (select from saas.fenced_table f where f.name = target::text) then
        raise exception 'saas.fence_refresh: % is not fenced', target
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('First: select saas.fence(%L);', target::text);
    end if;
    for fenced in
        select f.name, to_regclass(f.name) as relation
        from saas.fenced_table f
        where target is null or f.name = target::text
        order by f.name
    loop
        -- Dropped, or renamed, since.
        continue when fenced.relation is null;
        relation := fenced.relation;
        perform saas.fence_policies(relation);
        perform saas.fence_rows(relation, r.owner_column, r.sees_all) from saas.row_fence r where r.name = fenced.name;
        perform saas.close_partition(p.relid) from pg_partition_tree(relation) p where p.relid <> relation;
    end loop;
end
$refresh$;

-- Nobody names a partition: the parent's policies would not apply.
create function saas.close_partition(partition regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $close$
begin
    execute format('revoke all on %s from public, saas_app, saas_system', partition);
end
$close$;
revoke all on function saas.fence_refresh(regclass), saas.close_partition(regclass) from public;
comment on function saas.fence_refresh(regclass) is
    'Puts the policies of the fence again on one fenced table or on all, and takes every grant from their partitions.';
