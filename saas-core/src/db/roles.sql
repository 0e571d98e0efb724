-- Runs before every migration, as the login that migrates; each line may run again.
do $roles$
declare
    wanted record;
begin
    -- One migration of this database at a time.
    perform pg_advisory_xact_lock(hashtextextended('saas.roles', 0));
    for wanted in
        select * from (values ('saas_owner', 'nologin'), ('saas_app', 'login'), ('saas_system', 'login')) as r (name, login)
    loop
        if not exists (select from pg_roles where rolname = wanted.name) then
            -- Roles belong to the cluster, that lock to the database: another database may create the same role meanwhile.
            begin
                execute format('create role %I %s nosuperuser nobypassrls nocreatedb nocreaterole noreplication noinherit',
                               wanted.name, wanted.login);
                -- Bounds that the role's owner may change: a request that waits or sleeps must not hold a connection for ever.
                if wanted.login = 'login' then
                    execute format('alter role %I set idle_in_transaction_session_timeout = %L', wanted.name, '5min');
                    execute format('alter role %I set lock_timeout = %L', wanted.name, '10s');
                end if;
                if wanted.name = 'saas_app' then
                    execute format('alter role %I set statement_timeout = %L', wanted.name, '1min');
                end if;
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
    -- Since PostgreSQL 16 the creator of a role may administer it, but not yet act as it.
    begin
        set local role saas_owner;
        reset role;
    exception when insufficient_privilege then
        execute format('grant saas_owner to %I', current_user);
    end;
    if not exists (select from pg_namespace where nspname = 'saas') then
        create schema saas authorization saas_owner;
        revoke all on schema saas from public;
    end if;
    grant usage on schema saas to saas_app, saas_system;
    -- A temporary table would shadow a real one and outlive the request in a pooled connection.
    execute format('revoke temporary on database %I from public', current_database());
    revoke create on schema public from public;
    -- Large objects know no row-level security.
    if current_setting('is_superuser') = 'on' then
        revoke execute on function
            lo_get(oid), lo_get(oid, bigint, integer), lo_put(oid, bigint, bytea), lo_from_bytea(oid, bytea),
            lo_creat(integer), lo_create(oid), lo_open(oid, integer), lo_unlink(oid), loread(integer, integer),
            lowrite(integer, bytea)
        from public;
    end if;
end
$roles$;
