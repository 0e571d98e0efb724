-- Usage that decides about more than its meter: what lets a tenant only read while it is beyond a limit.

-- What gates were told of the windows that decide about it, so that a past answer is the one that was given then. A row for each
-- look that says something else, and for each use or correction that turns the answer, in its transaction. Append-only, but for
-- what is older than the events.
create table saas.excess_history (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    -- In the order of the counter's lock, whatever the clocks of the writers say.
    number        bigint not null check (number > 0),
    -- null: never
    window_end    timestamptz,
    at            timestamptz not null,
    used          saas.usage_units not null,
    -- what it was held against: the most of a limit, under the plan that the tenant has since then
    most          saas.usage_units not null,
    since         timestamptz not null,
    primary key (tenant_id, meter, window_kind, window_start, number)
);
-- What is old enough to go, of all tenants.
create index excess_history_by_age on saas.excess_history (at);
select saas.fence('saas.excess_history', 'select, insert');
-- They go with their tenant, and with the events of their time.
grant delete on saas.excess_history to saas_system;

-- How much is used of each of these windows. From then on, a use or a correction after which one is beyond its `most`, or no
-- longer, raises the tenant's revision.
create function saas.usage_watch(
    of_tenant uuid, meters text[], window_kinds text[], starts timestamptz[], ends timestamptz[], mosts bigint[],
    came timestamptz, moment timestamptz
) returns bigint[]
language plpgsql as $$
declare
    -- A tenant that may not write is asked for again when it may.
    writes constant boolean := current_setting('transaction_read_only') = 'off';
    watched record;
    counter record;
    told record;
    used bigint[] := array_fill(0::bigint, array[cardinality(meters)]);
    locked boolean;
begin
    -- The order of counters.
    for watched in
        select w.* from unnest(meters, window_kinds, starts, ends, mosts)
            with ordinality as w (meter, kind, start, ended, most, n)
        order by w.meter, w.kind, w.start
    loop
        locked := false;
        loop
            select greatest(c.used, 0) as used, c.over_above into counter from saas.usage_counter c
            where c.tenant_id = of_tenant and c.meter = watched.meter and c.window_kind = watched.kind
              and c.window_start = watched.start;
            select h.number, h.at, h.used, h.most, h.since into told from saas.excess_history h
            where h.tenant_id = of_tenant and h.meter = watched.meter and h.window_kind = watched.kind
              and h.window_start = watched.start
            order by h.number desc
            limit 1;
            -- Mostly it is watched and told already: then this only reads.
            exit when not writes or (
                counter.over_above = watched.most and told.most = watched.most and told.since = came
                and (told.used = counter.used or greatest(told.used, counter.used) <= watched.most));
            if locked then
                update saas.usage_counter c set over_above = watched.most
                where c.tenant_id = of_tenant and c.meter = watched.meter and c.window_kind = watched.kind
                  and c.window_start = watched.start;
                insert into saas.excess_history
                    (tenant_id, meter, window_kind, window_start, number, window_end, at, used, most, since)
                values (of_tenant, watched.meter, watched.kind, watched.start, coalesce(told.number, 0) + 1, watched.ended,
                        greatest(moment, told.at), counter.used, watched.most, came);
                exit;
            end if;
            -- The tenant first, then the counter, as everywhere; a window without a use gets one. Then once more, under its lock.
            perform from saas.tenant t where t.id = of_tenant for key share;
            insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
            select of_tenant, watched.meter, watched.kind, watched.start, watched.ended where found
            on conflict (tenant_id, meter, window_kind, window_start) do nothing;
            perform from saas.usage_counter c
            where c.tenant_id = of_tenant and c.meter = watched.meter and c.window_kind = watched.kind
              and c.window_start = watched.start
            for no key update;
            -- A tenant that is gone has nothing.
            exit when not found;
            locked := true;
        end loop;
        used[watched.n] := coalesce(counter.used, 0);
    end loop;
    return used;
end $$;

-- Lets every gate and the past know that a watched window has gone beyond its most, or is no longer. The caller has changed the
-- counter's row.
create function saas.usage_turn(
    of_tenant uuid, of_counter text, in_window text, from_start timestamptz, moment timestamptz
) returns void
language plpgsql as $$
begin
    perform saas.bump_revision(of_tenant);
    insert into saas.excess_history
        (tenant_id, meter, window_kind, window_start, number, window_end, at, used, most, since)
    select h.tenant_id, h.meter, h.window_kind, h.window_start, h.number + 1, h.window_end, greatest(h.at, moment),
           greatest(c.used, 0), h.most, h.since
    from saas.excess_history h
    join saas.usage_counter c
      on c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
    where h.tenant_id = of_tenant and h.meter = of_counter and h.window_kind = in_window and h.window_start = from_start
    order by h.number desc
    limit 1;
end $$;
