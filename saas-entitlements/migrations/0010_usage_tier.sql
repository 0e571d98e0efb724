-- Units lent to a tier that all processes share (Redis), which admits uses from them; and the uses that it admitted, written
-- with their keys. Such a lease is one of saas.usage_lease like any other: it is exposed, stranded and reclaimed as they are.

-- Lends up to `want` units of the plan, or none: never across a warning that is still to be given, and only while the last
-- use was under the same limit, so that no use from the tier has anything to announce.
create function saas.usage_tier_lend(
    of_tenant uuid, at_revision bigint, of_lease uuid, by_holder text, of_counter text, in_window text,
    from_start timestamptz, of_limit bigint, marks integer[], mark_units bigint[], exposed bigint, want bigint,
    no_less bigint, life_ms bigint, by_actor text, moment timestamptz
) returns table (outcome text, used bigint, lent bigint)
language plpgsql as $$
declare
    counter record;
    outstanding bigint;
    next_mark bigint;
begin
    perform from saas.tenant t where t.id = of_tenant and t.revision = at_revision for key share;
    if not found then
        outcome := 'outdated';
        return next;
        return;
    end if;
    perform from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
    for no key update;
    if found then
        perform saas.usage_lease_strand(of_tenant, of_counter, in_window, from_start, by_actor, moment);
    end if;
    select greatest(c.used, 0) as used, c.held, c.carried into counter from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start
      and c.limit_units = of_limit and not c.by_member;
    if not found then
        -- The first use of the window or under this limit is not of the common kind; nor is one where each member's use is kept.
        outcome := 'first';
        return next;
        return;
    end if;
    used := counter.used;
    select coalesce(sum(l.lent - l.spent - l.returned), 0) into outstanding from saas.usage_lease l
    where l.tenant_id = of_tenant and l.counter = of_counter and l.window_kind = in_window
      and l.window_start = from_start and l.ended_at is null;
    select min(m.units) into next_mark
    from unnest(marks, mark_units) as m (mark, units)
    where not exists (
        select from saas.usage_crossing x
        where x.tenant_id = of_tenant and x.meter = of_counter and x.window_kind = in_window
          and x.window_start = from_start and x.limit_units = of_limit and x.threshold = m.mark
    );
    -- used + held stays within bigint and carried is no more than a limit, so neither difference overflows.
    lent := least(want, (exposed - outstanding) / 2, (of_limit - counter.used - counter.held - counter.carried) / 2,
                  coalesce(next_mark - 1 - counter.used - counter.held, want));
    if lent < no_less then
        outcome := 'near';
        lent := 0;
        return next;
        return;
    end if;
    insert into saas.usage_lease
        (tenant_id, id, meter, counter, window_kind, window_start, holder, lent, cost, created_at, expires_at)
    values (of_tenant, of_lease, of_counter, of_counter, in_window, from_start, by_holder, lent, 1, clock_timestamp(),
            clock_timestamp() + life_ms * interval '1 millisecond');
    update saas.usage_counter c
    set held = c.held + lent
    where c.tenant_id = of_tenant and c.meter = of_counter and c.window_kind = in_window and c.window_start = from_start;
    outcome := 'lent';
    return next;
end $$;

-- Writes uses that were admitted from a lease, each once whoever brings it how often, and takes back what is certain not to
-- be used any more (`back`, counted once; -1: nothing is known).
--
-- A use whose key counted before takes no units; a key that counted with another amount names another use, which took its
-- units and is counted without a key. Both are rare, and leave a mark by their own id among the keys, so that they too are
-- seen once. When the lease was stranded before, its units count as used already: they become this use's.
create function saas.usage_tier_settle(
    of_tenant uuid, of_lease uuid, back bigint, life_ms bigint, uses jsonb, event uuid, by_actor text, moment timestamptz
) returns table (outcome text, counted bigint, repeated bigint, reused bigint, beyond bigint)
language plpgsql as $$
declare
    lease record;
    other record;
    -- units: of uses that are new, and of those that are none
    fresh bigint;
    void bigint := 0;
    -- what of these, and of `back`, the lease still has
    left_of_it bigint;
    within bigint;
    given bigint := 0;
    turned boolean;
begin
    perform from saas.tenant t where t.id = of_tenant for key share;
    select l.* into lease from saas.usage_lease l where l.tenant_id = of_tenant and l.id = of_lease;
    if not found then
        outcome := 'unknown';
        return next;
        return;
    end if;
    -- The counter first, as everywhere.
    perform from saas.usage_counter c
    where c.tenant_id = of_tenant and c.meter = lease.counter and c.window_kind = lease.window_kind
      and c.window_start = lease.window_start
    for no key update;
    select l.* into lease from saas.usage_lease l where l.tenant_id = of_tenant and l.id = of_lease for no key update;
    with brought as (
        select * from jsonb_to_recordset(uses)
            as u (id uuid, meter text, key text, amount bigint, units bigint, at timestamptz, member text, actor text)
    ), claimed as (
        -- In one order: two windows may be settled at once, and a key belongs to no window.
        insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
        select distinct on (b.meter, b.key) of_tenant, b.meter, b.key, b.amount, b.id, b.at
        from brought b
        order by b.meter, b.key, b.id
        on conflict (tenant_id, meter, key) do nothing
        returning event_id
    ), recorded as (
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, member,
             actor)
        select of_tenant, b.id, moment, b.meter, lease.counter, 'consume', b.amount, b.units, lease.window_kind,
               lease.window_start, b.at, b.key, b.member, b.actor
        from brought b
        join claimed c on c.event_id = b.id
        returning units
    )
    select count(*), coalesce(sum(r.units), 0) into counted, fresh from recorded r;
    repeated := 0;
    reused := 0;
    for other in
        select u.*, k.amount as prior
        from jsonb_to_recordset(uses)
            as u (id uuid, meter text, key text, amount bigint, units bigint, at timestamptz, member text, actor text)
        join saas.usage_key k on k.tenant_id = of_tenant and k.meter = u.meter and k.key = u.key
        where k.event_id <> u.id
        order by u.meter, u.id
    loop
        insert into saas.usage_key (tenant_id, meter, key, amount, event_id, at)
        values (of_tenant, other.meter, other.id::text, other.amount, other.id, other.at)
        on conflict (tenant_id, meter, key) do nothing;
        continue when not found;
        if other.prior = other.amount then
            repeated := repeated + 1;
            void := void + other.units;
        else
            reused := reused + 1;
            fresh := fresh + other.units;
            insert into saas.usage_event
                (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key,
                 member, actor)
            values (of_tenant, other.id, moment, other.meter, lease.counter, 'consume', other.amount, other.units,
                    lease.window_kind, lease.window_start, other.at, other.id::text, other.member, other.actor);
        end if;
    end loop;
    if counted + reused > 0 and exists (
        select from saas.usage_counter c
        where c.tenant_id = of_tenant and c.meter = lease.counter and c.window_kind = lease.window_kind
          and c.window_start = lease.window_start and c.by_member
    ) then
        perform saas.usage_by_member(of_tenant, lease.counter, lease.window_kind, lease.window_start);
    end if;
    left_of_it := case when lease.ended_at is null then lease.lent - lease.spent - lease.returned else lease.stranded end;
    within := least(fresh, left_of_it);
    beyond := fresh - within;
    void := least(void, left_of_it - within);
    if back >= 0 and lease.report = 0 then
        given := least(back, left_of_it - within - void);
    end if;
    if lease.ended_at is null then
        update saas.usage_lease l
        set spent = l.spent + within, returned = l.returned + void + given,
            report = case when back >= 0 then 1 else l.report end,
            expires_at = clock_timestamp() + life_ms * interval '1 millisecond',
            ended_at = case when left_of_it = within + void + given and (back >= 0 or l.report > 0)
                            then clock_timestamp() end
        where l.tenant_id = of_tenant and l.id = of_lease;
        update saas.usage_counter c
        set used = saas.bounded(c.used::numeric + fresh), held = c.held - within - void - given
        where c.tenant_id = of_tenant and c.meter = lease.counter and c.window_kind = lease.window_kind
          and c.window_start = lease.window_start
        returning c.used > c.over_above and c.used - fresh <= c.over_above into turned;
        if turned then
            perform saas.usage_turn(of_tenant, lease.counter, lease.window_kind, lease.window_start, moment);
        end if;
        outcome := 'open';
        return next;
        return;
    end if;
    update saas.usage_lease l
    set spent = l.spent + within, returned = l.returned + void + given, stranded = l.stranded - within - void - given,
        report = case when back >= 0 then 1 else l.report end
    where l.tenant_id = of_tenant and l.id = of_lease;
    if within + void + given > 0 then
        insert into saas.usage_event
            (tenant_id, id, recorded_at, meter, counter, kind, amount, units, window_kind, window_start, at, key, actor)
        values (of_tenant, event, moment, lease.meter, lease.counter, 'correction', -(within + void + given),
                -(within + void + given), lease.window_kind, lease.window_start, moment,
                of_lease::text || ':' || event::text, by_actor);
    end if;
    update saas.usage_counter c
    set used = saas.bounded(c.used::numeric + beyond - void - given)
    where c.tenant_id = of_tenant and c.meter = lease.counter and c.window_kind = lease.window_kind
      and c.window_start = lease.window_start
    returning (c.used > c.over_above) <> (c.used - beyond + void + given > c.over_above) into turned;
    if turned then
        perform saas.usage_turn(of_tenant, lease.counter, lease.window_kind, lease.window_start, moment);
    end if;
    outcome := 'ended';
    return next;
end $$;
