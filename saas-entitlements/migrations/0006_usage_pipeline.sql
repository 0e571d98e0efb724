-- Usage events as data: their parts by month, their sums per hour and day, and who has read how far.

-- Events recorded before this instant may be gone: what began earlier cannot be counted again. One row.
create table saas.usage_horizon (
    single         boolean primary key default true check (single),
    pruned_before  timestamptz not null default '-infinity',
    -- the same of what gates were told of usage that lets a tenant only read
    excess_before  timestamptz not null default '-infinity',
    -- the server whose transactions the positions of events and readers count
    server         bigint not null default ((pg_control_system()).system_identifier)
);
insert into saas.usage_horizon default values;
revoke all on saas.usage_horizon from public;
grant select on saas.usage_horizon to saas_app, saas_system;
grant update on saas.usage_horizon to saas_system;
select saas.declare_global('saas.usage_horizon', 'one instant, the same for every tenant');

-- How far each reader of all events is: everything up to and including this event is done.
create table saas.usage_consumer (
    name            text primary key check (name ~ '^[a-z][a-z0-9._-]{0,62}$'),
    after_position  bigint not null default 0,
    after_tenant    uuid not null default '00000000-0000-0000-0000-000000000000',
    after_event     uuid not null default '00000000-0000-0000-0000-000000000000',
    -- The batch that was handed out last and is not answered for; it ends with this event.
    batch_id        uuid,
    upto_position   bigint,
    upto_tenant     uuid,
    upto_event      uuid,
    check (num_nulls(batch_id, upto_position, upto_tenant, upto_event) in (0, 4))
);
revoke all on saas.usage_consumer from public;
grant select, insert, update, delete on saas.usage_consumer to saas_system;
select saas.declare_global('saas.usage_consumer', 'readers go through the events of all tenants; only the system role reads how far', 'system');
insert into saas.usage_consumer (name) values ('roll-up');

-- Items that a reader could not take; each goes again by itself.
create table saas.usage_undelivered (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    consumer      text not null,
    event_id      uuid not null,
    recorded_at   timestamptz not null,
    -- Refused for good: kept for a person, not sent again.
    refused       boolean not null,
    reason        text not null,
    attempts      integer not null default 1,
    -- The batch in which it goes again and that is not answered for.
    batch_id      uuid,
    primary key (tenant_id, consumer, event_id)
);
create index usage_undelivered_due on saas.usage_undelivered (consumer, tenant_id, event_id) where not refused;
select saas.fence('saas.usage_undelivered', 'select');
grant insert, update, delete on saas.usage_undelivered to saas_system;

-- Sums of what happened within an hour, and within a day of UTC. `member` is '' where none was named. `peak` is the largest
-- amount of one use: of a meter that keeps a peak or the latest, the highest level.
create table saas.usage_hour (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    bucket        timestamptz not null,
    member        text not null,
    units         bigint not null,
    amount        bigint not null,
    peak          bigint not null,
    events        bigint not null,
    primary key (tenant_id, meter, bucket, member)
) with (fillfactor = 70);
select saas.fence('saas.usage_hour', 'select');
grant insert, update, delete on saas.usage_hour to saas_system;

create table saas.usage_day (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    bucket        timestamptz not null,
    member        text not null,
    units         bigint not null,
    amount        bigint not null,
    peak          bigint not null,
    events        bigint not null,
    primary key (tenant_id, meter, bucket, member)
) with (fillfactor = 70);
-- Who was active when, whatever was used.
create index usage_day_by_time on saas.usage_day (tenant_id, bucket, member);
select saas.fence('saas.usage_day', 'select');
grant insert, update, delete on saas.usage_day to saas_system;

-- A sum beyond what the column holds stays at its end: one absurd number must not stop the roll-up of everybody.
create function saas.bounded(total numeric) returns bigint
language sql immutable
as $$ select greatest(least(total, 9223372036854775807), -9223372036854775808)::bigint $$;

-- How many members and items of a window have rows that say something else than its events.
create function saas.usage_detail_drift(
    of_tenant uuid, of_counter text, in_window text, from_start timestamptz, by_member boolean
) returns bigint
language sql stable as $$
    with events as materialized (
        select e.member, e.item, e.units
        from saas.usage_event e
        where e.tenant_id = of_tenant and e.counter = of_counter and e.window_kind = in_window
          and e.window_start = from_start and (e.item is not null or by_member and e.member is not null)
    )
    select (
        select count(*)
        from (select e.member, sum(e.units) as units from events e where by_member group by e.member) e
        full join (
            select m.member, m.used
            from saas.usage_member m
            where m.tenant_id = of_tenant and m.meter = of_counter and m.window_kind = in_window
              and m.window_start = from_start and by_member
        ) m using (member)
        where greatest(e.units, 0) <> coalesce(m.used, 0) and coalesce(e.member, m.member) is not null
    ) + (
        select count(*)
        from (select e.item from events e where e.item is not null group by e.item having sum(e.units) > 0) e
        full join (
            select i.item
            from saas.usage_item i
            where i.tenant_id = of_tenant and i.meter = of_counter and i.window_kind = in_window
              and i.window_start = from_start
        ) i using (item)
        where e.item is null or i.item is null
    )
$$;

-- Sets the members and items of a window to what its events say. The caller holds the lock of the counter's row.
create function saas.usage_detail_rebuild(
    of_tenant uuid, of_counter text, in_window text, from_start timestamptz, by_member boolean
) returns void
language plpgsql as $$
begin
    if by_member then
        perform saas.usage_by_member(of_tenant, of_counter, in_window, from_start);
    end if;
    delete from saas.usage_item i
    where i.tenant_id = of_tenant and i.meter = of_counter and i.window_kind = in_window and i.window_start = from_start;
    insert into saas.usage_item (tenant_id, meter, window_kind, window_start, item, at)
    select of_tenant, of_counter, in_window, from_start, e.item, min(e.at)
    from saas.usage_event e
    where e.tenant_id = of_tenant and e.counter = of_counter and e.window_kind = in_window
      and e.window_start = from_start and e.item is not null
    group by e.item
    having sum(e.units) > 0;
end $$;

-- Adds up to `most` new events to their hours and days and shows in the operators' list when each tenant was last active, and
-- moves the reader's mark in the same transaction. A correction changes sums; it is no use.
create function saas.usage_roll_up(most integer)
returns table (events bigint, up_to bigint)
language plpgsql as $$
declare
    mark record;
    last record;
begin
    -- A second roller waits here and goes on where the first ended.
    select * into strict mark from saas.usage_consumer c where c.name = 'roll-up' for update;
    -- Taken before the statement that reads: it sees the outcome of every transaction below.
    up_to := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    with batch as materialized (
        select e.tenant_id, e.id, e.position, e.meter, e.at, coalesce(e.member, '') as member, e.units, e.amount,
               case when e.kind <> 'correction' then e.amount else 0 end as level,
               e.kind not in ('correction', 'stranded') as is_use
        from saas.usage_event e
        where (e.position, e.tenant_id, e.id) > (mark.after_position, mark.after_tenant, mark.after_event)
          and e.position < up_to
        order by e.position, e.tenant_id, e.id
        limit most
    ), hours as (
        insert into saas.usage_hour as h (tenant_id, meter, bucket, member, units, amount, peak, events)
        select b.tenant_id, b.meter, date_trunc('hour', b.at, 'UTC'), b.member,
               saas.bounded(sum(b.units)), saas.bounded(sum(b.amount)), max(b.level), count(*) filter (where b.is_use)
        from batch b
        group by 1, 2, 3, 4
        on conflict (tenant_id, meter, bucket, member) do update
        set units = saas.bounded(h.units::numeric + excluded.units),
            amount = saas.bounded(h.amount::numeric + excluded.amount),
            peak = greatest(h.peak, excluded.peak),
            events = h.events + excluded.events
    ), days as (
        insert into saas.usage_day as d (tenant_id, meter, bucket, member, units, amount, peak, events)
        select b.tenant_id, b.meter, date_trunc('day', b.at, 'UTC'), b.member,
               saas.bounded(sum(b.units)), saas.bounded(sum(b.amount)), max(b.level), count(*) filter (where b.is_use)
        from batch b
        group by 1, 2, 3, 4
        on conflict (tenant_id, meter, bucket, member) do update
        set units = saas.bounded(d.units::numeric + excluded.units),
            amount = saas.bounded(d.amount::numeric + excluded.amount),
            peak = greatest(d.peak, excluded.peak),
            events = d.events + excluded.events
    ), seen as (
        update saas.tenant_overview o
        set last_active_at = greatest(o.last_active_at, b.at)
        from (select u.tenant_id, max(u.at) as at from batch u where u.is_use group by u.tenant_id) b
        where o.tenant_id = b.tenant_id and (o.last_active_at is null or o.last_active_at < b.at)
    )
    select count(*) over () as events, b.position, b.tenant_id, b.id into last
    from batch b
    order by b.position desc, b.tenant_id desc, b.id desc
    limit 1;
    events := coalesce(last.events, 0);
    if events > 0 then
        update saas.usage_consumer c
        set after_position = last.position, after_tenant = last.tenant_id, after_event = last.id
        where c.name = 'roll-up';
    end if;
    return next;
end $$;

-- Parts are tables of the owner, so making and dropping them runs with the owner's rights; only the system role may ask.
-- They take the month as a date and format nothing else into what they run. A lock that is not had within two seconds is
-- given up, because every writer queues behind it.
create function saas.usage_part_name(month date) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select 'usage_event_' || to_char(month, 'YYYY_MM') $$;

-- Makes the part of a month, with the rows that the default part has of it, and returns how many those were; null when it
-- is there already.
create function saas.usage_part_make(month date) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
set client_min_messages = warning
as $$
declare
    part    constant text := saas.usage_part_name(month);
    first   constant timestamptz := month::timestamp at time zone 'UTC';
    beyond  constant timestamptz := (month + interval '1 month') at time zone 'UTC';
    moved   bigint;
begin
    if month <> date_trunc('month', month)::date then
        raise exception 'saas.usage_part_make: % is not the first of a month', month using errcode = 'invalid_parameter_value';
    end if;
    -- Makers and droppers go one after the other.
    perform pg_advisory_xact_lock(hashtextextended('saas.usage_part', 0));
    if to_regclass(format('saas.%I', part)) is not null then
        return null;
    end if;
    lock table saas.usage_event in share row exclusive mode;
    lock table saas.usage_event_rest in access exclusive mode;
    execute format('create table saas.%I (like saas.usage_event including defaults)', part);
    execute format('revoke all on saas.%I from public, saas_app, saas_system', part);
    execute format(
        'with gone as (delete from saas.usage_event_rest r where r.recorded_at >= $1 and r.recorded_at < $2 returning r.*)
         insert into saas.%I select * from gone', part)
        using first, beyond;
    get diagnostics moved = row_count;
    execute format('alter table saas.usage_event attach partition saas.%I for values from (%L) to (%L)', part, first, beyond);
    return moved;
end $$;

-- Locks the part of a month against writers, until the transaction ends. False when there is none.
create function saas.usage_part_lock(month date) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('saas.usage_part', 0));
    if to_regclass(format('saas.%I', saas.usage_part_name(month))) is null then
        return false;
    end if;
    execute format('lock table saas.%I in share row exclusive mode', saas.usage_part_name(month));
    return true;
end $$;

-- Drops the part of a month, if there is one.
create function saas.usage_part_drop(month date) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
set client_min_messages = warning
as $$
begin
    execute format('drop table if exists saas.%I', saas.usage_part_name(month));
end $$;

-- The months that have a part, and those of which the default part has rows.
create function saas.usage_parts() returns table (month date, of_rest boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select to_date(right(c.relname, 7), 'YYYY_MM'), false
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'saas.usage_event'::regclass and c.relname ~ '^usage_event_[0-9]{4}_[0-9]{2}$'
    union all
    select distinct date_trunc('month', r.recorded_at at time zone 'UTC')::date, true
    from saas.usage_event_rest r
    order by 1
$$;

revoke all on function saas.usage_roll_up(integer), saas.usage_part_make(date), saas.usage_part_lock(date),
    saas.usage_part_drop(date), saas.usage_parts() from public;
grant execute on function saas.usage_roll_up(integer), saas.usage_part_make(date), saas.usage_part_lock(date),
    saas.usage_part_drop(date), saas.usage_parts() to saas_system;
select saas.accept_finding('definer-function', f::regprocedure::text, 'parts belong to the owner; only the system role may call it')
from unnest(array['saas.usage_part_make(date)', 'saas.usage_part_lock(date)', 'saas.usage_part_drop(date)',
                  'saas.usage_parts()']) as f;

-- Why positions of events and readers mean nothing here; null where they are of this server. A database that was copied into
-- another one brings the numbers of transactions that this one has not begun, or has used for something else: events that are
-- recorded here would be behind a reader that never saw them.
create function saas.usage_positions_foreign() returns text
language sql stable as $$
    select case
        when h.server <> (pg_control_system()).system_identifier then 'the database was copied from another server'
        when exists (select from saas.usage_consumer c where greatest(c.after_position, c.upto_position) >= s.next)
            then 'a reader is ahead of the transactions of this server'
        when exists (select from saas.usage_event e where e.position >= s.next)
            then 'events are ahead of the transactions of this server'
    end
    from saas.usage_horizon h, (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) s
$$;

-- Makes positions those of this server: of the events that were copied, low numbers that keep which reader has read which.
-- Events that were recorded here, from `since` on, keep theirs and have been read by nobody: also those that come meanwhile, so
-- that nothing but the time tells which are which. Returns how many were changed.
-- Call it only where positions are foreign: elsewhere readers have read events of this server.
create function saas.usage_positions_adopt(since timestamptz) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
    last_id constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    -- every place that a reader is at, or that a batch under way ends with
    marks   constant text := '(
        select c.after_position as position, c.after_tenant as tenant, c.after_event as event from saas.usage_consumer c
        union
        select c.upto_position, c.upto_tenant, c.upto_event from saas.usage_consumer c where c.batch_id is not null)';
    part    regclass;
    changed bigint;
    total   bigint := 0;
begin
    -- Nobody reads meanwhile.
    lock table saas.usage_consumer in share row exclusive mode;
    -- Each part by itself: the table as a whole shows its owner nothing.
    for part in select i.inhrelid::regclass from pg_inherits i where i.inhparent = 'saas.usage_event'::regclass loop
        execute format(
            'update %s e
             set position = 1 + (select count(*) from %s m where (m.position, m.tenant, m.event) < (e.position, e.tenant_id, e.id))
             where e.recorded_at < $1', part, marks)
            using since;
        get diagnostics changed = row_count;
        total := total + changed;
    end loop;
    execute format(
        'update saas.usage_consumer c
         set after_position = (select count(*) from %1$s m
                               where (m.position, m.tenant, m.event) <= (c.after_position, c.after_tenant, c.after_event)),
             after_tenant = $1, after_event = $1,
             upto_position = case when c.batch_id is not null then
                                 (select count(*) from %1$s m
                                  where (m.position, m.tenant, m.event) <= (c.upto_position, c.upto_tenant, c.upto_event)) end,
             upto_tenant = case when c.batch_id is not null then $1 end,
             upto_event = case when c.batch_id is not null then $1 end', marks)
        using last_id;
    update saas.usage_horizon set server = (pg_control_system()).system_identifier;
    return total;
end $$;
revoke all on function saas.usage_positions_adopt(timestamptz) from public;
grant execute on function saas.usage_positions_adopt(timestamptz) to saas_system;
select saas.accept_finding('definer-function', 'saas.usage_positions_adopt(timestamp with time zone)',
                           'events are only added to by everybody else; only the system role may call it');

-- Why the part of a month has to stay, as of `moment`; null when it can go. The caller has locked it.
create function saas.usage_part_held(month date, moment timestamptz) returns text
language plpgsql stable as $$
declare
    first   constant timestamptz := month::timestamp at time zone 'UTC';
    beyond  constant timestamptz := (month + interval '1 month') at time zone 'UTC';
    reader  text;
begin
    select c.name into reader
    from saas.usage_consumer c
    where exists (
        select from saas.usage_event e
        where e.recorded_at >= first and e.recorded_at < beyond
          and (e.position, e.tenant_id, e.id) > (c.after_position, c.after_tenant, c.after_event))
    order by c.name
    limit 1;
    if found then
        return format('the reader "%s" has not read all of it', reader);
    end if;
    select u.consumer into reader
    from saas.usage_undelivered u
    where u.recorded_at >= first and u.recorded_at < beyond and not u.refused
    limit 1;
    if found then
        return format('items of it are still to be sent by "%s"', reader);
    end if;
    -- A lifetime never ends: what it says is kept by the counter alone once its events are gone.
    if exists (select from saas.usage_counter c
               where c.window_kind <> 'lifetime' and c.window_end > moment and c.window_start < beyond) then
        return 'a window that began in it, or before, is still open';
    end if;
    return null;
end $$;
