-- The columns of those, and what the application's login ($1) may do with each.
select a.attrelid::bigint, a.attnum, quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.atttypid::bigint, a.atttypmod,
       a.attnotnull, a.atthasdef, a.attidentity::text, a.attgenerated <> '',
       array[has_column_privilege($1, a.attrelid, a.attnum, 'select'),
             has_column_privilege($1, a.attrelid, a.attnum, 'insert'),
             has_column_privilege($1, a.attrelid, a.attnum, 'update')]
from pg_attribute a
join pg_class c on c.oid = a.attrelid
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't' and a.attnum > 0 and not a.attisdropped
  and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
order by a.attrelid, a.attnum
