-- Ways to a tenant's rows that do not pass the policies of the table.
with object as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind, c.relispartition, c.reloptions, c.relowner, n.nspname
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
)
select 'view-as-owner' as code, name as object,
       'is a view without security_invoker: it reads with its owner''s rights, not with the tenant''s'
       || case when (select rolsuper or rolbypassrls from pg_roles where oid = relowner)
               then ', and its owner is not bound by row-level security at all' else '' end as reason,
       format('alter view %s set (security_invoker = true);', name) as mend
from object
where relkind = 'v'
  and not coalesce((select bool_or(option_value::boolean) from pg_options_to_table(reloptions)
                    where option_name = 'security_invoker'), false)
  and has_any_column_privilege('saas_app', oid, 'select, insert, update')
union all
select 'materialized-view', name, 'is a materialized view: it holds every tenant''s rows and has no row-level security',
       format('revoke all on %s from saas_app, public;', name)
from object
where relkind = 'm' and has_any_column_privilege('saas_app', oid, 'select')
union all
select 'foreign-table', name, 'is a foreign table: row-level security does not reach the other server',
       format('revoke all on %s from saas_app, public;', name)
from object
where relkind = 'f' and has_any_column_privilege('saas_app', oid, 'select, insert, update')
union all
select 'open-partition', name,
       'is a partition that can be named directly: the parent''s policies do not apply then',
       format('revoke all on %s from saas_app, public;', name)
from object
where relispartition and relkind in ('r', 'p', 'f')
  and (has_any_column_privilege('saas_app', oid, 'select, insert, update')
       or has_table_privilege('saas_app', oid, 'delete, truncate'))
union all
select 'definer-function', p.oid::regprocedure::text,
       'runs with its owner''s rights (SECURITY DEFINER), so the tenant''s policies may not apply inside',
       format('alter function %s security invoker;  -- or: revoke execute on function %1$s from public, saas_app;',
              p.oid::regprocedure)
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where p.prosecdef and n.nspname not in ('pg_catalog', 'information_schema')
  and has_function_privilege('saas_app', p.oid, 'execute')
  and has_schema_privilege('saas_app', n.oid, 'usage')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
union all
select 'function-in-policy', format('%s.%s', l.polrelid::regclass, l.polname),
       format('calls %s: a cached plan may keep its answer for the next tenant, and it runs once per row',
              string_agg(p.oid::regprocedure::text, ', ')),
       format('drop policy %I on %s; select saas.fence(%L);', l.polname, l.polrelid::regclass, l.polrelid::regclass::text)
from pg_policy l
join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = l.oid and d.refclassid = 'pg_proc'::regclass
join pg_proc p on p.oid = d.refobjid
join pg_namespace n on n.oid = p.pronamespace
where n.nspname <> 'pg_catalog'
group by l.polrelid, l.polname
order by 1, 2
