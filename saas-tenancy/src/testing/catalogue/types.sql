-- What a value of each type looks like: kind, base of a domain, element of an array, subtype of a range, labels, checks.
select t.oid::bigint, t.typname::text, t.typtype::text, t.typcategory::text, t.typbasetype::bigint, t.typtypmod,
       case when t.typcategory = 'A' then t.typelem::bigint else 0 end,
       coalesce((select r.rngsubtype::bigint from pg_range r where r.rngtypid = t.oid or r.rngmultitypid = t.oid), 0),
       coalesce((select array_agg(e.enumlabel::text order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid), '{}'),
       coalesce((select array_agg(k.conname::text order by k.oid) from pg_constraint k where k.contypid = t.oid), '{}'),
       coalesce((select array_agg(pg_get_constraintdef(k.oid) order by k.oid) from pg_constraint k where k.contypid = t.oid), '{}')
from pg_type t
where t.typtype in ('b', 'd', 'e', 'r', 'm')
