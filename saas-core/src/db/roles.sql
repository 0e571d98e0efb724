-- Runs before every migration, as the login that migrates; each line may run again.
do $roles$
declare
    wanted record;
begin
    -- Roles belong to the cluster: two databases may get here at the same time.
    perform pg_advisory_xact_lock(hashtextextended('saas.roles', 0));
    for wanted in
        select * from (values ('saas_owner', 'nologin'), ('saas_app', 'login'), ('saas_system', 'login')) as r (name, login)
    loop
        if not exists (select from pg_roles where rolname = wanted.name) then
            execute format('create role %I %s nosuperuser nobypassrls nocreatedb nocreaterole noinherit',
                           wanted.name, wanted.login);
        end if;
    end loop;
    if not pg_has_role(current_user, 'saas_owner', 'member') then
        execute format('grant saas_owner to %I', current_user);
    end if;
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
