-- The roles themselves.
with role as (
    select r.oid, r.rolname::text as name, r.rolsuper, r.rolbypassrls, r.rolreplication, r.rolcreaterole
    from pg_roles r
    where r.rolname in ('saas_app', 'saas_system')
)
select 'privileged-role' as code, name as object, 'is superuser: row-level security does not bind it' as reason,
       format('alter role %I nosuperuser;', name) as mend
from role where rolsuper
union all
select 'privileged-role', name, 'has BYPASSRLS', format('alter role %I nobypassrls;', name)
from role where rolbypassrls
union all
select 'privileged-role', name, 'may replicate, and replication ignores row-level security',
       format('alter role %I noreplication;', name)
from role where rolreplication
union all
select 'privileged-role', name, 'may create roles, and so give itself more rights',
       format('alter role %I nocreaterole;', name)
from role where rolcreaterole
union all
select 'role-membership', role.name, format('is a member of %I and has that role''s rights as well', granted.rolname),
       format('revoke %I from %I;', granted.rolname, role.name)
from role
join pg_auth_members m on m.member = role.oid
join pg_roles granted on granted.oid = m.roleid
union all
select 'privileged-role', role.name, format('owns %s and could switch its policies off', c.oid::regclass),
       format('alter table %s owner to saas_owner;', c.oid::regclass)
from role join pg_class c on c.relowner = role.oid and c.relkind in ('r', 'p', 'v', 'm')
order by 1, 2
