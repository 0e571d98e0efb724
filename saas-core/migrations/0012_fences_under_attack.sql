-- What hostile tables, late changes and missing persons did to the fence of 0001, the row fence of 0008 and the words of
-- 0010.

-- The fence, on a table that nobody changes meanwhile: a key that is added between the looking and the closing would not
-- have been looked at.
alter function saas.fence(regclass, text) rename to fence_table;
create function saas.fence(target regclass, privileges text default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $fence$
begin
    if (select c.relpersistence = 't' from pg_class c where c.oid = target) then
        raise exception 'saas.fence: % is a temporary table', target
            using errcode = 'wrong_object_type',
                  hint = 'Fence tables that stay; a temporary one is its session''s own.';
    end if;
    if (select c.relkind in ('r', 'p') from pg_class c where c.oid = target) then
        execute format('lock table %s in access exclusive mode', target);
    end if;
    perform saas.fence_table(target, privileges);
    -- What is fenced belongs to tenants, whatever was said before: the audit passes over what belongs to none.
    delete from saas.global_table g where g.name = target::text;
end
$fence$;
revoke all on function saas.fence(regclass, text) from public;
comment on function saas.fence(regclass, text) is
    'Lets the application role see only the bound tenant''s rows of a table, or says why the table cannot be fenced.';
comment on function saas.fence_table(regclass, text) is 'What saas.fence does once it holds the table.';

create or replace function saas.declare_global(target regclass, reason text, audience text default 'everyone')
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $declare$
begin
    if exists (select from saas.fenced_table f where f.name = target::text) then
        raise exception 'saas.declare_global: % is fenced', target
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'A table belongs to its tenants or to none. To let go of the fence, drop the table''s policies and '
                         'delete its row of saas.fenced_table first.';
    end if;
    insert into saas.global_table (name, reason, audience)
    values (target::text, reason, audience)
    on conflict (name) do update set reason = excluded.reason, audience = excluded.audience;
end
$declare$;

-- A transaction says who acts in it as `saas.member`:
--   "<user id>" or "<user id> <role>"  a person
--   " <role>"                          nobody in particular, such as an API key: what the role sees
--   "*"                                a job or an operator of the vendor: every row of the tenant
-- Where nothing is said, as by a statement that did not come through a tenant's transaction, no row is seen.
create or replace function saas.fence_rows(target regclass, owner_column text, sees_all text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $fence$
declare
    mine    text;
    bad     text;
    words   text;
begin
    if not exists (select from saas.fenced_table f where f.name = target::text) then
        raise exception 'saas.fence_rows: % is not fenced', target
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('First: select saas.fence(%L);', target::text);
    end if;
    if not exists (select from pg_attribute a
                   where a.attrelid = target and a.attname = owner_column and a.atttypid = 'uuid'::regtype
                     and a.attnotnull and not a.attisdropped) then
        raise exception 'saas.fence_rows: % has no column "% uuid not null"', target, owner_column
            using errcode = 'undefined_column',
                  hint = 'Name the column that holds the id of the user whose row it is.';
    end if;
    select r into bad from unnest(sees_all) r where r !~ '^[a-z][a-z0-9_.-]*$' or r is null limit 1;
    if sees_all is null or found then
        raise exception 'saas.fence_rows: "%" is not the name of a role', bad
            using errcode = 'invalid_parameter_value',
                  hint = 'Pass the roles that see every row of the tenant, such as array[''owner'', ''admin''].';
    end if;
    -- Each setting is read once per statement; only the owner's column differs between rows.
    mine := format(
        '(select current_setting(''saas.member'', true)) = ''*'' '
        'or (select split_part(current_setting(''saas.member'', true), '' '', 2)) = any (%L::text[]) '
        'or %I = (select nullif(nullif(split_part(current_setting(''saas.member'', true), '' '', 1), ''''), ''*'')::uuid)',
        sees_all, owner_column);
    execute format('drop policy if exists saas_rows on %s', target);
    -- Restrictive, beside the tenant's: it can only take away.
    execute format('create policy saas_rows on %s as restrictive for all to saas_app using (%s) with check (%2$s)',
                   target, mine);
    insert into saas.row_fence (name, owner_column, sees_all) values (target::text, owner_column, sees_all)
    on conflict (name) do update set owner_column = excluded.owner_column, sees_all = excluded.sees_all;

    -- Its words say what its rows say.
    for words in select w from saas.words_tables(target) w loop
        if not exists (select from pg_attribute a
                       where a.attrelid = words::regclass and a.attname = owner_column and not a.attisdropped) then
            raise exception 'saas.fence_rows: the words of % in % do not say whose they are', target, words
                using errcode = 'object_not_in_prerequisite_state',
                      hint = format('First drop table %s and the triggers "0_saas_words…" of %s; fence the rows; then call '
                                    'saas.make_searchable again.', words, target);
        end if;
        perform saas.fence_rows(words::regclass, owner_column, sees_all);
    end loop;
end
$fence$;

-- The fence again: policies as this version makes them, and no grants on partitions, also on those attached since.
create or replace function saas.fence_refresh(target regclass default null)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $refresh$
declare
    fenced    record;
    relation  regclass;
    key       text;
begin
    if target is not null and not exists (select from saas.fenced_table f where f.name = target::text) then
        raise exception 'saas.fence_refresh: % is not fenced', target
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('First: select saas.fence(%L);', target::text);
    end if;
    for fenced in
        select f.name, to_regclass(f.name) as relation
        from saas.fenced_table f
        where target is null or f.name = target::text
        order by f.name
    loop
        -- Dropped, or renamed, since.
        continue when fenced.relation is null;
        relation := fenced.relation;
        key := case when relation = to_regclass('saas.tenant') then 'id' else 'tenant_id' end;
        if not exists (select from pg_attribute a
                       where a.attrelid = relation and a.attname = key and a.atttypid = 'uuid'::regtype
                         and a.attnotnull and not a.attisdropped) then
            raise exception 'saas.fence_refresh: % was fenced, and has no column "% uuid not null" any more', relation, key
                using errcode = 'undefined_column',
                      hint = format('Give it the column back, or drop its policies and: delete from saas.fenced_table where name = %L;',
                                    fenced.name);
        end if;
        perform saas.fence_policies(relation);
        perform saas.fence_rows(relation, r.owner_column, r.sees_all) from saas.row_fence r where r.name = fenced.name;
        perform saas.close_partition(p.relid) from pg_partition_tree(relation) p where p.relid <> relation;
    end loop;
end
$refresh$;

-- Arguments of the trigger: table of words, key column, the column that says whose a row is (or ''), configuration, then
-- the columns that are searched. As whoever writes: the policies of the words bind them as those of the row do.
create or replace function saas.index_words()
returns trigger
language plpgsql
as $$
declare
    words_table  constant text := tg_argv[0];
    key          constant text := tg_argv[1];
    owner        constant text := tg_argv[2];
    texts        text;
begin
    if tg_op <> 'INSERT' then
        execute format('delete from %s where tenant_id = ($1).tenant_id and %I = ($1).%2$I', words_table, key) using old;
    end if;
    if tg_op = 'DELETE' then
        return null;
    end if;
    select pg_catalog.string_agg(f.value, ' ') into texts
    from pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(new)) f
    where f.key = any (tg_argv[4:]);
    execute format('insert into %s (tenant_id, word, %I%s)
                    select ($1).tenant_id, w.word, ($1).%2$I%4$s
                    from pg_catalog.unnest(saas.words($2::pg_catalog.regconfig, $3)) as w (word)',
                   words_table, key,
                   case when owner <> '' then format(', %I', owner) else '' end,
                   case when owner <> '' then format(', ($1).%I', owner) else '' end)
    using new, tg_argv[3], texts;
    return null;
end
$$;

-- The tables of words that triggers of a table fill.
create function saas.words_tables(target regclass)
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select distinct convert_from(substring(t.tgargs from 1 for position('\x00'::bytea in t.tgargs) - 1), getdatabaseencoding())
    from pg_trigger t
    where t.tgrelid = target and t.tgfoid = 'saas.index_words'::regproc
$$;
revoke all on function saas.words_tables(regclass) from public;
comment on function saas.words_tables(regclass) is 'The tables of words that belong to a searchable table.';

create or replace function saas.make_searchable(target regclass, columns text[], config regconfig default 'simple')
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $make$
declare
    key          text;
    key_type     text;
    rows         saas.row_fence%rowtype;
    -- The column that says whose a row is, where it is not the key.
    owner        text;
    words_table  text;
    words_name   text;
    schema_name  text;
    kind         "char";
    bad          text;
    arguments    text;
begin
    if not exists (select from saas.fenced_table f where f.name = target::text) then
        raise exception 'saas.make_searchable: % is not fenced', target
            using errcode = 'object_not_in_prerequisite_state',
                  hint = format('select saas.fence(%L);', target);
    end if;
    select min(a.attname), min(format_type(a.atttypid, a.atttypmod)) into key, key_type
    from pg_index i
    join pg_attribute a on a.attrelid = target and a.attnum = any (i.indkey) and a.attname <> 'tenant_id'
    where i.indrelid = target and i.indisprimary
    having count(*) = 1;
    if key is null then
        raise exception 'saas.make_searchable: the primary key of % is not tenant_id and one more column', target
            using errcode = 'invalid_table_definition', hint = 'Give it primary key (tenant_id, id).';
    end if;
    select c into bad
    from unnest(columns) c
    where not exists (select from pg_attribute a
                      where a.attrelid = target and a.attname = c and a.attnum > 0 and not a.attisdropped)
    limit 1;
    if bad is not null or coalesce(cardinality(columns), 0) = 0 or array_position(columns, null) is not null then
        raise exception 'saas.make_searchable: % has no column %', target, coalesce(bad, '(none was named)')
            using errcode = 'undefined_column', hint = 'Name the columns to be searched.';
    end if;
    select r.* into rows from saas.row_fence r where r.name = target::text;
    owner := nullif(rows.owner_column, key);
    if 'word' in (key, owner) then
        raise exception 'saas.make_searchable: % has its key, or whose a row is, in a column "word"', target
            using errcode = 'duplicate_column', hint = 'Give that column another name: the words stand beside it.';
    end if;

    select c.relname, n.nspname, c.relkind into words_name, schema_name, kind
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
    -- A name has 63 bytes.
    while octet_length(words_name) > 57 loop
        words_name := left(words_name, -1);
    end loop;
    words_name := words_name || '_words';
    words_table := format('%I.%I', schema_name, words_name);
    if to_regclass(words_table) is not null then
        raise exception 'saas.make_searchable: there is a table % already', words_table
            using errcode = 'duplicate_table',
                  hint = format('To search other columns, first drop it and the triggers "0_saas_words…" of %s. Where it is '
                                'another table''s, give one of the two a shorter name.', target);
    end if;
    execute format('create table %1$s (
                        tenant_id uuid not null,
                        word text collate "C" not null,
                        %2$I %3$s not null,
                        %5$s
                        primary key (tenant_id, word, %2$I),
                        foreign key (tenant_id, %2$I) references %4$s (tenant_id, %2$I) on delete cascade)',
                   words_table, key, key_type, target, case when owner is not null then format('%I uuid not null,', owner) end);
    execute format('create index on %s (tenant_id, %I)', words_table, key);
    -- Those that are there already: the owner, too, is behind the fence, but for the length of this statement.
    execute format('alter table %s no force row level security', target);
    execute format('insert into %1$s (tenant_id, word, %2$I%3$s)
                    select t.tenant_id, w.word, t.%2$I%4$s
                    from %5$s t, unnest(saas.words(%6$L::regconfig, (
                        select string_agg(f.value, '' '') from jsonb_each_text(to_jsonb(t.*)) f where f.key = any (%7$L::text[]))))
                        as w (word)',
                   words_table, key,
                   case when owner is not null then format(', %I', owner) end,
                   case when owner is not null then format(', t.%I', owner) end,
                   target, config, columns);
    execute format('alter table %s force row level security', target);
    perform saas.fence(words_table::regclass, 'select, insert, delete');
    if rows.name is not null then
        perform saas.fence_rows(words_table::regclass, rows.owner_column, rows.sees_all);
    end if;

    select string_agg(quote_literal(a), ', ') into arguments
    from unnest(array[words_table, key, coalesce(owner, ''), config::text] || columns) a;
    -- The names sort before those of PostgreSQL's own triggers: a row whose key changes has let go of its words when the
    -- foreign key is looked at.
    execute format('create trigger "0_saas_words" after insert%s on %s for each row execute function saas.index_words(%s)',
                   -- A row that changes its partition is deleted in one and inserted in the other.
                   case when kind = 'p' then ' or delete' else '' end, target, arguments);
    -- By what changed, not by what the statement names: a trigger of the table's own may change a column as well.
    execute format('create trigger "0_saas_words_again" after update on %s for each row when (%s)
                    execute function saas.index_words(%s)',
                   target,
                   (select string_agg(format('old.%1$I::text is distinct from new.%1$I::text', c), ' or ')
                    from unnest(array['tenant_id', key] || rows.owner_column || columns) c where c is not null),
                   arguments);
    return words_table;
end
$make$;

-- Policies of before, as they are now.
select saas.fence_refresh();
