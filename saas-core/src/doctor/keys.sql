-- Keys and references: they ignore row-level security, so the tenant must be part of them.
with tenant_table as not materialized (
    select c.oid, format('%I.%I', n.nspname, c.relname) as name,
           n.nspname = coalesce(nullif(current_setting('saas.examined_schema', true), ''), n.nspname) as is_examined,
           (select a.attnum from pg_attribute a
            where a.attrelid = c.oid and not a.attisdropped
              and a.attname = case when c.oid = to_regclass('saas.tenant') then 'id' else 'tenant_id' end) as tenant_att
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and c.relpersistence <> 't'
      and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
      -- a table for the system only may keep what is unique across tenants
      and not exists (select from saas.global_table g
                      where g.name = format('%I.%I', n.nspname, c.relname) and g.audience = 'system')
),
unique_index as (
    select x.indexrelid, x.indrelid, format('%I.%I', n.nspname, c.relname) as name,
           (string_to_array(x.indkey::text, ' ')::smallint[])[1:x.indnkeyatts] as key,
           x.indexprs is null and x.indpred is null as is_plain,
           (select string_agg(quote_ident(a.attname), ', '
                              order by array_position(string_to_array(x.indkey::text, ' ')::smallint[], a.attnum))
            from pg_attribute a where a.attrelid = x.indrelid and a.attnum = any(x.indkey)) as columns
    from pg_index x
    join pg_class c on c.oid = x.indexrelid
    join pg_namespace n on n.oid = c.relnamespace
    where (x.indisunique or x.indisexclusion)
      -- the part of a parent's index is mended with the parent
      and not exists (select from pg_inherits h where h.inhrelid = x.indexrelid)
)
select 'unique-without-tenant' as code, i.name as object,
       format('is a unique key of %s without tenant_id (compared by =): an insert tells one tenant what another one stores', t.name) as reason,
       case when k.contype in ('p', 'u')
           then format('alter table %s drop constraint %I, add %s (tenant_id, %s);', t.name, k.conname,
                       case k.contype when 'p' then 'primary key' else 'unique' end, i.columns)
           when k.contype = 'x' then format('alter table %s drop constraint %I;  -- then add it again with tenant_id', t.name, k.conname)
           when i.is_plain then format('drop index %s; create unique index on %s (tenant_id, %s);', i.name, t.name, i.columns)
           else format('drop index %s;  -- then create it again with tenant_id first', i.name) end as mend
from tenant_table t
join unique_index i on i.indrelid = t.oid
left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = t.oid and k.contype in ('p', 'u', 'x')
where t.is_examined and t.tenant_att is not null
  and not exists (
      select from unnest(i.key, k.conexclop) as u (att, op)
      where u.att = t.tenant_att and (u.op is null or u.op = '=(uuid,uuid)'::regoperator))
union all
select 'foreign-key-without-tenant', format('%s.%s', t.name, k.conname),
       format('references %s without tenant_id: foreign keys ignore row-level security, so one tenant can point at, and '
              || 'with a cascade delete, another one''s rows', r.name),
       case when r.oid = to_regclass('saas.tenant') or pair.mine is null then format('alter table %s drop constraint %I;', t.name, k.conname)
       else format('%salter table %s drop constraint %I, add constraint %3$I foreign key (tenant_id, %s) references %s (tenant_id, %s)%s%s%s;',
            case when exists (
                select from pg_index x
                where x.indrelid = r.oid and x.indisunique and x.indpred is null
                  and (select array_agg(c order by c) from unnest((string_to_array(x.indkey::text, ' ')::smallint[])[1:x.indnkeyatts]) c)
                    = (select array_agg(c order by c) from unnest(array_append(array_remove(k.confkey, r.tenant_att), r.tenant_att)) c))
            then '' else format('alter table %s add unique (tenant_id, %s); ', r.name, pair.theirs) end,
            t.name, k.conname, pair.mine, r.name, pair.theirs,
            case k.confupdtype when 'c' then ' on update cascade' else '' end,
            case k.confdeltype when 'c' then ' on delete cascade' when 'n' then format(' on delete set null (%s)', pair.mine)
                               when 'r' then ' on delete restrict' else '' end,
            case when k.condeferrable then ' deferrable' || case when k.condeferred then ' initially deferred' else '' end else '' end) end
from tenant_table t
join pg_constraint k on k.conrelid = t.oid and k.contype = 'f' and k.conparentid = 0
join tenant_table r on r.oid = k.confrelid
cross join lateral (
    select string_agg(quote_ident(m.attname), ', ' order by u.place) as mine,
           string_agg(quote_ident(f.attname), ', ' order by u.place) as theirs
    from unnest(k.conkey, k.confkey) with ordinality as u (mine, theirs, place)
    join pg_attribute m on m.attrelid = k.conrelid and m.attnum = u.mine
    join pg_attribute f on f.attrelid = k.confrelid and f.attnum = u.theirs
    -- that pair is what the mend adds
    where u.theirs <> r.tenant_att and u.mine <> t.tenant_att
) pair
where t.is_examined and t.tenant_att is not null and r.tenant_att is not null
  and not exists (
      select from unnest(k.conkey, k.confkey) as u (mine, theirs)
      where u.mine = t.tenant_att and u.theirs = r.tenant_att)
order by 1, 2
