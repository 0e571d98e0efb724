-- Seats promised to invitations that nobody has accepted yet. What was bought is Stripe's quantity, and who sits is counted by
-- whoever knows the members; this is the rest.

create table saas.billing_seat (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    livemode     boolean not null,
    -- The application's name for whom the seat waits, such as an invitation's id.
    holder       text not null check (length(holder) between 1 and 255),
    reserved_at  timestamptz not null,
    expires_at   timestamptz not null,
    primary key (tenant_id, livemode, holder)
);
select saas.fence('saas.billing_seat', 'select, insert, update, delete');
grant select, insert, update, delete on saas.billing_seat to saas_system;

-- One trial for ever: a row is never changed, and goes with its tenant, whose marks below stay.
create table saas.billing_trial (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    livemode     boolean not null,
    -- The subscription that had it.
    object_id    text not null,
    consumed_at  timestamptz not null,
    primary key (tenant_id, livemode)
);
select saas.fence('saas.billing_trial', 'select');
grant select, insert, delete on saas.billing_trial to saas_system;

-- What tells that two tenants are one: hashes of what the application passes (a card's fingerprint, a domain). They outlive
-- the tenant, so that erasing one does not bring another trial: no reference, and nothing that could be read back.
create table saas.billing_trial_mark (
    livemode       boolean not null,
    mark           bytea not null check (length(mark) = 32),
    -- Whose checkout it is claimed for, or who has had the trial.
    tenant         uuid not null,
    -- Until then no other tenant may open a checkout with it.
    claimed_until  timestamptz not null,
    consumed_at    timestamptz,
    primary key (livemode, mark)
);
-- What a trial that begins consumes.
create index billing_trial_mark_of on saas.billing_trial_mark (tenant, livemode) where consumed_at is null;
revoke all on saas.billing_trial_mark from public;
grant select, insert, update on saas.billing_trial_mark to saas_system;
select saas.declare_global('saas.billing_trial_mark', 'a trial is one across tenants; only the system role reads it', 'system');
