-- Unique keys and exclusion constraints: the columns each reads, and whether ON CONFLICT can name them.
select x.indrelid::bigint, c.relname::text, x.indisprimary,
       x.indisunique and x.indexprs is null and x.indpred is null and x.indimmediate,
       (string_to_array(x.indkey::text, ' ')::smallint[])[1:x.indnkeyatts],
       array(select d.refobjsubid::smallint from pg_depend d
             where d.classid = 'pg_class'::regclass and d.objid = x.indexrelid
               and d.refclassid = 'pg_class'::regclass and d.refobjid = x.indrelid and d.refobjsubid > 0
             union
             select a::smallint from unnest(string_to_array(x.indkey::text, ' ')) a where a <> '0')
from pg_index x
join pg_class c on c.oid = x.indexrelid
join pg_namespace n on n.oid = c.relnamespace
where (x.indisunique or x.indisexclusion)
  and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
order by x.indisprimary desc, x.indexrelid
