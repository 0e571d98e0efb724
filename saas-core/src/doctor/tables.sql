-- Tables with a tenant, and whether only that tenant can reach them.
with candidate as (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind, c.relispartition, c.relrowsecurity, c.relforcerowsecurity,
           n.nspname, c.relname, a.attnum as tenant_att, a.attnotnull as tenant_not_null,
           (a.attnum is not null or c.oid = to_regclass('saas.tenant')) as is_tenant_table,
           has_any_column_privilege('saas_app', c.oid, 'select, insert, update')
               or has_table_privilege('saas_app', c.oid, 'delete, truncate') as is_reachable
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped
    where c.relkind in ('r', 'p') and c.relpersistence <> 't'
      and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
      -- objects of extensions are the extension's own business
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
),
-- A partition is reached through its parent; on its own it has no grants (see routes.sql).
tenant_table as (
    select * from candidate where is_tenant_table and not relispartition
),
isolating as (
    select p.polrelid
    from pg_policy p
    where not p.polpermissive and p.polcmd = '*'
      and ('saas_app'::regrole::oid = any(p.polroles) or 0 = any(p.polroles))
      and pg_get_expr(p.polqual, p.polrelid)
          ~ '^\((tenant_id|id) = \( SELECT \(?NULLIF\(current_setting\(''saas\.tenant_id''::text, true\), ''''::text\)\)?::uuid( AS "?[a-z]+"?)?\)\)$'
      and (p.polwithcheck is null
           or pg_get_expr(p.polwithcheck, p.polrelid) = pg_get_expr(p.polqual, p.polrelid))
)
select 'rls-off' as code, name as object,
       'has tenants'' rows but no row-level security: every tenant sees all of them' as reason,
       format('select saas.fence(%L);', name) as mend
from tenant_table where not relrowsecurity and is_reachable
union all
select 'rls-not-forced', name,
       'does not force row-level security: whoever runs as its owner, such as a view or a function, sees every tenant',
       format('alter table %s force row level security;', name)
from tenant_table where relrowsecurity and not relforcerowsecurity
union all
select 'no-isolation-policy', name,
       'has no restrictive policy with the tenant predicate for reading and writing: any other permissive policy, or a loose '
       || 'WITH CHECK, opens it',
       format('select saas.fence(%L);', name)
from tenant_table t
where relrowsecurity and is_reachable and not exists (select from isolating i where i.polrelid = t.oid)
union all
select 'tenant-nullable', name, 'allows rows without a tenant, which nobody can see and nothing can clean up',
       format('alter table %s alter column tenant_id set not null;', name)
from tenant_table where tenant_att is not null and not tenant_not_null
union all
select 'unclassified-table', name,
       'is open to the application role, has no tenant_id and is not declared global',
       format('revoke all on %s from saas_app, public;  -- or: select saas.declare_global(%L, ''why'');', name, name)
from candidate c
where not is_tenant_table and is_reachable and not relispartition
  and not (nspname = 'saas' and relname like '\_migrations\_%')
  and not exists (select from saas.global_table g where g.name = c.name)
union all
select 'unique-without-tenant', i.name,
       format('is a unique key of %s without tenant_id: an insert tells one tenant what another one stores', t.name),
       case when k.contype in ('p', 'u')
           then format('alter table %s drop constraint %I, add %s (tenant_id, %s);', t.name, k.conname,
                       case k.contype when 'p' then 'primary key' else 'unique' end, i.columns)
           when k.contype = 'x' then format('alter table %s drop constraint %I;  -- then add it again with tenant_id', t.name, k.conname)
           when i.is_plain then format('drop index %s; create unique index on %s (tenant_id, %s);', i.name, t.name, i.columns)
           else format('drop index %s;  -- then create it again with tenant_id first', i.name) end
from tenant_table t
join (
    select x.indexrelid, x.indrelid, format('%I.%I', n.nspname, c.relname) as name,
           (string_to_array(x.indkey::text, ' ')::smallint[])[1:x.indnkeyatts] as key,
           x.indexprs is null and x.indpred is null as is_plain,
           (select string_agg(quote_ident(a.attname), ', ' order by array_position(string_to_array(x.indkey::text, ' ')::smallint[], a.attnum))
            from pg_attribute a where a.attrelid = x.indrelid and a.attnum = any(x.indkey)) as columns
    from pg_index x
    join pg_class c on c.oid = x.indexrelid
    join pg_namespace n on n.oid = c.relnamespace
    where x.indisunique or x.indisexclusion
) i on i.indrelid = t.oid
left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = t.oid and k.contype in ('p', 'u', 'x')
where t.tenant_att is not null and t.is_reachable and t.tenant_att <> all (i.key)
union all
select 'foreign-key-without-tenant', format('%s.%s', t.name, k.conname),
       format('references %s without tenant_id: foreign keys ignore row-level security, so one tenant can point at, and '
              || 'with a cascade delete, another one''s rows', k.confrelid::regclass),
       case when r.tenant_att is null
           then format('alter table %s drop constraint %I;', t.name, k.conname)
           else format('%salter table %s drop constraint %I, add constraint %3$I foreign key (tenant_id, %s) references %s (tenant_id, %s)%s;',
               case when exists (
                   select from pg_index x
                   where x.indrelid = r.oid and x.indisunique and x.indpred is null
                     and (select array_agg(c order by c) from unnest((string_to_array(x.indkey::text, ' ')::smallint[])[1:x.indnkeyatts]) c)
                       = (select array_agg(c order by c) from unnest(array_append(k.confkey, r.tenant_att)) c))
               then '' else format('alter table %s add unique (tenant_id, %s); ', r.name, pair.theirs) end,
               t.name, k.conname, pair.mine, r.name, pair.theirs,
               case k.confdeltype when 'c' then ' on delete cascade' else '' end) end
from tenant_table t
join pg_constraint k on k.conrelid = t.oid and k.contype = 'f' and k.conparentid = 0
join tenant_table r on r.oid = k.confrelid
cross join lateral (
    select string_agg(quote_ident(m.attname), ', ' order by u.place) as mine,
           string_agg(quote_ident(f.attname), ', ' order by u.place) as theirs
    from unnest(k.conkey, k.confkey) with ordinality as u (mine, theirs, place)
    join pg_attribute m on m.attrelid = k.conrelid and m.attnum = u.mine
    join pg_attribute f on f.attrelid = k.confrelid and f.attnum = u.theirs
) pair
where t.tenant_att is not null
  and not exists (
      select
      from unnest(k.conkey, k.confkey) as pair (mine, theirs)
      join pg_attribute a on a.attrelid = k.confrelid and a.attnum = pair.theirs
      where pair.mine = t.tenant_att
        and a.attname = case when k.confrelid = to_regclass('saas.tenant') then 'id' else 'tenant_id' end)
union all
select 'no-tenant-index', name,
       'has no index that starts with tenant_id: each query of a small tenant reads every tenant''s rows',
       format('create index on %s (tenant_id);', name)
from tenant_table t
where tenant_att is not null and is_reachable
  and not exists (select from pg_index i where i.indrelid = t.oid and i.indisvalid and i.indkey[0] = t.tenant_att)
union all
select 'wrong-owner', c.name, 'is in the schema saas but does not belong to saas_owner',
       format('alter table %s owner to saas_owner;', c.name)
from candidate c join pg_class k on k.oid = c.oid
where c.nspname = 'saas' and k.relowner <> 'saas_owner'::regrole
order by 1, 2
