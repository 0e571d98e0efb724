//! Migrations: any number of times, by several processes, beside the adopter's own.

use saas_core::{CoreError, SCHEMA, Schema, db, migrate, testing::TestDatabase};
use sqlx::{Executor, PgPool, postgres::PgConnectOptions};

use crate::adopter::ROLES;

fn admin(db: &TestDatabase) -> PgConnectOptions {
    db.url("saas_admin").parse().unwrap()
}

#[tokio::test]
async fn migrating_again_and_at_once_changes_nothing() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let options = admin(&db);
    let schemas = [&SCHEMA];
    for result in futures_util::future::join_all((0..3).map(|_| migrate(&options, &schemas))).await {
        result.unwrap();
    }
    let pool = PgPool::connect(&db.url("saas_app")).await.unwrap();
    assert_eq!(db::pending(&pool, &[&SCHEMA]).await.unwrap(), "");
}

#[tokio::test]
async fn two_processes_do_not_grant_at_once() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let (mut owner, mut other) = (db.owner().await, db.owner().await);
    // As another process that is about to end its migration.
    owner
        .execute(
            "begin; select pg_advisory_xact_lock(hashtextextended('saas.migrate', 0));
             revoke select on saas._migrations_core from saas_app",
        )
        .await
        .unwrap();
    let options = admin(&db);
    let migrating = tokio::spawn(async move { migrate(&options, &[&SCHEMA]).await });
    let waits = "select exists (select from pg_stat_activity
                                where datname = current_database() and wait_event_type = 'Lock')";
    while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut other).await.unwrap() {
        assert!(!migrating.is_finished(), "it did not wait");
    }
    owner.execute("commit").await.unwrap();
    migrating.await.unwrap().unwrap();
    let pool = PgPool::connect(&db.url("saas_app")).await.unwrap();
    assert_eq!(db::pending(&pool, &[&SCHEMA]).await.unwrap(), "");
}

#[tokio::test]
async fn the_pending_script_is_all_that_an_administrator_has_to_run() {
    static EMPTY: [&Schema; 0] = [];
    let db = TestDatabase::start(&EMPTY).await;
    let mut owner = db.owner().await;
    owner.execute("drop schema if exists saas cascade").await.unwrap();
    let pool = PgPool::connect(&db.url("saas_admin")).await.unwrap();
    let script = db::pending(&pool, &[&SCHEMA]).await.unwrap();
    owner.execute(sqlx::AssertSqlSafe(script)).await.unwrap();
    let login = PgPool::connect(&db.url("saas_app")).await.unwrap();
    saas_core::TenantPool::open(login, &[&SCHEMA]).await.unwrap();
    migrate(&admin(&db), &[&SCHEMA]).await.unwrap();
    assert_eq!(db::pending(&pool, &[&SCHEMA]).await.unwrap(), "");
}

// Roles are the server's, locks the database's: both first migrations create the same roles.
#[tokio::test]
async fn a_role_that_another_database_creates_meanwhile_is_no_failure() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let roles = include_str!("../../src/db/roles.sql");
    // A role of this name appears between the look and the creation: the look is made blind.
    let blind = roles.replace("if not exists (select from pg_roles where rolname = wanted.name) then", "if true then");
    assert_ne!(blind, roles);
    db.owner().await.execute(sqlx::AssertSqlSafe(blind)).await.unwrap();
}

#[tokio::test]
async fn an_owner_of_the_database_who_may_create_roles_can_migrate() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let mut owner = db.owner().await;
    let _alone = ROLES.write().await;
    let name = format!("deployer_{}", db.name());
    let (login, database) = (name.clone(), format!("{name}_db"));
    owner.execute(sqlx::AssertSqlSafe(format!("create role {name} login createrole nosuperuser"))).await.unwrap();
    // On PostgreSQL 16 and later it would have created the roles itself, and so administer them.
    owner.execute(sqlx::AssertSqlSafe(format!("grant saas_owner to {name} with admin option"))).await.unwrap();
    owner.execute(sqlx::AssertSqlSafe(format!("create database {database} owner {name}"))).await.unwrap();
    let options: PgConnectOptions = db.url(&login).parse().unwrap();
    let options = options.database(&database);
    migrate(&options, &[&SCHEMA]).await.unwrap();
    migrate(&options, &[&SCHEMA]).await.unwrap();
    owner.execute(sqlx::AssertSqlSafe(format!("drop database {database} with (force)"))).await.unwrap();
    owner.execute(sqlx::AssertSqlSafe(format!("drop owned by {name}; drop role {name}"))).await.unwrap();
}

// T49
#[tokio::test]
async fn everything_in_the_schema_belongs_to_the_owner_role() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let strangers: i64 = sqlx::query_scalar(
        "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'saas' and c.relowner <> 'saas_owner'::regrole",
    )
    .fetch_one(&mut db.owner().await)
    .await
    .unwrap();
    assert_eq!(strangers, 0);
}

#[tokio::test]
async fn an_edited_file_is_refused_and_a_failing_one_leaves_nothing_behind() {
    static FIRST: Schema = probe("create table saas.probe (id int)");
    static EDITED: Schema = probe("create table saas.probe (id bigint)");
    static BROKEN: Schema = Schema {
        module: "broken",
        table: "saas._migrations_broken",
        version_query: "select coalesce(max(version), 0) from saas._migrations_broken where success",
        migrations: &[db::Migration {
            version: 1,
            name: "broken",
            sql: "create table saas.half (id int); select 1 / 0",
        }],
    };
    const fn probe(sql: &'static str) -> Schema {
        // `const fn` cannot build the slice from an argument without a static of its own per text.
        Schema {
            module: "probe",
            table: "saas._migrations_probe",
            version_query: "select coalesce(max(version), 0) from saas._migrations_probe where success",
            migrations: match sql.len() {
                32 => &[db::Migration { version: 1, name: "probe", sql: "create table saas.probe (id int)" }],
                _ => &[db::Migration { version: 1, name: "probe", sql: "create table saas.probe (id bigint)" }],
            },
        }
    }
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let options = admin(&db);
    migrate(&options, &[&SCHEMA, &FIRST]).await.unwrap();
    let error = migrate(&options, &[&SCHEMA, &EDITED]).await.unwrap_err();
    assert!(matches!(error, CoreError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("must not be edited"), "{error}");

    migrate(&options, &[&SCHEMA, &BROKEN]).await.unwrap_err();
    let half: bool = sqlx::query_scalar("select to_regclass('saas.half') is not null")
        .fetch_one(&mut db.owner().await)
        .await
        .unwrap();
    assert!(!half, "a failed migration is rolled back");
    // The failure left no lock: the next one does not wait.
    migrate(&options, &[&SCHEMA]).await.unwrap();
}

#[tokio::test]
async fn a_login_that_may_not_create_roles_is_told_what_it_needs() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let options: PgConnectOptions = db.url("saas_app").parse().unwrap();
    let error = migrate(&options, &[&SCHEMA]).await.unwrap_err();
    assert_eq!(error.code(), "misconfigured", "{error}");
    assert!(error.to_string().contains("saas_owner"), "{error}");
}

#[tokio::test]
async fn an_adopters_own_migrator_runs_beside_ours() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let mut owner = db.owner().await;
    let theirs = sqlx::migrate::Migrator::with_migrations(vec![sqlx::migrate::Migration::new(
        1,
        "theirs".into(),
        sqlx::migrate::MigrationType::Simple,
        sqlx::SqlSafeStr::into_sql_str("create table public.theirs (id int)"),
        false,
    )]);
    theirs.run_direct(None, &mut owner, false).await.unwrap();
    migrate(&admin(&db), &[&SCHEMA]).await.unwrap();
    theirs.run_direct(None, &mut owner, false).await.unwrap();
    owner.execute("select * from public.theirs").await.unwrap();
}
