-- What a tenant has: its Stripe objects, what follows from them, and what was done about it. A tenant reads its own; only
-- the system role writes, in the transaction that applies an event. `livemode` is part of every key, so that test events
-- can never touch what real money bought.

create table saas.billing_object (
    tenant_id   uuid not null references saas.tenant (id) on delete restrict,
    livemode    boolean not null,
    object_id   text not null,
    kind        text not null check (kind in ('customer', 'checkout_session', 'subscription', 'invoice', 'charge', 'refund',
                                               'dispute', 'credit_note')),
    -- Stripe's word, for people; nothing is decided by it.
    status      text not null,
    -- Whether what the tenant has can still depend on it. The rest is history.
    is_current  boolean not null,
    -- Whether it is over, and says which plan the tenant had before.
    is_past     boolean not null,
    -- Everything the snapshots seen have said, merged.
    merged      jsonb not null,
    updated_at  timestamptz not null,
    primary key (tenant_id, livemode, object_id)
);
-- What deriving reads: a handful of rows, however long the history.
create index billing_object_current on saas.billing_object (tenant_id, livemode) where is_current or is_past;
-- What a fetch looks at before it knows the tenant; system role only.
create index billing_object_by_id on saas.billing_object (object_id);
select saas.fence('saas.billing_object', 'select');
grant insert, update, delete on saas.billing_object to saas_system;

create table saas.billing_state (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    livemode      boolean not null,
    -- What was derived, whole.
    derived       jsonb not null,
    -- The parts that lists filter by.
    plan          text,
    unpaid_since  timestamptz,
    has_alerts    boolean not null,
    updated_at    timestamptz not null,
    primary key (tenant_id, livemode)
);
-- Tenants with alerts, for operators: few of many.
create index billing_state_alerts on saas.billing_state (livemode, tenant_id) where has_alerts;
select saas.fence('saas.billing_state', 'select');
grant insert, update, delete on saas.billing_state to saas_system;

-- What was done about a fact, once. The key is the object and the fact, not the event: Stripe may tell of one change twice
-- under two ids.
create table saas.billing_effect (
    tenant_id  uuid not null references saas.tenant (id) on delete restrict,
    livemode   boolean not null,
    object_id  text not null,
    fact       text not null,
    at         timestamptz not null,
    primary key (tenant_id, livemode, object_id, fact)
);
select saas.fence('saas.billing_effect', 'select');
-- What an operator has read afresh takes back what a forger told.
grant insert, delete on saas.billing_effect to saas_system;
