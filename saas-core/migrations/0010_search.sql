-- Words of a table's rows, in a fenced table of their own, so that a search keeps its index behind row-level security.
--
-- PostgreSQL evaluates a policy before any operator that might leak, and takes `@@` of full text, LIKE and trigrams for
-- such: below a policy they lose their index and read all of a tenant's rows. Comparisons of text are declared
-- leak-proof. So the words are rows, and a search compares them.

-- The words of a text, as the text search configuration makes them.
create function saas.words(config regconfig, words text)
returns text[]
language sql
immutable parallel safe
return tsvector_to_array(to_tsvector(config, coalesce(words, '')));
comment on function saas.words(regconfig, text) is 'The distinct normalised words of a text.';

-- The end of all words that begin with a prefix: word >= prefix and word < saas.prefix_end(prefix).
create function saas.prefix_end(prefix text)
returns text
language sql
immutable strict parallel safe
return prefix || U&'\+10FFFF';
comment on function saas.prefix_end(text) is 'An upper bound of all texts that begin with a prefix, in collation "C".';

-- Arguments of the trigger: table of words, key column, configuration, then the columns that are searched. As whoever
-- writes: the policies of the words bind them as those of the row do.
create function saas.index_words()
returns trigger
language plpgsql
as $$
declare
    words_table  constant text := tg_argv[0];
    key          constant text := tg_argv[1];
    texts        text;
begin
    if tg_op = 'UPDATE' then
        execute format('delete from %s where tenant_id = ($1).tenant_id and %I = ($1).%2$I', words_table, key) using old;
    end if;
    select pg_catalog.string_agg(f.value, ' ') into texts
    from pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(new)) f
    where f.key = any (tg_argv[3:]);
    execute format('insert into %s (tenant_id, word, %I)
                    select ($1).tenant_id, w, ($1).%2$I from pg_catalog.unnest(saas.words($2::pg_catalog.regconfig, $3)) w',
                   words_table, key)
    using new, tg_argv[2], texts;
    return null;
end
$$;
revoke all on function saas.words(regconfig, text), saas.prefix_end(text), saas.index_words() from public;
grant execute on function saas.words(regconfig, text), saas.prefix_end(text) to saas_app, saas_system;

create function saas.make_searchable(target regclass, columns text[], config regconfig default 'simple')
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $make$
declare
    key          text;
    key_type     text;
    words_table  text;
    bad          text;
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
    if bad is not null or coalesce(cardinality(columns), 0) = 0 then
        raise exception 'saas.make_searchable: % has no column %', target, coalesce(bad, '(none was named)')
            using errcode = 'undefined_column', hint = 'Name the columns to be searched.';
    end if;

    select format('%I.%I', n.nspname, left(c.relname, 57) || '_words') into words_table
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
    execute format('create table %1$s (
                        tenant_id uuid not null,
                        word text collate "C" not null,
                        %2$I %3$s not null,
                        primary key (tenant_id, word, %2$I),
                        foreign key (tenant_id, %2$I) references %4$s (tenant_id, %2$I) on delete cascade)',
                   words_table, key, key_type, target);
    execute format('create index on %s (tenant_id, %I)', words_table, key);
    -- Those that are there already: the owner, too, is behind the fence, but for the length of this statement.
    execute format('alter table %s no force row level security', target);
    execute format('insert into %s (tenant_id, word, %I)
                    select t.tenant_id, w, t.%2$I
                    from %s t, unnest(saas.words(%L::regconfig, (
                        select string_agg(f.value, '' '') from jsonb_each_text(to_jsonb(t)) f where f.key = any (%L::text[])))) w',
                   words_table, key, target, config, columns);
    execute format('alter table %s force row level security', target);
    perform saas.fence(words_table::regclass, 'select, insert, delete');
    execute format('create trigger saas_words after insert or update of tenant_id, %I, %s on %s
                    for each row execute function saas.index_words(%s)',
                   key, (select string_agg(quote_ident(c), ', ') from unnest(columns) c), target,
                   (select string_agg(quote_literal(a), ', ') from unnest(array[words_table, key, config::text] || columns) a));
    return words_table;
end
$make$;
revoke all on function saas.make_searchable(regclass, text[], regconfig) from public;
comment on function saas.make_searchable(regclass, text[], regconfig) is
    'Keeps the words of a fenced table in a fenced table of their own, where a search has an index. Returns its name.';
