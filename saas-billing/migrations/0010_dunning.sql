-- Dunning: which invoices a tenant is asked to pay, what was sent about each, when the next thing happens, and exceptions from
-- the policy. What is owed follows from the invoices (saas.billing_state); nothing here is counted.

-- One row while anything is owed, or is still to be said.
create table saas.dunning (
    tenant_id  uuid not null references saas.tenant (id) on delete restrict,
    livemode   boolean not null,
    -- The level that was put on record last; what a tenant has is computed from instants.
    access     text not null check (access in ('full', 'restricted', 'suspended')),
    -- When there is something to do, and the outbox job that does it.
    next_at    timestamptz check (isfinite(next_at)),
    job        uuid,
    primary key (tenant_id, livemode),
    check ((next_at is null) = (job is null))
);
-- The operators' list, in the order of the tenants.
create index dunning_list on saas.dunning (livemode, tenant_id);
select saas.fence('saas.dunning', 'select');
grant insert, update, delete on saas.dunning to saas_system;

-- Open invoices that are owed; and paid ones until that was said.
create table saas.dunning_invoice (
    tenant_id      uuid not null references saas.tenant (id) on delete restrict,
    livemode       boolean not null,
    invoice        text not null,
    -- When its clock began or begins.
    since          timestamptz not null check (isfinite(since)),
    currency       text check (currency ~ '^[a-z]{3}$'),
    amount_minor   bigint not null,
    paid_at        timestamptz check (isfinite(paid_at)),
    primary key (tenant_id, livemode, invoice)
);
-- What is outstanding of all tenants, without a look at the rows.
create index dunning_invoice_sum on saas.dunning_invoice (livemode, currency) include (amount_minor) where paid_at is null;
select saas.fence('saas.dunning_invoice', 'select');
grant insert, update, delete on saas.dunning_invoice to saas_system;

-- What was sent: once per invoice and message, whatever is repeated.
create table saas.dunning_message (
    tenant_id  uuid not null references saas.tenant (id) on delete restrict,
    livemode   boolean not null,
    invoice    text not null,
    message    text not null,
    sent_at    timestamptz not null,
    -- How many letters it came to: a tenant can have several who pay, or none.
    mails      integer not null check (mails >= 0),
    primary key (tenant_id, livemode, invoice, message)
);
select saas.fence('saas.dunning_message', 'select');
grant insert, delete on saas.dunning_message to saas_system;

-- Another policy for one tenant, until its end. The one before it is in the audit log.
create table saas.dunning_exception (
    tenant_id   uuid not null references saas.tenant (id) on delete restrict,
    livemode    boolean not null,
    policy      jsonb not null,
    author      text not null check (author <> ''),
    reason      text not null check (char_length(reason) between 1 and 500),
    created_at  timestamptz not null,
    expires_at  timestamptz not null check (expires_at > created_at and isfinite(expires_at)),
    primary key (tenant_id, livemode)
);
select saas.fence('saas.dunning_exception', 'select');
grant insert, update, delete on saas.dunning_exception to saas_system;
