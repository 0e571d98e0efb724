-- Runs that compare what is stored with what Stripe has, page by page, and what they found. Only the system role reads these
-- tables: an object at Stripe may belong to nobody here.

create table saas.billing_reconcile (
    account      text not null,
    livemode     boolean not null,
    id           uuid not null,
    -- Who asked.
    actor        text not null,
    -- How many objects it may have read again; 0 only reports.
    repairs      bigint not null check (repairs >= 0),
    -- A run over what was made since then, and what is live or open; null: over everything.
    created_from timestamptz,
    -- Where it stands: the list it goes through, and behind which object; null at its beginning.
    list         text not null check (list in ('customer', 'subscription', 'invoice', 'open_invoice', 'charge', 'refund', 'dispute',
                                               'credit_note', 'ours', 'usage')),
    after        text,
    looked_at    bigint not null default 0,
    -- Of customers that no tenant is linked to.
    unlinked     bigint not null default 0,
    drifted      bigint not null default 0,
    repaired     bigint not null default 0,
    started_at   timestamptz not null,
    finished_at  timestamptz,
    primary key (account, livemode, id)
);
-- One at a time, however many workers ask.
create unique index billing_reconcile_open on saas.billing_reconcile (account, livemode) where finished_at is null;
revoke all on saas.billing_reconcile from public;
grant select, insert, update, delete on saas.billing_reconcile to saas_system;
select saas.declare_global('saas.billing_reconcile', 'a run goes through the objects of all tenants; only the system role reads it', 'system');

-- Every object that a run has met, and how it differed. Deleted with the run; an object that did not differ goes at its end.
create table saas.billing_reconcile_object (
    account    text not null,
    livemode   boolean not null,
    run        uuid not null,
    object_id  text not null,
    kind       text not null,
    -- {"field": {"ours": …, "theirs": …}}; null: no difference. Of a customer also "usage.<meter>.<day>". Holds no name and no address of a person.
    fields     jsonb,
    repaired   boolean not null default false,
    primary key (account, livemode, run, object_id),
    foreign key (account, livemode, run) references saas.billing_reconcile (account, livemode, id) on delete cascade
);
revoke all on saas.billing_reconcile_object from public;
grant select, insert, update, delete on saas.billing_reconcile_object to saas_system;
select saas.declare_global('saas.billing_reconcile_object', 'objects of all tenants, by Stripe''s id; only the system role reads it', 'system');
