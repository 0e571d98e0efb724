//! An example starts over on every run, on the server that `DATABASE_URL` names or on one of its own.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    env,
    process::{Command, Output},
};

use saas_core::{
    Actor, Clock as _, SCHEMA, SystemClock, SystemTx,
    tenant::{self, NewTenant},
    testing::{DevDatabase, DevServer, Durability},
};
use sqlx::Executor as _;

/// Set in the child that plays the example.
const CHILD: &str = "SAAS_DEV_DATABASE_CHILD";

async fn register(database: &DevDatabase) {
    let mut tx = SystemTx::begin(database.system(), Actor::system("example"), "register a tenant").await.unwrap();
    let acme = NewTenant::new("acme".parse().unwrap(), "Acme").unwrap();
    tenant::create_in(&mut tx, &acme, SystemClock.now()).await.unwrap();
    tx.commit().await.unwrap();
}

/// Runs the named test of this binary again, as an example with its environment set by `with`.
fn example(test: &str, with: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1").env_remove("DATABASE_URL");
    with(&mut command);
    command.output().unwrap()
}

#[tokio::test]
async fn an_example_starts_over_on_the_named_server() {
    if env::var_os(CHILD).is_some() {
        let database = DevDatabase::start("example", &[&SCHEMA]).await.unwrap();
        // Would conflict on the second run if the first one's rows were still there.
        register(&database).await;
        println!("\nserver {}", database.server().admin_url());
        return;
    }
    let server = DevServer::start_own(Durability::None).unwrap();
    for _ in 0..2 {
        let ran = example("an_example_starts_over_on_the_named_server", |command| {
            command.env("DATABASE_URL", server.admin_url());
        });
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert!(String::from_utf8_lossy(&ran.stdout).contains(&format!("server {}", server.admin_url())));
    }
}

#[tokio::test]
async fn an_example_never_touches_the_server_of_the_tests() {
    if env::var_os(CHILD).is_some() {
        let database = DevDatabase::start("example", &[&SCHEMA]).await.unwrap();
        println!("\nserver {}", database.server().admin_url());
        return;
    }
    let tests = DevServer::start_own(Durability::None).unwrap();
    let ran = example("an_example_never_touches_the_server_of_the_tests", |command| {
        command.env("SAAS_TEST_DATABASE_URL", tests.admin_url());
    });
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("server postgres://") && !said.contains(tests.admin_url()), "{said}");
}

#[tokio::test]
async fn a_login_that_is_no_superuser_is_told_so() {
    if env::var_os(CHILD).is_some() {
        let error = DevDatabase::start("example", &[&SCHEMA]).await.unwrap_err();
        println!("\nerror {} {error}", error.code());
        return;
    }
    let server = DevServer::start_own(Durability::None).unwrap();
    connect(server.admin_url()).await.execute("create role clerk login createdb").await.unwrap();
    let ran = example("a_login_that_is_no_superuser_is_told_so", |command| {
        command.env("DATABASE_URL", server.admin_url().replace("saas_admin@", "clerk@"));
    });
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("error misconfigured the development server's login `clerk` is no superuser"), "{said}");
}

#[tokio::test]
async fn a_server_that_wants_passwords_gets_one_for_the_roles() {
    if env::var_os(CHILD).is_some() {
        let database = DevDatabase::start("example", &[&SCHEMA]).await.unwrap();
        register(&database).await;
        return;
    }
    let server = DevServer::start_own(Durability::None).unwrap();
    let url = with_password_authentication(&server).await;
    for _ in 0..2 {
        let ran = example("a_server_that_wants_passwords_gets_one_for_the_roles", |command| {
            command.env("DATABASE_URL", &url);
        });
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    }
    let mut admin = connect(&url).await;
    admin.execute("alter role saas_app password 'of someone'").await.unwrap();
    let ran = example("a_server_that_wants_passwords_gets_one_for_the_roles", |command| {
        command.env("DATABASE_URL", &url);
    });
    assert!(!ran.status.success(), "a password that someone set is not replaced");
}

async fn connect(url: &str) -> sqlx::PgConnection {
    <sqlx::PgConnection as sqlx::Connection>::connect(url).await.unwrap()
}

/// Makes the server ask everyone for a password, and returns a URL that has the superuser's.
async fn with_password_authentication(server: &DevServer) -> String {
    let mut admin = connect(server.admin_url()).await;
    admin.execute("alter role saas_admin password 'the superuser''s'").await.unwrap();
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&mut admin).await.unwrap();
    // Through the server, whose file it is.
    let rule = "host all all 127.0.0.1/32 scram-sha-256\n";
    let object: sqlx::postgres::types::Oid =
        sqlx::query_scalar("select lo_from_bytea(0, $1)").bind(rule.as_bytes()).fetch_one(&mut admin).await.unwrap();
    sqlx::query("select lo_export($1, $2)").bind(object).bind(&file).execute(&mut admin).await.unwrap();
    admin.execute("select pg_reload_conf()").await.unwrap();
    server.admin_url().replace("saas_admin@", "saas_admin:the%20superuser%27s@")
}
