-- Manual exceptions to a tenant's plan. One per subject is in force; what was replaced is in the audit log.

create table saas.override (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    subject_kind  text not null check (subject_kind in ('feature', 'meter')),
    subject       text not null,
    id            uuid not null,
    -- What replaces the plan's answer; shaped by its kind, checked against the catalogue before it is written.
    granted       jsonb not null,
    author        text not null check (author <> ''),
    reason        text not null check (char_length(reason) between 1 and 500),
    created_at    timestamptz not null,
    -- No endless exceptions: one that should last is a plan.
    expires_at    timestamptz not null check (expires_at > created_at),
    primary key (tenant_id, subject_kind, subject)
);
select saas.fence('saas.override');
