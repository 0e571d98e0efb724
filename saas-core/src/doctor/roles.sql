-- The roles themselves.
with login as (
    select r.*
    from pg_roles r
    where r.rolname in ('saas_system', 'saas_app') or (not r.rolsuper and pg_has_role(r.oid, 'saas_app', 'usage'))
),
attribute (role, attribute, reason) as (
    select rolname, 'superuser', 'is superuser: row-level security does not bind it' from login where rolsuper
    union all
    select rolname, 'bypassrls', 'has BYPASSRLS' from login where rolbypassrls
    union all
    select rolname, 'replication', 'may replicate, and replication ignores row-level security' from login where rolreplication
    union all
    select rolname, 'createrole', 'may create roles, and so give itself more rights' from login where rolcreaterole
    union all
    select rolname, 'superuser', 'owns the tables and is superuser' from pg_roles where rolname = 'saas_owner' and rolsuper
    union all
    select rolname, 'bypassrls', 'owns the tables and has BYPASSRLS' from pg_roles where rolname = 'saas_owner' and rolbypassrls
    union all
    select rolname, 'login', 'owns the tables and can log in' from pg_roles where rolname = 'saas_owner' and rolcanlogin
)
select 'privileged-role' as code, role::text as object, reason, format('alter role %I no%s;', role, attribute) as mend
from attribute
union all
select 'role-membership', login.rolname::text, format('is a member of %I and has that role''s rights as well', granted.rolname),
       format('revoke %I from %I;', granted.rolname, login.rolname)
from login
join pg_auth_members m on m.member = login.oid
join pg_roles granted on granted.oid = m.roleid
where granted.rolname <> 'saas_app'
union all
select 'privileged-role', login.rolname::text, format('owns %I.%I and could switch its policies off', n.nspname, c.relname),
       format('alter table %I.%I owner to saas_owner;', n.nspname, c.relname)
from login
join pg_class c on c.relowner = login.oid and c.relkind in ('r', 'p', 'v', 'm')
join pg_namespace n on n.oid = c.relnamespace
union all
select 'privileged-role', login.rolname::text, format('owns the function %s and could change what it does', p.oid::regprocedure),
       format('alter function %s owner to saas_owner;', p.oid::regprocedure)
from login join pg_proc p on p.proowner = login.oid
union all
select 'preset-setting', coalesce(r.rolname::text, 'every role') || ' in ' || coalesce(d.datname::text, 'every database'),
       format('starts each session with %s: as a tenant, or as the system, that nobody bound', split_part(setting, '=', 1)),
       case when s.setrole = 0 then format('alter database %I reset %s;', d.datname, split_part(setting, '=', 1))
            else format('alter role %I%s reset %s;', r.rolname, coalesce(format(' in database %I', d.datname), ''), split_part(setting, '=', 1)) end
from pg_db_role_setting s
cross join unnest(s.setconfig) as c (setting)
left join pg_roles r on r.oid = s.setrole
left join pg_database d on d.oid = s.setdatabase
where setting ~* '^(saas\.|role=|row_security=|session_replication_role=)'
  and (s.setdatabase = 0 or d.datname = current_database())
order by 1, 2
