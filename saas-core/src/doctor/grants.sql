-- Privileges that row-level security does not govern.
with app as (
    -- Every login that is bound by the tenants' policies: the role itself and its members.
    select oid, rolname from pg_roles where not rolsuper and pg_has_role(oid, 'saas_app', 'usage')
),
grantee as (
    select rolname as role from app union select 'saas_system'
),
mine as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
      -- one schema, where only that one is examined
      and n.nspname = coalesce(nullif(current_setting('saas.examined_schema', true), ''), n.nspname)
)
select 'dangerous-grant' as code, name as object,
       format('grants %s to %s: that ignores row-level security', privilege, role) as reason,
       format('revoke %s on %s from %I, public;', privilege, name, role) as mend
from mine cross join grantee cross join (values ('truncate'), ('references'), ('trigger')) as p (privilege)
where relkind in ('r', 'p')
  and (has_table_privilege(role, oid, privilege)
       or (privilege = 'references' and has_any_column_privilege(role, oid, 'references')))
union all
select 'open-sequence', name,
       format('can be read or advanced by %s: its value tells one tenant how much the others do', role),
       format('revoke all on sequence %s from %I, public;', name, role)
from mine cross join grantee
where relkind = 'S' and role <> 'saas_system' and has_sequence_privilege(role, oid, 'usage, select, update')
union all
select 'temporary-tables', current_database()::text,
       format('lets %s create temporary tables, which can shadow real ones and outlive the request', role),
       format('revoke temporary on database %I from %I, public;', current_database(), role)
from grantee
where has_database_privilege(role, current_database(), 'temporary')
union all
select 'schema-create', n.nspname::text,
       format('lets %s create objects, which others would then use with their own rights', role),
       format('revoke create on schema %I from %I, public;', n.nspname, role)
from pg_namespace n cross join grantee
where n.nspname not like 'pg\_%' and has_schema_privilege(role, n.oid, 'create')
union all
select 'default-privileges',
       format('%s in %s', d.defaclrole::regrole, coalesce(nullif(d.defaclnamespace, 0)::regnamespace::text, 'every schema')),
       'grants new objects to the application role or to everyone before anybody can fence them',
       format('alter default privileges for role %s%s revoke all on %s from saas_app, public;', d.defaclrole::regrole,
              coalesce(' in schema ' || nullif(d.defaclnamespace, 0)::regnamespace::text, ''),
              case d.defaclobjtype when 'r' then 'tables' else 'sequences' end)
from pg_default_acl d
where d.defaclobjtype in ('r', 'S')
  and exists (select from aclexplode(d.defaclacl) a
              where a.grantee = 0 or a.grantee in (select oid from app))
union all
select 'server-access', p.oid::regprocedure::text,
       'reads or writes large objects or files of the server, which have no row-level security and no tenant',
       format('revoke execute on function %s from public, saas_app;%s', p.oid::regprocedure,
              case when (select rolsuper from pg_roles where rolname = current_user) then ''
                   else '  -- as a superuser' end)
from pg_proc p
where p.pronamespace = 'pg_catalog'::regnamespace
  and (p.proname in ('lo_get', 'lo_put', 'lo_from_bytea', 'lo_creat', 'lo_create', 'lo_open', 'lo_unlink', 'loread', 'lowrite',
                     'lo_import', 'lo_export')
       or p.proname like 'pg\_read\_%file' or p.proname like 'pg\_ls\_%' or p.proname like 'pg\_file\_%')
  and exists (select from app where has_function_privilege(app.oid, p.oid, 'execute'))
union all
select 'catalogue-access', c.oid::regclass::text, 'shows statistics, secrets or large objects of every tenant',
       format('revoke all on %s from public, saas_app;', c.oid::regclass)
from pg_class c
where c.oid in ('pg_catalog.pg_statistic'::regclass, 'pg_catalog.pg_statistic_ext_data'::regclass, 'pg_catalog.pg_authid'::regclass,
                'pg_catalog.pg_largeobject'::regclass)
  and exists (select from app where has_table_privilege(app.oid, c.oid, 'select'))
union all
select 'settable-parameter', a.parname, 'may be set by the application role: it can switch triggers and foreign keys off',
       format('revoke set on parameter %s from saas_app, public;', a.parname)
from pg_parameter_acl a
where a.parname = 'session_replication_role'
  and exists (select from app where has_parameter_privilege(app.oid, a.parname, 'set'))
order by 1, 2
