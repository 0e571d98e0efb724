-- Units set aside for work whose cost is known only afterwards. They are held by the counter of their window, and by the
-- grants that they come from, so that nobody else can use them.
--
-- Locks are taken in one order: the counter, its grants as they burn, the reservation. Whether a reservation is overdue is
-- decided by the clock of the database, the only one that all who hold and all who give back share.

-- Locks the grants of a meter that have units left or held, in the order in which they burn.
create function saas.usage_grants_lock(of_tenant uuid, of_counter text) returns void
language sql as $$
    select from saas.usage_grant g
    where g.tenant_id = of_tenant and g.meter = of_counter and (g.burnt < g.units or g.held > 0)
    order by g.priority, g.expires_at, g.created_at, g.id
    for no key update
$$;

-- Which grants could give `wanted` units, or as many as there are. The caller has locked them.
create function saas.usage_grants_part(
    of_tenant uuid, of_counter text, wanted bigint, moment timestamptz, out grants uuid[], out pieces bigint[], out total bigint
) language plpgsql as $$
declare
    given record;
    piece bigint;
begin
    grants := '{}';
    pieces := '{}';
    total := 0;
    for given in
        select g.id, g.units - g.burnt - g.held as unburnt from saas.usage_grant g
        where g.tenant_id = of_tenant and g.meter = of_counter and g.burnt + g.held < g.units and g.revoked_at is null
          and (g.expires_at is null or g.expires_at > moment)
        order by g.priority, g.expires_at, g.created_at, g.id
    loop
        exit when total = wanted;
        piece := least(given.unburnt, wanted - total);
        grants := grants || given.id;
        pieces := pieces || piece;
        total := total + piece;
    end loop;
end $$;

-- Gives back what a reservation holds. The caller holds the locks.
create function saas.usage_reservation_free(hold saas.usage_reservation, as_outcome text) returns void
language plpgsql as $$
begin
    update saas.usage_counter c
    set held = c.held - (hold.units - (select coalesce(sum(u), 0) from unnest(hold.grant_units) u))
    where c.tenant_id = hold.tenant_id and c.meter = hold.counter and c.window_kind = hold.window_kind
      and c.window_start = hold.window_start;
    update saas.usage_grant g set held = g.held - part.units
    from unnest(hold.grants, hold.grant_units) as part (id, units)
    where g.tenant_id = hold.tenant_id and g.id = part.id;
    update saas.usage_reservation r
    set outcome = as_outcome, settled_at = clock_timestamp()
    where r.tenant_id = hold.tenant_id and r.id = hold.id;
end $$;

-- Gives back what overdue reservations of a counter hold, of the latest windows first; returns how many those were.
-- A window that somebody else works on is left to the next who asks: waiting for it here could wait for each other.
create function saas.usage_reservation_expire(of_tenant uuid, of_counter text) returns integer
language plpgsql as $$
declare
    hold saas.usage_reservation;
    ended integer := 0;
begin
    for hold in
        select r.* from saas.usage_reservation r
        join saas.usage_counter c on c.tenant_id = r.tenant_id and c.meter = r.counter
                                 and c.window_kind = r.window_kind and c.window_start = r.window_start
        where r.tenant_id = of_tenant and r.counter = of_counter and r.outcome is null and r.expires_at <= clock_timestamp()
        order by r.window_start desc, r.expires_at
        limit 1000
        for no key update of c, r skip locked
    loop
        if hold.grants <> '{}' then
            perform saas.usage_grants_lock(of_tenant, of_counter);
        end if;
        perform saas.usage_reservation_free(hold, 'expired');
        ended := ended + 1;
    end loop;
    return ended;
end $$;

-- The same for all tenants, up to `most`, the longest overdue first. Of the system role.
create function saas.usage_reservation_sweep(most integer) returns integer
language plpgsql as $$
declare
    hold saas.usage_reservation;
    ended integer := 0;
begin
    for hold in
        select r.* from saas.usage_reservation r
        join saas.usage_counter c on c.tenant_id = r.tenant_id and c.meter = r.counter
                                 and c.window_kind = r.window_kind and c.window_start = r.window_start
        where r.outcome is null and r.expires_at <= clock_timestamp()
        order by r.expires_at
        limit most
        for no key update of c, r skip locked
    loop
        if hold.grants <> '{}' then
            perform saas.usage_grants_lock(hold.tenant_id, hold.counter);
        end if;
        perform saas.usage_reservation_free(hold, 'expired');
        ended := ended + 1;
    end loop;
    return ended;
end $$;
revoke all on function saas.usage_reservation_sweep(integer) from public;
grant execute on function saas.usage_reservation_sweep(integer) to saas_system;

-- Sets units aside: of the plan up to its limit, then of grants in their order, then of overage up to the cap; all or none.
-- A key that has an open reservation prolongs it. A window without a counter, or under another limit than the one before, is
-- answered 'slow' with nothing written, unless `whole` says that the caller takes care of it.
create function saas.usage_reserve(
    of_tenant uuid, at_revision bigint, of_reservation uuid, of_meter text, of_counter text, with_key text,
    of_amount bigint, of_units bigint, in_window text, from_start timestamptz, up_to bigint, of_limit bigint,
    life_ms bigint, by_actor text, moment timestamptz, whole boolean, of_member text
) returns table (outcome text, revision bigint, reservation uuid, used bigint, held bigint, burnt bigint, room bigint,
    prior bigint, relimited boolean)
language plpgsql as $$
declare
    counter record;
    mine record;
    parts record;
    from_plan bigint;
    leased bigint;
    until timestamptz;
begin
    select t.revision into usage_reserve.revision from saas.tenant t where t.id = of_tenant;
    if not found then
        outcome := 'no tenant';
        return next;
        return;
    end if;
    if usage_reserve.revision <> at_revision then
        outcome := 'outdated';
        return next;
        return;
    end if;
    loop
        select greatest(c.used, 0) as used, c.held, c.carried, c.limit_units into counter from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
          and c.window_start = from_start
        for no key update;
        if not found or (not whole and counter.limit_units is distinct from of_limit) then
            outcome := 'slow';
            return next;
            return;
        end if;
        relimited := counter.limit_units is distinct from of_limit;
        used := counter.used;
        held := counter.held;
        select k.amount into prior from saas.usage_key k
        where k.tenant_id = of_tenant and k.meter = of_meter and k.key = with_key;
        if found then
            outcome := 'known';
            return next;
            return;
        end if;
        until := clock_timestamp() + life_ms * interval '1 millisecond';
        update saas.usage_reservation r
        set expires_at = case when r.amount = of_amount then greatest(r.expires_at, until) else r.expires_at end
        where r.tenant_id = of_tenant and r.meter = of_meter and r.key = with_key and r.outcome is null
        returning r.id, r.amount, r.grant_units into mine;
        if found then
            prior := mine.amount;
            reservation := mine.id;
            burnt := (select coalesce(sum(u), 0) from unnest(mine.grant_units) u);
            outcome := case when mine.amount = of_amount then 'held' else 'reused' end;
            return next;
            return;
        end if;
        -- All of these are at least 0, and used + held stays within bigint: nothing here overflows.
        from_plan := least(of_units, greatest(least(coalesce(of_limit, up_to), up_to) - used - held - counter.carried, 0));
        burnt := 0;
        if from_plan < of_units then
            perform saas.usage_grants_lock(of_tenant, of_counter);
        end if;
        select p.grants, p.pieces, p.total into parts
        from saas.usage_grants_part(of_tenant, of_counter, of_units - from_plan, moment) p;
        burnt := parts.total;
        exit when of_units = from_plan + burnt
               or of_units - from_plan - burnt <= up_to - used - held - counter.carried - from_plan;
        -- What was reserved and never used may be in the way.
        if saas.usage_reservation_expire(of_tenant, of_counter) = 0 then
            room := burnt + greatest(up_to - used - held - counter.carried, 0);
            -- Holders of leases give back where that would make it fit.
            leased := (
                select coalesce(sum(l.lent - l.spent - l.returned), 0) from saas.usage_lease l
                where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
                  and l.window_start = from_start and l.ended_at is null);
            if leased > 0 and of_units - burnt <= up_to - used - held - counter.carried + leased then
                update saas.usage_counter c set wanted_at = clock_timestamp()
                where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
                  and c.window_start = from_start;
            end if;
            outcome := 'refused';
            return next;
            return;
        end if;
    end loop;
    insert into saas.usage_reservation
        (tenant_id, id, meter, counter, key, window_kind, window_start, member, amount, units, actor, created_at,
         expires_at, grants, grant_units)
    values (of_tenant, of_reservation, of_meter, of_counter, with_key, in_window, from_start, of_member, of_amount,
            of_units, by_actor, moment, until, parts.grants, parts.pieces)
    on conflict do nothing;
    if not found then
        -- In another window, at the same time: the next look finds it.
        outcome := 'slow';
        return next;
        return;
    end if;
    update saas.usage_counter c set held = c.held + of_units - parts.total, limit_units = of_limit
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    update saas.usage_grant g set held = g.held + part.units
    from unnest(parts.grants, parts.pieces) as part (id, units)
    where g.tenant_id = of_tenant and g.id = part.id;
    reservation := of_reservation;
    held := held + of_units - burnt;
    outcome := 'held';
    return next;
end $$;

-- Ends a reservation. Committed, its work is counted exactly once, in its window: of what was set aside, and what it took
-- beyond that from the plan, grants and overage without a cap, because it has happened. A reservation that has given its
-- units back already is counted all the same, all of it beyond.
create function saas.usage_settle(
    of_tenant uuid, of_reservation uuid, committing boolean, of_amount bigint, of_units bigint, of_limit bigint,
    marks integer[], mark_units bigint[], event uuid, by_actor text, moment timestamptz, whole boolean
) returns table (outcome text, before bigint, after bigint, burnt bigint, beyond bigint, late boolean, prior bigint,
    relimited boolean, due integer[])
language plpgsql as $$
declare
    most constant bigint := 9223372036854775807;
    hold saas.usage_reservation;
    counter record;
    parts record;
    -- of what is held: of the counter in all and used, of the grants used
    own bigint := 0;
    of_own bigint := 0;
    own_pieces bigint[] := '{}';
    piece bigint;
    place integer;
    from_plan bigint;
    rest bigint;
    others bigint;
begin
    perform from saas.tenant t where t.id = of_tenant for key share;
    select r.* into hold from saas.usage_reservation r where r.tenant_id = of_tenant and r.id = of_reservation;
    if not found then
        outcome := 'unknown';
        return next;
        return;
    end if;
    -- The counter first, as everywhere.
    select greatest(c.used, 0) as used, c.held, c.carried, c.limit_units, c.by_member, c.over_above into counter
    from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = hold.counter and c.window_kind = hold.window_kind
      and c.window_start = hold.window_start
    for no key update;
    perform saas.usage_grants_lock(of_tenant, hold.counter);
    select r.* into hold from saas.usage_reservation r where r.tenant_id = of_tenant and r.id = of_reservation
    for no key update;
    if hold.outcome = 'committed' then
        prior := hold.settled_amount;
        outcome := 'known';
        return next;
        return;
    end if;
    select k.amount into prior from saas.usage_key k
    where k.tenant_id = of_tenant and k.meter = hold.meter and k.key = hold.key;
    if found or not committing then
        outcome := case when not committing then 'released' else 'known' end;
        if hold.outcome is null then
            perform saas.usage_reservation_free(hold, 'released');
        end if;
        return next;
        return;
    end if;
    late := hold.outcome is not null;
    burnt := 0;
    rest := of_units;
    if not late then
        own := hold.units - (select coalesce(sum(u), 0) from unnest(hold.grant_units) u);
        of_own := least(rest, own);
        rest := rest - of_own;
        for place in 1 .. cardinality(hold.grants) loop
            piece := least(rest, hold.grant_units[place]);
            own_pieces := own_pieces || piece;
            burnt := burnt + piece;
            rest := rest - piece;
        end loop;
    end if;
    beyond := rest;
    before := counter.used;
    others := counter.held - own;
    from_plan := least(rest, greatest(coalesce(of_limit, most) - before - of_own - others - counter.carried, 0));
    select p.grants, p.pieces, p.total into parts
    from saas.usage_grants_part(of_tenant, hold.counter, rest - from_plan, moment) p;
    if rest - from_plan - parts.total > most - before - of_own - others - from_plan then
        outcome := 'full';
        return next;
        return;
    end if;
    burnt := burnt + parts.total;
    after := before + of_own + rest - parts.total;
    relimited := counter.limit_units is distinct from of_limit;
    select coalesce(array_agg(m.mark order by m.mark), '{}') into due
    from unnest(marks, mark_units) as m (mark, units)
    where m.units <= usage_settle.after
      and not exists (
          select from saas.usage_crossing x
          where x.tenant_id = of_tenant and x.meter = hold.counter and x.window_kind = hold.window_kind
            and x.window_start = hold.window_start and x.limit_units = of_limit and x.threshold = m.mark
      );
    if not whole and (relimited or due <> '{}') then
        outcome := 'slow';
        return next;
        return;
    end if;
    insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
    values (of_tenant, hold.meter, hold.key, of_amount, event, moment)
    on conflict (tenant_id, meter, key) do nothing;
    if not found then
        -- Counted in another window at this very moment: now it is known.
        return query select * from saas.usage_settle(of_tenant, of_reservation, committing, of_amount, of_units, of_limit,
                                                     marks, mark_units, event, by_actor, moment, whole);
        return;
    end if;
    if of_units > 0 then
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member, actor)
        values (of_tenant, event, moment, hold.meter, hold.counter, 'commit', of_amount, of_units, hold.window_kind,
                hold.window_start, moment, hold.key, hold.member, by_actor);
    end if;
    update saas.usage_counter c
    set used = usage_settle.after, held = others, burnt = c.burnt + usage_settle.burnt, limit_units = of_limit
    where c.tenant_id = of_tenant and c.meter = hold.counter and c.window_kind = hold.window_kind
      and c.window_start = hold.window_start;
    if before <= counter.over_above and after > counter.over_above then
        perform saas.usage_turn(of_tenant, hold.counter, hold.window_kind, hold.window_start, moment);
    end if;
    if counter.by_member and hold.member is not null and of_units > 0 then
        insert into saas.usage_member as m (tenant_id, meter, window_kind, window_start, member, used)
        values (of_tenant, hold.counter, hold.window_kind, hold.window_start, hold.member, of_units)
        on conflict (tenant_id, meter, window_kind, window_start, member) do update
        set used = least(m.used, 9223372036854775807 - excluded.used) + excluded.used;
    end if;
    if not late then
        update saas.usage_grant g set held = g.held - part.held, burnt = g.burnt + part.used
        from unnest(hold.grants, hold.grant_units, own_pieces) as part (id, held, used)
        where g.tenant_id = of_tenant and g.id = part.id;
    end if;
    update saas.usage_grant g set burnt = g.burnt + part.units
    from unnest(parts.grants, parts.pieces) as part (id, units)
    where g.tenant_id = of_tenant and g.id = part.id;
    update saas.usage_reservation r
    set outcome = 'committed', settled_amount = of_amount, settled_at = clock_timestamp()
    where r.tenant_id = of_tenant and r.id = of_reservation;
    outcome := 'committed';
    return next;
end $$;
