-- Work that must happen because a transaction committed: written with it, delivered at least once afterwards.

create table saas.outbox (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    id           uuid not null,
    topic        text not null,
    -- bytea: jsonb cannot hold an escaped NUL, and a job must not be lost for its text.
    payload      bytea not null,
    state        text not null default 'pending' check (state in ('pending', 'done', 'dead')),
    -- When it may be taken; a worker that takes it moves this to the end of its lease.
    due_at       timestamptz not null,
    attempts     integer not null default 0,
    -- The fencing token of the present holder.
    lease        uuid,
    last_error   text,
    created_at   timestamptz not null,
    finished_at  timestamptz,
    primary key (tenant_id, id)
);
-- The worker's claim: the longest due first.
create index outbox_due on saas.outbox (due_at) where state = 'pending';
-- The operator's list of dead letters.
create index outbox_dead on saas.outbox (finished_at) where state = 'dead';
select saas.fence('saas.outbox', 'select, insert');
grant update, delete on saas.outbox to saas_system;
