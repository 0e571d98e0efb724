//! A broken schema: how it is planted, who must see it, and that the doctor's mend closes it.

use saas_core::{
    doctor::{self, Finding},
    testing::TestDatabase,
};
use saas_tenancy::testing::{Attack, Report, attack};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::task::JoinSet;

use crate::shop;

const AT_ONCE: usize = 4;

/// One broken schema.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) plant: &'static str,
    /// The attack that must succeed, and on what; `None` where the flaw leaks nothing by itself.
    pub(crate) attack: Option<(Attack, &'static str)>,
    /// The doctor's finding, and about what.
    pub(crate) doctor: (&'static str, &'static str),
}

pub(crate) const fn both(
    name: &'static str,
    plant: &'static str,
    attack: (Attack, &'static str),
    doctor: (&'static str, &'static str),
) -> Case {
    Case { name, plant, attack: Some(attack), doctor }
}

/// A flaw of the structure, which only the doctor can see.
pub(crate) const fn structural(name: &'static str, plant: &'static str, doctor: (&'static str, &'static str)) -> Case {
    Case { name, plant, attack: None, doctor }
}

async fn examine(database: &TestDatabase) -> Vec<Finding> {
    doctor::examine(database.tenants().pool()).await.unwrap()
}

fn has(report: &Report, attack: Attack, object: &str) -> bool {
    report.leaks.iter().any(|leak| leak.attack == attack && leak.object.contains(object))
}

/// Plants the leak, looks for it in both ways, mends it, and looks again.
async fn check(case: &'static Case) -> Vec<String> {
    let database = shop::start().await;
    let mut owner = database.owner().await;
    let name = case.name;
    if let Err(error) = owner.execute(case.plant).await {
        return vec![format!("{name}: could not be planted: {error}")];
    }
    let mut faults = Vec::new();
    let report = attack(&database).await.unwrap();
    match case.attack {
        Some((attack, object)) if !has(&report, attack, object) => {
            faults.push(format!("{name}: no {attack} of {object} succeeded\n{report}"));
        }
        None if !report.leaks.is_empty() => faults.push(format!("{name}: leaks after all\n{report}")),
        Some(_) | None => {}
    }
    let findings = examine(&database).await;
    let (code, object) = case.doctor;
    if !findings.iter().any(|finding| finding.code == code && finding.object.contains(object)) {
        faults.push(format!("{name}: the doctor finds no {code} of {object}, but {findings:#?}"));
    }
    // A mend may uncover something that the fault covered.
    let mut rounds = findings;
    for _ in 0..3 {
        for finding in &rounds {
            if let Err(error) = owner.execute(AssertSqlSafe(finding.mend.clone())).await {
                faults.push(format!("{name}: {finding}\n    the mend fails: {error}"));
            }
        }
        rounds = examine(&database).await;
    }
    if !rounds.is_empty() {
        faults.push(format!("{name}: mended, but the doctor still finds {rounds:#?}"));
    }
    let mended = attack(&database).await.unwrap();
    if !mended.is_isolated() {
        faults.push(format!("{name}: mended, but {mended}"));
    }
    faults
}

/// Checks all of them, some at once.
pub(crate) async fn check_all(cases: &'static [Case]) {
    let mut faults = Vec::new();
    let mut waiting = cases.iter();
    let mut running = JoinSet::new();
    for case in waiting.by_ref().take(AT_ONCE) {
        running.spawn(check(case));
    }
    while let Some(checked) = running.join_next().await {
        faults.extend(checked.unwrap());
        waiting.next().map(|case| running.spawn(check(case)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
