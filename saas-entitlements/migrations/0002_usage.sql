-- What was used, and how much of it counts against which limit.
--
-- A use is decided on the counter of its window: used + held + units must stay within the cap. `used` is what events say and
-- can be counted again from them; `held` is what reservations and leases may still use.

-- What every use writes is checked by domains: a check of a table is read anew in each statement, one of a domain once in a
-- session.
create domain saas.usage_kind as text
    -- consume and commit were decided before; record was not; correction may be negative; lease is the sum of many uses;
    -- stranded is what a holder may have used when it was lost
    check (value in ('consume', 'commit', 'record', 'correction', 'lease', 'stranded'));
create domain saas.usage_window as text
    check (value in ('hour', 'day', 'week', 'month', 'year', 'lifetime'));
create domain saas.usage_name as text check (char_length(value) between 1 and 255);
create domain saas.usage_units as bigint check (value >= 0);

-- Neither this table nor that of the events refers to the tenant: a reference is checked row by row, which is a third of what
-- a batch costs. In its place, whoever adds rows to one of them first takes the tenant's row `for key share`, once for its
-- transaction, as the check of a reference would; and whoever removes a tenant takes that row `for update` before it deletes
-- from them (saas_core::tenant::lock_to_remove_in), so that nothing of a use under way is left behind.

-- Which uses are known: what makes a repeat recognisable. Kept for as long as somebody may still repeat.
create table saas.usage_key (
    tenant_id     uuid not null,
    meter         text not null,
    key           saas.usage_name not null,
    amount        bigint not null,
    item          text,
    event_id      uuid not null,
    at            timestamptz not null,
    primary key (tenant_id, meter, key)
);
create index usage_key_by_age on saas.usage_key (at);
select saas.fence('saas.usage_key', 'select, insert');

-- The truth: one row per use, never changed. In parts by the month in which it was recorded, so that old ones go as a table.
create table saas.usage_event (
    tenant_id     uuid not null,
    id            uuid not null,
    recorded_at   timestamptz not null,
    -- what was used, and the meter that counts it: another one where it is paid in credits
    meter         text not null,
    counter       text not null,
    kind          saas.usage_kind not null,
    -- how much of the meter: for a peak and a level, the one that was reported
    amount        bigint not null,
    -- what it added to the counter's sum: 0 for a peak that was not exceeded or an item that was known, below 0 for a level
    -- that fell, and for a correction no more than there was to take
    units         bigint not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    -- when it happened, in the window: before recorded_at, but for what clocks differ by
    at            timestamptz not null,
    key           text not null,
    member        text,
    item          text,
    actor         text not null,
    -- The transaction that recorded it. Readers that go through all events follow this, not recorded_at: below the oldest
    -- transaction that still runs, nothing can appear any more.
    position      bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (tenant_id, id, recorded_at)
) partition by range (recorded_at);
create table saas.usage_event_rest partition of saas.usage_event default;
create index usage_event_by_window on saas.usage_event (tenant_id, counter, window_kind, window_start);
create index usage_event_by_time on saas.usage_event (tenant_id, at);
-- Roll-ups and exports: what came since, of all tenants.
create index usage_event_by_position on saas.usage_event (position, tenant_id, id);
select saas.fence('saas.usage_event', 'select, insert');

-- One per window. A window belongs to the counter, not to a plan, so another limit does not start it again. The free half of
-- each page keeps updates on it (HOT).
--
-- Who locks several rows does so in one order, so that nobody waits for each other: counters in the order of their primary key
-- (or those that nobody else has, by `skip locked`), and after the counter what belongs to it: its grants as they burn, then
-- the reservation or the lease.
create table saas.usage_counter (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    window_kind   saas.usage_window not null,
    window_start  timestamptz not null,
    -- null: never
    window_end    timestamptz,
    -- a correction takes no more from it than there is, so that none raises the quota
    used          bigint not null default 0,
    -- what reservations and leases may still use
    held          saas.usage_units not null default 0,
    -- what it left of the plan and is a grant now: units of it that are used in it after all are burnt of grants
    carried       saas.usage_units not null default 0,
    -- what was taken from grants: used + burnt is the sum of the events
    burnt         saas.usage_units not null default 0,
    -- the limit at the last use; null: none. Tells which warnings still hold.
    limit_units   bigint,
    -- since when the level is the one of `used`, of meters that keep the latest: a report of an earlier one changes nothing
    level_at      timestamptz,
    -- whether usage_member has what each member used of it: from the first use on that a member's own limit decided about
    by_member     boolean not null default false,
    -- when its end was dealt with: warnings taken back, what is left carried over
    closed_at     timestamptz,
    -- beyond so much the tenant may only read: a use or a correction that crosses it raises the tenant's revision, so that
    -- every gate hears of it. Set by who asks; null: nobody does.
    over_above    bigint,
    -- somebody was refused what would fit if all holders of leases gave back: they do, and nothing is lent for a second
    wanted_at     timestamptz,
    primary key (tenant_id, meter, window_kind, window_start)
) with (fillfactor = 50);
-- Windows that are over, of all tenants, until somebody has dealt with it. Neither column moves while uses are counted.
create index usage_counter_unclosed on saas.usage_counter (window_end) where closed_at is null;
select saas.fence('saas.usage_counter', 'select, insert, update');

-- What each member used of a tenant's window, of counters that say `by_member`.
create table saas.usage_member (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    member        text not null,
    used          saas.usage_units not null default 0,
    held          saas.usage_units not null default 0,
    primary key (tenant_id, meter, window_kind, window_start, member)
) with (fillfactor = 50);
select saas.fence('saas.usage_member', 'select, insert, update');

-- The different items of a window, of meters that count those: the items whose events have a sum above 0. One that was
-- counted wrongly is taken out again.
create table saas.usage_item (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    item          saas.usage_name not null,
    at            timestamptz not null,
    primary key (tenant_id, meter, window_kind, window_start, item)
);
select saas.fence('saas.usage_item', 'select, insert, delete');

-- Units beside the plan's: bought, given, or carried over. Burnt after the plan's own, by priority, then what ends first,
-- then the oldest.
create table saas.usage_grant (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    id            uuid not null,
    meter         text not null,
    units         bigint not null check (units > 0),
    burnt         bigint not null default 0 check (burnt >= 0),
    held          bigint not null default 0 check (held >= 0),
    priority      smallint not null default 0,
    source        text not null check (source in ('bought', 'given', 'rollover')),
    reason        text not null check (char_length(reason) between 1 and 500),
    author        text not null,
    created_at    timestamptz not null,
    -- null: never
    expires_at    timestamptz check (expires_at > created_at),
    -- the window that left it over
    window_kind   text,
    window_start  timestamptz,
    revoked_at    timestamptz,
    primary key (tenant_id, id),
    unique (tenant_id, meter, window_kind, window_start),
    check (burnt + held <= units)
);
create index usage_grant_in_order on saas.usage_grant (tenant_id, meter, priority, expires_at, created_at)
    where burnt < units and revoked_at is null;
select saas.fence('saas.usage_grant', 'select, insert, update');

-- Units set aside for work whose cost is known only afterwards.
create table saas.usage_reservation (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    id            uuid not null,
    meter         text not null,
    counter       text not null,
    key           text not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    member        text,
    -- of the meter, and the same in units of the counter
    amount        bigint not null check (amount > 0),
    units         bigint not null check (units > 0),
    actor         text not null,
    created_at    timestamptz not null,
    expires_at    timestamptz not null,
    -- what is held of grants, in the order in which it is burnt; the rest of the units is held of the counter
    grants        uuid[] not null default '{}',
    grant_units   bigint[] not null default '{}' check (cardinality(grant_units) = cardinality(grants)),
    -- null while it is open
    outcome       text check (outcome in ('committed', 'released', 'expired')),
    -- of the meter: what the work took
    settled_amount bigint,
    settled_at    timestamptz check ((settled_at is null) = (outcome is null)),
    primary key (tenant_id, id)
);
-- One at a time: what was given back can be reserved again by the same key.
create unique index usage_reservation_open_key on saas.usage_reservation (tenant_id, meter, key) where outcome is null;
create index usage_reservation_open on saas.usage_reservation (tenant_id, counter, expires_at) where outcome is null;
create index usage_reservation_overdue on saas.usage_reservation (expires_at) where outcome is null;
create index usage_reservation_by_age on saas.usage_reservation (settled_at) where outcome is not null;
select saas.fence('saas.usage_reservation', 'select, insert, update');

-- Units lent to one process, which uses them from memory.
create table saas.usage_lease (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    id            uuid not null,
    meter         text not null,
    counter       text not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    holder        text not null,
    -- units of the counter: lent; of those, used as far as reported, returned, and lost with the holder
    lent          bigint not null check (lent > 0),
    spent         bigint not null default 0 check (spent >= 0),
    returned      bigint not null default 0 check (returned >= 0),
    stranded      bigint not null default 0 check (stranded >= 0),
    -- used as counted with refills, of which there is no event yet: the next report makes one of all of it
    unrecorded    bigint not null default 0 check (unrecorded >= 0),
    -- units of the counter per unit of the meter
    cost          bigint not null check (cost > 0),
    -- the last report that counted: an older one does not
    report        bigint not null default 0,
    created_at    timestamptz not null,
    expires_at    timestamptz not null,
    -- null while the holder has it
    ended_at      timestamptz,
    primary key (tenant_id, id),
    check (spent + returned + stranded <= lent),
    -- of what was lent, nothing is unaccounted for once it has ended
    check (ended_at is null or spent + returned + stranded = lent and unrecorded = 0)
) with (fillfactor = 50);
-- Not by when it expires, which each report moves: so that a report stays on its page (HOT).
create index usage_lease_open on saas.usage_lease (tenant_id, counter) where ended_at is null;
select saas.fence('saas.usage_lease', 'select, insert, update');

-- Which warnings were given. The primary key is what gives each of them once per window and limit.
create table saas.usage_crossing (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    window_kind   text not null,
    window_start  timestamptz not null,
    limit_units   bigint not null check (limit_units >= 0),
    -- percent of the limit
    threshold     integer not null check (threshold > 0),
    -- null: never
    window_end    timestamptz,
    units         bigint not null,
    at            timestamptz not null,
    -- when usage was below it again, by a higher limit, a correction or a new window, and that was said
    resolved_at   timestamptz,
    primary key (tenant_id, meter, window_kind, window_start, limit_units, threshold)
);
create index usage_crossing_unresolved on saas.usage_crossing (tenant_id, meter) where resolved_at is null;
select saas.fence('saas.usage_crossing', 'select, insert, update');

-- Usage goes with its tenant. Nothing else may delete what happened: these tables are only added to.
grant delete on saas.usage_key, saas.usage_event, saas.usage_counter, saas.usage_member, saas.usage_item, saas.usage_grant,
    saas.usage_reservation, saas.usage_lease, saas.usage_crossing to saas_system;
