-- Units lent to processes. Who has lent what is decided under the lock of the counter's row, by the database's clock.
--
-- Of what a lost holder had not reported nobody knows how much was used, so all of it counts as used: a limit is never
-- passed, whatever any clock shows. What may be out at once is bounded by the borrower's `exposed`.

-- Counts as used what holders whose time is over had not reported; all but `beside`, whose holder is asking. The caller holds
-- the lock of the counter's row.
create function saas.usage_lease_strand(
    of_tenant uuid, of_counter text, in_window text, from_start timestamptz, by_actor text, moment timestamptz,
    beside uuid default null
) returns bigint
language plpgsql as $$
declare
    total bigint;
    passes boolean;
begin
    -- Mostly there are none: to look costs less than half of changing no rows.
    if not exists (
        select from saas.usage_lease l
        where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
          and l.window_start = from_start and l.ended_at is null and l.expires_at <= clock_timestamp()
          and l.id is distinct from beside
    ) then
        return 0;
    end if;
    perform from saas.tenant t where t.id = of_tenant for key share;
    with overdue as (
        update saas.usage_lease l
        set stranded = l.lent - l.spent - l.returned, unrecorded = 0, ended_at = clock_timestamp()
        where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
          and l.window_start = from_start and l.ended_at is null and l.expires_at <= clock_timestamp()
          and l.id is distinct from beside
        returning l.id, l.meter, l.stranded, l.cost
    ), refilled as (
        -- As the row was before: what is set here is not seen here.
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        select of_tenant, gen_random_uuid(), moment, l.meter, of_counter, 'lease', l.unrecorded / l.cost, l.unrecorded,
               in_window, from_start, moment, l.id::text || ':' || l.report, by_actor
        from overdue o
        join saas.usage_lease l on l.tenant_id = of_tenant and l.id = o.id
        where l.unrecorded > 0
    ), recorded as (
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        -- The lease's own id: one such event each.
        select of_tenant, o.id, moment, o.meter, of_counter, 'stranded', o.stranded / o.cost, o.stranded, in_window,
               from_start, moment, o.id::text, by_actor
        from overdue o
        where o.stranded > 0
        returning units
    )
    select coalesce(sum(r.units), 0) into total from recorded r;
    if total > 0 then
        update saas.usage_counter c
        set used = c.used + total, held = c.held - total
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
          and c.window_start = from_start
        returning c.used > c.over_above and c.used - total <= c.over_above into passes;
        if passes then
            perform saas.usage_turn(of_tenant, of_counter, in_window, from_start, moment);
        end if;
    end if;
    return total;
end $$;

-- Counts what a holder has used since its last report, and takes back what exceeds `keep` (null: nothing); the last report
-- gives all of the rest back. An older or repeated report moves nothing.
create function saas.usage_lease_report(
    of_tenant uuid, of_lease uuid, number bigint, spent_so_far bigint, ending boolean, keep bigint, life_ms bigint,
    event uuid, by_actor text, moment timestamptz, out outcome text, out wanted boolean, out used bigint
) language plpgsql as $$
declare
    known record;
    used_now bigint;
    back bigint := 0;
begin
    -- The tenant first, then the counter, as everywhere.
    select l.meter, l.counter, l.window_kind, l.window_start, l.cost, l.spent, l.unrecorded, l.report, l.ended_at, c.used,
           c.over_above, l.lent - l.spent - l.returned as own,
           coalesce(c.wanted_at > clock_timestamp() - interval '1 second', false) as wanted
    into known
    from saas.tenant t, saas.usage_lease l
    join saas.usage_counter c on c.tenant_id = of_tenant and c.meter = l.counter and c.window_kind = l.window_kind
                             and c.window_start = l.window_start
    where t.id = of_tenant and l.tenant_id = of_tenant and l.id = of_lease
    for key share of t for no key update of c, l;
    if not found then
        outcome := 'fenced';
        return;
    end if;
    wanted := known.wanted;
    used := known.used;
    if known.ended_at is not null then
        outcome := case when ending and known.report = number then 'settled' else 'fenced' end;
        return;
    end if;
    if known.report >= number then
        outcome := 'kept';
        return;
    end if;
    used_now := spent_so_far - known.spent;
    if used_now < 0 or used_now > known.own then
        outcome := 'impossible';
        return;
    end if;
    back := case when ending then known.own - used_now else greatest(known.own - used_now - keep, 0) end;
    update saas.usage_lease l
    set spent = spent_so_far, returned = l.returned + back, unrecorded = 0, report = number,
        expires_at = clock_timestamp() + life_ms * interval '1 millisecond',
        ended_at = case when ending then clock_timestamp() end
    where l.tenant_id = of_tenant and l.id = of_lease;
    if used_now + known.unrecorded > 0 then
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        values (of_tenant, event, moment, known.meter, known.counter, 'lease', (used_now + known.unrecorded) / known.cost,
                used_now + known.unrecorded, known.window_kind, known.window_start, moment,
                of_lease::text || ':' || number, by_actor);
    end if;
    if used_now + back > 0 then
        update saas.usage_counter c
        set used = c.used + used_now, held = c.held - used_now - back
        where c.tenant_id = of_tenant and c.meter = known.counter and c.window_kind = known.window_kind
          and c.window_start = known.window_start;
    end if;
    used := known.used + used_now;
    if known.used <= known.over_above and used > known.over_above then
        perform saas.usage_turn(of_tenant, known.counter, known.window_kind, known.window_start, moment);
    end if;
    outcome := case when ending then 'settled' else 'kept' end;
end $$;

-- Counts `need` at once, together with what the holder has used of its lease since its last report, and lends up to `want`
-- more: half of what may still be exposed, and half of what is left, so that the end of a limit is counted exactly.
--
-- Tops up the living lease of that id; number 0 makes it. A process asks this each time it has used up what it had, so the
-- common case is what it is made for: one look that locks, one change of the counter, one of the lease. The event is left to
-- the next report, or to whoever ends the lease.
create function saas.usage_lease_borrow(
    of_tenant uuid, at_revision bigint, of_lease uuid, number bigint, spent_so_far bigint, by_holder text, of_meter text,
    of_counter text, with_key text, of_cost bigint, in_window text, from_start timestamptz, to_end timestamptz,
    up_to bigint, of_limit bigint, exposed bigint, need bigint, want bigint, life_ms bigint, event uuid, by_actor text,
    moment timestamptz,
    out outcome text, out revision bigint, out used bigint, out held bigint, out lent bigint, out relimited boolean
) language plpgsql as $$
declare
    known record;
    -- of the lease: used since the last report
    reported bigint;
    free bigint;
    -- out with other holders
    outstanding bigint := 0;
    is_overdue boolean;
    stranded bigint;
begin
    -- The tenant first, then the counter, as everywhere.
    select t.revision, c.used, c.held, c.carried, c.limit_units, c.over_above, l.spent, l.report, l.ended_at,
           l.lent - l.spent - l.returned as own, false as opened,
           coalesce(c.wanted_at > clock_timestamp() - interval '1 second', false) as wanted
    into known
    from saas.tenant t, saas.usage_counter c, saas.usage_lease l
    where t.id = of_tenant
      and c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
      and l.tenant_id = of_tenant and l.id = of_lease and l.counter = of_counter and l.window_kind = in_window
      and l.window_start = from_start and l.cost = of_cost
    for key share of t for no key update of c, l;
    if not found then
        insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
        select t.id, of_counter, in_window, from_start, to_end from saas.tenant t
        where t.id = of_tenant and t.revision = at_revision and number = 0
        on conflict (tenant_id, meter, window_kind, window_start) do nothing;
        relimited := found;
        select t.revision, c.used, c.held, c.carried, c.limit_units, c.over_above, 0::bigint as spent,
               (-1)::bigint as report, null::timestamptz as ended_at, 0::bigint as own, relimited as opened,
               coalesce(c.wanted_at > clock_timestamp() - interval '1 second', false) as wanted
        into known
        from saas.tenant t
        join saas.usage_counter c on c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
                                 and c.window_start = from_start
        where t.id = of_tenant and number = 0
        for key share of t for no key update of c;
        if not found then
            select t.revision into revision from saas.tenant t where t.id = of_tenant;
            outcome := case when not found then 'no tenant' when revision <> at_revision then 'outdated' else 'fenced' end;
            return;
        end if;
    end if;
    outcome := case
        when known.revision <> at_revision then 'outdated'
        when known.ended_at is not null or known.report >= number then 'fenced'
        when spent_so_far < known.spent or spent_so_far - known.spent > known.own then 'impossible'
        else 'lent'
    end;
    if outcome <> 'lent' then
        revision := known.revision;
        return;
    end if;
    reported := spent_so_far - known.spent;
    used := known.used + reported;
    held := known.held - reported;
    if known.held > known.own then
        -- Others hold some of it, too.
        select coalesce(sum(l.lent - l.spent - l.returned), 0), coalesce(bool_or(l.expires_at <= clock_timestamp()), false)
        into outstanding, is_overdue
        from saas.usage_lease l
        where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
          and l.window_start = from_start and l.ended_at is null and l.id <> of_lease;
        if is_overdue then
            stranded := saas.usage_lease_strand(of_tenant, of_counter, in_window, from_start, by_actor, moment, of_lease);
            used := used + stranded;
            held := held - stranded;
            outstanding := outstanding - stranded;
        end if;
    end if;
    -- Below 0 where the limit was lowered; cannot overflow, as none is negative.
    free := up_to - greatest(used, 0) - held - known.carried;
    if need > free and saas.usage_reservation_expire(of_tenant, of_counter) > 0 then
        select c.held - reported into held from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
        free := up_to - greatest(used, 0) - held - known.carried;
    end if;
    if need > free then
        -- Only where it would fit if all holders gave back: what never fits must not keep others from lending.
        if outstanding > 0 and need <= free + outstanding + known.own - reported then
            update saas.usage_counter c
            set wanted_at = clock_timestamp()
            where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
              and c.window_start = from_start;
        end if;
        outcome := 'refused';
        return;
    end if;
    lent := case when known.wanted then 0 else
        greatest(least(want, (exposed - outstanding - known.own + reported) / 2, (free - need) / 2), 0) end;
    -- Whole uses only.
    lent := lent - lent % of_cost;
    used := used + need;
    held := held + lent;
    relimited := known.opened or known.limit_units is distinct from of_limit;
    if number = 0 then
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        values (of_tenant, event, moment, of_meter, of_counter, 'lease', need / of_cost, need, in_window, from_start, moment,
                with_key, by_actor);
    end if;
    update saas.usage_counter c set used = usage_lease_borrow.used, held = usage_lease_borrow.held
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    if used - reported - need <= known.over_above and used > known.over_above then
        perform saas.usage_turn(of_tenant, of_counter, in_window, from_start, moment);
    end if;
    if number > 0 then
        update saas.usage_lease l
        set lent = l.lent + usage_lease_borrow.lent, spent = spent_so_far, report = number,
            unrecorded = l.unrecorded + reported + need,
            expires_at = clock_timestamp() + life_ms * interval '1 millisecond'
        where l.tenant_id = of_tenant and l.id = of_lease;
    elsif lent > 0 then
        insert into saas.usage_lease
            (tenant_id, id, meter, counter, window_kind, window_start, holder, lent, cost, created_at, expires_at)
        values (of_tenant, of_lease, of_meter, of_counter, in_window, from_start, by_holder, lent, of_cost,
                clock_timestamp(), clock_timestamp() + life_ms * interval '1 millisecond');
    end if;
end $$;

-- Counts as used what overdue holders of a tenant had not reported. Every borrower does the same for its own counter.
create function saas.usage_lease_reclaim(of_tenant uuid, by_actor text, moment timestamptz) returns bigint
language plpgsql as $$
declare
    overdue record;
    total bigint := 0;
begin
    perform from saas.tenant t where t.id = of_tenant for key share;
    for overdue in
        select l.counter, l.window_kind, l.window_start from saas.usage_lease l
        where l.tenant_id = of_tenant and l.ended_at is null and l.expires_at <= clock_timestamp()
        group by l.counter, l.window_kind, l.window_start
        -- The order of counters.
        order by l.counter, l.window_kind, l.window_start
    loop
        perform from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = overdue.counter and c.window_kind = overdue.window_kind
          and c.window_start = overdue.window_start
        for no key update;
        total := total + saas.usage_lease_strand(of_tenant, overdue.counter, overdue.window_kind, overdue.window_start,
                                                 by_actor, moment);
    end loop;
    return total;
end $$;
