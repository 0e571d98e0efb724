//! A database for an example: the same on every run, empty at its start.

use sqlx::{ConnectOptions as _, PgConnection, postgres::PgConnectOptions};

use super::{
    DevServer, Purpose,
    admin::{Admin, PoolSizes},
};
use crate::{CoreError, InvalidInput, Schema, SystemPool, TenantPool};

/// The longest name of an example: PostgreSQL's own limit is 63 bytes with the prefix.
const NAME_LENGTH: usize = 40;

/// A freshly migrated database called `saas_<name>`, on the server that `DATABASE_URL` names or on one of its own.
///
/// A server of its own ends with this value or with the process. On a named server the database stays until the next run
/// starts over; no other database there is touched, but the roles `saas_owner`, `saas_app` and `saas_system` are created.
#[derive(Debug)]
pub struct DevDatabase {
    name: String,
    admin: Admin,
    tenants: TenantPool,
    system: SystemPool,
    /// Held for its end; the last field, so that the pools go first.
    server: DevServer,
}

impl DevDatabase {
    /// Starts over: drops the database of an earlier run, creates it and migrates `schemas` in that order.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for a name that is not 1 to 40 lower-case letters, digits or `_`;
    /// [`CoreError::Misconfigured`] when no server can be had, as [`DevServer::start`]; whatever a migration refuses.
    pub async fn start(name: &str, schemas: &[&'static Schema]) -> Result<Self, CoreError> {
        let name = database_name(name)?;
        let server = DevServer::start(Purpose::Examples)?;
        let admin = Admin::new(server.admin_url())?;
        admin.recreate(&name, schemas).await?;
        let (tenants, system) = admin.open(&name, schemas, PoolSizes::default()).await?;
        Ok(Self { name, admin, tenants, system, server })
    }

    /// The pool of the application role.
    #[must_use]
    pub const fn tenants(&self) -> &TenantPool {
        &self.tenants
    }

    /// The pool of the system role.
    #[must_use]
    pub const fn system(&self) -> &SystemPool {
        &self.system
    }

    /// The server it is on.
    #[must_use]
    pub const fn server(&self) -> &DevServer {
        &self.server
    }

    /// How to connect as `role`, such as `saas_app`.
    #[must_use]
    pub fn options(&self, role: &str) -> PgConnectOptions {
        self.admin.login(role, &self.name)
    }

    /// A superuser's connection, for an example's own tables.
    ///
    /// # Errors
    /// [`CoreError::Unavailable`] when the server does not answer.
    pub async fn owner(&self) -> Result<PgConnection, CoreError> {
        self.admin.options(&self.name).connect().await.map_err(CoreError::from_database)
    }
}

/// A name that stands in a statement unquoted.
fn database_name(name: &str) -> Result<String, InvalidInput> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > NAME_LENGTH || !name.bytes().all(fits) {
        return Err(InvalidInput::new(
            "name of a development database",
            "is not 1 to 40 lower-case letters, digits or `_`",
            "pass a name such as `quickstart`",
        ));
    }
    Ok(format!("saas_{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_not_stand_in_a_statement_is_refused() {
        for bad in ["", "Quickstart", "quick-start", "a b", "x; drop database y", "ä", &"x".repeat(41)] {
            assert!(database_name(bad).is_err(), "{bad}");
        }
        assert_eq!(database_name("quickstart").unwrap(), "saas_quickstart");
    }
}
