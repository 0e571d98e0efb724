-- Decides one use, and counts it, in one call: a single flight with the transaction around it.

-- Units come from the plan up to its limit, then from grants in their order, then from overage up to the cap; all of them or
-- none. A use of the kind 'record' has happened: its cap is the largest number there is.

-- The common case by itself: a window that has its counter, under the limit of the use before, that reaches no new warning.
-- Everything rarer is answered 'slow' with nothing written, unless `whole` says that the caller takes care of it.
create function saas.usage_consume(
    of_kind text, of_tenant uuid, at_revision bigint, of_meter text, of_counter text, with_key text, event uuid,
    of_amount bigint, of_units bigint, in_window text, from_start timestamptz, up_to bigint, of_limit bigint,
    marks integer[], mark_units bigint[], by_actor text, moment timestamptz, whole boolean
) returns table (outcome text, revision bigint, before bigint, after bigint, prior bigint,
    relimited boolean, due integer[], burnt bigint, room bigint)
language plpgsql as $$
declare
    counter record;
    given record;
    -- of_units = from_plan + burnt + the rest, which is overage
    from_plan bigint;
    burn_from uuid[] := '{}';
    burn_units bigint[] := '{}';
    piece bigint;
begin
    select t.revision into usage_consume.revision from saas.tenant t where t.id = of_tenant;
    if not found then
        outcome := 'no tenant';
        return next;
        return;
    end if;
    select k.amount into prior from saas.usage_key k
    where k.tenant_id = of_tenant and k.meter = of_meter and k.key = with_key;
    if found then
        outcome := 'known';
        return next;
        return;
    end if;
    if usage_consume.revision <> at_revision then
        outcome := 'outdated';
        return next;
        return;
    end if;
    -- All uses of one window queue up here, and each sees the sum of those before it.
    select greatest(c.used, 0) as used, c.held, c.burnt, c.limit_units into counter from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
    for no key update;
    if not found then
        outcome := 'slow';
        return next;
        return;
    end if;
    before := counter.used;
    due := '{}';
    relimited := counter.limit_units is distinct from of_limit;
    burnt := 0;
    -- All of these are at least 0, and used + held stays within bigint: nothing here overflows.
    from_plan := least(of_units, greatest(least(coalesce(of_limit, up_to), up_to) - counter.used - counter.held, 0));
    if from_plan < of_units then
        for given in
            select g.id, g.units - g.burnt - g.held as unburnt from saas.usage_grant g
            where g.tenant_id = of_tenant and g.meter = of_counter and g.burnt < g.units and g.revoked_at is null
              and (g.expires_at is null or g.expires_at > moment)
            order by g.priority, g.expires_at, g.created_at, g.id
            for no key update
        loop
            exit when burnt = of_units - from_plan;
            piece := least(given.unburnt, of_units - from_plan - burnt, 9223372036854775807 - counter.burnt - burnt);
            if piece > 0 then
                burn_from := burn_from || given.id;
                burn_units := burn_units || piece;
                burnt := burnt + piece;
            end if;
        end loop;
    end if;
    if of_units - from_plan - burnt > up_to - counter.used - counter.held - from_plan
       and of_units > from_plan + burnt then
        -- What was reserved and never used may be in the way. The second time nothing of it is left.
        if saas.usage_reservation_expire(of_tenant, of_counter) > 0 then
            return query select * from saas.usage_consume(
                of_kind, of_tenant, at_revision, of_meter, of_counter, with_key, event, of_amount, of_units, in_window,
                from_start, up_to, of_limit, marks, mark_units, by_actor, moment, whole);
            return;
        end if;
        -- Less than of_units: every grant was looked at, and still it did not fit.
        room := burnt + greatest(up_to - counter.used - counter.held, 0);
        -- The same key may have been counted while this one waited for the row.
        select k.amount into prior from saas.usage_key k
        where k.tenant_id = of_tenant and k.meter = of_meter and k.key = with_key;
        outcome := case when found then 'known' else 'refused' end;
        return next;
        return;
    end if;
    after := counter.used + of_units - burnt;
    if mark_units[1] <= after then
        select coalesce(array_agg(m.mark order by m.mark), '{}') into due
        from unnest(marks, mark_units) as m (mark, units)
        where m.units <= after
          and not exists (
              select from saas.usage_crossing x
              where x.tenant_id = of_tenant and x.meter = of_counter and x.window_kind = in_window
                and x.window_start = from_start and x.limit_units = of_limit and x.threshold = m.mark
          );
    end if;
    if not whole and (relimited or due <> '{}') then
        outcome := 'slow';
        return next;
        return;
    end if;
    insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
    values (of_tenant, of_meter, with_key, of_amount, event, moment)
    on conflict (tenant_id, meter, key) do nothing;
    if not found then
        select k.amount into prior from saas.usage_key k
        where k.tenant_id = of_tenant and k.meter = of_meter and k.key = with_key;
        outcome := 'known';
        return next;
        return;
    end if;
    insert into saas.usage_event
        (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
    values (of_tenant, event, moment, of_meter, of_counter, of_kind, of_amount, of_units, in_window, from_start,
            moment, with_key, by_actor);
    update saas.usage_counter c
    set used = usage_consume.after, burnt = c.burnt + usage_consume.burnt, limit_units = of_limit
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    if burn_from <> '{}' then
        update saas.usage_grant g set burnt = g.burnt + burn.units
        from unnest(burn_from, burn_units) as burn (id, units)
        where g.tenant_id = of_tenant and g.id = burn.id;
    end if;
    outcome := 'counted';
    return next;
end $$;
