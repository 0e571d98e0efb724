//! JSON Lines are exact: reading them back gives the stored rows, value for value.

use saas_core::TenantContext;
use sqlx::Executor as _;

use crate::{stage::Stage, targets::Memory};

const SPECIMEN: &str = "
    create domain public.cents as bigint;
    create domain public.price as public.cents;
    create type public.mood as enum ('glad', 'sad, \"very\"');
    create table public.specimen (
        tenant_id uuid not null, id integer not null, flag boolean, small smallint, big bigint, price public.price,
        exact numeric, single real, double double precision, words text, fixed character(5), bytes bytea, day date,
        instant timestamptz, local timestamp, clock time, span interval, doc jsonb, list text[], numbers numeric[],
        mood public.mood, net inet, bits bit varying, many int4range, key uuid,
        primary key (tenant_id, id));
    create table public.copied (like public.specimen);
    select saas.fence('public.specimen'), saas.fence('public.copied');";

const ROWS: &str = "
    insert into public.specimen values
    ($1, 1, true, 32767, 9223372036854775807, 9007199254740993, 0.10, 0.1, 0.1, E'a\\tb\\n\"\\\\\u{2028}é', 'ab', '\\x00ff', '2026-02-28',
     '2026-01-15 12:00:00.123456+02', '2026-01-15 12:00:00', '23:59:60', '1 mon -3 days 04:05:06.789', '{\"n\": 1.000000000000000000001}',
     '{a,NULL,\"b,c\"}', '{1.50,NaN}', 'sad, \"very\"', '10.0.0.1/8', B'0101', '[1,5)', '01900000-0000-7000-8000-000000000001'),
    ($1, 2, false, -32768, -9223372036854775808, null, 'NaN', 'NaN', 'Infinity', '', '', '', 'infinity',
     'infinity', '-infinity', '00:00', '-1 year', 'null', '{}', '[0:1]={1,2}', 'glad', '::1', '', 'empty', null),
    ($1, 3, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null, null, null, null, null, null, null, null, null, null),
    ($1, 4, null, 0, 0, 0, 123456789012345678901234567890.000000000000000001, 3.4028235e+38, 5e-324, '=1+1', '-1', null, '0044-03-15 BC',
     '0044-03-15 12:00:00+00 BC', '20000-01-01 00:00:00', null, null, '[]', null, null, null, null, null, null, null),
    ($1, 5, null, null, null, null, '-Infinity', '-0', '-Infinity', 'NULL', null, null, '20000-01-01',
     '20000-01-01 00:00:00+00', null, null, null, '\"text\"', null, null, null, null, null, null, null)";

#[tokio::test]
async fn what_is_read_back_from_json_lines_is_what_was_stored() {
    let stage = Stage::start().await;
    let mut owner = stage.db.owner().await;
    owner.execute(SPECIMEN).await.unwrap();
    let tenant = stage.a.tenant().as_uuid();
    let mut tx = stage.begin(&stage.a).await;
    sqlx::query(ROWS).bind(tenant).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();

    let target = Memory::default();
    let done = stage.exports.run(&stage.a, &target, &mut |_| ()).await.unwrap();
    let lines = target.text("tables/public/specimen.jsonl");
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
        // `json`, because `jsonb` forgets the sign of a zero. It takes a JSON null for a missing value, so the one column
        // that knows it is set apart.
        let put = "insert into public.copied select (json_populate_record(null::public.copied, $1::text::json)).*";
        sqlx::query(put).bind(line).execute(&mut owner).await.unwrap();
        let doc =
            "update public.copied set doc = $1::text::jsonb -> 'doc' where id = ($1::text::jsonb ->> 'id')::integer";
        sqlx::query(doc).bind(line).execute(&mut owner).await.unwrap();
    }
    for (of, other) in [("specimen", "copied"), ("copied", "specimen")] {
        let query = match of {
            "specimen" => "select s::text from public.specimen s except select s::text from public.copied s",
            _ => "select s::text from public.copied s except select s::text from public.specimen s",
        };
        let strays: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut owner).await.unwrap();
        assert_eq!(strays, Vec::<String>::new(), "in {of} and not in {other}");
    }
    let specimen = done.manifest.tables.iter().find(|table| table.name == "public.specimen").unwrap();
    assert_eq!(specimen.rows, 5);
    let encoding = |name: &str| {
        let column = specimen.columns.iter().find(|column| column.name == name).unwrap();
        serde_json::to_value(column.encoding).unwrap().as_str().unwrap().to_owned()
    };
    let encodings =
        ["flag", "small", "big", "price", "exact", "doc", "instant", "local", "bytes", "list"].map(encoding);
    assert_eq!(
        encodings,
        ["boolean", "number", "decimal", "decimal", "decimal", "json", "instant", "local_time", "hex", "text"]
    );
}
