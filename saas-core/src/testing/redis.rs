//! Redis servers on the loopback address, alone and three as a cluster, that cannot outlive this process.
//!
//! As for PostgreSQL, a small shell script holds each server and ends it when the pipe from this process closes.

use std::{
    fs,
    io::{self, Read as _, Write as _},
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
    \"$2\" \"$1/redis.conf\" </dev/null & redis=$!
    while read -r _; do :; done
    kill -KILL $redis 2>/dev/null
    wait $redis 2>/dev/null
    cd / && rm -rf \"$1\"";
const START_DEADLINE: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(3);
const PORT_TRIES: usize = 20;
/// With their bus ports they are below those that a system hands out by itself, as long as nobody told it otherwise: hardly
/// anybody gets one while its server is down.
const PORTS: std::ops::RangeInclusive<u16> = 10_000..=19_999;
const PORT_LOOKS: usize = 1_000;
/// A node of a cluster listens on a second port, so far above the first.
const BUS: u16 = 10_000;
/// Where a node writes down what it knows of its cluster.
const NODES: &str = "nodes.conf";
/// Every key belongs to one of so many slots.
const SLOTS: u16 = 16_384;

/// A running server without persistence, until dropped.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    /// What it knows of its cluster, as it writes that down; `None` where it is alone.
    cluster: Option<String>,
    program: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    watchdog: Child,
    lifeline: Option<ChildStdin>,
    home: Home,
}

impl RedisServer {
    /// Starts an empty one. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`Misconfigured`](CoreError::Misconfigured) when `redis-server` is not installed or does not start, with its log.
    pub fn start() -> Result<Self, CoreError> {
        Self::start_on_a_free_port(None)
    }

    /// The TCP port on 127.0.0.1. A server that is started again has the same.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// As a client wants it: `redis://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it: what it held is gone.
    pub fn kill(&mut self) {
        if let (Some(running), Some(known)) = (self.running.take(), &mut self.cluster) {
            // Who is a member, and of which slots, outlives it as on a disk.
            *known = fs::read_to_string(running.home.path.join(NODES)).unwrap_or_default();
        }
    }

    /// Starts it again, empty, on the same port; kills it first if it runs.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), CoreError> {
        self.kill();
        self.running = Some(run(&self.program, self.port, self.cluster.as_deref()).map_err(failed)?);
        Ok(())
    }

    fn start_on_a_free_port(cluster: Option<&str>) -> Result<Self, CoreError> {
        let program = find().ok_or_else(|| failed("there is no program of that name".to_owned()))?;
        let mut why = String::new();
        for _ in 0..PORT_TRIES {
            let port = free_port().map_err(|error| failed(format!("no free loopback port: {error}")))?;
            match run(&program, port, cluster) {
                Ok(running) => {
                    return Ok(Self { port, cluster: cluster.map(str::to_owned), program, running: Some(running) });
                }
                Err(refused) => why = refused,
            }
        }
        Err(failed(why))
    }

    /// Sends one command of plain words and returns the text of its answer.
    fn ask(&self, command: &str) -> Result<String, CoreError> {
        match ask(self.port, command) {
            Ok(answer) if !answer.starts_with('-') => Ok(answer),
            Ok(refused) => Err(failed(format!("`{command}` was refused: {refused}"))),
            Err(error) => Err(failed(format!("`{command}` was not answered: {error}"))),
        }
    }
}

/// Three servers that share the keys among them, until dropped.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts an empty one. Blocks for some seconds, until every node says that the cluster is whole.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn start() -> Result<Self, CoreError> {
        const NODES: u16 = 3;
        let nodes =
            (0..NODES).map(|_| RedisServer::start_on_a_free_port(Some(""))).collect::<Result<Vec<RedisServer>, _>>()?;
        for (number, node) in (0..).zip(&nodes) {
            let (first, beyond) = (SLOTS / NODES * number, SLOTS / NODES * (number + 1));
            let last = if number + 1 == NODES { SLOTS - 1 } else { beyond - 1 };
            node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))?;
            node.ask(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
        }
        for node in nodes.iter().skip(1) {
            nodes[0].ask(&format!("CLUSTER MEET 127.0.0.1 {}", node.port))?;
        }
        let deadline = Instant::now() + START_DEADLINE;
        while !whole(&nodes)? {
            if Instant::now() > deadline {
                return Err(failed(format!("the cluster is not whole after {} s", START_DEADLINE.as_secs())));
            }
            thread::sleep(POLL);
        }
        Ok(Self { nodes })
    }

    /// As clients want them: `redis://127.0.0.1:<port>`, one for each node.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// Kills the node of this number, as [`RedisServer::kill`].
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts it again, empty: the same member, of the same slots.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn restart(&mut self, node: usize) -> Result<(), CoreError> {
        self.nodes[node].restart()
    }
}

/// Whether every node serves, and has heard of every other.
fn whole(nodes: &[RedisServer]) -> Result<bool, CoreError> {
    for node in nodes {
        let info = node.ask("CLUSTER INFO")?;
        let known = format!("cluster_known_nodes:{}", nodes.len());
        if !info.contains("cluster_state:ok") || !info.contains(&known) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn failed(why: String) -> CoreError {
    CoreError::Misconfigured {
        what: format!("no Redis: {why}"),
        remedy: "install it: apt-get install redis-server, or your system's like".to_owned(),
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/bin".into(), "/opt/homebrew/bin".into()])
        .map(|folder| folder.join("redis-server"))
        .find(|program| program.is_file())
}

/// A port that is free, with the bus port that belongs to it.
fn free_port() -> io::Result<u16> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (0..PORT_LOOKS)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| is_free(*port) && is_free(port + BUS))
        .ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

fn run(program: &Path, port: u16, cluster: Option<&str>) -> Result<Running, String> {
    let home = Home::create()?;
    write_settings(&home, port, cluster).map_err(|error| format!("cannot write: {error}"))?;
    let mut watchdog = spawn(&home, program).map_err(|error| format!("cannot run sh: {error}"))?;
    let lifeline = watchdog.stdin.take();
    let running = Running { watchdog, lifeline, home };
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        let log = fs::read_to_string(running.home.path.join("log")).unwrap_or_default();
        // Its own log, since someone else may answer on the port.
        if log.contains("Ready to accept connections") && ask(port, "PING").is_ok_and(|answer| answer == "+PONG") {
            return Ok(running);
        }
        if log.contains("in use") || log.contains("Failed") {
            return Err(log.lines().next_back().unwrap_or_default().to_owned());
        }
        thread::sleep(POLL);
    }
    Err(format!("not ready after {} s", START_DEADLINE.as_secs()))
}

fn write_settings(home: &Home, port: u16, cluster: Option<&str>) -> io::Result<()> {
    let clustered = if cluster.is_some() { "cluster-enabled yes\n" } else { "" };
    let settings = format!(
        "bind 127.0.0.1\nport {port}\nsave \"\"\nappendonly no\ndaemonize no\ndir {home}\nlogfile {home}/log\n{clustered}",
        home = home.path.display()
    );
    for (name, text) in [("redis.conf", Some(settings.as_str())), (NODES, cluster)] {
        let (path, Some(text)) = (home.path.join(name), text) else { continue };
        fs::write(&path, text)?;
        if let Some(account) = home.account {
            std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))?;
        }
    }
    Ok(())
}

fn spawn(home: &Home, program: &Path) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHDOG, "saas-dev-redis"]).arg(&home.path).arg(program);
    command.env("LC_ALL", "C").current_dir(&home.path);
    if let Some(account) = home.account {
        command.uid(account.uid).gid(account.gid);
    }
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// One command of plain words; the answer without its line ends.
fn ask(port: u16, command: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n") {
            let Some(length) = head.strip_prefix('$').and_then(|length| length.parse().ok()) else {
                return Ok(head.to_owned());
            };
            if rest.len() >= length {
                return Ok(rest[..length].to_owned());
            }
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..read]);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        drop(self.watchdog.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_gone_with_its_owner_and_comes_back_empty_on_its_port() {
        let mut server = RedisServer::start().unwrap();
        let home = server.running.as_ref().unwrap().home.path.clone();
        assert_eq!(server.ask("SET a 1").unwrap(), "+OK");
        server.restart().unwrap();
        assert!(!home.exists());
        assert_eq!(server.ask("DBSIZE").unwrap(), ":0");
        let port = server.port();
        drop(server);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    }

    #[test]
    fn three_nodes_share_the_slots_and_one_that_was_killed_comes_back_as_what_it_was() {
        let mut cluster = RedisCluster::start().unwrap();
        for node in &cluster.nodes {
            assert!(node.ask("CLUSTER INFO").unwrap().contains("cluster_slots_ok:16384"));
        }
        let name = |cluster: &RedisCluster| cluster.nodes[1].ask("CLUSTER MYID").unwrap();
        let before = name(&cluster);
        cluster.restart(1).unwrap();
        assert_eq!(name(&cluster), before);
        assert!(cluster.nodes[1].ask("CLUSTER INFO").unwrap().contains("cluster_slots_assigned:16384"));
    }
}
