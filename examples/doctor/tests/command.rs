//! The command over a real database.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use saas_core::{Schema, testing::TestDatabase};
use sqlx::Executor as _;

const LEAK: &str = "create table public.note (tenant_id uuid not null, body text, primary key (tenant_id));
    grant select on public.note to saas_app";

fn doctor(url: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doctor"));
    command.args(arguments).env_remove("DATABASE_URL");
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

async fn database(schemas: &[&'static Schema]) -> (TestDatabase, String) {
    let database = TestDatabase::start(schemas).await;
    let url = database.url("saas_app");
    (database, url)
}

#[tokio::test]
async fn a_sound_database_is_a_success() {
    let (_database, url) = database(&[&saas_core::SCHEMA]).await;
    let answer = doctor(Some(&url), &[]);
    assert_eq!(answer.status.code(), Some(0), "{answer:?}");
    assert_eq!(text(&answer.stdout), "no known way around the fence is open\n");
    assert_eq!(text(&doctor(Some(&url), &["--json"]).stdout), "[]\n");
}

#[tokio::test]
async fn a_finding_is_shown_with_its_mend_and_as_json() {
    let (database, url) = database(&[&saas_core::SCHEMA]).await;
    let mut owner = database.owner().await;
    owner.execute(LEAK).await.unwrap();
    let answer = doctor(Some(&url), &[]);
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    let shown = text(&answer.stdout);
    assert!(shown.starts_with("rls-off: public.note "), "{shown}");
    assert!(shown.contains("mend: select saas.fence('public.note');"), "{shown}");
    assert!(shown.ends_with("1 finding; read its mend before you run it\n"), "{shown}");

    let answer = doctor(Some(&url), &["--json"]);
    assert_eq!(answer.status.code(), Some(1));
    let findings: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(findings[0]["code"], "rls-off");
    assert_eq!(findings[0]["object"], "public.note");
    let mend = findings[0]["mend"].as_str().unwrap().to_owned();
    owner.execute(mend_of(mend)).await.unwrap();
    assert_eq!(doctor(Some(&url), &[]).status.code(), Some(0));
}

#[expect(clippy::disallowed_types, reason = "the mend that the doctor printed is run as it stands")]
fn mend_of(text: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(text)
}

#[tokio::test]
async fn what_keeps_it_from_looking_is_said() {
    let (database, url) = database(&[&saas_core::SCHEMA]).await;
    // As if the last migrations had not run.
    database.owner().await.execute("drop table saas.row_fence cascade").await.unwrap();
    for (url, arguments, reason) in [
        (None, &[][..], "DATABASE_URL is not set"),
        (Some(url.as_str()), &["--yaml"][..], "usage:"),
        (Some("postgres://nobody@127.0.0.1:1/nothing"), &[][..], "doctor: "),
        (Some("not a url"), &[][..], "doctor: "),
        (Some(url.as_str()), &[][..], "older than this binary"),
    ] {
        let answer = doctor(url, arguments);
        assert_eq!(answer.status.code(), Some(2), "{reason}: {answer:?}");
        assert!(text(&answer.stderr).contains(reason), "{reason}: {answer:?}");
        assert!(answer.stdout.is_empty(), "{answer:?}");
    }
}
