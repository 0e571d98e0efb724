//! Clears what dead runs left: the case where the watchdog was killed too, or the machine went down.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::home::{OWNER, PREFIX};

/// A home without its lock file is one being made, unless it is older than this.
const MAKING: Duration = Duration::from_secs(600);
/// How long a left-over server may take for each kind of shutdown.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Stops the servers and removes the homes under `base` that belong to `uid` and whose owner is gone.
///
/// Best effort: what cannot be removed now is left for the next start, which never depends on it.
pub(super) fn sweep(base: &Path, uid: u32) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let path = entry.path();
        if ours && is_abandoned(&path, uid) {
            stop_server(&path);
            drop(fs::remove_dir_all(&path));
        }
    }
}

fn is_abandoned(home: &Path, uid: u32) -> bool {
    let Ok(about) = fs::symlink_metadata(home) else { return false };
    if !about.is_dir() || about.uid() != uid {
        return false;
    }
    match File::open(home.join(OWNER)) {
        Ok(file) => file.try_lock().is_ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            about.modified().ok().and_then(|made| made.elapsed().ok()).is_some_and(|age| age > MAKING)
        }
        Err(_) => false,
    }
}

fn stop_server(home: &Path) {
    let data = home.join("data");
    let Some(pid) = postmaster(&data) else { return };
    for signal in ["INT", "QUIT", "KILL"] {
        send(signal, pid);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !runs_on(pid, &data) {
                return;
            }
            thread::sleep(POLL);
        }
    }
}

/// The process that `postmaster.pid` names, if it really is a server on this very directory.
fn postmaster(data: &Path) -> Option<u32> {
    let file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = file.lines().next()?.trim().parse().ok()?;
    runs_on(pid, data).then_some(pid)
}

/// Whether `pid` is a process whose command line names `data`: a number alone may have been given to someone else.
fn runs_on(pid: u32, data: &Path) -> bool {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok().or_else(|| {
        let ps = Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]).stdin(Stdio::null()).output();
        ps.ok().map(|answer| answer.stdout)
    });
    let Some((line, data)) = command_line.zip(data.to_str()) else { return false };
    String::from_utf8_lossy(&line).contains(data)
}

/// `kill` as the shell knows it: minimal systems have no program of that name.
fn send(signal: &str, pid: u32) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()]);
    drop(shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_homes_whose_owner_is_gone_are_swept() {
        let base = std::env::temp_dir().join(format!("saas-sweep-{}", std::process::id()));
        let make = |name: &str, owner: bool| {
            let home = base.join(name);
            fs::create_dir_all(home.join("data")).unwrap();
            owner.then(|| File::create(home.join(OWNER)).unwrap())
        };
        let held = make("saas-dev-postgres-1-0", true).unwrap();
        held.lock().unwrap();
        drop(make("saas-dev-postgres-2-0", true));
        make("saas-dev-postgres-3-0", false);
        make("someone-elses", false);
        let uid = fs::metadata(&base).unwrap().uid();

        sweep(&base, uid + 1);
        assert_eq!(fs::read_dir(&base).unwrap().count(), 4, "another account's homes are not ours to remove");
        sweep(&base, uid);
        let left: Vec<_> = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        fs::remove_dir_all(&base).unwrap();

        assert!(!left.iter().any(|name| name == "saas-dev-postgres-2-0"), "abandoned: {left:?}");
        assert_eq!(left.len(), 3, "in use, being made, and someone else's stay: {left:?}");
    }
}
