-- Answers already given, so that a repeated request gets the same one.

create table saas.idempotency_key (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    key          text not null,
    fingerprint  bytea not null,
    response     bytea,
    created_at   timestamptz not null check (isfinite(created_at)),
    primary key (tenant_id, key)
);
-- Retention: the oldest first.
create index idempotency_key_by_age on saas.idempotency_key (created_at);
select saas.fence('saas.idempotency_key');
