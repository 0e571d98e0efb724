//! A PgBouncer in transaction mode in front of a development server, that cannot outlive this process.
//!
//! As for the server, a small shell script holds it and ends it when the pipe from this process closes.

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::home::Home;
use crate::CoreError;

const WATCHDOG: &str = "
    trap '' HUP INT TERM
    \"$2\" \"$1/pooler.ini\" </dev/null & pooler=$!
    while read -r _; do :; done
    kill -KILL $pooler 2>/dev/null
    cd / && rm -rf \"$1\"";
const START_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(3);
const PORT_TRIES: usize = 10;

/// A running pooler, until dropped.
///
/// A client's transactions run on whichever of the few server connections is free, so that anything a transaction leaves
/// behind in the session meets another client. Connect with `statement_cache_capacity(0)`: prepared statements belong to a
/// session.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    watchdog: Child,
    lifeline: Option<ChildStdin>,
    _home: Home,
}

impl Pooler {
    /// Starts one for the server at `host` and `port`, with at most `connections` to each database for each role.
    ///
    /// # Errors
    /// [`Misconfigured`](CoreError::Misconfigured) when `pgbouncer` is not installed or does not start, with its log.
    pub fn start((host, port): (&str, u16), connections: u32) -> Result<Self, CoreError> {
        let failed = |why: String| CoreError::Misconfigured {
            what: format!("no PgBouncer: {why}"),
            remedy: "install it: apt-get install pgbouncer, or your system's like".to_owned(),
        };
        let program = find().ok_or_else(|| failed("there is no program of that name".to_owned()))?;
        let mut why = String::new();
        for _ in 0..PORT_TRIES {
            match Self::try_start(&program, (host, port), connections) {
                Ok(pooler) => return Ok(pooler),
                Err(refused) => why = refused,
            }
        }
        Err(failed(why))
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    fn try_start(program: &Path, server: (&str, u16), connections: u32) -> Result<Self, String> {
        let home = Home::create()?;
        let port = free_port().map_err(|error| format!("no free loopback port: {error}"))?;
        write_settings(&home.path, server, port, connections).map_err(|error| format!("cannot write: {error}"))?;
        let mut watchdog = spawn(&home, program).map_err(|error| format!("cannot run sh: {error}"))?;
        let lifeline = watchdog.stdin.take();
        let pooler = Self { port, watchdog, lifeline, _home: home };
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            let log = fs::read_to_string(pooler._home.path.join("log")).unwrap_or_default();
            // Its own log, since someone else may answer on the port.
            if log.contains("process up") && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(pooler);
            }
            if log.contains("FATAL") || log.contains("already in use") {
                return Err(log.lines().next_back().unwrap_or_default().to_owned());
            }
            thread::sleep(POLL);
        }
        Err(format!("not ready after {} s", START_DEADLINE.as_secs()))
    }
}

/// Debian keeps it among the system's programs, which are not on everyone's path.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/bin".into(), "/opt/homebrew/bin".into()])
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
}

fn write_settings(home: &Path, (host, port): (&str, u16), own_port: u16, connections: u32) -> io::Result<()> {
    let logins = super::admin::LOGINS.map(|role| format!("\"{role}\" \"{}\"\n", super::admin::PASSWORD)).concat();
    fs::write(home.join("logins"), logins)?;
    let mut file = fs::File::create(home.join("pooler.ini"))?;
    write!(
        file,
        "[databases]\n* = host={host} port={port}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own_port}\nunix_socket_dir =\n\
         pool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 500\n\
         auth_type = trust\nauth_file = {home}/logins\n\
         ignore_startup_parameters = extra_float_digits\n\
         logfile = {home}/log\n",
        home = home.display()
    )
}

fn spawn(home: &Home, program: &Path) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHDOG, "saas-dev-pooler"]).arg(&home.path).arg(program);
    command.env("LC_ALL", "C").current_dir(&home.path);
    if let Some(account) = home.account {
        for file in ["logins", "pooler.ini"] {
            std::os::unix::fs::chown(home.path.join(file), Some(account.uid), Some(account.gid))?;
        }
        command.uid(account.uid).gid(account.gid);
    }
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        drop(self.watchdog.wait());
    }
}
