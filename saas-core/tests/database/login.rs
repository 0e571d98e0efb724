//! Logins that row-level security does not bind are refused before they run anything.

use saas_core::{CoreError, ErrorKind, SCHEMA, SystemPool, TenantPool, testing::TestDatabase};
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::adopter::ROLES;

async fn pool(db: &TestDatabase, role: &str) -> PgPool {
    PgPool::connect(&db.url(role)).await.unwrap()
}

/// Roles belong to the whole server: each test makes its own and removes it.
async fn with_role(db: &TestDatabase, options: &str, then: &str) -> String {
    let name = format!("login_{}", db.name());
    let mut owner = db.owner().await;
    owner.execute(AssertSqlSafe(format!("create role {name} login {options}"))).await.unwrap();
    owner.execute(AssertSqlSafe(then.replace("$role", &name))).await.unwrap();
    name
}

async fn drop_role(db: &TestDatabase, name: &str) {
    let mut owner = db.owner().await;
    owner.execute(AssertSqlSafe(format!("drop owned by {name}; drop role {name}"))).await.unwrap();
}

// T2 T3
#[tokio::test]
async fn a_login_that_the_policies_do_not_bind_is_refused() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let _alone = ROLES.write().await;
    for (options, then, reason) in [
        ("superuser", "select 1", "superuser"),
        ("bypassrls", "grant saas_app to $role", "BYPASSRLS"),
        ("createrole", "grant saas_app to $role", "CREATEROLE"),
        ("replication", "grant saas_app to $role", "REPLICATION"),
        ("", "grant saas_app, pg_read_all_data to $role", "pg_read_all_data"),
        ("", "grant saas_app, pg_execute_server_program to $role", "pg_execute_server_program"),
        ("", "grant saas_app, saas_owner to $role", "member of saas_owner"),
        ("noinherit", "grant saas_app, saas_owner to $role", "member of saas_owner"),
        ("", "grant saas_app, saas_system to $role", "saas_system"),
        (
            "",
            "grant saas_app to $role;
             create table public.mine (tenant_id uuid primary key);
             select saas.fence('public.mine');
             alter table public.mine owner to $role",
            "owns mine",
        ),
    ] {
        let role = with_role(&db, options, then).await;
        let error = TenantPool::open(pool(&db, &role).await, &[&SCHEMA]).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("privileged_role", ErrorKind::Misconfigured), "{then}");
        assert!(error.to_string().contains(reason), "{error}");
        drop_role(&db, &role).await;
    }
}

#[tokio::test]
async fn a_login_of_the_adopters_own_works_as_a_member_of_the_application_role() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let _alone = ROLES.write().await;
    let role = with_role(&db, "", "grant saas_app to $role").await;
    TenantPool::open(pool(&db, &role).await, &[&SCHEMA]).await.unwrap();
    let error = SystemPool::open(pool(&db, &role).await, &[&SCHEMA]).await.unwrap_err();
    assert_eq!(error.code(), "privileged_role", "the two sides do not share a login: {error}");
    let preset = format!("alter role {role} set saas.tenant_id = '01900000-0000-7000-8000-000000000001'");
    db.owner().await.execute(AssertSqlSafe(preset)).await.unwrap();
    let error = TenantPool::open(pool(&db, &role).await, &[&SCHEMA]).await.unwrap_err();
    assert!(error.to_string().contains("starts as a tenant"), "{error}");
    drop_role(&db, &role).await;
}

#[tokio::test]
async fn a_login_without_the_role_is_refused_with_the_remedy() {
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let _alone = ROLES.write().await;
    let role = with_role(&db, "", "select 1").await;
    let error = TenantPool::open(pool(&db, &role).await, &[&SCHEMA]).await.unwrap_err();
    assert_eq!(error.code(), "misconfigured");
    assert!(error.to_string().contains(&format!("grant saas_app to {role}")), "{error}");
    drop_role(&db, &role).await;
}

#[tokio::test]
async fn a_database_without_the_schema_is_refused() {
    static NEWER: saas_core::Schema = saas_core::Schema {
        module: "core",
        table: "saas._migrations_core",
        version_query: SCHEMA.version_query,
        migrations: &[saas_core::db::Migration { version: 9_999, name: "later", sql: "" }],
    };
    let db = TestDatabase::start(&[&SCHEMA]).await;
    let error = TenantPool::open(pool(&db, "saas_app").await, &[&NEWER]).await.unwrap_err();
    assert!(matches!(error, CoreError::NotMigrated { needed: 9_999, .. }), "{error}");
}
