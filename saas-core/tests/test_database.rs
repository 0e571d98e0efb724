//! What every other test relies on: a database of its own, reached as the roles of production.

use futures_util::future::join_all;
use saas_core::{
    SCHEMA, SystemTx, TenantContext as _, TenantTx,
    testing::{Proxy, TestDatabase},
};
use sqlx::{Connection as _, PgConnection};

// T4: a superuser would pass every isolation test without any isolation.
#[tokio::test]
async fn tests_run_as_roles_that_row_level_security_binds() {
    let database = TestDatabase::start(&[&SCHEMA]).await;
    let acme = database.create_tenant("acme").await;
    let bound = "select current_user::text, rolsuper or rolbypassrls from pg_roles where rolname = current_user";
    let mut tenant = TenantTx::begin(database.tenants(), &acme).await.unwrap();
    let (role, free): (String, bool) = sqlx::query_as(bound).fetch_one(&mut *tenant).await.unwrap();
    assert_eq!((role.as_str(), free), ("saas_app", false));
    let mut system = SystemTx::begin(database.system(), saas_core::Actor::system("test"), "look").await.unwrap();
    let (role, free): (String, bool) = sqlx::query_as(bound).fetch_one(&mut *system).await.unwrap();
    assert_eq!((role.as_str(), free), ("saas_system", false));
}

#[tokio::test]
async fn many_tests_that_start_at_once_share_a_template_and_nothing_else() {
    let schemas = [&SCHEMA];
    let databases = join_all((0..6).map(|_| TestDatabase::start(&schemas))).await;
    let tenants = join_all(databases.iter().map(|database| database.create_tenant("acme"))).await;
    for (database, acme) in databases.iter().zip(&tenants) {
        let mut owner = database.owner().await;
        let ids: Vec<uuid::Uuid> =
            sqlx::query_scalar("select id from saas.tenant").fetch_all(&mut owner).await.unwrap();
        assert_eq!(ids, [acme.tenant().as_uuid()]);
    }
    let mut owner = databases[0].owner().await;
    let half_built = "select count(*) from pg_database where datname like '%\\_building'";
    assert_eq!(sqlx::query_scalar::<_, i64>(half_built).fetch_one(&mut owner).await.unwrap(), 0);
}

#[tokio::test]
async fn a_dropped_test_database_is_gone_from_the_server_even_with_open_connections() {
    let database = TestDatabase::start(&[&SCHEMA]).await;
    let witness = TestDatabase::start(&[&SCHEMA]).await;
    let name = database.name().to_owned();
    let tenants = database.tenants().clone();
    drop(database);
    let mut owner = witness.owner().await;
    let exists = "select exists (select from pg_database where datname = $1)";
    assert!(!sqlx::query_scalar::<_, bool>(exists).bind(name).fetch_one(&mut owner).await.unwrap());
    drop(tenants);
}

// Privileges on a database are not part of a template: a clone must get its own.
#[tokio::test]
async fn a_clone_refuses_what_a_migrated_database_refuses() {
    let database = TestDatabase::start(&[&SCHEMA]).await;
    let mut app = PgConnection::connect_with(&database.options("saas_app")).await.unwrap();
    let error = sqlx::query("create temporary table tenant (id uuid)").execute(&mut app).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"));
}

#[tokio::test]
async fn a_pool_has_as_many_connections_as_asked() {
    let database = TestDatabase::builder().max_connections(1).start(&[&SCHEMA]).await;
    assert_eq!(database.tenants().pool().options().get_max_connections(), 1);
}

#[tokio::test]
async fn a_proxy_in_front_of_the_server_sees_the_round_trips() {
    let database = TestDatabase::start(&[&SCHEMA]).await;
    let proxy = Proxy::start(database.address()).unwrap();
    let options = database.options("saas_app").host("127.0.0.1").port(proxy.address().port());
    let mut app = PgConnection::connect_with(&options).await.unwrap();
    let before = proxy.flights();
    for _ in 0..3 {
        sqlx::raw_sql("select 1").execute(&mut app).await.unwrap();
    }
    assert_eq!(proxy.flights() - before, 3);
}

#[tokio::test]
async fn the_url_of_a_role_connects_as_that_role() {
    let database = TestDatabase::start(&[&SCHEMA]).await;
    let mut app = PgConnection::connect(&database.url("saas_app")).await.unwrap();
    let (role, name): (String, String) =
        sqlx::query_as("select current_user::text, current_database()::text").fetch_one(&mut app).await.unwrap();
    assert_eq!((role.as_str(), name.as_str()), ("saas_app", database.name()));
}
