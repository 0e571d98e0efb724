//! What start-up refuses: logins that row-level security does not bind, and servers that leak through it.

use sqlx::{PgConnection, Row, postgres::PgRow};

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
}

struct Facts {
    login: String,
    impersonating: bool,
    /// Attributes of the role that free it, or let it free itself.
    attribute: Option<String>,
    /// Roles it is a member of, beyond the one it is meant for.
    memberships: Option<String>,
    owned: Option<String>,
    is_member: bool,
    /// A tenant that every session of the login, or of the database, starts with.
    preset: Option<String>,
}

const FACTS: &str = "
    with me as (select * from pg_roles where rolname = current_user)
    select me.rolname::text as login,
           session_user <> current_user as impersonating,
           case when me.rolsuper then 'superuser' when me.rolbypassrls then 'BYPASSRLS'
                when me.rolreplication then 'REPLICATION' when me.rolcreaterole then 'CREATEROLE'
                when me.rolcreatedb then 'CREATEDB' end as attribute,
           (select string_agg(r.rolname, ', ' order by r.rolname)
            from pg_roles r
            where r.rolname not in (me.rolname, $1) and pg_has_role(me.oid, r.oid, 'member')) as memberships,
           (select string_agg(c.oid::regclass::text, ', ' order by c.oid)
            from (select oid from pg_class where relowner = me.oid and relkind in ('r', 'p', 'v', 'm') limit 3) c) as owned,
           coalesce((select pg_has_role(me.oid, r.oid, 'usage') from pg_roles r where r.rolname = $1), false) as is_member,
           nullif(coalesce(current_setting('saas.tenant_id', true), '') || coalesce(current_setting('saas.system', true), ''), '') as preset,
           current_setting('server_version_num')::integer as server
    from me";

/// Refuses a login before any other statement is run with it.
pub(super) async fn login(connection: &mut PgConnection, login: Login) -> Result<(), CoreError> {
    let row = sqlx::query(FACTS).bind(login.role()).fetch_one(connection).await.map_err(CoreError::from_database)?;
    server(row.try_get("server").map_err(CoreError::from_database)?)?;
    judge(login, Facts::try_from(row).map_err(CoreError::from_database)?)
}

impl TryFrom<PgRow> for Facts {
    type Error = sqlx::Error;

    fn try_from(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            login: row.try_get("login")?,
            impersonating: row.try_get("impersonating")?,
            attribute: row.try_get("attribute")?,
            memberships: row.try_get("memberships")?,
            owned: row.try_get("owned")?,
            is_member: row.try_get("is_member")?,
            preset: row.try_get("preset")?,
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
    if let Some(attribute) = facts.attribute {
        let reason = format!("it is {attribute}, which row-level security does not bind or which could lift it");
        return refuse(role, reason, format!("alter role {role} no{}, or {}", attribute.to_lowercase(), instead()));
    }
    if let Some(owned) = facts.owned {
        return refuse(role, format!("it owns {owned} and could switch the policies off"), instead());
    }
    if let Some(others) = facts.memberships {
        let reason = format!("it is a member of {others} and has those rights as well");
        return refuse(role, reason, format!("revoke {others} from {role}"));
    }
    if facts.impersonating {
        return refuse(role, "it was reached by SET ROLE".into(), "log in as that role itself".into());
    }
    if facts.preset.is_some() {
        return Err(CoreError::Misconfigured {
            what: format!(
                "every session of `{role}` starts as a tenant or as the system (saas.* is set for the role or the database)"
            ),
            remedy: format!(
                "alter role {role} reset saas.tenant_id, and the same for saas.system and for the database"
            ),
        });
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
