-- Units lent to processes. Who has lent what is decided under the lock of the counter's row, by the database's clock.
--
-- Of what a lost holder had not reported nobody knows how much was used, so all of it counts as used: a limit is never
-- passed, whatever any clock shows. What may be out at once is bounded by the borrower's `exposed`.

-- Counts as used what holders whose time is over had not reported. The caller holds the lock of the counter's row.
create function saas.usage_lease_strand(
    of_tenant uuid, of_counter text, in_window text, from_start timestamptz, by_actor text, moment timestamptz
) returns bigint
language plpgsql as $$
declare
    total bigint;
begin
    -- Mostly there are none: to look costs less than half of changing no rows.
    if not exists (
        select from saas.usage_lease l
        where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
          and l.window_start = from_start and l.ended_at is null and l.expires_at <= clock_timestamp()
    ) then
        return 0;
    end if;
    perform from saas.tenant t where t.id = of_tenant for key share;
    with overdue as (
        update saas.usage_lease l
        set stranded = l.lent - l.spent - l.returned, ended_at = clock_timestamp()
        where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
          and l.window_start = from_start and l.ended_at is null and l.expires_at <= clock_timestamp()
        returning l.id, l.meter, l.stranded, l.cost
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
          and c.window_start = from_start;
    end if;
    return total;
end $$;

-- Counts what a holder has used since its last report; the last one gives the rest back. An older or repeated report moves
-- nothing.
create function saas.usage_lease_report(
    of_tenant uuid, of_lease uuid, number bigint, spent_so_far bigint, ending boolean, life_ms bigint, event uuid,
    by_actor text, moment timestamptz
) returns table (outcome text, wanted boolean)
language plpgsql as $$
declare
    lease record;
    used_now bigint;
    back bigint := 0;
begin
    perform from saas.tenant t where t.id = of_tenant for key share;
    select l.* into lease from saas.usage_lease l where l.tenant_id = of_tenant and l.id = of_lease;
    if not found then
        outcome := 'fenced';
        return next;
        return;
    end if;
    -- The counter first, as everywhere.
    select coalesce(c.wanted_at > clock_timestamp() - interval '1 second', false) into wanted from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = lease.counter and c.window_kind = lease.window_kind
      and c.window_start = lease.window_start
    for no key update;
    select l.* into lease from saas.usage_lease l where l.tenant_id = of_tenant and l.id = of_lease for no key update;
    if lease.ended_at is not null then
        outcome := case when ending and lease.report = number then 'settled' else 'fenced' end;
        return next;
        return;
    end if;
    if lease.report >= number then
        outcome := 'kept';
        return next;
        return;
    end if;
    used_now := spent_so_far - lease.spent;
    if used_now < 0 or spent_so_far > lease.lent then
        outcome := 'impossible';
        return next;
        return;
    end if;
    if ending then
        back := lease.lent - spent_so_far;
    end if;
    update saas.usage_lease l
    set spent = spent_so_far, returned = back, report = number,
        expires_at = clock_timestamp() + life_ms * interval '1 millisecond',
        ended_at = case when ending then clock_timestamp() end
    where l.tenant_id = of_tenant and l.id = of_lease;
    if used_now > 0 then
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        values (of_tenant, event, moment, lease.meter, lease.counter, 'lease', used_now / lease.cost, used_now,
                lease.window_kind, lease.window_start, moment, of_lease::text || ':' || number, by_actor);
    end if;
    if used_now + back > 0 then
        update saas.usage_counter c
        set used = c.used + used_now, held = c.held - used_now - back
        where c.tenant_id = of_tenant and c.meter = lease.counter and c.window_kind = lease.window_kind
          and c.window_start = lease.window_start;
    end if;
    outcome := case when ending then 'settled' else 'kept' end;
    return next;
end $$;

-- Counts `need` at once and lends up to `want` more: half of what may still be exposed, and half of what is left, so that the
-- end of a limit is counted exactly. Settles the borrower's former lease in the same call.
create function saas.usage_lease_borrow(
    of_tenant uuid, at_revision bigint, of_lease uuid, by_holder text, of_meter text, of_counter text, of_cost bigint,
    in_window text, from_start timestamptz, to_end timestamptz, up_to bigint, exposed bigint, need bigint, want bigint,
    life_ms bigint, event uuid, by_actor text, moment timestamptz,
    settling boolean, former uuid, former_number bigint, former_spent bigint, former_event uuid
) returns table (outcome text, revision bigint, used bigint, held bigint, lent bigint)
language plpgsql as $$
declare
    counter record;
    free bigint;
    outstanding bigint;
begin
    if settling then
        perform from saas.usage_lease_report(of_tenant, former, former_number, former_spent, true, life_ms, former_event,
                                             by_actor, moment);
    end if;
    select t.revision into usage_lease_borrow.revision from saas.tenant t where t.id = of_tenant for key share;
    if not found then
        outcome := 'no tenant';
        return next;
        return;
    end if;
    if usage_lease_borrow.revision <> at_revision then
        outcome := 'outdated';
        return next;
        return;
    end if;
    perform from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
    for no key update;
    if not found then
        insert into saas.usage_counter (tenant_id, meter, window_kind, window_start, window_end)
        values (of_tenant, of_counter, in_window, from_start, to_end)
        on conflict (tenant_id, meter, window_kind, window_start) do nothing;
        perform from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
          and c.window_start = from_start
        for no key update;
    end if;
    perform saas.usage_lease_strand(of_tenant, of_counter, in_window, from_start, by_actor, moment);
    select c.used, c.held, c.carried, c.wanted_at into counter from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    used := counter.used;
    held := counter.held;
    -- Below 0 where the limit was lowered; cannot overflow, as none is negative.
    free := up_to - greatest(counter.used, 0) - counter.held - counter.carried;
    if need > free and saas.usage_reservation_expire(of_tenant, of_counter) > 0 then
        select c.used, c.held, c.carried, c.wanted_at into counter from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
          and c.window_start = from_start;
        held := counter.held;
        free := up_to - greatest(counter.used, 0) - counter.held - counter.carried;
    end if;
    if need > free then
        update saas.usage_counter c
        set wanted_at = clock_timestamp()
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
          and c.window_start = from_start and c.held > 0;
        outcome := 'refused';
        return next;
        return;
    end if;
    lent := 0;
    if want > 0 and coalesce(counter.wanted_at < clock_timestamp() - interval '1 second', true) then
        select coalesce(sum(l.lent - l.spent - l.returned), 0) into outstanding from saas.usage_lease l
        where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
          and l.window_start = from_start and l.ended_at is null;
        lent := greatest(least(want, (exposed - outstanding) / 2, (free - need) / 2), 0);
        -- Whole uses only.
        lent := lent - lent % of_cost;
    end if;
    insert into saas.usage_event
        (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
    values (of_tenant, event, moment, of_meter, of_counter, 'lease', need / of_cost, need, in_window, from_start, moment,
            of_lease::text || ':0', by_actor);
    update saas.usage_counter c
    set used = c.used + need, held = c.held + lent
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    if lent > 0 then
        insert into saas.usage_lease
            (tenant_id, id, meter, counter, window_kind, window_start, holder, lent, cost, created_at, expires_at)
        values (of_tenant, of_lease, of_meter, of_counter, in_window, from_start, by_holder, lent, of_cost,
                clock_timestamp(), clock_timestamp() + life_ms * interval '1 millisecond');
    end if;
    outcome := 'lent';
    return next;
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
        order by l.window_start, l.counter, l.window_kind
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
