//! Which versions of the application's own tables this binary can work with.

use std::{collections::BTreeSet, fmt};

use saas_core::InvalidInput;
use sqlx::migrate::{Migration, Migrator};

use super::{PlacementError, Site};

/// The application's own migrations, as they run in every place: unqualified table names, `tenant_id uuid not null`,
/// `references saas.tenant (id)`, and `select saas.fence('project')` at the end.
#[derive(Debug, Clone)]
pub struct Blueprint {
    migrations: Vec<Migration>,
}

impl Blueprint {
    /// Takes the migrations of `sqlx::migrate!()`. Those that lead back are left out: places only go forward.
    ///
    /// # Errors
    /// When there is none, or two have the same version.
    pub fn new(migrator: &Migrator) -> Result<Self, InvalidInput> {
        let wrong = |why: String| Err(InvalidInput::new("the application's migrations", why, "check the folder"));
        let mut migrations: Vec<Migration> =
            migrator.iter().filter(|m| !m.migration_type.is_down_migration()).cloned().collect();
        migrations.sort();
        if migrations.is_empty() {
            return wrong("are none".to_owned());
        }
        if let Some(pair) = migrations.windows(2).find(|pair| pair[0].version == pair[1].version) {
            return wrong(format!("have version {} twice", pair[0].version));
        }
        Ok(Self { migrations })
    }

    /// The migrations, oldest first.
    #[must_use]
    pub fn migrations(&self) -> &[Migration] {
        &self.migrations
    }

    /// The version after the last one.
    #[must_use]
    pub fn newest(&self) -> i64 {
        self.migrations.last().map_or(0, |m| m.version)
    }
}

/// The versions of the application's tables that this binary serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVersions(BTreeSet<i64>);

impl KnownVersions {
    /// Only the newest: a place that the fleet's migration has not reached yet is refused.
    #[must_use]
    pub fn newest(blueprint: &Blueprint) -> Self {
        Self(BTreeSet::from([blueprint.newest()]))
    }

    /// Every version from `oldest` on, for a binary that works with the tables as they were before the last migrations
    /// (expand, then contract): places are served before and after they are migrated.
    #[must_use]
    pub fn since(blueprint: &Blueprint, oldest: i64) -> Self {
        Self(blueprint.migrations.iter().map(|m| m.version).filter(|version| *version >= oldest).collect())
    }

    /// A version that this binary does not carry, but of which it is known that it may serve it: the next release's.
    #[must_use]
    pub fn and(mut self, version: i64) -> Self {
        self.0.insert(version);
        self
    }

    /// Accepts a place at a version that is known.
    pub(super) fn check(&self, site: &Site, found: Option<i64>) -> Result<(), PlacementError> {
        let remedy = match found {
            Some(version) if self.0.contains(&version) => return Ok(()),
            None => "migrate it: run the fleet's migration",
            Some(version) if self.0.last().is_some_and(|newest| version > *newest) => {
                "deploy the release that migrated it"
            }
            Some(_) => "run the fleet's migration, and see its report if that failed here",
        };
        Err(PlacementError::UnknownVersion { site: site.clone(), found, known: self.to_string(), remedy })
    }
}

impl fmt::Display for KnownVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) if first == last => write!(f, "version {first}"),
            (Some(first), Some(last)) => write!(f, "{} versions from {first} to {last}", self.0.len()),
            (_, _) => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{SqlSafeStr, migrate::MigrationType};

    use super::*;
    use crate::placement::ClusterName;

    fn blueprint(versions: &[i64]) -> Result<Blueprint, InvalidInput> {
        let one = |version: &i64| {
            Migration::new(*version, "a step".into(), MigrationType::Simple, "select 1".into_sql_str(), false)
        };
        Blueprint::new(&Migrator::with_migrations(versions.iter().map(one).collect()))
    }

    // T29
    #[test]
    fn a_place_behind_ahead_or_without_tables_is_refused_with_what_to_do() {
        let newest = KnownVersions::newest(&blueprint(&[1, 2, 5]).unwrap());
        let site = Site::shared(ClusterName::control());
        newest.check(&site, Some(5)).unwrap();
        for (found, remedy) in [(Some(2), "fleet"), (Some(6), "release"), (Some(3), "fleet"), (None, "migrate it")] {
            let error = newest.check(&site, found).unwrap_err();
            assert_eq!(error.code(), "unknown_schema_version");
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }

    #[test]
    fn what_was_said_to_be_compatible_is_served() {
        let blueprint = blueprint(&[1, 2, 5]).unwrap();
        let site = Site::shared(ClusterName::control());
        let tolerant = KnownVersions::since(&blueprint, 2).and(7);
        for version in [2, 5, 7] {
            tolerant.check(&site, Some(version)).unwrap();
        }
        for version in [1, 3, 6, 8] {
            tolerant.check(&site, Some(version)).unwrap_err();
        }
    }

    #[test]
    fn no_migrations_or_one_version_twice_is_refused() {
        assert!(blueprint(&[]).is_err());
        assert!(blueprint(&[1, 1]).is_err());
    }
}
