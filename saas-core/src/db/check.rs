//! What start-up refuses: logins that row-level security does not bind, and servers that leak through it.

use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};

use crate::CoreError;

/// Which side of the fence a login is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Tenant,
    System,
}

impl Login {
    const fn role(self) -> &'static str {
        match self {
            Self::Tenant => "saas_app",
            Self::System => "saas_system",
        }
    }

    const fn forbidden_role(self) -> &'static str {
        match self {
            Self::Tenant => "saas_system",
            Self::System => "saas_app",
        }
    }
}

struct Facts {
    login: String,
    impersonating: bool,
    superuser: bool,
    bypasses: bool,
    /// Roles that the login can act as and that would free it from the policies.
    dangerous: Option<String>,
    owned: Option<String>,
    is_member: bool,
    is_other_side: bool,
}

const FACTS: &str = "
    with me as (select oid, rolname, rolsuper, rolbypassrls from pg_roles where rolname = current_user)
    select me.rolname::text as login,
           session_user <> current_user as impersonating,
           me.rolsuper as superuser,
           me.rolbypassrls as bypasses,
           (select string_agg(r.rolname, ', ' order by r.rolname)
            from pg_roles r
            where r.oid <> me.oid and pg_has_role(me.oid, r.oid, 'member')
              and (r.rolsuper or r.rolbypassrls
                   or exists (select from pg_class c where c.relowner = r.oid and c.relrowsecurity))) as dangerous,
           (select string_agg(c.oid::regclass::text, ', ' order by c.oid)
            from (select oid from pg_class where relowner = me.oid and relrowsecurity limit 3) c) as owned,
           coalesce((select pg_has_role(me.oid, r.oid, 'usage') from pg_roles r where r.rolname = $1), false) as is_member,
           coalesce((select pg_has_role(me.oid, r.oid, 'member') from pg_roles r where r.rolname = $2), false) as is_other_side,
           current_setting('server_version_num')::integer as server
    from me";

/// Refuses a login before any other statement is run with it.
pub(super) async fn login(pool: &PgPool, login: Login) -> Result<(), CoreError> {
    let row = sqlx::query(FACTS)
        .bind(login.role())
        .bind(login.forbidden_role())
        .fetch_one(pool)
        .await
        .map_err(CoreError::from_database)?;
    server(row.try_get("server").map_err(CoreError::from_database)?)?;
    judge(login, Facts::try_from(row).map_err(CoreError::from_database)?)
}

impl TryFrom<PgRow> for Facts {
    type Error = sqlx::Error;

    fn try_from(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            login: row.try_get("login")?,
            impersonating: row.try_get("impersonating")?,
            superuser: row.try_get("superuser")?,
            bypasses: row.try_get("bypasses")?,
            dangerous: row.try_get("dangerous")?,
            owned: row.try_get("owned")?,
            is_member: row.try_get("is_member")?,
            is_other_side: row.try_get("is_other_side")?,
        })
    }
}

fn judge(login: Login, facts: Facts) -> Result<(), CoreError> {
    let refuse = |role: &str, reason: String, remedy: String| {
        Err(CoreError::PrivilegedRole { role: role.to_owned(), reason, remedy })
    };
    let role = facts.login.as_str();
    let wanted = login.role();
    let instead = || format!("connect as `{wanted}`");
    if facts.superuser {
        return refuse(role, "it is superuser, and row-level security does not bind superusers".into(), instead());
    }
    if facts.bypasses {
        return refuse(role, "it has BYPASSRLS".into(), format!("alter role {role} nobypassrls, or {}", instead()));
    }
    if let Some(owned) = facts.owned {
        return refuse(role, format!("it owns {owned} and could switch the policies off"), instead());
    }
    if let Some(others) = facts.dangerous {
        let reason = format!("it is a member of {others}, which row-level security does not bind");
        return refuse(role, reason, format!("revoke {others} from {role}"));
    }
    if facts.is_other_side {
        let other = login.forbidden_role();
        return refuse(role, format!("it is a member of `{other}`"), format!("revoke {other} from {role}"));
    }
    if facts.impersonating {
        return refuse(role, "it was reached by SET ROLE".into(), "log in as that role itself".into());
    }
    if !facts.is_member {
        return Err(CoreError::Misconfigured {
            what: format!("login `{role}` is not a member of `{wanted}`, so it may touch nothing"),
            remedy: format!("{}, or grant {wanted} to {role}", instead()),
        });
    }
    Ok(())
}

/// The first safe minor release of each major version (CVE-2025-8713, CVE-2024-10976 and earlier).
const SAFE_MINORS: &[(i32, i32)] = &[(15, 14), (16, 10), (17, 6)];

/// `number` is `server_version_num`: major × 10,000 + minor.
fn server(number: i32) -> Result<(), CoreError> {
    let (major, minor) = (number / 10_000, number % 10_000);
    let unsafe_server = |major: i32, minor: i32| {
        Err(CoreError::UnsafeServer {
            found: format!("{}.{}", number / 10_000, number % 10_000),
            needed: format!("{major}.{minor}"),
        })
    };
    if major < 15 {
        return unsafe_server(15, 14);
    }
    match SAFE_MINORS.iter().find(|(safe_major, _)| *safe_major == major) {
        Some(&(_, safe_minor)) if minor < safe_minor => unsafe_server(major, safe_minor),
        Some(_) | None => Ok(()),
    }
}

/// Whether a connection that comes back to the pool is as it was handed out.
///
/// Over the simple protocol: only there do `transaction_timestamp()` and `statement_timestamp()` agree exactly when no
/// transaction is open.
pub(super) async fn is_clean(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::raw_sql(
        "select transaction_timestamp() = statement_timestamp()
            and coalesce(current_setting('saas.tenant_id', true), '') = ''
            and current_user = session_user
            and not exists (select from pg_cursors where is_holdable)",
    )
    .fetch_one(connection)
    .await?;
    row.try_get(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    // T20
    #[test]
    fn releases_with_known_leaks_are_refused() {
        for number in [90_624, 140_018, 140_019, 150_013, 160_009, 170_005] {
            assert_eq!(server(number).unwrap_err().code(), "unsafe_server_version", "{number}");
        }
        for number in [150_014, 150_018, 160_010, 170_006, 180_000] {
            server(number).unwrap();
        }
        assert_eq!(server(150_013).unwrap_err().kind(), ErrorKind::Misconfigured);
    }
}
