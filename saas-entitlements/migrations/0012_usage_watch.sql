-- Usage that decides about more than its meter: what lets a tenant only read while it is beyond a limit.

-- How much is used of each of these windows. From then on, a use or a correction after which one is beyond its `most`, or no
-- longer, raises the tenant's revision; a window without a use is watched from the next time on that somebody asks.
create function saas.usage_watch(
    of_tenant uuid, meters text[], window_kinds text[], starts timestamptz[], mosts bigint[]
) returns bigint[]
language plpgsql as $$
begin
    -- Mostly it is watched already: then this only reads. A tenant that may not write is asked for again when it may.
    if current_setting('transaction_read_only') = 'off' then
        perform from saas.usage_counter c
        join unnest(meters, window_kinds, starts, mosts) as w (meter, window_kind, start, most)
          on c.meter = w.meter and c.window_kind = w.window_kind and c.window_start = w.start
        where c.tenant_id = of_tenant and c.over_above is distinct from w.most
        order by c.meter, c.window_kind, c.window_start
        for no key update of c;
        if found then
            update saas.usage_counter c set over_above = w.most
            from unnest(meters, window_kinds, starts, mosts) as w (meter, window_kind, start, most)
            where c.tenant_id = of_tenant and c.meter = w.meter and c.window_kind = w.window_kind and c.window_start = w.start;
        end if;
    end if;
    return array(
        select coalesce(greatest(c.used, 0), 0)
        from unnest(meters, window_kinds, starts) with ordinality as w (meter, window_kind, start, n)
        left join saas.usage_counter c
          on c.tenant_id = of_tenant and c.meter = w.meter and c.window_kind = w.window_kind and c.window_start = w.start
        order by w.n
    );
end $$;
