-- The prices at Stripe that were ever sold under a name of the catalogue: what a price that an event brings is called there,
-- also after another price has taken its lookup key over.
create table saas.billing_price (
    account      text not null,
    livemode     boolean not null,
    price_id     text not null,
    -- The entry of the file's `prices`, which plans and add-ons name.
    name         text not null,
    currency     text not null,
    -- What it is charged for, and how often; null where nobody knows.
    per          text check (per in ('flat', 'seat', 'usage')),
    every        text check (every in ('day', 'week', 'month', 'year')),
    meter        text,
    -- What is sold under the name in this currency now.
    is_current   boolean not null,
    recorded_at  timestamptz not null,
    primary key (account, livemode, price_id)
);
-- What a checkout asks for; one per name and currency.
create unique index billing_price_current on saas.billing_price (account, livemode, name, currency) where is_current;
revoke all on saas.billing_price from public;
grant select, insert, update on saas.billing_price to saas_system;
select saas.declare_global('saas.billing_price', 'what is sold, the same for all tenants; only the system role reads it', 'system');

-- Usage that is charged at Stripe: one row for each event of the usage pipeline, from the moment it is handed over here. Its id
-- is what Stripe remembers it by, so that it counts once, whatever is sent twice.
create table saas.billing_usage (
    tenant_id      uuid not null references saas.tenant (id) on delete restrict,
    livemode       boolean not null,
    id             uuid not null,
    -- The meter's event name.
    meter          text not null,
    -- What was used; below 0 for a correction.
    amount         bigint not null,
    -- What was used: when, and in which window.
    at             timestamptz not null,
    window_start   timestamptz not null,
    -- waiting: the tenant has no customer yet. sent: Stripe has taken it. cancelled: and a correction has taken it back.
    -- rejected: Stripe took it, and said later that it does not count. refused: it was never taken, and never will be.
    state          text not null check (state in ('pending', 'waiting', 'sent', 'cancelled', 'rejected', 'refused')),
    -- To whom and how much was or is sent: fixed before the first try.
    customer       text,
    value          bigint check (value >= 0),
    -- The row that a correction takes back.
    cancels        uuid,
    reason         text,
    due_at         timestamptz not null,
    lease          uuid,
    -- Stripe remembers an identifier for 24 hours: after that a row without an answer is not sent blindly.
    first_sent_at  timestamptz,
    settled_at     timestamptz,
    primary key (tenant_id, livemode, id)
);
-- The sender's claim: the longest due first.
create index billing_usage_due on saas.billing_usage (due_at, tenant_id, id) where state = 'pending';
-- What a new customer sets free.
create index billing_usage_waiting on saas.billing_usage (tenant_id) where state = 'waiting';
-- What a report of Stripe's names.
create index billing_usage_identifier on saas.billing_usage (id);
-- What a person is to see.
create index billing_usage_problem on saas.billing_usage (tenant_id, id) where state in ('rejected', 'refused');
-- The total of a day, and what can be taken back.
create index billing_usage_day on saas.billing_usage (tenant_id, livemode, meter, at);
-- What is over and old.
create index billing_usage_settled on saas.billing_usage (at) where state in ('sent', 'cancelled', 'waiting');
select saas.fence('saas.billing_usage', 'select');
grant select, insert, update, delete on saas.billing_usage to saas_system;

-- Stripe's reports of usage that it took and could not count. The event only names the report; it is read afterwards.
create table saas.billing_usage_report (
    account      text not null,
    livemode     boolean not null,
    event_id     text not null,
    event_type   text not null,
    state        text not null check (state in ('pending', 'done', 'dead')),
    -- What it says: how many, by code, and how many of its samples are rows of ours.
    errors       bigint not null default 0,
    matched      bigint not null default 0,
    codes        jsonb not null default '{}',
    reason       text,
    attempts     integer not null default 0,
    due_at       timestamptz not null,
    received_at  timestamptz not null,
    primary key (account, livemode, event_id)
);
create index billing_usage_report_due on saas.billing_usage_report (due_at) where state = 'pending';
revoke all on saas.billing_usage_report from public;
grant select, insert, update, delete on saas.billing_usage_report to saas_system;
select saas.declare_global('saas.billing_usage_report', 'a report can be about many tenants; only the system role reads it', 'system');
