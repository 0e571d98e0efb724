create table public.project (
    tenant_id  uuid not null references saas.tenant (id),
    name       text not null,
    primary key (tenant_id, name)
);
select saas.fence('public.project');
