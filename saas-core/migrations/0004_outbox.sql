-- Work that must happen because a transaction committed: written with it, delivered at least once afterwards.

create table saas.outbox (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    id           uuid not null,
    topic        text not null check (topic ~ '^[a-z][a-z0-9._-]{0,63}$'),
    -- bytea: jsonb cannot hold an escaped NUL, and a job must not be lost for its text.
    payload      bytea not null,
    state        text not null default 'pending' check (state in ('pending', 'done', 'dead')),
    -- When it may be taken; a worker that takes it moves this to the end of its lease.
    due_at       timestamptz not null check (isfinite(due_at)),
    attempts     integer not null default 0 check (attempts between 0 and 1000000),
    -- The fencing token of the present holder.
    lease        uuid,
    last_error   text,
    created_at   timestamptz not null check (isfinite(created_at)),
    finished_at  timestamptz check (isfinite(finished_at)),
    primary key (tenant_id, id),
    check ((state = 'pending') = (finished_at is null))
);
-- The worker's claim: the longest due first.
create index outbox_due on saas.outbox (due_at) where state = 'pending';
-- The operator's list of dead letters.
create index outbox_dead on saas.outbox (finished_at, id) where state = 'dead';
-- Retention: what was done longest ago.
create index outbox_done on saas.outbox (finished_at) where state = 'done';
-- Messages in the timeline of one tenant, newest first.
create index outbox_mail_by_time on saas.outbox (tenant_id, created_at, id) where topic = 'mail';
select saas.fence('saas.outbox', 'select');
-- A tenant's transaction can enqueue and nothing else: not forge tries, leases or outcomes.
grant insert (tenant_id, id, topic, payload, due_at, created_at) on saas.outbox to saas_app;
grant insert, update, delete on saas.outbox to saas_system;
