-- What was used, and how much of it counts against which limit.

-- The truth: one row per use, never changed. The primary key is what makes a repeat recognisable.
create table saas.usage_event (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    key           text not null check (char_length(key) between 1 and 255),
    id            uuid not null,
    amount        bigint not null check (amount > 0),
    window_kind   text not null,
    window_start  timestamptz not null,
    actor         text not null,
    at            timestamptz not null,
    primary key (tenant_id, meter, key)
);
select saas.fence('saas.usage_event', 'select, insert');

-- Sums of the events per window: derived, and rebuildable from them. A window belongs to the counter, not to a plan, so
-- another limit does not start it again. The free half of each page keeps updates on it (HOT).
create table saas.usage_counter (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    meter         text not null,
    window_kind   text not null check (window_kind in ('hour', 'day', 'week', 'month', 'year', 'lifetime')),
    window_start  timestamptz not null,
    -- null: never
    window_end    timestamptz,
    used          bigint not null default 0 check (used >= 0),
    -- the limit at the last use; null: none. Tells which warnings still hold.
    limit_units   bigint,
    primary key (tenant_id, meter, window_kind, window_start)
) with (fillfactor = 50);
select saas.fence('saas.usage_counter', 'select, insert, update');

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
    primary key (tenant_id, meter, window_kind, window_start, limit_units, threshold)
);
select saas.fence('saas.usage_crossing', 'select, insert');
