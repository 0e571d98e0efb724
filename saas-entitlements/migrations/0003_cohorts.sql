-- Tenants that get features earlier than others, while these are rolled out.

create table saas.tenant_cohort (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    cohort        text not null check (char_length(cohort) between 1 and 64),
    added_by      text not null,
    added_at      timestamptz not null,
    primary key (tenant_id, cohort)
);
select saas.fence('saas.tenant_cohort');
