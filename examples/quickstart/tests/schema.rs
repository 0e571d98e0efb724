//! What holds over the tables and statements of all four crates together.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test fails by panicking, and prepares statements it found in the sources"
)]

use std::{fs, path::Path};

use proc_macro2::{TokenStream, TokenTree};
use saas_core::{Schema, doctor, testing::TestDatabase};
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};

/// Those of the four crates, and the one that a mover puts into a source.
const ALL: [&Schema; 5] = [
    &saas_core::SCHEMA,
    &saas_tenancy::SCHEMA,
    &saas_entitlements::SCHEMA,
    &saas_billing::SCHEMA,
    &saas_tenancy::relocate::CAPTURE,
];

/// Statements that see several tenants on purpose: workers and operators, as the system role. Named by a part of their
/// text; an entry that fits nothing fails the test.
const ACROSS_TENANTS: &[&str] = &[
    "where state = 'dead'",      // the operators' list of dead letters
    "from saas.tenant_overview", // the operators' list of customers
    "where livemode = $1 and ($2::uuid is null or tenant_id > $2)", // all tenants, page by page, to derive them anew
    "where livemode = $1 and has_alerts", // the operators' list of tenants with alerts, and its length
    "from saas.billing_object where object_id", // an object whose owner is not known yet
    "where mode <> 'pooled' and ($1::uuid is null or tenant_id > $1)", // all places of tenants, page by page, to migrate them
    "from saas.placement -- of whoever it is",                         // whose a place is, before it is removed
    "select cluster from saas.placement where mode = 'pooled'", // the clusters whose shared tables serve somebody
    "where state in ('provisioning', 'failed') and ($1::uuid is null or tenant_id > $1)", // places to be finished
    "from saas.move -- of every tenant",                        // moves to be resumed
    "from saas.tenant_cohort -- of every tenant",               // the tenants of a cohort, page by page
    "from saas.export_job -- of every tenant",                  // exports to be done, or to be removed
    "to_regclass('saas.resident') is not null",                 // whether the table is there
    "hashtextextended('saas.move:'",                            // the name of a lock
    "hashtextextended('saas.export_job:'",                      // the name of a lock
    "from saas.door_due order by since",                        // doors to be set
    "of every tenant", // readers of usage events, and the check of all counters
];

/// Pieces of statements, and scripts of several: not to be prepared on their own.
const NOT_A_STATEMENT: &[&str] = &[
    "select coalesce(max(version), 0) from saas._migrations_", // a piece of `schema!`
    "select saas.fence('{",                                    // a remedy, to be read
    "select version, description, installed_on, execution_time from _sqlx_migrations", // a table of the application
    "select 1; commit",                                        // two statements in one message
];

#[tokio::test]
async fn every_table_of_the_four_crates_is_fenced_or_declared_global() {
    let db = TestDatabase::start(&ALL).await;
    assert_eq!(doctor::examine(db.tenants().pool()).await.unwrap(), []);
}

#[tokio::test]
async fn every_statement_of_the_four_crates_prepares_on_the_migrated_database_and_names_its_tenant() {
    let db = TestDatabase::start(&ALL).await;
    let mut owner = db.owner().await;
    let fenced: Vec<String> = sqlx::query_scalar(
        "select distinct polrelid::regclass::text from pg_policy where polrelid <> 'saas.tenant'::regclass",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let (mut prepared, mut faulty, mut excused, mut unnamed) = (0, Vec::new(), Vec::new(), Vec::new());
    for (place, sql) in statements() {
        if let Some(piece) = NOT_A_STATEMENT.iter().find(|piece| sql.starts_with(**piece)) {
            excused.push(*piece);
            continue;
        }
        let result = (&mut owner).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await;
        match result {
            Ok(_) => prepared += 1,
            Err(error) => faulty.push(format!("{place}: {error}\n{sql}")),
        }
        let touches =
            |table: &String| sql.split(|c: char| !(c.is_alphanumeric() || "._".contains(c))).any(|word| word == table);
        if fenced.iter().any(touches) && !(sql.contains("tenant_id = ") || sql.contains("(tenant_id")) {
            let excuse = ACROSS_TENANTS.iter().find(|piece| sql.contains(**piece));
            match excuse {
                Some(excuse) => excused.push(*excuse),
                None => unnamed.push(format!("{place}:\n{sql}")),
            }
        }
    }
    assert!(faulty.is_empty(), "these do not prepare:\n{}", faulty.join("\n\n"));
    assert!(unnamed.is_empty(), "these name no tenant:\n{}", unnamed.join("\n\n"));
    assert!(prepared > 50, "only {prepared} statements were found");
    for excuse in NOT_A_STATEMENT.iter().chain(ACROSS_TENANTS) {
        assert!(excused.contains(excuse), "nothing needs the exemption {excuse:?} any more");
    }
}

/// Every string literal in the crates' sources that looks like a statement, with its file.
fn statements() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    for crate_name in ["saas-core", "saas-tenancy", "saas-entitlements", "saas-billing"] {
        walk(&root.join(crate_name).join("src"), &mut found);
    }
    found
}

fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("testing") {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source: TokenStream = fs::read_to_string(&path).unwrap().parse().unwrap();
            literals(source, &mut |text| {
                let words: Vec<&str> = text.split_whitespace().collect();
                let is_statement = match words[..] {
                    ["select", _, ..] | ["insert", "into", ..] | ["delete", "from", ..] => true,
                    ["with", ..] => text.contains(" as ("),
                    ["update", ..] => words.contains(&"set"),
                    _ => false,
                };
                if is_statement {
                    found.push((path.display().to_string(), text.trim().to_owned()));
                }
            });
        }
    }
}

/// Attributes hold documentation and reasons, not statements: a `#[…]` group is left out.
fn literals(tokens: TokenStream, report: &mut impl FnMut(String)) {
    let mut after_hash = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if !after_hash => literals(group.stream(), report),
            TokenTree::Literal(literal) => {
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    report(text.value());
                }
            }
            TokenTree::Group(_) | TokenTree::Ident(_) | TokenTree::Punct(_) if after_hash => {}
            TokenTree::Punct(punct) => {
                after_hash = punct.as_char() == '#' || (after_hash && punct.as_char() == '!');
                continue;
            }
            TokenTree::Group(_) | TokenTree::Ident(_) => {}
        }
        after_hash = false;
    }
}
