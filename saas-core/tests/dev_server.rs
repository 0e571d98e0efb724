//! The development server ends with its process, whatever ends that, and leaves nothing behind.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]

use std::{
    env,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use saas_core::testing::{DevServer, Durability, Purpose};
use sqlx::{Connection as _, PgConnection};

/// Set in the child that each test starts from this same binary.
const CHILD: &str = "SAAS_DEV_SERVER_CHILD";
const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `done`, and fails with `what` after a generous deadline.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the named test of this binary again, as the process that owns the server.
fn owner(test: &str) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    command.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap()
}

fn homes_of(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("saas-dev-postgres-{pid}-");
    let entries = std::fs::read_dir("/var/tmp").unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix)).collect()
}

/// Every process whose command line mentions one of the homes: server, watchdog, initdb.
fn processes_of(pid: u32) -> Vec<(u32, String)> {
    let needle = format!("saas-dev-postgres-{pid}-");
    let all = match std::fs::read_dir("/proc") {
        Ok(entries) => entries.flatten().filter_map(|entry| from_proc(&entry.path())).collect(),
        Err(_) => from_ps(),
    };
    all.into_iter().filter(|(_, line)| line.contains(&needle)).collect()
}

fn from_proc(process: &Path) -> Option<(u32, String)> {
    let pid = process.file_name()?.to_str()?.parse().ok()?;
    let line = std::fs::read(process.join("cmdline")).ok()?;
    Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
}

fn from_ps() -> Vec<(u32, String)> {
    let output = Command::new("ps").args(["-A", "-o", "pid=", "-o", "args="]).output().unwrap().stdout;
    let text = String::from_utf8_lossy(&output).into_owned();
    let split = |line: &str| line.trim().split_once(' ').map(|(pid, line)| (pid.parse().unwrap(), line.to_owned()));
    text.lines().filter_map(split).collect()
}

/// Starts the named test as an owner and waits for its server: the process and the server's address.
fn owner_with_server(test: &str) -> (Child, String) {
    let mut child = owner(test);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let url = lines.find(|line| line.starts_with("postgres://")).expect("the child tells its URL");
    let address = url.trim_start_matches("postgres://saas_admin@").trim_end_matches("/postgres").to_owned();
    assert!(TcpStream::connect(&address).is_ok(), "the server answers at {address}");
    assert_eq!(homes_of(child.id()).len(), 1);
    (child, address)
}

/// What the child does: owns a server until it is killed.
fn own_a_server_for_ever() -> ! {
    let server = DevServer::start_own(Durability::None).unwrap();
    println!("\n{}", server.admin_url());
    loop {
        thread::park();
    }
}

fn assert_nothing_is_left(owner: u32) {
    wait_until("the removal of its directory", || homes_of(owner).is_empty());
    wait_until("the end of its processes", || processes_of(owner).is_empty());
}

#[test]
fn a_killed_owner_leaves_no_server_and_no_directory() {
    if env::var_os(CHILD).is_some() {
        own_a_server_for_ever();
    }
    let (mut child, address) = owner_with_server("a_killed_owner_leaves_no_server_and_no_directory");
    child.kill().unwrap(); // SIGKILL: no destructor, no handler runs
    child.wait().unwrap();

    wait_until("the end of the server", || TcpStream::connect(&address).is_err());
    assert_nothing_is_left(child.id());
}

#[test]
fn an_owner_killed_while_the_cluster_is_made_leaves_nothing_either() {
    if env::var_os(CHILD).is_some() {
        own_a_server_for_ever();
    }
    let mut child = owner("an_owner_killed_while_the_cluster_is_made_leaves_nothing_either");
    wait_until("initdb at work", || homes_of(child.id()).iter().any(|home| home.join("data/base").exists()));
    child.kill().unwrap();
    child.wait().unwrap();

    assert_nothing_is_left(child.id());
}

#[test]
fn the_next_start_finishes_what_a_killed_watchdog_left() {
    if env::var_os(CHILD).is_some() {
        own_a_server_for_ever();
    }
    let (mut child, address) = owner_with_server("the_next_start_finishes_what_a_killed_watchdog_left");
    let is_watchdog = |line: &str| line.starts_with("sh -c # Runs one PostgreSQL");
    let watchdogs: Vec<_> = processes_of(child.id()).into_iter().filter(|(_, line)| is_watchdog(line)).collect();
    assert!(!watchdogs.is_empty(), "{:?}", processes_of(child.id()));
    for (pid, _) in watchdogs {
        assert!(Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).status().unwrap().success());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let _next = DevServer::start_own(Durability::None).unwrap();

    wait_until("the end of the server", || TcpStream::connect(&address).is_err());
    assert_nothing_is_left(child.id());
}

#[test]
fn when_no_rung_holds_one_error_names_them_all_and_the_fix() {
    if env::var_os(CHILD).is_some() {
        let error = DevServer::start(Purpose::Tests).unwrap_err();
        println!("\nerror {} {error}", error.code());
        return;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "when_no_rung_holds_one_error_names_them_all_and_the_fix", "--nocapture"]).env(CHILD, "1");
    command
        .env_remove("SAAS_TEST_DATABASE_URL")
        .env("SAAS_PG_BIN_DIR", "/nowhere")
        .env("DOCKER_HOST", "tcp://127.0.0.1:1");
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let line = output.lines().find(|line| line.starts_with("error ")).expect("the child tells its error");
    for part in
        ["misconfigured", "SAAS_TEST_DATABASE_URL: not set", "local binaries: ", "/nowhere", "docker: ", "install"]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn two_servers_of_one_process_do_not_meet_and_are_as_durable_as_asked() {
    for (durability, fsync) in [(Durability::None, "off"), (Durability::Full, "on")] {
        let rival = DevServer::start_own(Durability::None).unwrap();
        let server = DevServer::start_own(durability).unwrap();
        assert_ne!(rival.admin_url(), server.admin_url());
        let mut admin = PgConnection::connect(server.admin_url()).await.unwrap();
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let value: String =
                sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(&mut admin).await.unwrap();
            assert_eq!(value, fsync, "{setting}");
        }
    }
}
