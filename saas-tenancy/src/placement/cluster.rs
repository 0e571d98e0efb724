//! The servers that an application configures, and how to log in to each of their databases.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use saas_core::{InvalidInput, TenantId};
use sqlx::postgres::PgConnectOptions;

use super::PlacementError;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident called $what:literal),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidInput;

            fn from_str(text: &str) -> Result<Self, InvalidInput> {
                if is_name(text) {
                    return Ok(Self(text.into()));
                }
                Err(InvalidInput::new(
                    $what,
                    "is not 1 to 63 lower-case letters, digits and underscores that start with a letter",
                    "pass a name such as `eu_1`",
                ))
            }
        }
    )+};
}

names! {
    /// What the application calls a server. `control` is the one that holds the foundation's own rows.
    ClusterName called "cluster name",
    /// A database that one tenant has for itself.
    DatabaseName called "database name",
}

fn is_name(text: &str) -> bool {
    let mut letters = text.bytes();
    letters.next().is_some_and(|b| b.is_ascii_lowercase())
        && letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && text.len() <= 63
        && !text.starts_with("pg_")
        && !matches!(text, "postgres" | "template0" | "template1")
}

impl ClusterName {
    /// The cluster of the control database.
    #[must_use]
    pub fn control() -> Self {
        Self(CONTROL.into())
    }
}

impl DatabaseName {
    /// The database of a tenant's own: `saas_t_` and the tenant's id in 32 hexadecimal digits.
    #[must_use]
    pub fn of(tenant: TenantId) -> Self {
        Self(format!("saas_t_{}", tenant.as_uuid().simple()).into())
    }
}

const CONTROL: &str = "control";

/// One database of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Database {
    /// On which server.
    pub cluster: ClusterName,
    /// `None`: the database that the cluster's logins name, which tenants share.
    pub name: Option<DatabaseName>,
}

impl Database {
    /// The one with the foundation's own rows.
    #[must_use]
    pub fn control() -> Self {
        Self { cluster: ClusterName::control(), name: None }
    }

    /// Whether this is the one with the foundation's own rows.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.name.is_none() && *self.cluster.0 == *CONTROL
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}/{name}", self.cluster),
            None => write!(f, "{}", self.cluster),
        }
    }
}

/// As whom to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// A member of `saas_app`: serves tenants.
    Application,
    /// A member of `saas_system`: reads and writes across tenants.
    System,
    /// Creates databases, schemas and tables; may act as `saas_owner`.
    Admin,
}

/// How to log in to one server. The database that the options name is the one its tenants share.
#[derive(Clone)]
pub struct Cluster {
    application: PgConnectOptions,
    system: PgConnectOptions,
    admin: Option<PgConnectOptions>,
}

impl Cluster {
    /// A server that tenants are served from.
    #[must_use]
    pub const fn new(application: PgConnectOptions, system: PgConnectOptions) -> Self {
        Self { application, system, admin: None }
    }

    /// Lets this process provision and migrate there. The login must be allowed to create databases, to act as
    /// `saas_owner`, and to migrate (see [`saas_core::migrate`]). A process that only serves tenants needs none.
    #[must_use]
    pub fn with_admin(mut self, admin: PgConnectOptions) -> Self {
        self.admin = Some(admin);
        self
    }
}

/// Options may hold a password: only where they lead to is shown.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("host", &self.application.get_host())
            .field("port", &self.application.get_port())
            .field("has_admin", &self.admin.is_some())
            .finish_non_exhaustive()
    }
}

/// Every server that the application knows, by name.
#[derive(Debug, Clone)]
pub struct Clusters(Arc<BTreeMap<ClusterName, Cluster>>);

impl Clusters {
    /// The control cluster alone.
    #[must_use]
    pub fn new(control: Cluster) -> Self {
        Self(Arc::new(BTreeMap::from([(ClusterName::control(), control)])))
    }

    /// One more.
    ///
    /// # Errors
    /// When the name is in use.
    pub fn with_cluster(self, name: ClusterName, cluster: Cluster) -> Result<Self, InvalidInput> {
        let mut all = Arc::unwrap_or_clone(self.0);
        if all.contains_key(&name) {
            return Err(InvalidInput::new(
                format!("cluster `{name}`"),
                "is configured twice",
                "give each its own name",
            ));
        }
        all.insert(name, cluster);
        Ok(Self(Arc::new(all)))
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &ClusterName> {
        self.0.keys()
    }

    /// How to connect to a database.
    ///
    /// # Errors
    /// [`UnknownCluster`](PlacementError::UnknownCluster); [`NoAdmin`](PlacementError::NoAdmin).
    pub fn options(&self, database: &Database, login: Login) -> Result<PgConnectOptions, PlacementError> {
        let unknown = || PlacementError::UnknownCluster { cluster: database.cluster.clone() };
        let cluster = self.0.get(&database.cluster).ok_or_else(unknown)?;
        let options = match login {
            Login::Application => &cluster.application,
            Login::System => &cluster.system,
            Login::Admin => {
                let missing = || PlacementError::NoAdmin { cluster: database.cluster.clone() };
                cluster.admin.as_ref().ok_or_else(missing)?
            }
        };
        let name = match &database.name {
            Some(own) => Some(own.as_str()),
            // The application's login says which database is the shared one; an admin's may lead to another.
            None => cluster.application.get_database(),
        };
        Ok(match name {
            Some(name) => options.clone().database(name),
            None => options.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_postgresql_would_have_to_quote_or_that_are_its_own_are_refused() {
        for bad in ["", "Eu", "eu-1", "1eu", "eu\"; drop", "pg_x", "postgres", "template1", &"a".repeat(64)] {
            assert!(bad.parse::<DatabaseName>().is_err(), "{bad:?}");
        }
        assert_eq!("eu_1".parse::<ClusterName>().unwrap().as_str(), "eu_1");
    }

    #[test]
    fn a_password_is_not_shown_and_a_name_not_given_twice() {
        let login = |text: &str| text.parse::<PgConnectOptions>().unwrap();
        let cluster = Cluster::new(login("postgres://a:hunter2@db/app"), login("postgres://s:hunter2@db/app"));
        let clusters = Clusters::new(cluster.clone());
        assert!(!format!("{clusters:?}").contains("hunter2"));
        assert!(clusters.clone().with_cluster(ClusterName::control(), cluster.clone()).is_err());
        let eu: ClusterName = "eu".parse().unwrap();
        let own = Database { cluster: eu.clone(), name: Some("acme".parse().unwrap()) };
        assert_eq!(clusters.options(&own, Login::System).unwrap_err().code(), "unknown_cluster");
        let clusters = clusters.with_cluster(eu, cluster).unwrap();
        assert_eq!(clusters.options(&own, Login::System).unwrap().get_database(), Some("acme"));
        assert_eq!(clusters.options(&own, Login::Admin).unwrap_err().code(), "no_admin_login");
        assert_eq!(own.to_string(), "eu/acme");
    }
}
