//! The directory of one development server: private, owned by an account that PostgreSQL accepts, marked while in use.
//!
//! PostgreSQL refuses to run as root, so under root the directory (and the server) belong to an unprivileged account.
//! A locked file inside says that its owner lives; the kernel drops the lock with the owner, whatever ends it.

use std::{
    env,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::sweep;

/// What the name of every home begins with.
pub(super) const PREFIX: &str = "saas-dev-postgres-";
/// The file whose lock says that the home is in use.
pub(super) const OWNER: &str = "owner";

/// An account to run the server as, instead of root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// One server's directory. The watchdog removes it; the lock is held for as long as this lives.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) path: PathBuf,
    /// Whom to become before touching it; `None` when this process is not root.
    pub(super) account: Option<Account>,
    _lock: File,
}

impl Home {
    /// Makes a fresh home under /var/tmp, or the temp directory where that fails, and clears what dead runs left there.
    ///
    /// # Errors
    /// A sentence that names each directory and why it would not do.
    pub(super) fn create() -> Result<Self, String> {
        let mut refusals = Vec::new();
        for base in [PathBuf::from("/var/tmp"), env::temp_dir()] {
            match Self::create_in(&base) {
                Ok(home) => return Ok(home),
                Err(why) => refusals.push(format!("{}: {why}", base.display())),
            }
        }
        Err(format!("no directory for the data ({})", refusals.join("; ")))
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        let path = make_private_directory(base)?;
        let prepared = Self::prepare(base, path.clone());
        if prepared.is_err() {
            // Empty, or holds one lock file of ours; if it cannot be removed the next sweep will.
            drop(fs::remove_dir_all(path));
        }
        prepared
    }

    fn prepare(base: &Path, path: PathBuf) -> io::Result<Self> {
        let creator = fs::metadata(&path)?.uid();
        let account = if creator == 0 { Some(unprivileged_account()?) } else { None };
        // Locked before it gets its name: a sweep never sees a home in use without a held lock.
        let unnamed = path.join("owner.new");
        let lock = File::create_new(&unnamed)?;
        lock.lock()?;
        fs::rename(&unnamed, path.join(OWNER))?;
        let owner = account.map_or(creator, |account| account.uid);
        if let Some(Account { uid, gid }) = account {
            chown(path.join(OWNER), Some(uid), Some(gid))?;
            chown(&path, Some(uid), Some(gid))?;
        }
        sweep::sweep(base, owner);
        Ok(Self { path, account, _lock: lock })
    }
}

fn make_private_directory(base: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    loop {
        // `mkdir` refuses a name that exists, so nobody can lay a directory or a link in the way.
        let name = format!("{PREFIX}{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = base.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn unprivileged_account() -> io::Result<Account> {
    let accounts = fs::read_to_string("/etc/passwd")?;
    ["postgres", "_postgres", "nobody"].iter().find_map(|name| find_account(&accounts, name)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "root cannot run PostgreSQL and /etc/passwd has no postgres or nobody")
    })
}

fn find_account(accounts: &str, name: &str) -> Option<Account> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        (found && uid != 0).then_some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name_and_is_never_root() {
        let accounts =
            "root:x:0:0:root:/root:/bin/sh\nnobody2:x:7:7::/:/bin/false\nnobody:x:65534:65533:n:/:/bin/false\n";
        assert_eq!(find_account(accounts, "nobody"), Some(Account { uid: 65534, gid: 65533 }));
        assert_eq!(find_account(accounts, "root"), None);
        assert_eq!(find_account(accounts, "postgres"), None);
    }
}
