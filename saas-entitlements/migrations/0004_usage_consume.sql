-- Decides one use, and counts it, in one call: a single flight with the transaction around it.

-- Units come from the plan up to its limit, then from grants in their order, then from overage up to the cap; all of them or
-- none. A use of the kind 'record' has happened: its cap is the largest number there is, and its member has none.
--
-- `aggregation` says how a use becomes units of the counter:
--   sum     its units (a count is a sum of ones)
--   max     what its level is above the peak of the window, or 0
--   unique  1 for an item that is new in the window, or 0
--   latest  what its level is above or below the one before, or 0 where that was reported for a later instant
-- What adds nothing is counted whatever the limits.

-- The common case by itself: a window that has its counter, under the limit of the use before, that reaches no new warning.
-- Everything rarer is answered 'slow' with nothing written, unless `whole` says that the caller takes care of it.
create function saas.usage_consume(
    of_kind text, of_tenant uuid, at_revision bigint, of_meter text, of_counter text, with_key text, event uuid,
    of_amount bigint, of_units bigint, in_window text, from_start timestamptz, up_to bigint, of_limit bigint,
    marks integer[], mark_units bigint[], by_actor text, moment timestamptz, whole boolean,
    aggregation text, of_item text, of_member text, member_up_to bigint, happened timestamptz
) returns table (outcome text, revision bigint, before bigint, after bigint, prior bigint, prior_item text,
    relimited boolean, due integer[], burnt bigint, room bigint, member_before bigint)
language plpgsql as $$
declare
    counter record;
    given record;
    -- what the use adds: from_plan + burnt + the rest, which is overage
    added bigint := of_units;
    from_plan bigint;
    burn_from uuid[] := '{}';
    burn_units bigint[] := '{}';
    piece bigint;
    member_room bigint;
    rare boolean;
    is_new boolean;
begin
    if aggregation = 'sum' and member_up_to is null then
        -- The commonest use by itself, in one statement: the rest of this function would do the same, in eight.
        with counted as (
            update saas.usage_counter c set used = c.used + of_units
            where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
              and c.used >= 0 and c.limit_units is not distinct from of_limit and not c.by_member
              -- Room in the plan itself, no warning, and nothing that is watched for passing it.
              and of_units <= least(coalesce(of_limit, up_to), up_to) - c.used - c.held - c.carried
              and (c.used < mark_units[1] - of_units) is not false
              and (c.used > c.over_above) is not distinct from (c.used > c.over_above - of_units)
              and exists (select from saas.tenant t where t.id = of_tenant and t.revision = at_revision for key share)
            returning c.used
        ), key as (
            insert into saas.usage_key (tenant_id, meter, key, amount, item, event_id, at)
            select of_tenant, of_meter, with_key, of_amount, of_item, event, moment from counted
            on conflict (tenant_id, meter, key) do nothing
            returning true
        ), recorded as (
            insert into saas.usage_event
                (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member,
                 item, actor)
            select of_tenant, event, moment, of_meter, of_counter, of_kind, of_amount, of_units, in_window, from_start,
                   happened, with_key, of_member, of_item, by_actor
            from key
        )
        select c.used, exists (select from key) into usage_consume.after, is_new from counted c;
        if is_new then
            revision := at_revision;
            before := after - of_units;
            relimited := false;
            due := '{}';
            burnt := 0;
            outcome := 'counted';
            return next;
            return;
        elsif found then
            -- Known. Nobody has seen the units: the row is locked.
            update saas.usage_counter c set used = c.used - of_units
            where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
        end if;
        after := null;
    end if;
    select t.revision into usage_consume.revision from saas.tenant t where t.id = of_tenant for key share;
    if not found then
        outcome := 'no tenant';
        return next;
        return;
    end if;
    if usage_consume.revision <> at_revision then
        outcome := 'outdated';
        return next;
        return;
    end if;
    -- All uses of one window queue up here, and each sees the sum of those before it.
    select greatest(c.used, 0) as used, c.held, c.carried, c.burnt, c.limit_units, c.level_at, c.by_member,
           c.over_above
    into counter
    from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
    for no key update;
    if not found or (member_up_to is not null and not counter.by_member and not whole) then
        outcome := 'slow';
        return next;
        return;
    end if;
    before := counter.used;
    due := '{}';
    relimited := counter.limit_units is distinct from of_limit;
    burnt := 0;
    if aggregation = 'max' then
        added := greatest(of_units - counter.used, 0);
    elsif aggregation = 'latest' then
        added := case when counter.level_at > happened then 0 else of_units - counter.used end;
    elsif aggregation = 'unique' then
        perform from saas.usage_item i
        where i.tenant_id = of_tenant and i.meter = of_counter and i.window_kind = in_window
          and i.window_start = from_start and i.item = of_item;
        added := case when found then 0 else 1 end;
    end if;
    -- All of these are at least 0 but for what a fallen level takes, and used + held stays within bigint: nothing overflows.
    from_plan := least(added, greatest(least(coalesce(of_limit, up_to), up_to) - counter.used - counter.held - counter.carried, 0));
    if from_plan < added and aggregation = 'sum' then
        for given in
            select g.id, g.units - g.burnt - g.held as unburnt from saas.usage_grant g
            where g.tenant_id = of_tenant and g.meter = of_counter and g.burnt < g.units and g.revoked_at is null
              and (g.expires_at is null or g.expires_at > moment)
            order by g.priority, g.expires_at, g.created_at, g.id
            for no key update
        loop
            exit when burnt = added - from_plan;
            piece := least(given.unburnt, added - from_plan - burnt, 9223372036854775807 - counter.burnt - burnt);
            if piece > 0 then
                burn_from := burn_from || given.id;
                burn_units := burn_units || piece;
                burnt := burnt + piece;
            end if;
        end loop;
    end if;
    if added - from_plan - burnt > up_to - counter.used - counter.held - counter.carried - from_plan
       and added > from_plan + burnt then
        -- What was reserved and never used may be in the way. The second time nothing of it is left.
        if saas.usage_reservation_expire(of_tenant, of_counter) > 0 then
            return query select * from saas.usage_consume(
                of_kind, of_tenant, at_revision, of_meter, of_counter, with_key, event, of_amount, of_units, in_window,
                from_start, up_to, of_limit, marks, mark_units, by_actor, moment, whole,
                aggregation, of_item, of_member, member_up_to, happened);
            return;
        end if;
        -- Less than what is added: every grant was looked at, and still it did not fit.
        room := burnt + greatest(up_to - counter.used - counter.held - counter.carried, 0);
    end if;
    if member_up_to is not null then
        if not counter.by_member then
            perform saas.usage_by_member(of_tenant, of_counter, in_window, from_start);
            counter.by_member := true;
        end if;
        select m.used, greatest(greatest(member_up_to - m.used, 0) - m.held, 0) into member_before, member_room
        from saas.usage_member m
        where m.tenant_id = of_tenant and m.meter = of_counter and m.window_kind = in_window
          and m.window_start = from_start and m.member = of_member;
        if not found then
            member_before := 0;
            member_room := member_up_to;
        end if;
        -- The narrower of the two is what the answer is about.
        if added > member_room and member_room < coalesce(room, 9223372036854775807) then
            room := member_room;
        else
            member_before := null;
        end if;
    end if;
    if room is not null then
        -- The same key may have been counted while this one waited for the row.
        select k.amount, k.item into prior, prior_item from saas.usage_key k
        where k.tenant_id = of_tenant and k.meter = of_meter and k.key = with_key;
        outcome := case when found then 'known' else 'refused' end;
        return next;
        return;
    end if;
    after := counter.used + added - burnt;
    if mark_units[1] <= after then
        select coalesce(array_agg(m.mark order by m.mark), '{}') into due
        from unnest(marks, mark_units) as m (mark, units)
        where m.units <= after
          and not exists (
              select from saas.usage_crossing x
              where x.tenant_id = of_tenant and x.meter = of_counter and x.window_kind = in_window
                and x.window_start = from_start and x.limit_units = of_limit and x.threshold = m.mark
                and (x.resolved_at is null or aggregation <> 'latest')
          );
    end if;
    rare := relimited or due <> '{}';
    if added < 0 and not rare then
        -- A level that falls takes back its warnings.
        rare := exists (
            select from saas.usage_crossing x
            where x.tenant_id = of_tenant and x.meter = of_counter and x.window_kind = in_window and x.window_start = from_start
              and x.resolved_at is null
        );
    end if;
    if rare and not whole then
        outcome := 'slow';
        return next;
        return;
    end if;
    insert into saas.usage_key (tenant_id, meter, key, amount, item, event_id, at)
    values (of_tenant, of_meter, with_key, of_amount, of_item, event, moment)
    on conflict (tenant_id, meter, key) do nothing;
    if not found then
        select k.amount, k.item into prior, prior_item from saas.usage_key k
        where k.tenant_id = of_tenant and k.meter = of_meter and k.key = with_key;
        outcome := 'known';
        return next;
        return;
    end if;
    insert into saas.usage_event
        (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member, item,
         actor)
    values (of_tenant, event, moment, of_meter, of_counter, of_kind, of_amount, added, in_window, from_start,
            happened, with_key, of_member, of_item, by_actor);
    update saas.usage_counter c
    set used = usage_consume.after, burnt = c.burnt + usage_consume.burnt, limit_units = of_limit,
        level_at = case when aggregation = 'latest' then greatest(c.level_at, happened) end
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    if (before > counter.over_above) <> (after > counter.over_above) then
        perform saas.usage_turn(of_tenant, of_counter, in_window, from_start, moment);
    end if;
    if counter.by_member and of_member is not null and aggregation = 'sum' then
        insert into saas.usage_member as m (tenant_id, meter, window_kind, window_start, member, used)
        values (of_tenant, of_counter, in_window, from_start, of_member, added)
        on conflict (tenant_id, meter, window_kind, window_start, member) do update
        set used = least(m.used, 9223372036854775807 - excluded.used) + excluded.used;
    end if;
    if aggregation = 'unique' and added = 1 then
        insert into saas.usage_item (tenant_id, meter, window_kind, window_start, item, at)
        values (of_tenant, of_counter, in_window, from_start, of_item, happened);
    end if;
    if burn_from <> '{}' then
        update saas.usage_grant g set burnt = g.burnt + burn.units
        from unnest(burn_from, burn_units) as burn (id, units)
        where g.tenant_id = of_tenant and g.id = burn.id;
    end if;
    outcome := 'counted';
    return next;
end $$;

-- Uses of one tenant that differ in nothing but what is an array here, in the order in which they came. Where all of them are
-- of the common kind, they are written together. Otherwise usage_consume decides about one after the other, each of which sees
-- those before it.
create function saas.usage_consume_together(
    of_kind text, of_tenant uuid, at_revision bigint, of_meter text, of_counter text, in_window text,
    from_start timestamptz, up_to bigint, of_limit bigint, marks integer[], mark_units bigint[], aggregation text,
    member_up_to bigint, keys text[], event_ids uuid[], amounts bigint[], of_units bigint[], actors text[],
    moments timestamptz[], items text[], members text[], times timestamptz[]
) returns table (n bigint, outcome text, revision bigint, before bigint, after bigint, prior bigint, prior_item text,
    relimited boolean, due integer[], burnt bigint, room bigint, member_before bigint)
language plpgsql
-- The lengths of arrays would have it planned anew each time.
set plan_cache_mode = force_generic_plan
as $$
declare
    counter record;
    total numeric;
    common boolean;
begin
    select t.revision = at_revision and aggregation = 'sum' and member_up_to is null into common
    from saas.tenant t where t.id = of_tenant
    for key share;
    if common then
        select greatest(c.used, 0) as used, c.held, c.carried, c.limit_units, c.by_member, c.over_above into counter
        from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
        for no key update;
        -- A window that has its counter, under the limit of the use before.
        common := found and not counter.by_member and counter.limit_units is not distinct from of_limit;
    end if;
    if common then
        -- Room in the plan itself, and nothing that is watched for passing it.
        select sum(u.units) into total from unnest(of_units) as u (units);
        common := total + counter.used + counter.held + counter.carried <= least(coalesce(of_limit, up_to), up_to)
            and (counter.used > counter.over_above) is not distinct from (counter.used + total > counter.over_above);
    end if;
    if common and mark_units[1] <= counter.used + total then
        -- No new warning.
        common := not exists (
            select from unnest(marks, mark_units) as m (mark, units)
            where m.units <= counter.used + total
              and not exists (
                  select from saas.usage_crossing x
                  where x.tenant_id = of_tenant and x.meter = of_counter and x.window_kind = in_window
                    and x.window_start = from_start and x.limit_units = of_limit and x.threshold = m.mark
              )
        );
    end if;
    if common then
        begin
            insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
            select of_tenant, of_meter, i.key, i.amount, i.event, i.moment
            from unnest(keys, event_ids, amounts, moments) as i (key, event, amount, moment)
            on conflict (tenant_id, meter, key) do nothing;
            get diagnostics n = row_count;
            if n < cardinality(keys) then
                raise unique_violation;
            end if;
            insert into saas.usage_event
                (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key,
                 member, actor)
            select of_tenant, i.event, i.moment, of_meter, of_counter, of_kind, i.amount, i.units, in_window, from_start,
                   i.at, i.key, nullif(i.member, ''), i.actor
            from unnest(keys, event_ids, amounts, of_units, actors, moments, members, times)
                     as i (key, event, amount, units, actor, moment, member, at);
            update saas.usage_counter c set used = counter.used + total::bigint
            where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window
              and c.window_start = from_start;
        exception when unique_violation then
            -- A key that is known, or two of the same. Nothing of this block is stored.
            common := false;
        end;
    end if;
    if common then
        return query
            select u.n, 'counted', at_revision, counter.used + (sum(u.units) over so_far - u.units)::bigint,
                   counter.used + (sum(u.units) over so_far)::bigint, null::bigint, null::text, false, '{}'::integer[],
                   0::bigint, null::bigint, null::bigint
            from unnest(of_units) with ordinality as u (units, n)
            window so_far as (order by u.n);
    else
        return query
            select i.n, c.*
            from unnest(keys, event_ids, amounts, of_units, actors, moments, items, members, times)
                     with ordinality as i (key, event, amount, units, actor, moment, item, member, at, n)
            cross join lateral saas.usage_consume(
                of_kind, of_tenant, at_revision, of_meter, of_counter, i.key, i.event, i.amount, i.units, in_window,
                from_start, up_to, of_limit, marks, mark_units, i.actor, i.moment, false, aggregation,
                nullif(i.item, ''), nullif(i.member, ''), member_up_to, i.at) c;
    end if;
end $$;

-- Begins to keep what each member used of a window, or begins again, from its events on. The caller holds the lock of the
-- counter's row, so no event comes in between.
create function saas.usage_by_member(of_tenant uuid, of_counter text, in_window text, from_start timestamptz) returns void
language plpgsql as $$
begin
    update saas.usage_member m set used = 0
    where m.tenant_id = of_tenant and m.meter = of_counter and m.window_kind = in_window and m.window_start = from_start;
    insert into saas.usage_member (tenant_id, meter, window_kind, window_start, member, used)
    select of_tenant, of_counter, in_window, from_start, e.member, saas.bounded(greatest(sum(e.units), 0))
    from saas.usage_event e
    where e.tenant_id = of_tenant and e.counter = of_counter and e.window_kind = in_window
      and e.window_start = from_start and e.member is not null
    group by e.member
    on conflict (tenant_id, meter, window_kind, window_start, member) do update set used = excluded.used;
    update saas.usage_counter c set by_member = true
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
end $$;
