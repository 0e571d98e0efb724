-- What Stripe delivered, and whose it is. Only the system role reads these tables: when a delivery comes in, nobody knows
-- yet which tenant it is about. `account` is '' for the platform's own account; together with `livemode` it keeps apart
-- what Stripe keeps apart.

-- A domain, because a check of the table is parsed anew by every insert, and costs as much as an index or two.
create domain saas.billing_receipt_state as text
    check (value in ('pending', 'applied', 'ignored', 'parked', 'quarantined', 'dead'));

create table saas.billing_receipt (
    account      text not null,
    livemode     boolean not null,
    -- Stripe's id, or `sha256:…` of a body whose envelope cannot be read.
    event_id     text not null,
    event_type   text not null,
    -- By Stripe's clock; never compared with ours.
    created_at   timestamptz,
    api_version  text,
    -- Whose object it tells of, where it is to be applied and that is easily seen: a worker takes what is due of a customer
    -- together.
    customer     text,
    -- bytea: jsonb cannot hold an escaped NUL, a lone surrogate or 1e400000, and a receipt must hold anything. The first
    -- byte says how to read the rest: 0 as it is, 1 packed; Billing::receipt_body reads both.
    body         bytea not null,
    state        saas.billing_receipt_state not null,
    reason       text,
    -- The endpoint that quarantined it as another one's, '<account>/live' or '<account>/test'. When that other one receives
    -- it, it is let in.
    quarantined_by  text,
    -- The object whose link to a tenant a parked or quarantined receipt waits for.
    waits_for    text,
    -- Not `tenant_id`: the row belongs to the system, and says for whom it was applied. Whoever writes it holds the tenant's
    -- row; a check would cost a quarter of ending a receipt.
    tenant       uuid,
    attempts     integer not null default 0,
    -- When it may be taken; a worker that takes it moves this to the end of its lease.
    due_at       timestamptz not null,
    -- The fencing token of the present holder.
    lease        uuid,
    received_at  timestamptz not null,
    finished_at  timestamptz,
    primary key (account, livemode, event_id)
) with (toast_tuple_target = 8160);
-- Packed by the sender, a body mostly fits into its row: no second table to write to, and nothing left to compress.
alter table saas.billing_receipt alter column body set storage external;
-- The worker's claim: the longest due first. Led by what it asks for, so that it is read in order also before the table has
-- been analyzed.
create index billing_receipt_due on saas.billing_receipt (account, livemode, due_at) where state = 'pending';
-- What else is due of a customer. Not `where state = 'pending'`: before the table has been analyzed the planner takes an index
-- of that condition for as good as the other, and goes through all that is due for each customer.
create index billing_receipt_customer on saas.billing_receipt (account, livemode, customer, due_at)
    where finished_at is null and customer is not null;
-- What is no longer pending, of one account and mode: the operator's lists of what needs a person, newest first; what is over,
-- counted for a day and deleted after the retention. Led by the account, so that what another one has left there for want of
-- a worker is not gone through.
create index billing_receipt_ended on saas.billing_receipt (account, livemode, state, received_at, event_id) where state <> 'pending';
-- What an endpoint has kept from another one: its operator's list, and its deletion.
create index billing_receipt_kept_from on saas.billing_receipt (quarantined_by, received_at, event_id) where quarantined_by is not null;
-- What a new link sets free.
create index billing_receipt_waiting on saas.billing_receipt (waits_for) where waits_for is not null;
revoke all on saas.billing_receipt from public;
grant select, insert, update, delete on saas.billing_receipt to saas_system;
select saas.declare_global('saas.billing_receipt', 'a delivery is stored before anyone knows whose it is; only the system role reads it', 'system');

-- The same event id with another body: forged, or a fixture. Kept for a person to see, never applied.
create table saas.billing_receipt_conflict (
    account      text not null,
    livemode     boolean not null,
    event_id     text not null,
    body_sha256  bytea not null,
    body         bytea not null,
    received_at  timestamptz not null,
    primary key (account, livemode, event_id, body_sha256),
    foreign key (account, livemode, event_id)
        references saas.billing_receipt (account, livemode, event_id) on delete restrict
);
-- What nobody has looked at for a year.
create index billing_receipt_conflict_old on saas.billing_receipt_conflict (account, livemode, received_at);
revoke all on saas.billing_receipt_conflict from public;
grant select, insert, delete on saas.billing_receipt_conflict to saas_system;
select saas.declare_global('saas.billing_receipt_conflict', 'bodies that contradict a receipt; only the system role reads it', 'system');

-- Which tenant a customer, a checkout session of ours or a charge belongs to: refunds and disputes name no more than that. A customer that deliveries have named and nobody has
-- linked stands here without a tenant: the row is what parking and linking both lock, so that neither misses the other.
create table saas.billing_directory (
    account    text not null,
    livemode   boolean not null,
    object_id  text not null,
    kind       text not null check (kind in ('customer', 'checkout_session', 'charge')),
    tenant     uuid references saas.tenant (id) on delete restrict,
    linked_at  timestamptz,
    primary key (account, livemode, object_id)
);
revoke all on saas.billing_directory from public;
grant select, insert, update, delete on saas.billing_directory to saas_system;
select saas.declare_global('saas.billing_directory', 'Stripe ids are unique across tenants; only the system role reads it', 'system');

-- Objects whose newest state no event tells for certain: read from Stripe one at a time, under a lease.
create table saas.billing_fetch (
    account     text not null,
    livemode    boolean not null,
    object_id   text not null,
    kind        text not null check (kind in ('customer', 'checkout_session', 'subscription', 'invoice', 'charge', 'refund',
                                               'dispute', 'credit_note')),
    reason      text not null,
    state       text not null check (state in ('pending', 'done', 'parked', 'dead')),
    -- The object whose link to a tenant a parked fetch waits for.
    waits_for   text,
    -- Grows with every read of the object, and is part of what is merged: of two reads the later one counts.
    sequence    bigint not null default 0,
    attempts    integer not null default 0,
    due_at      timestamptz not null,
    lease       uuid,
    -- The transaction that asked for it while it was being read: what was read then may be older than what was asked about.
    asked_in    xid8,
    -- What is read stands for all that was known, whatever that says.
    afresh      boolean not null default false,
    last_error  text,
    primary key (account, livemode, object_id)
);
-- The worker's claim: the longest due first.
create index billing_fetch_due on saas.billing_fetch (account, livemode, due_at) where state = 'pending';
-- What a new link sets free.
create index billing_fetch_waiting on saas.billing_fetch (waits_for) where waits_for is not null;
-- What an operator counts and replays.
create index billing_fetch_dead on saas.billing_fetch (account, livemode) where state = 'dead';
revoke all on saas.billing_fetch from public;
grant select, insert, update, delete on saas.billing_fetch to saas_system;
select saas.declare_global('saas.billing_fetch', 'the work list of the reader of Stripe; only the system role reads it', 'system');
