//! A PostgreSQL server of our own from the machine's binaries, that cannot outlive this process.
//!
//! Everything runs below a small shell script, the watchdog, which reads a pipe whose only write end is here. When this
//! process ends in any way, the kernel closes the pipe and the watchdog stops the server and removes its directory.

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Durability, binaries::Binaries, home::Home};

const WATCHDOG: &str = include_str!("watchdog.sh");
/// The bootstrap superuser: for creating roles and databases, never for a test's own queries.
pub(super) const ADMIN: &str = "saas_admin";

/// `initdb` and start take under a second; a loaded machine may take far longer.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// The watchdog itself gives up a little earlier.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(3);
/// How often another process may snatch the port between our choice and the server's.
const PORT_TRIES: usize = 10;
const LOG_LINES: usize = 4;

/// Fit for many short-lived databases: room for every test's pools, no replication, no planner surprises from JIT.
const SETTINGS: [&str; 10] = [
    "unix_socket_directories=",
    "max_connections=500",
    "shared_buffers=128MB",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=1GB",
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_min_messages=warning",
];
const NOT_DURABLE: [&str; 3] = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"];

/// A running server and its directory, until dropped.
#[derive(Debug)]
pub(super) struct Cluster {
    port: u16,
    watchdog: Child,
    /// The pipe whose end stops the server; `None` once closed.
    lifeline: Option<ChildStdin>,
    home: Home,
}

impl Cluster {
    /// Makes and starts a server on a free loopback port.
    ///
    /// # Errors
    /// A sentence with the end of the server's log. Nothing is left running.
    pub(super) fn start(binaries: &Binaries, durability: Durability) -> Result<Self, String> {
        Self::start_in(Home::create()?, binaries, durability, &mut free_port)
    }

    fn start_in(
        home: Home,
        binaries: &Binaries,
        durability: Durability,
        choose_port: &mut dyn FnMut() -> io::Result<u16>,
    ) -> Result<Self, String> {
        let mut watchdog = spawn_watchdog(&home, binaries, durability).map_err(|error| {
            drop(fs::remove_dir_all(&home.path));
            format!("cannot run sh as the server's account: {error}")
        })?;
        let lifeline = watchdog.stdin.take();
        let mut cluster = Self { port: 0, watchdog, lifeline, home };
        let deadline = Instant::now() + START_DEADLINE;
        let mut seen = 0;
        for _ in 0..PORT_TRIES {
            let port = choose_port().map_err(|error| format!("no free loopback port: {error}"))?;
            match cluster.try_port(port, seen, deadline)? {
                Attempt::Ready => return Ok(cluster),
                Attempt::PortTaken { log } => seen = log,
            }
        }
        Err(format!("{PORT_TRIES} ports in a row were taken between choosing and using them"))
    }

    /// Ends the server by an immediate shutdown, which is what a crash is to it: no flush, no farewell, recovery from the log
    /// at the next start. Then starts it again on the same port and data.
    ///
    /// # Errors
    /// A sentence with the end of the server's log.
    pub(super) fn crash(&mut self) -> Result<(), String> {
        let pid = fs::read_to_string(self.home.path.join("pid")).map_err(|error| format!("no server runs: {error}"))?;
        let killed = Command::new("kill").args(["-QUIT", pid.trim()]).status();
        if !killed.is_ok_and(|status| status.success()) {
            return Err(format!("cannot signal the server with pid {}", pid.trim()));
        }
        let deadline = Instant::now() + START_DEADLINE;
        while !self.home.path.join("exited").exists() {
            if Instant::now() > deadline {
                return Err(format!("the server did not end; {}", self.log_end(0)));
            }
            thread::sleep(POLL);
        }
        // Whoever takes the port meanwhile gives it back, or the deadline passes.
        while Instant::now() < deadline {
            let seen = self.log().len();
            self.forget_exit(seen)?;
            match self.try_port(self.port, seen, deadline)? {
                Attempt::Ready => return Ok(()),
                Attempt::PortTaken { .. } => {
                    fs::write(self.home.path.join("exited"), "").map_err(|error| error.to_string())?
                }
            }
        }
        Err("the port was taken for good".to_owned())
    }

    /// The TCP port on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// `seen`: the length of the log that earlier attempts wrote.
    fn try_port(&mut self, port: u16, seen: usize, deadline: Instant) -> Result<Attempt, String> {
        self.port = port;
        let lifeline = self.lifeline.as_mut().ok_or("the watchdog has no input")?;
        writeln!(lifeline, "{port}").map_err(|error| format!("the watchdog ended: {error}; {}", self.log_end(0)))?;
        while Instant::now() < deadline {
            if is_ready(&self.home.path, port) {
                return Ok(Attempt::Ready);
            }
            if self.home.path.join("exited").exists() {
                let log = self.log();
                let taken = log.get(seen..).is_some_and(is_port_taken);
                return if taken { self.forget_exit(log.len()) } else { Err(self.log_end(seen)) };
            }
            if let Ok(Some(status)) = self.watchdog.try_wait() {
                return Err(format!("the watchdog ended with {status}"));
            }
            thread::sleep(POLL);
        }
        Err(format!("not ready after {} s; {}", START_DEADLINE.as_secs(), self.log_end(seen)))
    }

    /// So that the next attempt does not read this attempt's end as its own.
    fn forget_exit(&self, log: usize) -> Result<Attempt, String> {
        fs::remove_file(self.home.path.join("exited")).map_err(|error| format!("cannot try another port: {error}"))?;
        Ok(Attempt::PortTaken { log })
    }

    fn log(&self) -> String {
        fs::read(self.home.path.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines written since `seen`, on one line.
    fn log_end(&self, seen: usize) -> String {
        let log = self.log();
        let lines: Vec<&str> =
            log.get(seen..).unwrap_or(&log).lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default() {
            [] => "its log is empty".to_owned(),
            end => format!("its log ends: {}", end.join(" | ")),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let deadline = Instant::now() + STOP_DEADLINE;
        while let Ok(None) = self.watchdog.try_wait() {
            if Instant::now() > deadline {
                // Out of patience: the next start's sweep finds the home unlocked and finishes the work.
                drop(self.watchdog.kill());
                drop(self.watchdog.wait());
                return;
            }
            thread::sleep(POLL);
        }
    }
}

enum Attempt {
    Ready,
    /// Someone was faster; `log` is the log's length at the server's end.
    PortTaken {
        log: usize,
    },
}

fn spawn_watchdog(home: &Home, binaries: &Binaries, durability: Durability) -> io::Result<Child> {
    let log = fs::File::create(home.path.join("log"))?;
    let mut command = Command::new("sh");
    command.args(["-c", WATCHDOG, "saas-dev-postgres"]).arg(&home.path);
    let initdb = format!("-A trust --locale=C --encoding=UTF8 -U {ADMIN}");
    command.arg(&binaries.initdb).arg(match durability {
        Durability::None => format!("{initdb} --no-sync"),
        Durability::Full => initdb,
    });
    command.arg(&binaries.postgres);
    let durability: &[&str] = if durability == Durability::None { &NOT_DURABLE } else { &[] };
    for setting in SETTINGS.iter().chain(durability) {
        command.args(["-c", setting]);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("PG"))) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").current_dir(&home.path);
    if let Some(account) = home.account {
        command.uid(account.uid).gid(account.gid);
    }
    // Its own process group: a Ctrl-C at the terminal reaches the owner only. The log takes its output: a watchdog that
    // held the owner's standard output would keep a pipe such as `cargo test | tee` open.
    command.process_group(0).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether the server of this very directory takes connections: a probe of the port could meet someone else's server.
fn is_ready(home: &Path, port: u16) -> bool {
    let Ok(file) = fs::read_to_string(home.join("data/postmaster.pid")) else { return false };
    let mut lines = file.lines();
    lines.nth(3).is_some_and(|line| line.trim().parse() == Ok(port))
        && lines.nth(3).is_some_and(|status| status.trim() == "ready")
}

fn is_port_taken(log: &str) -> bool {
    log.contains("Address already in use") || log.contains("could not bind")
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn cluster() -> Cluster {
        Cluster::start(&Binaries::find().unwrap(), Durability::None).unwrap()
    }

    #[test]
    fn dropping_stops_the_server_and_removes_its_directory() {
        let cluster = cluster();
        let (port, home) = (cluster.port(), cluster.home.path.clone());
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        drop(cluster);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err(), "the port is closed");
        assert!(!home.exists(), "the directory is gone");
    }

    #[test]
    fn a_server_that_crashed_comes_back_on_the_same_port_and_data() {
        let mut cluster = cluster();
        let (port, home) = (cluster.port(), cluster.home.path.clone());
        let pid = |home: &Path| fs::read_to_string(home.join("pid")).unwrap();
        let first = pid(&home);
        for _ in 0..2 {
            cluster.crash().unwrap();
            assert_eq!(cluster.port(), port);
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        }
        assert_ne!(pid(&home), first);
        assert!(cluster.log().contains("immediate shutdown"), "{}", cluster.log());
        drop(cluster);
        assert!(!home.exists(), "the directory is gone");
    }

    #[test]
    fn a_port_that_someone_else_took_first_is_given_up_for_another() {
        let rival = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = rival.local_addr().unwrap().port();
        let mut asked = 0;
        let mut choose = || {
            asked += 1;
            if asked == 1 { Ok(taken) } else { free_port() }
        };
        let home = Home::create().unwrap();
        let cluster = Cluster::start_in(home, &Binaries::find().unwrap(), Durability::None, &mut choose).unwrap();
        assert_ne!(cluster.port(), taken);
        assert_eq!(asked, 2);
    }

    #[test]
    fn a_refused_start_tells_the_reason_and_leaves_nothing() {
        let home = Home::create().unwrap();
        let path = home.path.clone();
        let binaries = Binaries { initdb: "/bin/ls".into(), postgres: "/bin/false".into() };
        let error = Cluster::start_in(home, &binaries, Durability::None, &mut free_port).unwrap_err();
        assert!(error.starts_with("its log ends: ") && error.contains("--locale=C"), "{error}");
        assert!(!path.exists(), "{path:?}");
    }

    #[test]
    fn the_log_of_a_port_collision_is_recognised() {
        assert!(is_port_taken("LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use"));
        assert!(!is_port_taken("FATAL:  data directory has wrong ownership"));
    }
}
