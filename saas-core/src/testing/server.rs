//! The way to a development PostgreSQL: the first rung that holds, or one error that names them all.

use std::{
    env, fmt,
    net::{TcpStream, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use super::{
    binaries::Binaries,
    cluster::{ADMIN, Cluster},
};
use crate::CoreError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server is for, and so which variable may name one.
///
/// Never the same variable for both: tests create and drop roles and databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reads `SAAS_TEST_DATABASE_URL`.
    Tests,
    /// Reads `DATABASE_URL`.
    Examples,
}

impl Purpose {
    /// The environment variable that names a server for this purpose.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Tests => "SAAS_TEST_DATABASE_URL",
            Self::Examples => "DATABASE_URL",
        }
    }
}

/// What a server of our own promises about a commit when the machine fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: no flush to disk. For tests.
    None,
    /// What PostgreSQL promises by default. For measurements.
    Full,
}

/// A PostgreSQL server for development, with superuser access.
///
/// A server that this started listens on the loopback address only, and is stopped and removed when the value is dropped
/// and whenever the process ends, even by SIGKILL. A server named by the variable is left as it is.
#[derive(Debug)]
pub struct DevServer {
    admin_url: String,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Elsewhere,
    Local(Cluster),
    #[cfg(feature = "docker")]
    #[expect(dead_code, reason = "held only to be dropped")]
    Docker(super::docker::Container),
}

impl DevServer {
    /// Takes the server that the purpose's variable names, else starts one: local binaries, then Docker where the feature
    /// `docker` is on.
    ///
    /// Blocks, for about a second where it starts a server.
    ///
    /// # Errors
    /// [`CoreError::Misconfigured`] when the variable is set but nothing answers there, or when no rung holds: the text
    /// names each rung, why it failed, and the one line that mends it.
    pub fn start(purpose: Purpose) -> Result<Self, CoreError> {
        let variable = purpose.variable();
        match env::var(variable) {
            Ok(url) if !url.is_empty() => Self::elsewhere(variable, url),
            Err(env::VarError::NotUnicode(_)) => Err(CoreError::Misconfigured {
                what: format!("{variable} is not UTF-8"),
                remedy: "set it to postgres://user@host:port/database, or unset it".to_owned(),
            }),
            Ok(_) | Err(env::VarError::NotPresent) => {
                Self::start_own_after(Missed { rung: variable, why: "not set".to_owned() }, Durability::None)
            }
        }
    }

    /// Starts a server of our own, whatever the environment names: for measurements, and for tests of servers.
    ///
    /// # Errors
    /// [`CoreError::Misconfigured`] as for [`start`](Self::start).
    pub fn start_own(durability: Durability) -> Result<Self, CoreError> {
        Self::start_own_after(Missed { rung: "variable", why: "not asked".to_owned() }, durability)
    }

    /// The URL of the superuser's login, such as `postgres://saas_admin@127.0.0.1:54321/postgres`.
    #[must_use]
    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// Ends the server as a crash would, and starts it again on the same port and data. Whoever is connected is cut off.
    ///
    /// Transactions that were committed with `synchronous_commit` on are kept; [`Durability::None`] turns it off.
    ///
    /// # Errors
    /// [`CoreError::Misconfigured`] when the server is not one of the machine's binaries that this started, or does not come
    /// back.
    pub fn crash(&mut self) -> Result<(), CoreError> {
        let refused = |what: String| CoreError::Misconfigured {
            what,
            remedy: "start one of the machine's binaries with `start_own`".to_owned(),
        };
        match &mut self.running {
            Running::Local(cluster) => cluster.crash().map_err(refused),
            Running::Elsewhere => Err(refused("the server belongs to somebody else".to_owned())),
            #[cfg(feature = "docker")]
            Running::Docker(_) => Err(refused("the server is in a container".to_owned())),
        }
    }

    fn elsewhere(variable: &'static str, url: String) -> Result<Self, CoreError> {
        // The URL may hold a password: errors name the variable and the reason, never the value.
        let refused = |why: String| CoreError::Misconfigured {
            what: format!("{variable} is set, but {why}"),
            remedy: format!("start that server, correct the variable, or unset {variable} to have one started"),
        };
        let address = address_of(&url).ok_or_else(|| refused("it is not a postgres:// URL".to_owned()))?;
        if let Some((host, port)) = address {
            answers(host, port).map_err(|error| refused(format!("nothing answers at {host}:{port} ({error})")))?;
        }
        Ok(Self { admin_url: url, running: Running::Elsewhere })
    }

    fn start_own_after(variable: Missed, durability: Durability) -> Result<Self, CoreError> {
        let mut missed = vec![variable];
        match Binaries::find().and_then(|binaries| Cluster::start(&binaries, durability)) {
            Ok(cluster) => return Ok(Self { admin_url: local_url(cluster.port()), running: Running::Local(cluster) }),
            Err(why) => missed.push(Missed { rung: "local binaries", why }),
        }
        match docker(durability) {
            Ok(server) => return Ok(server),
            Err(why) => missed.push(Missed { rung: "docker", why }),
        }
        let tried: Vec<String> = missed.iter().map(ToString::to_string).collect();
        Err(CoreError::Misconfigured {
            what: format!("no development PostgreSQL: {}", tried.join("; ")),
            remedy: format!("install the server: {}", install_line()),
        })
    }
}

#[cfg(feature = "docker")]
fn docker(durability: Durability) -> Result<DevServer, String> {
    let container = super::docker::Container::start(Path::new("docker"), durability)?;
    Ok(DevServer { admin_url: local_url(container.port()), running: Running::Docker(container) })
}

#[cfg(not(feature = "docker"))]
fn docker(_: Durability) -> Result<DevServer, String> {
    Err("the feature `docker` is off".to_owned())
}

/// One rung that did not hold.
struct Missed {
    rung: &'static str,
    why: String,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rung, self.why)
    }
}

fn local_url(port: u16) -> String {
    format!("postgres://{ADMIN}@127.0.0.1:{port}/postgres")
}

/// Host and port of a URL; `Some(None)` for a socket directory or a host list, which only the client can try.
fn address_of(url: &str) -> Option<Option<(&str, u16)>> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    if host_port.is_empty() || host_port.contains([',', '%']) {
        return Some(None);
    }
    let (host, port) = match host_port.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (host_port, 5432),
    };
    Some(Some((host.trim_start_matches('[').trim_end_matches(']'), port)))
}

fn answers(host: &str, port: u16) -> std::io::Result<()> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn install_line() -> &'static str {
    const MANAGERS: [(&str, &str); 5] = [
        ("/usr/bin/apt-get", "apt-get install -y postgresql"),
        ("/usr/bin/dnf", "dnf install -y postgresql-server"),
        ("/sbin/apk", "apk add postgresql"),
        ("/usr/bin/pacman", "pacman -S --noconfirm postgresql"),
        ("/opt/homebrew/bin/brew", "brew install postgresql"),
    ];
    let found = MANAGERS.iter().find(|(manager, _)| Path::new(manager).exists());
    found.map_or("apt-get install -y postgresql", |(_, line)| line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_examples_never_share_a_variable() {
        assert_ne!(Purpose::Tests.variable(), Purpose::Examples.variable());
    }

    #[test]
    fn the_address_in_a_url_is_found_whatever_surrounds_it() {
        let found = |url| address_of(url).unwrap();
        assert_eq!(found("postgres://u:p@db.example:6432/app?sslmode=require"), Some(("db.example", 6432)));
        assert_eq!(found("postgresql://db.example/app"), Some(("db.example", 5432)));
        assert_eq!(found("postgres://u:p@ss@[::1]:5433/app"), Some(("::1", 5433)));
        assert_eq!(found("postgres://u@[::1]/app"), Some(("::1", 5432)));
        assert_eq!(found("postgres:///app?host=/run/postgresql"), None);
        assert_eq!(found("postgres://%2Frun%2Fpostgresql/app"), None);
        assert_eq!(address_of("mysql://db.example/app"), None);
        assert_eq!(address_of("postgres://db.example:port/app"), None);
    }

    #[test]
    fn a_named_server_that_does_not_answer_is_an_error_without_the_password() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("postgres://me:hunter2@127.0.0.1:{port}/app");
        let error = DevServer::elsewhere("DATABASE_URL", url).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), "misconfigured");
        assert!(text.starts_with(&format!("DATABASE_URL is set, but nothing answers at 127.0.0.1:{port}")), "{text}");
        assert!(text.contains("unset DATABASE_URL"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
