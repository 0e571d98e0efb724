-- What happened, by whom: written in the transaction that does it, never changed afterwards.

create table saas.audit (
    tenant_id   uuid not null references saas.tenant (id) on delete restrict,
    id          uuid not null,
    at          timestamptz not null check (isfinite(at)),
    actor       text not null check (actor <> ''),
    request_id  uuid,
    action      text not null check (action <> ''),
    subject     text not null,
    detail      jsonb not null,
    primary key (tenant_id, id)
);
-- The timeline of one tenant, newest first.
create index audit_by_time on saas.audit (tenant_id, at, id);
select saas.fence('saas.audit', 'select, insert');
