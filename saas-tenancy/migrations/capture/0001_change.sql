-- What a database needs in which a tenant's rows are copied from or to: the log of changed keys, the trigger that writes it,
-- and the statements whose tables are known only when they run. Names come from the catalogue and are quoted here.

-- Keys of rows that changed while their tenant was being copied.
create table saas.move_change (
    tenant_id   uuid not null,
    move_id     uuid not null,
    seq         bigint generated always as identity,
    table_name  text not null,
    key         jsonb not null,
    primary key (tenant_id, move_id, seq)
);
-- Written by the trigger, with the rights of whoever changes the row.
select saas.fence('saas.move_change', 'insert');

-- The door's lock is taken by every writer of the tenant's rows, also by one that did not come through saas.enter, such as
-- a worker: whoever holds it exclusively knows that no change is under way, and after the tenant has left none is let in.
create function saas.move_capture()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $capture$
declare
    of_move        constant uuid := tg_argv[0];
    of_tenant      constant uuid := tg_argv[1];
    at_generation  constant bigint := tg_argv[2];
    home           bigint;
    door           text;
    changed        jsonb;
begin
    if current_setting('transaction_isolation') = 'read committed' then
        perform pg_advisory_xact_lock_shared(saas.door(of_tenant));
    elsif not pg_try_advisory_xact_lock_shared(saas.door(of_tenant)) then
        -- Its snapshot would still show the door open after the wait.
        raise exception 'saas.move_capture: the tenant is leaving' using errcode = 'serialization_failure';
    end if;
    select r.generation, r.state into home, door from saas.resident r where r.tenant_id = of_tenant;
    if coalesce(home, 0) <> at_generation or door = 'closed' then
        raise exception 'saas.move_capture: the tenant has left; its rows here are kept as they were'
            using errcode = 'SA001', hint = 'It has moved: look up its placement again.';
    end if;
    if tg_argv[5] = 'new' then
        execute tg_argv[4] into changed using new;
    else
        execute tg_argv[4] into changed using old;
    end if;
    insert into saas.move_change (tenant_id, move_id, table_name, key) values (of_tenant, of_move, tg_argv[3], changed);
    return null;
end
$capture$;

create function saas.move_refuse_truncate()
returns trigger
language plpgsql
as $$
begin
    raise exception 'saas: a tenant is being moved out of %, and a truncation is in no log', tg_relid::regclass
        using errcode = 'object_in_use', hint = 'Confirm the move or roll it back first, or delete the rows.';
end
$$;

-- How a row of a table is found again by the key in the log. Columns of the primary key, which holds the tenant.
create function saas.move_key(target regclass, out definition text, out matches text, out key_of text, out differs text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by k.place),
           string_agg(format('t.%1$I = r.%1$I', a.attname), ' and ' order by k.place),
           'select jsonb_build_object(' || string_agg(format('%L, ($1).%I', a.attname, a.attname), ', ' order by k.place) || ')',
           string_agg(format('old.%1$I is distinct from new.%1$I', a.attname), ' or ' order by k.place)
    from pg_index i
    cross join lateral unnest(string_to_array(i.indkey::text, ' ')::smallint[]) with ordinality as k (att, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.att
    where i.indrelid = target and i.indisprimary and k.place <= i.indnkeyatts
$$;

create function saas.move_trigger(of_move uuid, kind text)
returns name
language sql
immutable
set search_path = pg_catalog, pg_temp
return ('saas_move_' || replace(of_move::text, '-', '') || '_' || kind)::name;

-- Logs every later change of the tenant's rows. Waits for those who are writing to the table.
create function saas.move_watch(target regclass, of_move uuid, of_tenant uuid, at_generation bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $watch$
declare
    shape  record;
    args   text;
begin
    select * into strict shape from saas.move_key(target);
    args := format('%L, %L, %L, %L, %L', of_move, of_tenant, at_generation, (select relname from pg_class where oid = target), shape.key_of);
    perform saas.move_unwatch(target, of_move);
    execute format(
        'create trigger %I after insert or update on %s for each row when (new.tenant_id = %L) execute function saas.move_capture(%s, ''new'')',
        saas.move_trigger(of_move, 'new'), target, of_tenant, args);
    execute format(
        'create trigger %I after delete on %s for each row when (old.tenant_id = %L) execute function saas.move_capture(%s, ''old'')',
        saas.move_trigger(of_move, 'old'), target, of_tenant, args);
    -- A row that got another key is gone under its former one.
    execute format(
        'create trigger %I after update on %s for each row when (old.tenant_id = %L and (%s)) execute function saas.move_capture(%s, ''old'')',
        saas.move_trigger(of_move, 'key'), target, of_tenant, shape.differs, args);
    execute format(
        'create trigger %I before truncate on %s for each statement execute function saas.move_refuse_truncate()',
        saas.move_trigger(of_move, 'all'), target);
end
$watch$;

create function saas.move_unwatch(target regclass, of_move uuid)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    kind  text;
begin
    foreach kind in array array['new', 'old', 'key', 'all'] loop
        if exists (select from pg_trigger where tgrelid = target and tgname = saas.move_trigger(of_move, kind)) then
            execute format('drop trigger %I on %s', saas.move_trigger(of_move, kind), target);
        end if;
    end loop;
end
$$;

-- The columns of a table as a row: in the order of their names, which is the same wherever the table was made.
create function saas.move_columns(target regclass)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
return (select string_agg(format('t.%I', a.attname), ', ' order by a.attname collate "C")
        from pg_attribute a where a.attrelid = target and a.attnum > 0 and not a.attisdropped);

-- Number and checksum of the tenant's rows: the sum of a 64-bit hash of each, so that their order does not matter and equal
-- rows do not cancel out. The hash is the one of hash indexes, which pg_upgrade relies on to be the same in every release.
-- Of all rows; or of those that were touched (see saas.move_touched).
create function saas.move_checksum(target regclass, of_tenant uuid, touched text default null, of_move uuid default null,
                                   out row_count bigint, out checksum text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'select count(*), coalesce(sum(hashtextextended(row(%s)::text, 0)), 0)::text from %s where t.tenant_id = %L',
        saas.move_columns(target),
        case when touched is null then format('%s t', target) else saas.move_touched(target, of_tenant, touched, of_move) end,
        of_tenant)
    into row_count, checksum;
end
$$;

-- A from item `t`: the rows of a table (called `touched`) that were touched, as the log of the source has them (of_move), or
-- as they were brought along (of_move is null).
create function saas.move_touched(target regclass, of_tenant uuid, touched text, of_move uuid)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
return (select format('(select distinct c.key from %s c where %s c.table_name = %L) k cross join lateral jsonb_to_record(k.key) as r(%s) join %s t on t.tenant_id = %L and %s',
                      case when of_move is null then 'pg_temp.saas_move_key' else 'saas.move_change' end,
                      case when of_move is null then '' else format('c.tenant_id = %L and c.move_id = %L and', of_tenant, of_move) end,
                      touched, shape.definition, target, of_tenant, shape.matches)
        from saas.move_key(target) shape);

-- Keys in the log of one table, each once.
create function saas.move_keys(of_tenant uuid, of_move uuid, touched text)
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
begin atomic
    select distinct c.key::text from saas.move_change c
    where c.tenant_id = of_tenant and c.move_id = of_move and c.table_name = touched;
end;

-- Deletes rows that were touched at the source, and remembers which. What they are now comes afterwards: two rows that
-- exchanged a unique value would otherwise be in each other's way.
create function saas.move_forget(target regclass, of_tenant uuid, touched text, keys text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    shape  record;
begin
    select * into strict shape from saas.move_key(target);
    insert into pg_temp.saas_move_key (table_name, key) select touched, k::jsonb from unnest(keys) k;
    execute format(
        'delete from %s t using unnest($2::text[]) k (key) cross join lateral jsonb_to_record(k.key::jsonb) as r(%s) where t.tenant_id = $1 and %s',
        target, shape.definition, shape.matches)
    using of_tenant, keys;
end
$$;

-- The touched rows that still exist, each as text with the given columns.
create function saas.move_rows(target regclass, of_tenant uuid, touched text, of_move uuid, columns text)
returns setof text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format('select row(%s)::text from %s', columns, saas.move_touched(target, of_tenant, touched, of_move));
end
$$;

-- Stores such rows. Their columns are those of the table here, in its order; computed ones come by themselves.
create function saas.move_take(target regclass, columns text, rows text[])
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    taken  bigint;
begin
    execute format('insert into %1$s (%2$s) overriding system value select %2$s from unnest($1::%1$s[]) r', target, columns) using rows;
    get diagnostics taken = row_count;
    return taken;
end
$$;

-- The name of a foreign key to a table that does not move (a list of countries, say) which rows of the tenant break here.
-- Keys among the tables that move hold because they hold in the snapshot from which all of them come.
create function saas.move_orphan(target regclass, of_tenant uuid, moved regclass[], touched text default null)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    foreign_key  record;
    broken       boolean;
begin
    -- All rows of a table that has just been filled, of which the planner knows nothing: row by row could take for ever.
    if touched is null then
        perform set_config('enable_nestloop', 'off', true);
    end if;
    for foreign_key in
        select c.conname, c.confrelid::regclass as parent,
               string_agg(format('p.%I = t.%I', p.attname, m.attname), ' and ') as matches,
               string_agg(format('t.%I is not null', m.attname), ' and ') as filled
        from pg_constraint c
        cross join lateral unnest(c.conkey, c.confkey) as pair (mine, theirs)
        join pg_attribute m on m.attrelid = c.conrelid and m.attnum = pair.mine
        join pg_attribute p on p.attrelid = c.confrelid and p.attnum = pair.theirs
        where c.conrelid = target and c.contype = 'f' and c.confrelid <> all (moved)
        group by c.oid, c.conname, c.confrelid
    loop
        execute format('select exists (select from %s where t.tenant_id = $1 and %s and not exists (select from %s p where %s))',
                       case when touched is null then format('%s t', target) else saas.move_touched(target, of_tenant, touched, null) end,
                       foreign_key.filled, foreign_key.parent, foreign_key.matches)
        into broken using of_tenant;
        if broken then
            exit;
        end if;
    end loop;
    perform set_config('enable_nestloop', 'on', true);
    return case when broken then foreign_key.conname end;
end
$$;

-- Deletes at most so many of the tenant's rows; answers how many.
create function saas.move_empty(target regclass, of_tenant uuid, at_most bigint)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    leaf  regclass;
    gone  bigint;
begin
    for leaf in
        select target where not exists (select from pg_partition_tree(target))
        union all
        select p.relid from pg_partition_tree(target) p where p.isleaf
    loop
        execute format('delete from only %1$s where tenant_id = $1 and ctid = any (array(select ctid from only %1$s where tenant_id = $1 limit $2))', leaf)
        using of_tenant, at_most;
        get diagnostics gone = row_count;
        if gone > 0 then
            return gone;
        end if;
    end loop;
    return 0;
end
$$;

create function saas.move_has_rows(target regclass, of_tenant uuid, of_others boolean)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_one  boolean;
begin
    execute format('select exists (select from %s where %s)', target,
                   case when of_others then 'tenant_id < $1 or tenant_id > $1' else 'tenant_id = $1' end)
    into found_one using of_tenant;
    return found_one;
end
$$;

-- The numbers that arrived must not be given out again.
create function saas.move_raise_identity(target regclass, of_tenant uuid)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    identity  record;
    reached   bigint;
    at        bigint;
begin
    for identity in
        select a.attname, pg_get_serial_sequence(target::text, a.attname)::regclass as numbers, s.seqcache
        from pg_attribute a
        join pg_sequence s on s.seqrelid = pg_get_serial_sequence(target::text, a.attname)::regclass
        where a.attrelid = target and a.attidentity <> '' and not a.attisdropped and s.seqincrement > 0
    loop
        execute format('select max(%I)::bigint from %s where tenant_id = $1', identity.attname, target) into reached using of_tenant;
        execute format('select last_value from %s', identity.numbers) into at;
        if reached >= at then
            -- Changes nothing but takes the lock that keeps others from drawing a number in between.
            execute format('alter sequence %s cache %s', identity.numbers, identity.seqcache);
            execute format('select setval(%L, greatest(last_value, $1)) from %s', identity.numbers, identity.numbers) using reached;
        end if;
    end loop;
end
$$;

-- A place that was empty has no statistics, and plans without them are slow until somebody makes some.
create function saas.move_analyze(target regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('analyze %s', target);
end
$$;

-- A schema that one tenant had for itself.
create function saas.move_drop_schema(named text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if named in ('public', 'saas', 'information_schema') or named like 'pg\_%' then
        raise exception 'saas: % is not a tenant''s schema', named using errcode = 'reserved_name';
    end if;
    execute format('drop schema if exists %I cascade', named);
end
$$;

revoke all on function
    saas.move_drop_schema(text), saas.move_capture(), saas.move_refuse_truncate(), saas.move_key(regclass), saas.move_trigger(uuid, text),
    saas.move_watch(regclass, uuid, uuid, bigint), saas.move_unwatch(regclass, uuid), saas.move_columns(regclass),
    saas.move_checksum(regclass, uuid, text, uuid), saas.move_touched(regclass, uuid, text, uuid), saas.move_keys(uuid, uuid, text), saas.move_forget(regclass, uuid, text, text[]),
    saas.move_rows(regclass, uuid, text, uuid, text), saas.move_take(regclass, text, text[]), saas.move_analyze(regclass),
    saas.move_orphan(regclass, uuid, regclass[], text), saas.move_empty(regclass, uuid, bigint),
    saas.move_has_rows(regclass, uuid, boolean), saas.move_raise_identity(regclass, uuid)
from public;
