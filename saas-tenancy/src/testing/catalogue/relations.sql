-- Everything that holds or shows rows, outside the system's schemas. $1: the application's login.
select c.oid::bigint, format('%I.%I', n.nspname, c.relname), n.nspname::text, quote_ident(c.relname), c.relkind::text,
       (select i.inhparent::bigint from pg_inherits i where i.inhrelid = c.oid and c.relispartition),
       pg_get_expr(c.relpartbound, c.oid),
       coalesce((select p.partattrs::text from pg_partitioned_table p where p.partrelid = c.oid), ''),
       coalesce((select g.audience from saas.global_table g where g.name = format('%I.%I', n.nspname, c.relname)),
                -- the ledgers of migrations are open to reading
                case when n.nspname = 'saas' and c.relname like '\_migrations\_%' then 'everyone' end),
       array[(case when c.relkind = 'S' then has_sequence_privilege($1, c.oid, 'usage, select, update')
            else has_any_column_privilege($1, c.oid, 'select, insert, update')
                 or has_table_privilege($1, c.oid, 'delete, truncate') end)
            and has_schema_privilege($1, n.oid, 'usage'),
       coalesce((select bool_or(o.option_value::boolean) from pg_options_to_table(c.reloptions) o
                 where o.option_name = 'security_invoker'), false),
       -- Whether storing or removing a row can do more than that: triggers, rules, cascades, functions in defaults and checks.
       exists (select from pg_trigger t
               where not t.tgisinternal and (t.tgrelid = c.oid or c.relkind = 'p' and t.tgrelid in (select relid from pg_partition_tree(c.oid))))
           or exists (select from pg_rewrite r where r.ev_class = c.oid and r.ev_type <> '1')
           or exists (select from pg_constraint k
                      where k.confrelid = c.oid and k.contype = 'f' and (k.confdeltype in ('c', 'n', 'd') or k.confupdtype in ('c', 'n', 'd')))
           or exists (select from pg_depend d join pg_proc p on p.oid = d.refobjid
                      where d.refclassid = 'pg_proc'::regclass and p.pronamespace <> 'pg_catalog'::regnamespace
                        and (d.classid = 'pg_attrdef'::regclass and d.objid in (select f.oid from pg_attrdef f where f.adrelid = c.oid)
                             or d.classid = 'pg_constraint'::regclass and d.objid in (select k.oid from pg_constraint k where k.conrelid = c.oid)))
           or exists (select from pg_attribute a join pg_type y on y.oid = a.atttypid
                      where a.attrelid = c.oid and a.attnum > 0 and y.typtype = 'd')]
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relpersistence <> 't'
  and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
  and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
order by 2
