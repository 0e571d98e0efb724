-- What happens where one window ends and the next begins.

-- Carries over what windows that are over have left of the plan, as grants that end. Exactly once for each of them, by its
-- key; never from grants, so never from what was carried over. Nothing to do in a window that has been counted in: that was
-- done before its first use. Returns the units.
create function saas.usage_carry(
    of_tenant uuid, of_counter text, in_window text, into_start timestamptz, ids uuid[], starts timestamptz[],
    ends timestamptz[], limits bigint[], expiries timestamptz[], most bigint, by_actor text, moment timestamptz
) returns bigint
language plpgsql as $$
declare
    ended record;
    counter record;
    units bigint;
    total bigint := 0;
begin
    perform from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = into_start
      and c.limit_units is not null;
    if found then
        return 0;
    end if;
    -- The oldest first, also where others do the same at this moment.
    for ended in
        select e.* from unnest(ids, starts, ends, limits, expiries) as e (id, start, ended_at, limit_units, expires_at)
        join saas.tenant t on t.id = of_tenant and t.created_at < e.ended_at
        where e.expires_at > moment
        order by e.start
    loop
        -- It needs its counter, which says to later uses of it what was carried over.
        insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
        values (of_tenant, of_counter, in_window, ended.start, ended.ended_at)
        on conflict (tenant_id, meter, window_kind, window_start) do nothing;
        -- What is held may still be used in its window.
        select greatest(c.used, 0) as used, c.held into counter from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
          and c.window_start = ended.start
        for no key update;
        units := ended.limit_units - counter.used - counter.held;
        -- No more in all than may be, with what was carried over before and is still there.
        units := least(units, most - (
            select coalesce(sum(g.units - g.burnt), 0)::bigint from saas.usage_grant g
            where g.tenant_id = of_tenant and g.meter = of_counter and g.source = 'rollover' and g.revoked_at is null
              and g.window_start <> ended.start and g.expires_at > ended.ended_at));
        continue when units <= 0;
        insert into saas.usage_grant
            (tenant_id, id, meter, units, source, reason, author, created_at, expires_at, window_kind, window_start)
        values (of_tenant, ended.id, of_counter, units, 'rollover',
                'left over from the ' || in_window || ' that began ' || to_char(ended.start at time zone 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC',
                by_actor, least(ended.ended_at, moment), ended.expires_at, in_window, ended.start)
        on conflict (tenant_id, meter, window_kind, window_start) do nothing;
        if found then
            update saas.usage_counter c set carried = units
            where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
              and c.window_start = ended.start;
            total := total + units;
        end if;
    end loop;
    return total;
end $$;
