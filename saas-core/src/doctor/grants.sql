-- Privileges that row-level security does not govern.
with grantee (role) as (values ('saas_app'), ('saas_system')),
mine as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
)
select 'dangerous-grant' as code, name as object,
       format('grants %s to %s: that ignores row-level security', privilege, role) as reason,
       format('revoke %s on %s from %s, public;', privilege, name, role) as mend
from mine cross join grantee cross join (values ('truncate'), ('references'), ('trigger')) as p (privilege)
where relkind in ('r', 'p') and has_table_privilege(role, oid, privilege)
union all
select 'open-sequence', name,
       format('can be read or advanced by %s: its value tells one tenant how much the others do', role),
       format('revoke all on sequence %s from %s, public;', name, role)
from mine cross join grantee
where relkind = 'S' and role = 'saas_app' and has_sequence_privilege(role, oid, 'usage, select, update')
union all
select 'temporary-tables', current_database()::text,
       format('lets %s create temporary tables, which can shadow real ones and outlive the request', role),
       format('revoke temporary on database %I from %s, public;', current_database(), role)
from grantee
where has_database_privilege(role, current_database(), 'temporary')
union all
select 'schema-create', n.nspname::text,
       format('lets %s create objects, which others would then use with their own rights', role),
       format('revoke create on schema %I from %s, public;', n.nspname, role)
from pg_namespace n cross join grantee
where n.nspname not like 'pg\_%' and has_schema_privilege(role, n.oid, 'create')
union all
select 'large-objects', p.oid::regprocedure::text,
       'reads or writes large objects, which have no row-level security and no tenant',
       format('revoke execute on function %s from public, saas_app;', p.oid::regprocedure)
from pg_proc p
where p.pronamespace = 'pg_catalog'::regnamespace
  and p.proname in ('lo_get', 'lo_put', 'lo_from_bytea', 'lo_creat', 'lo_create', 'lo_open', 'lo_unlink', 'loread', 'lowrite')
  and has_function_privilege('saas_app', p.oid, 'execute')
order by 1, 2
