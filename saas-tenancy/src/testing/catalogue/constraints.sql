-- Checks and foreign keys of tables; a partition's copies are its parent's.
select k.conrelid::bigint, k.conname::text, k.contype::text, pg_get_constraintdef(k.oid), coalesce(k.conkey, '{}'),
       k.confrelid::bigint, coalesce(k.confkey, '{}')
from pg_constraint k
join pg_class c on c.oid = k.conrelid
join pg_namespace n on n.oid = c.relnamespace
where k.contype in ('c', 'f') and k.conparentid = 0
  and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
order by k.conrelid, k.oid
