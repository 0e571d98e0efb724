//! The diagram of the data model, drawn from the migrated database; the one in the documentation must agree.

use std::{env, fmt::Write as _, fs, path::Path};

use saas_core::{Schema, testing::TestDatabase};

const ALL: [&Schema; 4] =
    [&saas_core::SCHEMA, &saas_tenancy::SCHEMA, &saas_entitlements::SCHEMA, &saas_billing::SCHEMA];

const INTRODUCTION: &str = "# Data model

The tables of the schema `saas`, as `migrate` makes them. Drawn from a migrated database: a test fails when the two
differ, and `UPDATE_DOCS=1 ./dev test --package quickstart --test data_model` draws it anew.

Every table marked *tenant* is fenced: `tenant_id` stands first in its keys, and row-level security shows a tenant its own
rows only. A *system* table is read by the system role alone; an *everyone* table holds nothing of a tenant.

";

#[tokio::test]
async fn the_diagram_shows_the_tables_that_there_are() {
    let db = TestDatabase::start(&ALL).await;
    let mut owner = db.owner().await;
    let tables: Vec<(String, String)> = sqlx::query_as(
        "select c.relname::text,
                coalesce(g.audience, case when c.relrowsecurity then 'tenant' else 'not fenced' end)
         from pg_class c
         left join saas.global_table g on g.name = c.oid::regclass::text
         where c.relnamespace = 'saas'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
           and c.relname not like '\\_migrations\\_%'
         order by c.relname",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let columns: Vec<(String, String, String, bool, bool)> = sqlx::query_as(
        "select c.relname::text, a.attname::text, replace(format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null), ' ', '_'),
                coalesce(a.attnum = any (i.indkey), false),
                exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'f' and a.attnum = any (k.conkey))
         from pg_class c
         join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         join pg_type t on t.oid = a.atttypid
         left join pg_index i on i.indrelid = c.oid and i.indisprimary
         where c.relnamespace = 'saas'::regnamespace and c.relkind in ('r', 'p')
         order by c.relname, a.attnum",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let keys: Vec<(String, String, String)> = sqlx::query_as(
        "select p.relname::text, c.relname::text, string_agg(a.attname, ', ' order by u.place)
         from pg_constraint k
         join pg_class c on c.oid = k.conrelid
         join pg_class p on p.oid = k.confrelid
         cross join unnest(k.conkey) with ordinality as u (att, place)
         join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.att
         where k.contype = 'f' and c.relnamespace = 'saas'::regnamespace and k.conparentid = 0
         group by p.relname, c.relname, k.oid
         order by 1, 2, 3",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();

    let mut drawn = String::from(INTRODUCTION);
    drawn.push_str("| table | whose |\n|---|---|\n");
    for (table, audience) in &tables {
        writeln!(drawn, "| `saas.{table}` | {audience} |").unwrap();
    }
    drawn.push_str("\n```mermaid\nerDiagram\n");
    for (parent, child, by) in &keys {
        writeln!(drawn, "    {parent} ||--o{{ {child} : \"{by}\"").unwrap();
    }
    for (table, _) in &tables {
        writeln!(drawn, "    {table} {{").unwrap();
        for (_, column, kind, primary, foreign) in columns.iter().filter(|(of, ..)| of == table) {
            let mark = match (primary, foreign) {
                (true, true) => " PK,FK",
                (true, false) => " PK",
                (false, true) => " FK",
                (false, false) => "",
            };
            writeln!(drawn, "        {kind} {column}{mark}").unwrap();
        }
        drawn.push_str("    }\n");
    }
    drawn.push_str("```\n");

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/data-model.md");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &drawn).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == drawn, "docs/data-model.md is not what the database has; draw it anew with UPDATE_DOCS=1");
    assert!(tables.iter().all(|(_, audience)| audience != "not fenced"));
}
