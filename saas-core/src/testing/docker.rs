//! A PostgreSQL server in a container, driven through the `docker` command line.
//!
//! The command line instead of a client crate: it adds no dependency, and follows the user's contexts and sockets.
//! As with a local server a small shell script holds one end of a pipe and removes the container when this process ends.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Durability, cluster::ADMIN};

const IMAGE: &str = "postgres:17";
/// Pulling the image is the long part.
const START_DEADLINE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Prints the container's port once Docker has published it, then waits for the end of its input.
///
/// Arguments: the docker program, the image, the superuser's name, then the server's settings.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
docker=$1 image=$2 user=$3
shift 3
container=$("$docker" run -d --rm -p 127.0.0.1::5432 -e POSTGRES_USER="$user" -e POSTGRES_HOST_AUTH_METHOD=trust \
    "$image" -c max_connections=500 -c jit=off -c timezone=UTC "$@" </dev/null) || exit 1
"$docker" port "$container" 5432/tcp </dev/null
exec >&-
while read -r _; do :; done
"$docker" rm -f "$container" </dev/null >/dev/null 2>&1
"#;

/// A running container, until dropped.
#[derive(Debug)]
pub(super) struct Container {
    port: u16,
    watchdog: Child,
}

impl Container {
    /// Starts a container whose server answers on a loopback port.
    ///
    /// # Errors
    /// A sentence with what `docker` said. No container is left running.
    pub(super) fn start(docker: &Path, durability: Durability) -> Result<Self, String> {
        // A daemon that is not there answers in milliseconds; without this question `run` might try to pull first.
        let asked =
            Command::new(docker).args(["version", "--format", "{{.Server.Version}}"]).stdin(Stdio::null()).output();
        let answer = asked.map_err(|error| format!("cannot run `{}`: {error}", docker.display()))?;
        if !answer.status.success() {
            return Err(one_line(&answer.stderr));
        }
        let errors = ErrorFile::create()?;
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "saas-dev-postgres"]).arg(docker).args([IMAGE, ADMIN]);
        if durability == Durability::None {
            command.args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]);
        }
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors.file()?);
        let watchdog = command.spawn().map_err(|error| format!("cannot run sh: {error}"))?;
        let mut container = Self { port: 0, watchdog };
        let mut published = String::new();
        if let Some(mut output) = container.watchdog.stdout.take() {
            output.read_to_string(&mut published).map_err(|error| format!("cannot read docker's answer: {error}"))?;
        }
        container.port = port_in(&published).ok_or_else(|| errors.one_line())?;
        container.wait_until_ready()?;
        Ok(container)
    }

    /// The TCP port on 127.0.0.1.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            if accepts_logins(self.port) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.watchdog.try_wait() {
                return Err(format!("the container's keeper ended with {status}"));
            }
            thread::sleep(POLL);
        }
        Err(format!("the container did not answer within {} s", START_DEADLINE.as_secs()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        drop(self.watchdog.wait());
    }
}

/// Where the script's complaints go: a pipe that nobody reads could fill up and stall it.
struct ErrorFile(std::path::PathBuf);

impl ErrorFile {
    fn create() -> Result<Self, String> {
        let name = format!("saas-dev-docker-{}-{:?}.log", std::process::id(), thread::current().id());
        let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        File::create(&path).map(|_| Self(path)).map_err(|error| format!("no file for docker's messages: {error}"))
    }

    fn file(&self) -> Result<File, String> {
        File::options().append(true).open(&self.0).map_err(|error| format!("no file for docker's messages: {error}"))
    }

    fn one_line(&self) -> String {
        one_line(&fs::read(&self.0).unwrap_or_default())
    }
}

impl Drop for ErrorFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn one_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("docker said nothing").to_owned()
}

/// The port in `127.0.0.1:49153`.
fn port_in(published: &str) -> Option<u16> {
    published.lines().find_map(|line| line.trim().strip_prefix("127.0.0.1:")?.parse().ok())
}

/// Whether a server answers a start-up message with "authentication ok".
///
/// A bare connect proves nothing: Docker's proxy accepts before the server in the container listens.
fn accepts_logins(port: u16) -> bool {
    let parameters = format!("user\0{ADMIN}\0database\0postgres\0\0");
    let Ok(length) = u32::try_from(parameters.len() + 8) else { return false };
    let mut message = length.to_be_bytes().to_vec();
    message.extend(196_608_u32.to_be_bytes()); // protocol 3.0
    message.extend(parameters.as_bytes());
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), ANSWER_TIMEOUT)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(&message)?;
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        Ok::<_, std::io::Error>(kind)
    };
    ask().is_ok_and(|kind| kind == *b"R")
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;
    use crate::testing::DevServer;

    /// A stand-in for the command line that notes what it was asked; its "container" is a server of ours.
    fn docker_double(name: &str, body: &str) -> (PathBuf, PathBuf) {
        let directory = std::env::temp_dir().join(format!("saas-docker-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (program, notes) = (directory.join("docker"), directory.join("notes"));
        fs::write(&program, format!("#!/bin/sh\necho \"$@\" >>{}\n{body}\n", notes.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        (program, notes)
    }

    #[test]
    fn a_container_is_started_on_loopback_and_removed_on_drop() {
        let server = DevServer::start_own(Durability::None).unwrap();
        let port = server.admin_url().rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
        let body = format!("case $1 in run) echo c0ffee ;; port) echo 127.0.0.1:{port} ;; esac");
        let (program, notes) = docker_double("works", &body);

        let container = Container::start(&program, Durability::None).unwrap();
        assert_eq!(container.port().to_string(), port);
        drop(container);

        let asked = fs::read_to_string(notes).unwrap();
        fs::remove_dir_all(program.parent().unwrap()).unwrap();
        assert!(asked.contains("run -d --rm -p 127.0.0.1::5432"), "{asked}");
        assert!(asked.contains("fsync=off"), "{asked}");
        assert!(asked.ends_with("rm -f c0ffee\n"), "{asked}");
    }

    #[test]
    fn a_missing_daemon_or_program_falls_through_with_its_own_words() {
        let (program, notes) = docker_double("daemon", "echo 'Cannot connect to the Docker daemon' >&2; exit 1");
        let error = Container::start(&program, Durability::None).unwrap_err();
        let asked = fs::read_to_string(notes).unwrap();
        fs::remove_dir_all(program.parent().unwrap()).unwrap();
        assert_eq!(error, "Cannot connect to the Docker daemon");
        assert!(!asked.contains("run"), "{asked}");

        let error = Container::start(Path::new("/nowhere/docker"), Durability::None).unwrap_err();
        assert!(error.starts_with("cannot run `/nowhere/docker`"), "{error}");
    }

    #[test]
    fn a_refused_run_tells_what_docker_said() {
        let (program, _) = docker_double("refused", "case $1 in run) echo 'no such image' >&2; exit 125 ;; esac");
        let error = Container::start(&program, Durability::None).unwrap_err();
        fs::remove_dir_all(program.parent().unwrap()).unwrap();
        assert_eq!(error, "no such image");
    }

    #[test]
    fn a_port_that_only_accepts_is_not_ready() {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = silent.local_addr().unwrap().port();
        let peer = thread::spawn(move || drop(silent.accept()));
        assert!(!accepts_logins(port));
        peer.join().unwrap();
    }
}
