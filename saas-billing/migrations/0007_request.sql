-- What a tenant wants of its subscription, until it is so. A request can take several commands; the row says which was asked
-- last, and a worker goes on from there after a crash. One at a time: two at once come one after the other, each as a whole.

create table saas.billing_request (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    livemode      boolean not null,
    -- Also the id of the outbox job that sees it through.
    id            uuid not null,
    -- The caller's key: a repeat finds what came of the first.
    key           text not null,
    -- What was asked, hashed: the same key must not come with something else.
    fingerprint   text not null,
    -- A word for people, such as `change_plan`.
    what          text not null,
    -- What was asked, while anything can still come of it: it can hold an address of a person.
    goal          bytea,
    -- `sub_…`, `cus_…`
    object_id     text not null,
    state         text not null check (state in ('pending', 'waiting', 'done', 'failed')),
    -- The command asked last, and the steps that were asked.
    command       uuid,
    steps         text[] not null default '{}',
    outcome       jsonb,
    reason        text,
    created_at    timestamptz not null,
    finished_at   timestamptz,
    primary key (tenant_id, livemode, id),
    unique (tenant_id, livemode, key),
    check ((goal is not null) = (state in ('pending', 'waiting'))),
    check ((outcome is not null) = (state in ('waiting', 'done')))
);
-- One request under way, whatever runs at once.
create unique index billing_request_pending on saas.billing_request (tenant_id, livemode) where state = 'pending';
-- What an event about a subscription may decide.
create index billing_request_waiting on saas.billing_request (tenant_id, livemode, object_id) where state = 'waiting';
-- What is settled, oldest first: deleted after the retention.
create index billing_request_settled on saas.billing_request (finished_at) where state in ('done', 'failed');
select saas.fence('saas.billing_request', 'select');
grant insert, update, delete on saas.billing_request to saas_system;
