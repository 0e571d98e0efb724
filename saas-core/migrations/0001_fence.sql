-- The fence: what turns a table with a tenant_id column into a table that only its tenant can see.
-- Everything else in the schema `saas`, and every table of an adopter, goes through it.

-- Tables that belong to no tenant on purpose. `doctor` reports a table that is neither fenced nor listed here.
create table saas.global_table (
    name    text primary key,
    reason  text not null check (reason <> '')
);
revoke all on saas.global_table from public;
grant select on saas.global_table to saas_app, saas_system;

create function saas.declare_global(target regclass, reason text)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into saas.global_table (name, reason)
    values (target::text, reason)
    on conflict (name) do update set reason = excluded.reason
$$;
revoke all on function saas.declare_global(regclass, text) from public;
comment on function saas.declare_global(regclass, text) is
    'Says that a table belongs to no tenant, and why.';
select saas.declare_global('saas.global_table', 'the list itself');

create function saas.fence(target regclass, privileges text default 'select, insert, update, delete')
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $fence$
declare
    kind        "char";
    is_child    boolean;
    tenant_att  smallint;
    bad         text;
    child       regclass;
    privilege   text;
    -- The setting reads '' (not null) once a transaction of the session has set it: hence nullif.
    -- The sub-select makes it one InitPlan, so that no plan is built around one tenant's statistics.
    -- No function of ours inside: a cached plan may keep the value of an immutable one.
    predicate   constant text :=
        'tenant_id = (select nullif(current_setting(''saas.tenant_id'', true), '''')::uuid)';
begin
    select c.relkind, c.relispartition into kind, is_child from pg_class c where c.oid = target;
    if kind not in ('r', 'p') then
        raise exception 'saas.fence: % is not a table', target
            using errcode = 'wrong_object_type',
                  hint = 'Fence tables. Make views with (security_invoker = true) over fenced tables.';
    end if;
    if is_child then
        raise exception 'saas.fence: % is a partition', target
            using errcode = 'wrong_object_type',
                  hint = 'Fence its parent; partitions get no grants of their own.';
    end if;

    select a.attnum into tenant_att
    from pg_attribute a
    where a.attrelid = target and a.attname = 'tenant_id' and a.atttypid = 'uuid'::regtype
      and a.attnotnull and not a.attisdropped;
    if tenant_att is null then
        raise exception 'saas.fence: % has no column "tenant_id uuid not null"', target
            using errcode = 'undefined_column',
                  hint = format('alter table %s add column tenant_id uuid not null;', target);
    end if;

    -- A unique key without the tenant tells one tenant what another one stores.
    select i.indexrelid::regclass::text into bad
    from pg_index i
    where i.indrelid = target and (i.indisunique or i.indisexclusion)
      and tenant_att <> all ((string_to_array(i.indkey::text, ' ')::smallint[])[1:i.indnkeyatts])
    limit 1;
    if bad is not null then
        raise exception 'saas.fence: the unique index % of % does not contain tenant_id', bad, target
            using errcode = 'invalid_table_definition',
                  hint = 'Put tenant_id first in every primary key, unique key and exclusion constraint.';
    end if;

    -- Foreign keys ignore row-level security, so the tenant must be part of them.
    select c.conname into bad
    from pg_constraint c
    where c.conrelid = target and c.contype = 'f'
      and exists (
          select from pg_attribute t
          where t.attrelid = c.confrelid and not t.attisdropped
            and (t.attname = 'tenant_id' or c.confrelid = to_regclass('saas.tenant')))
      and not exists (
          select
          from unnest(c.conkey, c.confkey) as pair (mine, theirs)
          join pg_attribute t on t.attrelid = c.confrelid and t.attnum = pair.theirs
          where pair.mine = tenant_att
            and t.attname = case when c.confrelid = to_regclass('saas.tenant') then 'id' else 'tenant_id' end)
    limit 1;
    if bad is not null then
        raise exception 'saas.fence: the foreign key % of % does not contain tenant_id', bad, target
            using errcode = 'invalid_foreign_key',
                  hint = 'Reference (tenant_id, id), and give the referenced table a unique key on (tenant_id, id).';
    end if;

    -- A default that calls a sequence needs a grant that would let tenants watch each other's counters.
    select a.attname into bad
    from pg_attrdef d
    join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    where d.adrelid = target and a.attidentity = '' and pg_get_expr(d.adbin, d.adrelid) like '%nextval(%'
    limit 1;
    if bad is not null then
        raise exception 'saas.fence: the default of %.% is a sequence', target, bad
            using errcode = 'invalid_table_definition',
                  hint = 'Use a uuid, or "generated by default as identity", which needs no grant on the sequence.';
    end if;

    foreach privilege in array regexp_split_to_array(lower(privileges), '\s*,\s*') loop
        if privilege not in ('select', 'insert', 'update', 'delete') then
            raise exception 'saas.fence: the privilege "%" cannot be granted on a tenant table', privilege
                using errcode = 'invalid_parameter_value',
                      hint = 'Grant a list of select, insert, update, delete. TRUNCATE, REFERENCES and TRIGGER ignore row-level security.';
        end if;
    end loop;

    execute format('alter table %s enable row level security', target);
    execute format('alter table %s force row level security', target);
    execute format('drop policy if exists saas_tenant on %s', target);
    execute format('drop policy if exists saas_tenant_only on %s', target);
    execute format('drop policy if exists saas_system on %s', target);
    execute format('create policy saas_tenant on %s as permissive for all to saas_app using (%s) with check (%2$s)',
                   target, predicate);
    -- Restrictive: a permissive policy that someone adds later cannot open what this one closes.
    execute format('create policy saas_tenant_only on %s as restrictive for all to saas_app using (%s) with check (%2$s)',
                   target, predicate);
    execute format('create policy saas_system on %s as permissive for all to saas_system using (true) with check (true)',
                   target);
    execute format('revoke all on %s from public, saas_app, saas_system', target);
    execute format('grant %s on %s to saas_app, saas_system', privileges, target);

    -- The parent's policies do not bind a partition that is named directly.
    for child in select p.relid from pg_partition_tree(target) p where p.relid <> target loop
        execute format('revoke all on %s from public, saas_app, saas_system', child);
    end loop;
end
$fence$;
revoke all on function saas.fence(regclass, text) from public;
comment on function saas.fence(regclass, text) is
    'Lets the application role see only the bound tenant''s rows of a table, or says why the table cannot be fenced.';
