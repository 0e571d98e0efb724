-- Recording in bulk: what UsageWriter writes with one statement.

-- Counts uses that have happened, of any tenants, each once per key; all of them or none. What many of them share is said
-- once: a use is in the window at its place among the windows. Returns those that were not counted because their key was
-- before, with its amount; null where another one counts it at this moment.
--
-- Locks are taken in the order of everybody: tenants, counters, keys. The caller passes windows and uses in one order, so that
-- two at once do not wait for each other.
create function saas.usage_record(
    tenants uuid[], meters text[], counters text[], window_kinds text[], starts timestamptz[], ends timestamptz[],
    places integer[], keys text[], event_ids uuid[], amounts bigint[], of_units bigint[], times timestamptz[],
    members text[], actors text[], moment timestamptz
) returns table (n integer, prior bigint)
language plpgsql
-- The lengths of arrays would have it planned anew each time.
set plan_cache_mode = force_generic_plan
as $$
declare
    total constant integer := cardinality(keys);
    here constant bigint := pg_current_xact_id()::text::bigint;
    counted integer[];
    fresh integer;
    by_member boolean;
    turned saas.usage_counter[];
    -- places among the windows
    full_ones integer[];
    gone uuid;
begin
    perform from saas.tenant t where t.id = any (tenants) order by t.id for key share;
    -- A new snapshot, taken after the locks: an erasure that this one waited for is seen.
    select w.id into gone
    from unnest(tenants) as w (id)
    left join saas.tenant t on t.id = w.id
    left join saas.tenant_status s on s.tenant_id = w.id and s.state in ('erasing', 'erased')
    where t.id is null or s.tenant_id is not null
    limit 1;
    if found then
        raise exception 'saas.usage_record: there is no tenant %, or it is being erased', gone
            using errcode = 'foreign_key_violation', constraint = 'usage_event_tenant';
    end if;
    -- The counters first, as everywhere, with all of it: what turns out to be known is taken back below. One that could not
    -- hold all of it is only locked.
    with sums as (
        select places[i.n] as place, sum(of_units[i.n]) as units
        from generate_series(1, total) as i (n)
        group by 1
    ), input as (
        select tenants[s.place] as tenant, counters[s.place] as counter, window_kinds[s.place] as window_kind,
               starts[s.place] as start, max(ends[s.place]) as ended, sum(s.units)::bigint as units, min(s.place) as place
        from sums s
        group by 1, 2, 3, 4
    ), added as (
        insert into saas.usage_counter as c (tenant_id, meter, window_kind, window_start, window_end, used)
        select i.tenant, i.counter, i.window_kind, i.start, i.ended, i.units
        from input i
        order by 1, 2, 3, 4
        on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used
        where c.used <= 9223372036854775807 - excluded.used
        returning c as counter
    )
    select bool_or((a.counter).by_member),
           array_agg(a.counter order by i.tenant)
               filter (where (a.counter).used > (a.counter).over_above and (a.counter).used - i.units <= (a.counter).over_above),
           array_agg(i.place) filter (where (a.counter).used is null)
    into by_member, turned, full_ones
    from input i
    left join added a
      on i.tenant = (a.counter).tenant_id and i.counter = (a.counter).meter and i.window_kind = (a.counter).window_kind
     and i.start = (a.counter).window_start;
    insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
    select tenants[places[i.n]], meters[places[i.n]], keys[i.n], amounts[i.n], event_ids[i.n], moment
    from generate_series(1, total) as i (n)
    on conflict (tenant_id, meter, key) do nothing;
    get diagnostics fresh = row_count;
    if fresh = total then
        counted := array(select generate_series(1, total));
    else
        counted := array(
            select i.n
            from generate_series(1, total) as i (n)
            cross join lateral (
                select from saas.usage_key k
                where k.tenant_id = tenants[places[i.n]] and k.meter = meters[places[i.n]] and k.key = keys[i.n]
                  and k.event_id = event_ids[i.n]
                limit 1
            ) k
            order by i.n
        );
    end if;
    insert into saas.usage_event
        (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member, actor,
         position)
    select tenants[places[c.n]], event_ids[c.n], moment, meters[places[c.n]], counters[places[c.n]], 'record', amounts[c.n],
           of_units[c.n], window_kinds[places[c.n]], starts[places[c.n]], least(times[c.n], moment), keys[c.n],
           members[c.n], actors[c.n], here
    from unnest(counted) as c (n);
    if fresh < total or full_ones is not null then
        with sums as (
            select places[i.n] as place, sum(of_units[i.n]) as units,
                   coalesce(sum(of_units[i.n]) filter (where i.n = any (counted)), 0) as counted
            from generate_series(1, total) as i (n)
            group by 1
        ), input as (
            select tenants[s.place] as tenant, counters[s.place] as counter, window_kinds[s.place] as window_kind,
                   starts[s.place] as start, sum(s.counted) as counted, sum(s.units) as units, min(s.place) as place
            from sums s
            group by 1, 2, 3, 4
        ), added as (
            insert into saas.usage_counter as c (tenant_id, meter, window_kind, window_start, used)
            select i.tenant, i.counter, i.window_kind, i.start,
                   (i.counted - case when i.place = any (full_ones) then 0 else i.units end)::bigint
            from input i
            order by 1, 2, 3, 4
            -- All of them are there. A join with the table would be planned for the few rows that it once had.
            on conflict (tenant_id, meter, window_kind, window_start) do update set used = c.used + excluded.used
            returning c as counter
        )
        select bool_or((a.counter).by_member),
               array_agg(a.counter order by i.tenant)
                   filter (where (a.counter).used > (a.counter).over_above and (a.counter).used - i.counted <= (a.counter).over_above)
        into by_member, turned
        from added a
        join input i on i.tenant = (a.counter).tenant_id and i.counter = (a.counter).meter
                    and i.window_kind = (a.counter).window_kind and i.start = (a.counter).window_start;
    end if;
    perform saas.usage_turn(u.tenant_id, u.meter, u.window_kind, u.window_start, moment) from unnest(turned) as u;
    if by_member then
        insert into saas.usage_member as m (tenant_id, meter, window_kind, window_start, member, used)
        select tenants[places[u.n]], counters[places[u.n]], window_kinds[places[u.n]], starts[places[u.n]], members[u.n],
               sum(of_units[u.n])::bigint
        from unnest(counted) as u (n)
        join saas.usage_counter c
          on c.tenant_id = tenants[places[u.n]] and c.meter = counters[places[u.n]]
         and c.window_kind = window_kinds[places[u.n]] and c.window_start = starts[places[u.n]]
        where c.by_member and members[u.n] is not null
        group by 1, 2, 3, 4, 5
        order by 1, 2, 3, 4, 5
        on conflict (tenant_id, meter, window_kind, window_start, member) do update set used = m.used + excluded.used;
    end if;
    return query
        select r.n, (
            select k.amount from saas.usage_key k
            where k.tenant_id = tenants[places[r.n]] and k.meter = meters[places[r.n]] and k.key = keys[r.n])
        from generate_series(1, total) as r (n)
        where fresh < total and r.n <> all (counted);
end $$;
revoke all on function saas.usage_record(uuid[], text[], text[], text[], timestamptz[], timestamptz[], integer[], text[],
    uuid[], bigint[], bigint[], timestamptz[], text[], text[], timestamptz) from public;
grant execute on function saas.usage_record(uuid[], text[], text[], text[], timestamptz[], timestamptz[], integer[], text[],
    uuid[], bigint[], bigint[], timestamptz[], text[], text[], timestamptz) to saas_system;

