-- Tenants whose door is in another database and does not tell their status yet: written with the status, deleted once the
-- door was set. A process that died in between leaves the row to the next one. Only the system role reads and writes it.
create table saas.door_due (
    tenant_id  uuid primary key references saas.tenant (id) on delete restrict,
    since      timestamptz not null check (isfinite(since))
);
select saas.fence('saas.door_due', 'select');
grant insert, update, delete on saas.door_due to saas_system;
select saas.omit_from_export('saas.door_due', null, 'where the vendor keeps the tenant');
