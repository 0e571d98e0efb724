-- For processes that ask for changes instead of being told: in which transaction a tenant's revision changed last.
--
-- A number drawn from a sequence would not do: numbers are drawn in one order and committed in another, so whoever asks
-- for "above the last one seen" skips what commits late. Transactions below a snapshot's xmin have all ended, so whoever
-- asks again from the last snapshot's xmin skips nothing. Null: not since this column exists.
alter table saas.tenant add column changed_in xid8;
-- The poller's question: whose revision changed since.
create index tenant_by_change on saas.tenant (changed_in);

-- By trigger, whatever the row is written by: a number that was copied from another server would mean nothing here.
create function saas.stamp_revision()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.changed_in := pg_current_xact_id();
    return new;
end
$$;
revoke all on function saas.stamp_revision() from public;
create trigger stamp_revision before insert or update of revision on saas.tenant
    for each row execute function saas.stamp_revision();
