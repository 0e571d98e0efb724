//! Leaks through roles. They belong to the server, not to one database, and other databases' audits would see them: so a
//! test binary of their own, with one test.
#![expect(clippy::disallowed_types, reason = "a test plants leaks with statements of its own making")]

use saas_core::{SCHEMA as CORE, doctor, testing::TestDatabase};
use saas_tenancy::{
    assert_isolated,
    testing::{Attack, Target, attack},
};
use sqlx::{AssertSqlSafe, Executor as _};

const TABLES: &str = "
    create table public.project (tenant_id uuid not null references saas.tenant (id), id uuid not null default gen_random_uuid(),
        name text not null, primary key (tenant_id, id));
    select saas.fence('public.project')";

// T2 T3
#[tokio::test]
async fn a_login_that_can_become_another_role_is_seen_and_the_mend_mends_it() {
    let database = TestDatabase::start(&[&CORE]).await;
    let mut owner = database.owner().await;
    owner.execute(TABLES).await.unwrap();
    let login = format!("login_{}", database.name());
    let reader = format!("reader_{}", database.name());
    let create = format!(
        "create role {reader} bypassrls; grant select on public.project to {reader};
         create role {login} login inherit password 'saas-development'; grant saas_app to {login} "
    );
    owner.execute(AssertSqlSafe(create)).await.unwrap();
    // A member of saas_app and of nothing else is bound by its policies.
    let target = Target::from(&database).with_application(database.options(&login));
    let members_only = attack(target.clone()).await.unwrap();
    for (role, code) in [
        (reader.as_str(), "role-membership"),
        ("saas_owner", "role-membership"),
        ("saas_system", "role-membership"),
        ("pg_read_all_data", "role-membership"),
    ] {
        let grant = format!("grant {role} to {login}");
        owner.execute(AssertSqlSafe(grant)).await.unwrap();
        let report = attack(target.clone()).await.unwrap();
        let findings = doctor::examine(database.tenants().pool()).await.unwrap();
        let finding = findings.iter().find(|f| f.code == code && f.object == login).cloned();
        let mended = match &finding {
            Some(finding) => owner.execute(AssertSqlSafe(finding.mend.clone())).await.map(drop),
            None => Ok(()),
        };
        let after = attack(target.clone()).await.unwrap();
        if let (Err(_), _) | (_, None) = (&mended, &finding) {
            panic!("{role}: {mended:?} {findings:#?}");
        }
        // The owner is bound by FORCE, which it can lift.
        let expected = if role == "saas_owner" { Attack::AlterTable } else { Attack::SetRole };
        assert!(report.leaks.iter().any(|leak| leak.attack == expected), "{role}: {report}");
        assert_eq!(after.leaks, [], "{role}");
    }
    let drop_roles = format!("drop owned by {login}; drop role {login}; drop owned by {reader}; drop role {reader}");
    owner.execute(AssertSqlSafe(drop_roles)).await.unwrap();
    assert_eq!(members_only.leaks, []);
    drop(assert_isolated!(&database));
}
