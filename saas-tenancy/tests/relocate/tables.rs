//! Tables of every kind, and changes of them: each arrives to the last bit, or is refused before anything is lost.

use std::sync::atomic::{AtomicBool, Ordering};

use saas_core::{CoreError, TenantContext, TenantTx};
use saas_tenancy::relocate::{Address, Audit, MoveError, Phase, Progress, Report};
use sqlx::{AssertSqlSafe, Executor};

use crate::{
    refuse::apart,
    work::Work,
    world::{World, operator},
};

/// Every type whose text or binary form is peculiar, in copies and in the log of changes.
const SPECIMEN: &str = "
    create table specimen (
        tenant_id uuid not null references saas.tenant (id), id integer not null, flag boolean, exact numeric, sized numeric(9, 3),
        single real, double double precision, words text, fixed character(5), bytes bytea, day date, instant timestamptz,
        local timestamp, clock time, zoned timetz, span interval, doc jsonb, raw json, list text[], numbers numeric[],
        net inet, bits bit varying, many int4range, period tstzrange, ranges int4multirange, key uuid, money money, tree xml, words_of tsvector,
        double_of double precision generated always as (double * 2) stored, point point,
        primary key (tenant_id, id));
    select saas.fence('specimen');";
const SPECIMENS: &str = r#"
    insert into specimen (tenant_id, id, flag, exact, sized, single, double, words, fixed, bytes, day, instant, local, clock, zoned, span, doc, raw,
        list, numbers, net, bits, many, period, ranges, key, money, tree, words_of, point) values
    ($1, 1, true, 0.10, 1.500, 0.1, 0.1, E'a\tb\r\n"\\\\N\\.\u2028é', 'ab', '\x00ff5c', '2026-02-28', '2026-01-15 12:00:00.123456+02',
     '2026-01-15 12:00:00', '23:59:60', '12:00:00+05:30', '1 mon -3 days 04:05:06.789', '{"n": 1.000000000000000000001, "\u0041": "\\u0000x"}',
     '{"a": "\u0000", "a":  1.0}', '{a,NULL,"b,c","NULL","{}"}', '{1.50,NaN}', '10.0.0.1/8', B'0101', '[1,5)',
     '["2026-01-01 00:00:00+01",infinity)', '{[1,3),[5,7)}', '01900000-0000-7000-8000-000000000001', '-1.50', '<a b="1">&amp;</a>', 'a:1 b''c:2', '(1.5,-0)'),
    ($1, 2, false, 'NaN', 'NaN', 'NaN', 'Infinity', '', '', '', 'infinity', 'infinity', '-infinity', '00:00', null, '-1 year', 'null', 'null',
     '{}', '[0:1]={1,2}', '::1', '', 'empty', 'empty', '{}', null, null, null, '', null),
    ($1, 3, null, '-Infinity', null, '-0', '-Infinity', 'NULL', null, null, '0044-03-15 BC', '0044-03-15 12:00:00+00 BC', '20000-01-01 00:00:00', null,
     null, null, '"text"', '  [1 ,2]', null, null, null, null, null, null, null, null, null, null, null, null),
    ($1, 4, null, 123456789012345678901234567890.000000000000000001, null, 3.4028235e+38, 5e-324, '\N', '\.', '\x5c2e0a', null, '-infinity', 'infinity', '24:00',
     null, null, '[]', '{}', array[['1','2'],['\\N','"']], null, null, null, '(,5)', '(-infinity,)', null, null, null, null, null, null)"#;

impl World {
    pub(crate) async fn change_both(&self, places: &[&Address], script: &str) {
        for place in places {
            self.ways.connect(place).await.execute(AssertSqlSafe(script.to_owned())).await.unwrap();
        }
    }

    /// A table's rows of the tenant, exactly as PostgreSQL shows them, in the order of their text.
    pub(crate) async fn texts_at(&self, address: &Address, table: &str) -> Vec<String> {
        let query = format!("select t::text from {table} t where tenant_id = $1 order by 1");
        let mut connection = self.ways.connect(address).await;
        connection.execute("set timezone = 'UTC'").await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(query))
            .bind(self.acme.tenant().as_uuid())
            .fetch_all(&mut connection)
            .await
            .unwrap()
    }

    /// Moves, and runs `script` at `places` the first time that `phase` is told.
    async fn move_and_run(
        &self,
        to: &Address,
        phase: Phase,
        places: &[&Address],
        script: &str,
    ) -> Result<Report, MoveError> {
        let done = AtomicBool::new(false);
        let places: Vec<_> = places.iter().map(|place| ((*place).clone(), self.ways.clone())).collect();
        let listener = |told: Progress<'_>| {
            if told.phase == phase && !done.swap(true, Ordering::Relaxed) {
                let (places, script) = (places.clone(), script.to_owned());
                apart(async move {
                    for (place, ways) in places {
                        ways.connect(&place).await.execute(AssertSqlSafe(script.clone())).await.unwrap();
                    }
                });
            }
        };
        self.mover.move_tenant(self.acme.tenant(), to, &operator(), &listener).await
    }

    pub(crate) async fn write(&self, statement: &'static str) -> Result<(), CoreError> {
        let mut tx = TenantTx::begin(&*self.binding, &self.acme).await?;
        sqlx::query(statement)
            .bind(self.acme.tenant().as_uuid())
            .execute(&mut *tx)
            .await
            .map_err(CoreError::from_database)?;
        tx.commit().await
    }
}

#[tokio::test]
async fn values_of_every_type_arrive_as_they_were_by_copy_and_by_log() {
    let world = World::start().await;
    let (pooled, schema, database) =
        (Address::pooled("control"), world.make_schema().await, world.make_database().await);
    world.change_both(&[&pooled, &schema, &database], SPECIMEN).await;
    let tenant = world.acme.tenant().as_uuid();
    sqlx::query(SPECIMENS).bind(tenant).execute(&mut world.ways.connect(&pooled).await).await.unwrap();
    let before = world.texts_at(&pooled, "specimen").await;
    assert_eq!(before.len(), 4);
    // Binary within one release; as text where a type of the application's own is in the table.
    world.change_both(&[&database, &pooled], "alter table specimen add own mood").await;
    let report = world.mover.move_tenant(world.acme.tenant(), &schema, &operator(), &|_| {}).await;
    assert_eq!(report.unwrap_err().code(), "tables_differ");
    world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
    world.change_both(&[&schema], "alter table specimen add own mood").await;
    let before = world.texts_at(&pooled, "specimen").await;
    let mut from = pooled.clone();
    for to in [&schema, &database] {
        // Once more through the log, by a statement that changes nothing.
        let script = format!("update specimen set id = id where tenant_id = '{tenant}' and id in (1, 2, 3)");
        let report = world.move_and_run(to, Phase::CatchUp, &[&from], &script).await.unwrap();
        assert_eq!((report.audit, report.carried_over), (Audit::Equal, 3));
        assert_eq!(world.texts_at(to, "specimen").await, before);
        world.mover.confirm(world.acme.tenant(), &|_| {}).await.unwrap();
        from = to.clone();
    }
    world.change_both(&[&pooled, &database], "alter table specimen drop own").await;
    world.mover.move_tenant(world.acme.tenant(), &pooled, &operator(), &|_| {}).await.unwrap();
    assert_eq!(world.texts_at(&pooled, "specimen").await, world.texts_at(&database, "specimen").await);
}

#[tokio::test]
async fn keys_are_found_again_whatever_the_settings_of_the_session_that_changed_them() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let tables = "
        create table slot (tenant_id uuid not null references saas.tenant (id), period tstzrange, span interval, ratio double precision,
                           blob bytea, day date, v integer not null default 0, primary key (tenant_id, period, span, ratio, blob, day));
        select saas.fence('slot');";
    world.change_both(&[&pooled, &database], tables).await;
    let rows = "insert into slot select $1, tstzrange('2026-02-01 10:00+00', '2026-03-04 11:00+00'), '-1 year 2 mons -3 days 04:05:06'::interval,
                       0.1::float8 + 0.2 + n * 1e-17, '\\x5c00ff', '2026-02-03' from generate_series(0, 60, 10) n on conflict do nothing";
    world.write(rows).await.unwrap();
    let script = format!(
        "set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kolkata'; set intervalstyle = 'sql_standard'; set extra_float_digits = -15;
         set bytea_output = 'escape';
         update slot set v = v + 1 where tenant_id = '{}'",
        world.acme.tenant()
    );
    let report = world.move_and_run(&database, Phase::CatchUp, &[&pooled], &script).await.unwrap();
    assert_eq!(report.audit, Audit::Equal);
    let rows = world.texts_at(&database, "slot").await;
    assert_eq!(rows, world.texts_at(&pooled, "slot").await);
    assert!(rows.iter().all(|row| row.ends_with(",1)")), "{rows:?}");
}

#[tokio::test]
async fn a_number_is_never_drawn_twice_wherever_it_comes_from() {
    let world = World::start().await;
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let (pooled, schema, database) =
        (Address::pooled("control"), world.make_schema().await, world.make_database().await);
    let tables = "
        create sequence invoice_number;
        grant usage on sequence invoice_number to saas_app;
        create table invoice (tenant_id uuid not null references saas.tenant (id), id bigint generated always as identity, label text not null,
                              down bigint generated by default as identity (increment by -1), primary key (tenant_id, id));
        select saas.fence('invoice');
        -- A fence advises against it, and is not asked again.
        alter table invoice alter label set default 'INV-' || nextval('invoice_number');";
    world.change_both(&[&pooled, &schema, &database], tables).await;
    const DRAW: &str = "insert into invoice (tenant_id) select $1 from generate_series(1, 5)";
    world.write(DRAW).await.unwrap();
    world.write("delete from invoice where tenant_id = $1 and id = 5").await.unwrap();
    for (to, last) in [(&schema, 10), (&database, 15), (&pooled, 20)] {
        world.mover.move_tenant(world.acme.tenant(), to, &operator(), &|_| {}).await.unwrap();
        world.mover.confirm(world.acme.tenant(), &|_| {}).await.unwrap();
        world.write(DRAW).await.unwrap();
        let rows = world.texts_at(to, "invoice").await;
        let wanted = format!("({},{last},INV-{last},-{last})", world.acme.tenant());
        assert!(rows.contains(&wanted), "{wanted} of {rows:?}");
    }
}

#[tokio::test]
async fn tables_that_could_not_arrive_as_they_are_are_refused_with_the_mend() {
    let world = World::start().await;
    let (pooled, schema) = (Address::pooled("control"), world.make_schema().await);
    for (at, script, back, code, part) in [
        (
            vec![&pooled, &schema],
            "create table heap (tenant_id uuid not null, at timestamptz); select saas.fence('heap')",
            "drop table heap",
            "table_unmovable",
            "it has no primary key",
        ),
        (
            vec![&pooled, &schema],
            "create table child (like entry including all); select saas.fence('child'); alter table child inherit entry",
            "drop table child",
            "table_unmovable",
            "its rows would be there twice",
        ),
        (
            vec![&pooled],
            "create unique index one_root on project (tenant_id) where parent is null and name = 'root'",
            "drop index one_root",
            "tables_differ",
            "only in the source: UNIQUE",
        ),
    ] {
        world.change_both(&at, script).await;
        let error = world.mover.move_tenant(world.acme.tenant(), &schema, &operator(), &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
        world.change_both(&at, back).await;
    }
}

#[tokio::test]
async fn partial_unique_values_deferred_keys_and_references_to_itself_change_hands_during_a_move() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let tables = "
        create table node (tenant_id uuid not null references saas.tenant (id), id integer not null, up integer, rank integer not null,
                           is_main boolean not null default false, primary key (tenant_id, id),
                           unique (tenant_id, rank) deferrable initially deferred,
                           foreign key (tenant_id, up) references node (tenant_id, id) deferrable initially deferred);
        create unique index node_main on node (tenant_id) where is_main;
        select saas.fence('node');";
    world.change_both(&[&pooled, &database], tables).await;
    // Each refers to the next, the last to the first.
    world.write("insert into node select $1, n, n % 50 + 1, n, n = 1 from generate_series(1, 50) n").await.unwrap();
    let tenant = world.acme.tenant();
    let script = format!(
        "begin; update node set is_main = false where tenant_id = '{tenant}' and id = 1;
         update node set is_main = true where tenant_id = '{tenant}' and id = 2;
         update node set rank = 51 - rank, up = (id + 24) % 50 + 1 where tenant_id = '{tenant}' and id < 40;
         update node set rank = 51 - rank where tenant_id = '{tenant}' and id >= 40;
         update node set id = id + 1000, up = up + 1000 where tenant_id = '{tenant}'; commit"
    );
    let report = world.move_and_run(&database, Phase::CatchUp, &[&pooled], &script).await.unwrap();
    assert_eq!(report.audit, Audit::Equal);
    assert_eq!(world.texts_at(&database, "node").await, world.texts_at(&pooled, "node").await);
    world.mover.move_back(tenant, &operator(), &|_| {}).await.unwrap();
    assert_eq!(world.texts_at(&database, "node").await, world.texts_at(&pooled, "node").await);
}

#[tokio::test]
async fn a_partition_cannot_be_truncated_while_its_rows_are_being_copied() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    let refused = "do $$ begin
            truncate event_old; raise exception 'it was truncated';
        exception when object_in_use then null; end $$";
    let report = world.move_and_run(&database, Phase::CatchUp, &[&pooled], refused).await.unwrap();
    assert_eq!(report.audit, Audit::Equal);
    world.mover.move_back(world.acme.tenant(), &operator(), &|_| {}).await.unwrap();
    world.mover.confirm(world.acme.tenant(), &|_| {}).await.unwrap();
    assert_eq!(world.traces_at(&pooled).await, 0, "nor is anything left at the partitions");
    // Rows that leave with their partition are in no log either.
    world.change_both(&[&pooled], "truncate event_old").await;
    let detach = "alter table event detach partition event_old";
    let next = world.make_database().await;
    let error = world.move_and_run(&next, Phase::CatchUp, &[&pooled], detach).await.unwrap_err();
    assert_eq!(error.code(), "table_unmovable", "a table of tenants' rows without a fence by now: {error}");
    world.mover.roll_back(world.acme.tenant(), &|_| {}).await.unwrap();
    assert_eq!(world.traces_at(&pooled).await, 0);
}

#[tokio::test]
async fn a_table_that_a_migration_adds_during_a_move_arrives_with_its_rows_or_stops_the_move() {
    let world = World::start().await;
    let (pooled, database) = (Address::pooled("control"), world.make_database().await);
    world.ways.keeps_databases.store(true, Ordering::Relaxed);
    let (tenant, work) = (world.acme.tenant(), Work::start(&world, 2));
    let table = "create table late (tenant_id uuid not null references saas.tenant (id), id uuid not null default gen_random_uuid(),
                                    primary key (tenant_id, id));
                 select saas.fence('late');";
    let filled = format!("{table} insert into late (tenant_id) select '{tenant}' from generate_series(1, 7)");
    for phase in [Phase::Copy, Phase::Freeze, Phase::Drain] {
        let error = world.move_and_run(&database, phase, &[&pooled], &filled).await.unwrap_err();
        assert_eq!(error.code(), "tables_changed", "{phase:?}: {error}");
        work.go_on(5).await;
        let error = world.mover.resume(tenant, &|_| {}).await.unwrap_err();
        assert_eq!(error.code(), "tables_differ", "{error}");
        world.change_both(&[&database], table).await;
        // What was copied without it is copied anew.
        let report = world.mover.resume(tenant, &|_| {}).await.unwrap();
        assert_eq!(report.audit, Audit::Equal);
        assert_eq!(world.texts_at(&database, "late").await, world.texts_at(&pooled, "late").await);
        assert_eq!(world.texts_at(&database, "late").await.len(), 7);
        work.go_on(5).await;
        world.mover.move_back(tenant, &operator(), &|_| {}).await.unwrap();
        world.mover.confirm(tenant, &|_| {}).await.unwrap();
        world.change_both(&[&pooled, &database], "drop table late").await;
    }
    // A column whose default is another in each row: what was copied before would not have the source's.
    let column = "alter table entry add token uuid not null default gen_random_uuid()";
    let error = world.move_and_run(&database, Phase::Drain, &[&pooled, &database], column).await.unwrap_err();
    // Which of them: whether a writer's row, of the former shape, is on its way by then.
    assert!(["tables_changed", "target_refused"].contains(&error.code()), "{error}");
    world.mover.resume(tenant, &|_| {}).await.unwrap();
    work.finish(&world, &database).await;
}
