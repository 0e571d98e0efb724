-- Tenants that move from one placement to another: which, how far, and what was found equal. In the control database.

create table saas.move (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    id           uuid not null,
    state        text not null check (state in
        ('planned', 'copying', 'catching_up', 'switching', 'switched', 'confirming', 'confirmed', 'rolling_back', 'rolled_back')),
    -- Who drives it. Every step is recorded under this token, so that one who was taken for dead can decide nothing more.
    lease        uuid not null,
    -- That of the place it leaves; the place it goes to gets the next one.
    generation   bigint not null check (generation >= 0),
    source       jsonb not null,
    target       jsonb not null,
    actor        text not null check (actor <> ''),
    report       jsonb not null default '{}',
    started_at   timestamptz not null check (isfinite(started_at)),
    changed_at   timestamptz not null check (isfinite(changed_at)),
    primary key (tenant_id, id)
);
-- One move of a tenant at a time.
create unique index move_under_way on saas.move (tenant_id) where state not in ('confirmed', 'rolled_back');
-- What a process that starts has to resume, the longest waiting first.
create index move_unfinished on saas.move (changed_at) where state not in ('switched', 'confirmed', 'rolled_back');
select saas.fence('saas.move', 'select');
grant insert, update on saas.move to saas_system;

-- Tables whose rows have arrived, and how they were found equal in one snapshot of the source.
create table saas.move_table (
    tenant_id    uuid not null,
    move_id      uuid not null,
    name         text not null,
    row_count    bigint not null check (row_count >= 0),
    byte_count   bigint not null check (byte_count >= 0),
    checksum     text not null,
    primary key (tenant_id, move_id, name),
    foreign key (tenant_id, move_id) references saas.move (tenant_id, id) on delete restrict
);
select saas.fence('saas.move_table', 'select');
grant insert, update, delete on saas.move_table to saas_system;
