-- Tables with a tenant, and whether only that tenant can reach them.
with app as (
    -- Every login that is bound by the tenants' policies: the role itself and its members.
    select oid, rolname from pg_roles where not rolsuper and pg_has_role(oid, 'saas_app', 'usage')
),
candidate as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relispartition, c.relrowsecurity,
           c.relforcerowsecurity, c.relowner, n.nspname, c.relname, a.attnum as tenant_att,
           a.attnotnull as tenant_not_null, a.atttypid as tenant_type,
           (a.attnum is not null or c.oid = to_regclass('saas.tenant')) as is_tenant_table,
           exists (select from app
                   where has_any_column_privilege(app.oid, c.oid, 'select, insert, update')
                      or has_table_privilege(app.oid, c.oid, 'delete, truncate')) as is_reachable,
           exists (select from app
                   where has_any_column_privilege(app.oid, c.oid, 'insert, update')
                      or has_table_privilege(app.oid, c.oid, 'delete')) as is_writable
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relkind in ('r', 'p') and c.relpersistence <> 't'
      and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
      -- one schema, where only that one is examined
      and n.nspname = coalesce(nullif(current_setting('saas.examined_schema', true), ''), n.nspname)
),
-- A partition is reached through its parent; on its own it has no grants (see routes.sql).
tenant_table as (
    select c.*,
           -- What a fence needs first; policies stand in the way of another type.
           case when tenant_att is null or tenant_type = 'uuid'::regtype then '' else
               coalesce((select string_agg(format('drop policy if exists %I on %s; ', d.policy, c.name), '')
                         from (select p.polname from pg_policy p where p.polrelid = c.oid
                               union select unnest(array['saas_tenant', 'saas_tenant_only', 'saas_system'])) d (policy)), '')
               || format('alter table %s alter column tenant_id type uuid using tenant_id::text::uuid; ', c.name) end
           || case when tenant_att is null or tenant_not_null then '' else
               format('alter table %s alter column tenant_id set not null; ', c.name) end as first,
           exists (select from saas.fenced_table f where f.name = c.name) as is_fenced
    from candidate c
    where is_tenant_table and not relispartition
      and not exists (select from saas.global_table g where g.name = c.name)
),
isolating as (
    select p.polrelid
    from tenant_table t
    -- Of these tables only, which `offset` enforces: to print a policy is slow.
    cross join lateral (select * from pg_policy p where p.polrelid = t.oid offset 0) p
    where not p.polpermissive and p.polcmd = '*'
      and ('saas_app'::regrole::oid = any(p.polroles) or 0 = any(p.polroles))
      and pg_get_expr(p.polqual, p.polrelid)
          ~ format('^\(%s = \( SELECT \(?NULLIF\(current_setting\(''saas\.tenant_id''::text, true\), ''''::text\)\)?::uuid( AS "?[a-z]+"?)?\)\)$',
                   case when p.polrelid = to_regclass('saas.tenant') then 'id' else 'tenant_id' end)
      and (p.polwithcheck is null
           or pg_get_expr(p.polwithcheck, p.polrelid) = pg_get_expr(p.polqual, p.polrelid))
)
select 'rls-off' as code, name as object,
       'has tenants'' rows but no row-level security: every tenant sees all of them' as reason,
       first || format(case when is_fenced then 'select saas.fence_policies(%L);' else 'select saas.fence(%L);' end, name) as mend
from tenant_table where not relrowsecurity and (is_reachable or is_fenced)
union all
select 'rls-not-forced', name,
       'does not force row-level security: whoever runs as its owner, such as a view or a function, sees every tenant',
       format('alter table %s force row level security;', name)
from tenant_table where relrowsecurity and not relforcerowsecurity
union all
select 'no-isolation-policy', name,
       'has no restrictive policy with the tenant predicate for reading and writing: any other permissive policy, or a loose '
       || 'WITH CHECK, opens it',
       first || format('select saas.fence_policies(%L);', name)
from tenant_table t
where relrowsecurity and is_reachable and not exists (select from isolating i where i.polrelid = t.oid)
union all
select 'no-policy', name, 'has no permissive policy for the application role: row-level security hides every row, also from its tenant',
       first || format('select saas.fence_policies(%L);', name)
from tenant_table t
where relrowsecurity and is_reachable
  and not exists (select from pg_policy p
                  where p.polrelid = t.oid and p.polpermissive
                    and ('saas_app'::regrole::oid = any(p.polroles) or 0 = any(p.polroles)))
union all
select 'tenant-nullable', name, 'allows rows without a tenant, which nobody can see and nothing can clean up',
       first || format('select saas.fence_policies(%L);', name)
from tenant_table where tenant_att is not null and not tenant_not_null
union all
select 'tenant-type', name, format('has a tenant_id of type %s; the fence binds a uuid', tenant_type::regtype),
       first || format('select saas.fence_policies(%L);', name)
from tenant_table where tenant_att is not null and tenant_type <> 'uuid'::regtype
union all
select 'unclassified-table', name,
       'is open to the application role, has no tenant_id and is not declared global',
       format('revoke all on %s from saas_app, public;  -- or: select saas.declare_global(%L, ''why'');', name, name)
from candidate c
where not is_tenant_table and is_reachable and not relispartition
  and not (nspname = 'saas' and relname like '\_migrations\_%')
  and not exists (select from saas.global_table g where g.name = c.name)
  and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
union all
select 'system-table-open', c.name, 'is declared for the system only, but the application role may use it',
       format('revoke all on %s from saas_app, public;', c.name)
from candidate c join saas.global_table g on g.name = c.name
where g.audience = 'system' and is_reachable
union all
select 'global-table-writable', c.name,
       'belongs to no tenant, but the application role may write it: one tenant changes what all others read',
       format('revoke insert, update, delete on %s from saas_app, public;', c.name)
from candidate c
where not is_tenant_table and is_writable and not relispartition
  and (exists (select from saas.global_table g where g.name = c.name) or nspname = 'saas')
union all
select 'global-table-with-tenant', c.name,
       'is declared to belong to no tenant and has a tenant_id: whatever it says of tenants, each of them reads',
       format('delete from saas.global_table where name = %L; select saas.fence(%1$L);', c.name)
from candidate c join saas.global_table g on g.name = c.name
where c.tenant_att is not null and g.audience = 'everyone'
union all
select 'renamed-fence', t.name, 'is fenced, but under this name nobody knows: what the audit and saas.fence_refresh do by name, passes over it',
       coalesce((select format('select saas.fence(%L, %L);', t.name, string_agg(p.privilege, ', '))
                 from (values ('select'), ('insert'), ('update'), ('delete')) as p (privilege)
                 where has_table_privilege('saas_app', t.oid, p.privilege)),
                format('select saas.fence(%L); revoke all on %s from saas_app;', t.name, t.name))
from tenant_table t
where not t.is_fenced and exists (select from pg_policy p where p.polrelid = t.oid and p.polname = 'saas_system')
  and exists (select from saas.fenced_table f where not exists (select from candidate c where c.name = f.name))
union all
select 'excess-grant', t.name, format('grants %s to %s, beyond what its fence granted', p.privilege, app.rolname),
       format('revoke %s on %s from %I, public;', p.privilege, t.name, app.rolname)
from tenant_table t
join saas.fenced_table f on f.name = t.name
cross join (values ('select'), ('insert'), ('update'), ('delete')) as p (privilege)
cross join app
where p.privilege <> all (f.privileges)
  -- The foundation's own migrations grant some single columns.
  and case when t.nspname = 'saas' or p.privilege = 'delete' then has_table_privilege(app.oid, t.oid, p.privilege)
           else has_any_column_privilege(app.oid, t.oid, p.privilege) end
union all
select 'row-fence-open', t.name,
       format('shows members only their own rows (%s), but the policy that does so is missing or is another one', r.owner_column),
       format('select saas.fence_refresh(%L);', t.name)
from tenant_table t
join saas.row_fence r on r.name = t.name
where not exists (
    select from pg_policy p
    where p.polrelid = t.oid and p.polname = 'saas_rows' and not p.polpermissive and p.polcmd = '*'
      and ('saas_app'::regrole::oid = any(p.polroles) or 0 = any(p.polroles))
      and pg_get_expr(p.polqual, p.polrelid) = pg_get_expr(p.polwithcheck, p.polrelid)
      -- Versions of the server differ in whether a sub-select's column is named.
      and regexp_replace(pg_get_expr(p.polqual, p.polrelid), ' AS "?[a-z_]+"?\)', ')', 'g') = format(
          '((( SELECT current_setting(''saas.member''::text, true)) = ''*''::text)'
          || ' OR (( SELECT split_part(current_setting(''saas.member''::text, true), '' ''::text, 2)) = ANY (%L::text[]))'
          || ' OR (%I = ( SELECT (NULLIF(NULLIF(split_part(current_setting(''saas.member''::text, true), '' ''::text, 1), '
          || '''''::text), ''*''::text))::uuid)))',
          r.sees_all, r.owner_column))
union all
select 'inherited', t.name, format('inherits from %s, through which its rows are read by that table''s rules', i.inhparent::regclass),
       format('alter table %s no inherit %s;', t.name, i.inhparent::regclass)
from tenant_table t join pg_inherits i on i.inhrelid = t.oid
union all
select 'no-tenant-index', name,
       'has no index that starts with tenant_id: each query of a small tenant reads every tenant''s rows',
       format('create index on %s (tenant_id);', name)
from tenant_table t
where tenant_att is not null and is_reachable
  and not exists (select from pg_index i where i.indrelid = t.oid and i.indisvalid and i.indkey[0] = t.tenant_att)
union all
select 'wrong-owner', name, 'is in the schema saas but does not belong to saas_owner',
       format('alter table %s owner to saas_owner;', name)
from candidate
where nspname = 'saas' and relowner <> 'saas_owner'::regrole
order by 1, 2
