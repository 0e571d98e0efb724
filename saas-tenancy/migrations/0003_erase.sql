-- The erasure of a tenant: asked for by one operator, approved by another, done in steps that each commit on their own.

create table saas.erasure (
    tenant_id     uuid primary key references saas.tenant (id) on delete restrict,
    state         text not null check (state in ('requested', 'approved', 'running', 'failed', 'done')),
    -- Whether the address can be given to another tenant afterwards.
    frees_slug    boolean not null,
    reason        text not null check (char_length(reason) between 1 and 500),
    requested_by  text not null check (requested_by <> ''),
    requested_at  timestamptz not null check (isfinite(requested_at)),
    -- Four eyes, also for whoever writes here by hand.
    approved_by   text check (approved_by <> requested_by),
    approved_at   timestamptz check (isfinite(approved_at)),
    -- The code of what stopped it.
    failure       text,
    finished_at   timestamptz check (isfinite(finished_at)),
    check ((state = 'requested') = (approved_by is null)),
    check ((state = 'done') = (finished_at is not null)),
    check ((state = 'failed') = (failure is not null))
);
select saas.fence('saas.erasure', 'select');
grant insert, update, delete on saas.erasure to saas_system;

-- One row per table, in the order in which they are emptied; and, when it is done, per table that was kept.
create table saas.erasure_step (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    table_name   text not null,
    place        integer not null,
    rows_erased  bigint not null default 0 check (rows_erased >= 0),
    rows_kept    bigint not null default 0 check (rows_kept >= 0),
    kept_reason  text,
    finished_at  timestamptz check (isfinite(finished_at)),
    primary key (tenant_id, table_name)
);
select saas.fence('saas.erasure_step', 'select');
grant insert, update, delete on saas.erasure_step to saas_system;

-- Who was a member when the erasure began: the accounts of those who are in no other tenant go, too.
create table saas.erasure_account (
    tenant_id  uuid not null references saas.tenant (id) on delete restrict,
    user_id    uuid not null,
    primary key (tenant_id, user_id)
);
select saas.fence('saas.erasure_account', 'select');
revoke all on saas.erasure_account from saas_app;
grant insert, update, delete on saas.erasure_account to saas_system;

select saas.retain('saas.erasure', 'the record of the erasure itself'),
       saas.retain('saas.erasure_step', 'the record of the erasure itself'),
       saas.retain('saas.erasure_account', 'the work list of the erasure; empty when it is done'),
       saas.omit_from_export('saas.erasure', null, 'a record of the vendor''s operators'),
       saas.omit_from_export('saas.erasure_step', null, 'a record of the vendor''s operators');
-- By name: these tables are made later.
insert into saas.retained_table (name, reason) values
    ('saas.fleet_site', 'how far a place is migrated; goes with the place'),
    ('saas.move', 'the record of where the tenant''s rows were'),
    ('saas.move_table', 'the record of where the tenant''s rows were'),
    ('saas.move_change', 'the log of a move that is under way; empty when it is over');
insert into saas.export_omission (name, column_name, reason) values
    ('saas.move', '', 'where the vendor keeps the tenant'),
    ('saas.move_table', '', 'where the vendor keeps the tenant');

-- Looks at one batch of those accounts; `looked` is 0 when none is left to look at. An account that another tenant has as a
-- member, or that something else still refers to, stays.
create function saas.erase_accounts(of_tenant uuid, batch integer, out looked bigint, out erased bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    account uuid;
begin
    looked := 0;
    erased := 0;
    for account in
        delete from saas.erasure_account a
        where a.tenant_id = of_tenant and a.user_id = any (array(
            select b.user_id from saas.erasure_account b where b.tenant_id = of_tenant limit batch))
        returning a.user_id
    loop
        looked := looked + 1;
        begin
            delete from saas.user_account u where u.id = account;
            if found then
                erased := erased + 1;
            end if;
        exception when foreign_key_violation then
            null;
        end;
    end loop;
end
$$;
revoke all on function saas.erase_accounts(uuid, integer) from public;
grant execute on function saas.erase_accounts(uuid, integer) to saas_system;
