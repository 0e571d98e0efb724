-- What a tenant has asked of Stripe. The row is there before the first try and fixes the idempotency key, `<id>` or
-- `<id>-<epoch>`; the outbox tries until the row says what came of it. The id is the job's.

create table saas.billing_command (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    livemode     boolean not null,
    id           uuid not null,
    -- A word for people, such as `create_customer`.
    what         text not null,
    -- The command itself, while it may be sent: it can hold an address of a person. JSON, as bytea: it must hold anything.
    command      bytea,
    -- Grows when Stripe has saved a failure under the key, after a look at what is there.
    epoch        integer not null default 0,
    -- What only one command of a tenant may hold at a time: `customer`, `checkout`.
    slot         text,
    -- Which of several equal wishes it serves: a double click finds the first one's session.
    subject      text,
    state        text not null check (state in ('pending', 'done', 'failed', 'closed')),
    -- What Stripe made or changed.
    object_id    text,
    -- Of a session: where the buyer is sent, and until when.
    address      text,
    expires_at   timestamptz,
    reason       text,
    created_at   timestamptz not null,
    finished_at  timestamptz,
    primary key (tenant_id, livemode, id),
    check ((command is not null) = (state = 'pending'))
);
-- One holder per slot, whatever runs at once: the claim.
create unique index billing_command_slot on saas.billing_command (tenant_id, livemode, slot)
    where slot is not null and state in ('pending', 'done');
-- What is settled and holds no slot, oldest first: deleted after the retention.
create index billing_command_settled on saas.billing_command (finished_at)
    where state in ('failed', 'closed') or state = 'done' and slot is null;
select saas.fence('saas.billing_command', 'select');
grant insert, update, delete on saas.billing_command to saas_system;

-- The customer of a tenant, whoever linked it.
create index billing_directory_customer on saas.billing_directory (tenant) where kind = 'customer' and tenant is not null;

-- The account and mode that this database writes to at Stripe, and that the operators' list shows: those of the first service
-- that wrote anything. A service of another account or mode over this database reads, and is refused when it writes.
create table saas.billing_home (
    only_one boolean primary key default true check (only_one),
    account  text not null,
    livemode boolean not null
);
revoke all on saas.billing_home from public;
grant select, insert, delete on saas.billing_home to saas_system;
select saas.declare_global('saas.billing_home', 'one row for the whole database; only the system role reads it', 'system');
