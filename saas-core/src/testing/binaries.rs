//! Where a machine keeps PostgreSQL's server programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names a directory with `initdb` and `postgres`; beats every other place.
pub(super) const BIN_DIR_VARIABLE: &str = "SAAS_PG_BIN_DIR";

/// Folders that hold one sub-folder per version, each with a `bin`: the packages of Debian, SUSE, Red Hat and Homebrew.
const VERSIONED: [(&str, &str); 5] = [
    ("/usr/lib/postgresql", ""),
    ("/usr/lib", "postgresql"),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

/// Single folders: Alpine, Postgres.app, a build from source, MacPorts' and Homebrew's default links.
const FIXED: [&str; 5] = [
    "/usr/libexec/postgresql",
    "/Applications/Postgres.app/Contents/Versions/latest/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/bin",
    "/usr/local/bin",
];

/// The two programs that make and run a cluster, from one directory so that their versions agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

impl Binaries {
    /// Finds the programs: the variable, `pg_config`, the packages' folders (newest first), then `PATH`.
    ///
    /// # Errors
    /// A sentence that says where it looked.
    pub(super) fn find() -> Result<Self, String> {
        if let Some(named) = env::var_os(BIN_DIR_VARIABLE).filter(|value| !value.is_empty()) {
            let directory = PathBuf::from(named);
            return Self::in_directory(&directory)
                .ok_or_else(|| format!("{BIN_DIR_VARIABLE}={} holds no initdb and postgres", directory.display()));
        }
        let places = pg_config().into_iter().chain(packaged()).chain(on_path());
        places.into_iter().find_map(|directory| Self::in_directory(&directory)).ok_or_else(|| {
            "no initdb and postgres in `pg_config --bindir`, /usr/lib/postgresql/*/bin and its like, or PATH".to_owned()
        })
    }

    fn in_directory(directory: &Path) -> Option<Self> {
        let found = Self { initdb: directory.join("initdb"), postgres: directory.join("postgres") };
        (found.initdb.is_file() && found.postgres.is_file()).then_some(found)
    }
}

fn pg_config() -> Option<PathBuf> {
    let answer = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    let line = String::from_utf8(answer.stdout).ok()?;
    answer.status.success().then(|| PathBuf::from(line.trim()))
}

fn packaged() -> Vec<PathBuf> {
    let versioned = VERSIONED.iter().flat_map(|(parent, prefix)| newest_first(Path::new(parent), prefix));
    versioned.chain(FIXED.iter().map(PathBuf::from)).collect()
}

/// `parent/<prefix><version>/bin`, by version number, not by text: 18 comes before 9.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut versions: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let version =
                name.to_str()?.strip_prefix(prefix)?.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|left, right| right.0.cmp(&left.0));
    versions.into_iter().map(|(_, path)| path).collect()
}

fn on_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packaged_versions_come_newest_first_by_number() {
        let parent = env::temp_dir().join(format!("saas-binaries-{}", std::process::id()));
        for version in ["9.6", "15", "18", "10", "common"] {
            fs::create_dir_all(parent.join(version).join("bin")).unwrap();
        }
        let found = newest_first(&parent, "");
        fs::remove_dir_all(&parent).unwrap();
        let expected: Vec<_> =
            ["18", "15", "10", "9.6"].iter().map(|version| parent.join(version).join("bin")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_directory_without_both_programs_is_passed_over() {
        let directory = env::temp_dir().join(format!("saas-half-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("postgres"), "").unwrap();
        let half = Binaries::in_directory(&directory);
        fs::write(directory.join("initdb"), "").unwrap();
        let whole = Binaries::in_directory(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(half, None);
        assert!(whole.is_some());
    }
}
