-- The fence: what turns a table with a tenant_id column into a table that only its tenant can see.
-- Everything else in the schema `saas`, and every table of an adopter, goes through it.

-- Tables that belong to no tenant on purpose. `doctor` reports a table that is neither fenced nor listed here.
create table saas.global_table (
    name      text primary key,
    reason    text not null check (reason <> ''),
    -- Who may read it: every tenant, or the system role only.
    audience  text not null check (audience in ('everyone', 'system'))
);

-- What the fence of a table grants. `doctor` reports more than that; fencing again keeps it.
create table saas.fenced_table (
    name        text primary key,
    privileges  text[] not null
);

-- Findings of `doctor` that someone has looked at and answers for.
create table saas.accepted_finding (
    code    text not null,
    object  text not null,
    reason  text not null check (reason <> ''),
    primary key (code, object)
);
revoke all on saas.global_table, saas.fenced_table, saas.accepted_finding from public;
grant select on saas.global_table, saas.fenced_table, saas.accepted_finding to saas_app, saas_system;

create function saas.declare_global(target regclass, reason text, audience text default 'everyone')
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into saas.global_table (name, reason, audience)
    values (target::text, reason, audience)
    on conflict (name) do update set reason = excluded.reason, audience = excluded.audience
$$;
revoke all on function saas.declare_global(regclass, text, text) from public;
comment on function saas.declare_global(regclass, text, text) is
    'Says that a table belongs to no tenant, why, and whether everyone or only the system may read it.';
select saas.declare_global('saas.global_table', 'the list itself'),
       saas.declare_global('saas.fenced_table', 'names of tables'),
       saas.declare_global('saas.accepted_finding', 'names of objects');

create function saas.accept_finding(code text, object text, reason text)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into saas.accepted_finding (code, object, reason)
    values (code, object, reason)
    on conflict (code, object) do update set reason = excluded.reason
$$;
revoke all on function saas.accept_finding(text, text, text) from public;
comment on function saas.accept_finding(text, text, text) is
    'Silences one finding of the isolation audit for one object, for a reason.';

-- The policies of the fence alone, for a table that saas.fence has examined.
create function saas.fence_policies(target regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $policies$
declare
    -- saas.tenant is its own tenant.
    key  constant text := case when target = to_regclass('saas.tenant') then 'id' else 'tenant_id' end;
    -- The setting reads '' (not null) once a transaction of the session has set it: hence nullif.
    -- The sub-select makes it one InitPlan, so that no plan is built around one tenant's statistics.
    -- No function of ours inside: a cached plan may keep the value of an immutable one.
    mine    constant text := key || ' = (select nullif(current_setting(''saas.tenant_id'', true), '''')::uuid)';
    -- Outside a transaction that says it is the system's, the system role sees nothing either.
    system  constant text := '(select current_setting(''saas.system'', true)) = ''on''';
begin
    execute format('alter table %s enable row level security', target);
    execute format('alter table %s force row level security', target);
    execute format('drop policy if exists saas_tenant on %s', target);
    execute format('drop policy if exists saas_tenant_only on %s', target);
    execute format('drop policy if exists saas_system on %s', target);
    execute format('create policy saas_tenant on %s as permissive for all to saas_app using (%s) with check (%2$s)',
                   target, mine);
    -- Restrictive: a permissive policy that someone adds later cannot open what this one closes.
    execute format('create policy saas_tenant_only on %s as restrictive for all to saas_app using (%s) with check (%2$s)',
                   target, mine);
    execute format('create policy saas_system on %s as permissive for all to saas_system using (%s) with check (%2$s)',
                   target, system);
end
$policies$;
revoke all on function saas.fence_policies(regclass) from public;
comment on function saas.fence_policies(regclass) is
    'Puts the policies of the fence on a table, and leaves its grants as they are.';

create function saas.fence(target regclass, privileges text default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $fence$
declare
    kind        "char";
    is_child    boolean;
    key         constant text := case when target = to_regclass('saas.tenant') then 'id' else 'tenant_id' end;
    key_att     smallint;
    bad         text;
    child       regclass;
    granted     text[];
    privilege   text;
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
    select i.inhparent::regclass::text into bad from pg_inherits i where i.inhrelid = target limit 1;
    if bad is not null then
        raise exception 'saas.fence: % inherits from %, whose readers would see its rows', target, bad
            using errcode = 'wrong_object_type',
                  hint = 'Use partitions, or separate tables.';
    end if;

    select a.attnum into key_att
    from pg_attribute a
    where a.attrelid = target and a.attname = key and a.atttypid = 'uuid'::regtype
      and a.attnotnull and not a.attisdropped;
    if key_att is null then
        raise exception 'saas.fence: % has no column "tenant_id uuid not null"', target
            using errcode = 'undefined_column',
                  hint = format('alter table %s add column tenant_id uuid not null;', target);
    end if;

    -- A unique key without the tenant tells one tenant what another one stores. Partitions can have their own.
    select i.indexrelid::regclass::text into bad
    from pg_index i
    left join pg_constraint k on k.conindid = i.indexrelid and k.contype = 'x'
    where i.indrelid in (select target union all select p.relid from pg_partition_tree(target) p)
      and (i.indisunique or i.indisexclusion)
      and not exists (
          select
          from unnest((string_to_array(i.indkey::text, ' ')::smallint[])[1:i.indnkeyatts], k.conexclop) as u (att, op)
          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.att and a.attname = key
          where u.op is null or u.op = '=(uuid,uuid)'::regoperator)
    limit 1;
    if bad is not null then
        raise exception 'saas.fence: the unique index % of % does not contain tenant_id', bad, target
            using errcode = 'invalid_table_definition',
                  hint = 'Put tenant_id first in every primary key, unique key and exclusion constraint (with =).';
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
          where pair.mine = key_att
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
                  hint = 'Use a uuid: the numbers of a sequence count what other tenants do.';
    end if;

    granted := coalesce(
        regexp_split_to_array(lower(btrim(privileges)), '\s*,\s*'),
        (select f.privileges from saas.fenced_table f where f.name = target::text),
        array['select', 'insert', 'update', 'delete']);
    foreach privilege in array granted loop
        if privilege not in ('select', 'insert', 'update', 'delete') then
            raise exception 'saas.fence: the privilege "%" cannot be granted on a tenant table', privilege
                using errcode = 'invalid_parameter_value',
                      hint = 'Grant a list of select, insert, update, delete. TRUNCATE, REFERENCES and TRIGGER ignore row-level security.';
        end if;
    end loop;

    perform saas.fence_policies(target);
    execute format('revoke all on %s from public, saas_app, saas_system', target);
    execute format('grant %s on %s to saas_app, saas_system', array_to_string(granted, ', '), target);
    insert into saas.fenced_table (name, privileges) values (target::text, granted)
    on conflict (name) do update set privileges = excluded.privileges;

    -- The parent's policies do not bind a partition that is named directly.
    for child in select p.relid from pg_partition_tree(target) p where p.relid <> target loop
        execute format('revoke all on %s from public, saas_app, saas_system', child);
    end loop;
end
$fence$;
revoke all on function saas.fence(regclass, text) from public;
comment on function saas.fence(regclass, text) is
    'Lets the application role see only the bound tenant''s rows of a table, or says why the table cannot be fenced.';
