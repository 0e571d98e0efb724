-- Ways to a tenant's rows that do not pass the policies of the table.
with app as (
    -- Every login that is bound by the tenants' policies: the role itself and its members.
    select oid, rolname from pg_roles where not rolsuper and pg_has_role(oid, 'saas_app', 'usage')
),
object as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind, c.relispartition, c.reloptions, c.relowner,
           exists (select from app
                   where has_any_column_privilege(app.oid, c.oid, 'select, insert, update')
                      or has_table_privilege(app.oid, c.oid, 'delete, truncate')) as is_reachable
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
      -- one schema, where only that one is examined
      and n.nspname = coalesce(nullif(current_setting('saas.examined_schema', true), ''), n.nspname)
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
),
routine as (
    select p.*, n.nspname
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema')
      and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
)
select 'view-as-owner' as code, name as object,
       'is a view without security_invoker: it reads with its owner''s rights, not with the tenant''s'
       || case when (select rolsuper or rolbypassrls from pg_roles where oid = relowner)
               then ', and its owner is not bound by row-level security at all' else '' end as reason,
       format('alter view %s set (security_invoker = true);', name) as mend
from object
where relkind = 'v' and is_reachable
  and not coalesce((select bool_or(option_value::boolean) from pg_options_to_table(reloptions)
                    where option_name = 'security_invoker'), false)
union all
select 'materialized-view', name, 'is a materialized view: it holds every tenant''s rows and has no row-level security',
       format('revoke all on %s from saas_app, public;', name)
from object where relkind = 'm' and is_reachable
union all
select 'foreign-table', name, 'is a foreign table: row-level security does not reach the other server',
       format('revoke all on %s from saas_app, public;', name)
from object where relkind = 'f' and not relispartition and is_reachable
union all
select 'open-partition', name,
       'is a partition that can be named directly: the parent''s policies do not apply then',
       format('revoke all on %s from saas_app, public;', name)
from object
where relispartition and relkind in ('r', 'p', 'f') and is_reachable
  and exists (select from pg_attribute a where a.attrelid = object.oid and a.attname = 'tenant_id' and not a.attisdropped)
union all
select 'rule', format('%s.%s', o.name, r.rulename),
       'is a rule on a table or a view: what it does runs with its owner''s rights, whatever the view asks as',
       format('drop rule %I on %s;', r.rulename, o.name)
from pg_rewrite r join object o on o.oid = r.ev_class
-- the rule of a view's own query is the view
where o.relkind in ('r', 'p', 'v') and r.ev_type <> '1'
union all
select 'definer-function', p.oid::regprocedure::text,
       'runs with its owner''s rights (SECURITY DEFINER), so the tenant''s policies may not apply inside; revoking it does not '
       || 'stop a view, a default or a trigger from calling it',
       format('alter routine %s security invoker;  -- or: select saas.accept_finding(''definer-function'', %L, ''why'');',
              p.oid::regprocedure, p.oid::regprocedure::text)
from routine p
where p.prosecdef
union all
select 'definer-search-path', p.oid::regprocedure::text,
       'runs with its owner''s rights and finds tables by its caller''s search path, or among its caller''s temporary tables: '
       || 'the caller chooses which ones it means',
       format('alter routine %s set search_path = %s, pg_temp;', p.oid::regprocedure,
              coalesce((select nullif(regexp_replace(substr(setting, 13), '(^|,) *"?pg_temp"? *(?=,|$)', '', 'g'), '')
                        from unnest(p.proconfig) as c (setting) where setting ~ '^search_path='), quote_ident(p.nspname)))
from routine p
-- With an empty one every name says its schema; temporary tables come first unless they are named last.
where p.prosecdef
  and not exists (select from unnest(p.proconfig) as c (setting) where setting ~ '^search_path=(""|.*, *"?pg_temp"?)?$')
union all
select 'function-sets-tenant', p.oid::regprocedure::text,
       'sets saas.tenant_id, saas.system or the role for its own body, so it reads as someone else',
       format('alter routine %s reset all;', p.oid::regprocedure)
from routine p
where exists (select from unnest(p.proconfig) as c (setting) where setting ~* '^(saas\.|role=|session_authorization=|row_security=)')
union all
select 'leakproof-function', p.oid::regprocedure::text,
       'is marked LEAKPROOF, so it is run on other tenants'' rows before the policy has removed them',
       format('alter routine %s not leakproof;', p.oid::regprocedure)
from routine p
where p.proleakproof
union all
select 'function-in-policy', format('%s.%s', l.polrelid::regclass, l.polname),
       format('calls %s: a cached plan may keep its answer for the next tenant, and it runs once per row',
              string_agg(p.oid::regprocedure::text, ', ')),
       format('drop policy %I on %s; select saas.fence_policies(%L);', l.polname, l.polrelid::regclass, l.polrelid::regclass::text)
from pg_policy l
join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = l.oid and d.refclassid = 'pg_proc'::regclass
join routine p on p.oid = d.refobjid
group by l.polrelid, l.polname
union all
select 'policy-always-true', format('%s.%s', l.polrelid::regclass, l.polname),
       'is true for every row: the table is open as soon as its restrictive policy is gone',
       format('drop policy if exists %I on %s; select saas.fence_policies(%L);', l.polname, l.polrelid::regclass, l.polrelid::regclass::text)
from object o
cross join lateral (select * from pg_policy l where l.polrelid = o.oid offset 0) l
where l.polpermissive and 'true' in (pg_get_expr(l.polqual, l.polrelid), pg_get_expr(l.polwithcheck, l.polrelid))
  and (0 = any(l.polroles) or exists (select from app where app.oid = any(l.polroles)))
  and (o.oid = to_regclass('saas.tenant')
       or exists (select from pg_attribute a where a.attrelid = o.oid and a.attname = 'tenant_id' and not a.attisdropped))
  and not exists (select from saas.global_table g where g.name = o.name)
union all
select 'policy-per-row', format('%s.%s', l.polrelid::regclass, l.polname),
       'reads its setting anew for every row, because it is not inside a sub-select: a large table is read slowly',
       format('drop policy if exists %I on %s; select saas.fence_policies(%L);', l.polname, l.polrelid::regclass, l.polrelid::regclass::text)
from object o
-- `offset`: to print a policy is slow, so those of these objects only
cross join lateral (select * from pg_policy l where l.polrelid = o.oid offset 0) l
cross join lateral (
    select coalesce(pg_get_expr(l.polqual, l.polrelid), '') || ' ' || coalesce(pg_get_expr(l.polwithcheck, l.polrelid), '') as text
) expression
where not exists (select from pg_attribute a where a.attrelid = o.oid and a.attname = 'tenant_id' and a.atttypid <> 'uuid'::regtype)
  and regexp_replace(expression.text, 'SELECT \(*((NULLIF|split_part)\(+)*current_setting\(', '', 'g') ~ 'current_setting\('
union all
select 'extension-access', e.extname::text,
       'lets the application role leave the database or look into its files by the functions of an extension',
       string_agg(format('revoke execute on function %s from public, saas_app;', p.oid::regprocedure), ' ')
from pg_extension e
join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.classid = 'pg_proc'::regclass and d.deptype = 'e'
join pg_proc p on p.oid = d.objid and p.prokind = 'f'
where e.extname in ('dblink', 'adminpack', 'pageinspect', 'pg_walinspect', 'pg_surgery')
  and exists (select from app where has_function_privilege(app.oid, p.oid, 'execute'))
group by e.extname
order by 1, 2
