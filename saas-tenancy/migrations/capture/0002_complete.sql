-- What 0001 left out of the log: truncations of single partitions, keys of types that a session shows in its own way, and
-- numbers that were drawn by other defaults than identities.

-- As before, but for three things. A key is written in one way, whatever the session's settings are, and the mover reads it
-- with the same. Who may write is asked of the tenant's door only as far as the move is concerned: in maintenance an
-- operator may still mend rows, as without a move. Once the mover has closed the door behind the tenant, nobody may.
create or replace function saas.move_capture()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres'
set timezone = 'UTC'
set bytea_output = 'hex'
set extra_float_digits = 1
as $capture$
declare
    of_move        constant uuid := tg_argv[0];
    of_tenant      constant uuid := tg_argv[1];
    at_generation  constant bigint := tg_argv[2];
    home           bigint;
    why            text;
    changed        jsonb;
begin
    if current_setting('transaction_isolation') = 'read committed' then
        perform pg_advisory_xact_lock_shared(saas.door(of_tenant));
    elsif not pg_try_advisory_xact_lock_shared(saas.door(of_tenant)) then
        -- Its snapshot would still show the door open after the wait.
        raise exception 'saas.move_capture: the tenant is leaving' using errcode = 'serialization_failure';
    end if;
    select r.generation, r.reason into home, why from saas.resident r where r.tenant_id = of_tenant;
    if coalesce(home, 0) <> at_generation or why = 'it has moved' then
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

create or replace function saas.move_watch(target regclass, of_move uuid, of_tenant uuid, at_generation bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $watch$
declare
    shape  record;
    part   regclass;
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
    -- PostgreSQL makes the others for every partition; one for statements is asked of the table that is named.
    for part in
        select target union select p.relid from pg_partition_tree(target) p
    loop
        execute format(
            'create trigger %I before truncate on %s for each statement execute function saas.move_refuse_truncate()',
            saas.move_trigger(of_move, 'all'), part);
    end loop;
end
$watch$;

create or replace function saas.move_unwatch(target regclass, of_move uuid)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    found_one  record;
begin
    for found_one in
        select g.tgname, g.tgrelid::regclass as part
        from pg_trigger g
        where g.tgparentid = 0
          and (g.tgrelid = target or g.tgrelid in (select p.relid from pg_partition_tree(target) p))
          and g.tgname in (select saas.move_trigger(of_move, kind) from unnest(array['new', 'old', 'key', 'all']) as kind)
    loop
        -- Another mover may be giving the move up.
        execute format('drop trigger if exists %I on %s', found_one.tgname, found_one.part);
    end loop;
end
$$;

drop function saas.move_raise_identity(regclass, uuid);

-- The sequences that columns of a table draw from by default.
create function saas.move_sequences(target regclass)
returns table (column_name text, numbers regclass, step bigint, cached bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select a.attname::text, s.seqrelid::regclass, s.seqincrement, s.seqcache
    from pg_attribute a
    cross join lateral (
        -- Of an identity.
        select d.objid as numbers
        from pg_depend d
        where a.attidentity <> '' and d.deptype = 'i' and d.classid = 'pg_class'::regclass
          and d.refclassid = 'pg_class'::regclass and d.refobjid = target and d.refobjsubid = a.attnum
        union
        -- Named in a default.
        select d.refobjid
        from pg_attrdef f
        join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
        where f.adrelid = target and f.adnum = a.attnum
    ) u
    join pg_sequence s on s.seqrelid = u.numbers
    where a.attrelid = target and not a.attisdropped
$$;

-- How far they are; one that nobody has drawn from is left out.
create function saas.move_numbers(target regclass)
returns table (column_name text, drawn bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select q.column_name, q.drawn
    from (select s.column_name, pg_sequence_last_value(s.numbers) as drawn from saas.move_sequences(target) s) q
    where q.drawn is not null
$$;

-- The numbers that were drawn elsewhere must not be drawn here.
create function saas.move_go_on(target regclass, of_column text, elsewhere bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    its  record;
    at   bigint;
begin
    for its in select * from saas.move_sequences(target) s where s.column_name = of_column loop
        at := pg_sequence_last_value(its.numbers);
        if at is null or (its.step > 0 and at < elsewhere) or (its.step < 0 and at > elsewhere) then
            -- Changes nothing but takes the lock that keeps others from drawing a number in between.
            execute format('alter sequence %s cache %s', its.numbers, its.cached);
            at := pg_sequence_last_value(its.numbers);
            if at is null or (its.step > 0 and at < elsewhere) or (its.step < 0 and at > elsewhere) then
                perform setval(its.numbers, elsewhere);
            end if;
        end if;
    end loop;
end
$$;

revoke all on function saas.move_sequences(regclass), saas.move_numbers(regclass), saas.move_go_on(regclass, text, bigint) from public;
