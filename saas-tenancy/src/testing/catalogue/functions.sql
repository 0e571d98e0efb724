-- What the application's login ($1) may call. An invoker's function can do no more than its caller.
select p.oid::regprocedure::text, format('%I.%I', n.nspname, p.proname), p.prokind::text,
       p.prosecdef or exists (select from unnest(p.proconfig) s where s !~ '^(search_path|plan_cache_mode)='),
       array(select t.oid::bigint
             from unnest(string_to_array(nullif(p.proargtypes::text, ''), ' ')) with ordinality as u (arg, place)
             join pg_type t on t.oid = u.arg::oid order by u.place),
       array(select format_type(u.arg::oid, null)
             from unnest(string_to_array(nullif(p.proargtypes::text, ''), ' ')) with ordinality as u (arg, place) order by u.place),
       p.pronargdefaults::int
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where p.prokind in ('f', 'p') and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
  and has_function_privilege($1, p.oid, 'execute')
  and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
  and has_schema_privilege($1, n.oid, 'usage')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
order by 1
