//! Which places there are, which of them wait for a migration, and in which order.

use std::{collections::HashSet, time::Duration};

use saas_core::{CoreError, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Canaries, Outcome, Shared, SiteReport};
use crate::placement::{PlacementError, Site, State, ledger, record};

/// How many placements are read at a time.
const PAGE: i64 = 1_000;

/// A place of the fleet.
#[derive(Debug, Clone)]
pub(super) struct Found {
    site: Site,
    tenant: Option<TenantId>,
    version: Option<i64>,
    state: State,
    failed: Option<ledger::Failure>,
}

/// One that waits for a migration.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) site: Site,
    pub(super) tenant: Option<TenantId>,
    pub(super) version: Option<i64>,
    /// Its last try.
    pub(super) failed: Option<ledger::Failure>,
}

impl Waiting {
    /// The report of a place that was not begun.
    pub(super) fn untouched(self) -> SiteReport {
        let outcome = match self.failed {
            Some((version, error)) => Outcome::Failed { version, error },
            None => Outcome::Waiting,
        };
        report(self.site, self.tenant, self.version, outcome)
    }
}

fn report(site: Site, tenant: Option<TenantId>, version: Option<i64>, outcome: Outcome) -> SiteReport {
    SiteReport { site, tenant, from: version, to: version, outcome, took: Duration::ZERO }
}

pub(super) async fn list_in(connection: &mut PgConnection, shared: Shared) -> Result<Vec<Found>, CoreError> {
    let (mut all, mut failures) = (Vec::new(), ledger::failures_in(connection).await?);
    if shared == Shared::Included {
        let clusters: Vec<String> = sqlx::query_scalar(
            "select 'control' union select cluster from saas.placement where mode = 'pooled' and state <> 'provisioning'",
        )
        .fetch_all(&mut *connection)
        .await
        .map_err(CoreError::from_database)?;
        for cluster in clusters {
            let site = record::site(&cluster, None, None)?;
            let version = ledger::version_in(connection, &site).await?;
            let failed = failures.remove(&site);
            all.push(Found { site, tenant: None, version, state: State::Active, failed });
        }
    }
    let moving = moving_in(connection).await?;
    let mut after = None;
    loop {
        let page = record::list_own_in(connection, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = Some(last.tenant);
        all.extend(page.into_iter().map(|placement| Found {
            failed: failures.remove(&placement.site),
            site: placement.site,
            tenant: Some(placement.tenant),
            version: placement.schema_version,
            state: if moving.contains(&placement.tenant) { State::Moving } else { placement.state },
        }));
    }
}

/// Tenants whose rows are on their way: what is migrated meanwhile would be one of two places.
async fn moving_in(connection: &mut PgConnection) -> Result<HashSet<TenantId>, CoreError> {
    let tenants: Vec<Uuid> = sqlx::query_scalar(
        "select tenant_id
         from saas.move -- of every tenant
         where state in ('planned', 'copying', 'catching_up', 'switching', 'rolling_back')",
    )
    .fetch_all(connection)
    .await
    .map_err(CoreError::from_database)?;
    Ok(tenants.into_iter().map(TenantId::from_uuid).collect())
}

/// Demands that every canary that was named can be one: a run that only seems to have tried one first is worse than none.
pub(super) fn require_canaries(all: &[Found], canaries: &Canaries) -> Result<(), PlacementError> {
    let Canaries::Of(tenants) = canaries else { return Ok(()) };
    for tenant in tenants {
        let what = match all.iter().find(|found| found.tenant == Some(*tenant)).map(|found| found.state) {
            Some(State::Active) => continue,
            Some(state) => format!("is to be a canary, and its place is {state}"),
            None => "is to be a canary, and has no place of its own".to_owned(),
        };
        return Err(PlacementError::InTheWay { tenant: *tenant, what, remedy: "name another canary" });
    }
    Ok(())
}

/// Sorts out what needs nothing, or is in other hands.
pub(super) fn divide(all: Vec<Found>, newest: i64) -> (Vec<SiteReport>, Vec<Waiting>) {
    let (mut reports, mut waiting) = (Vec::new(), Vec::new());
    for Found { site, tenant, version, state, failed } in all {
        let outcome = match state {
            State::Moving => Outcome::Skipped { why: "it is being moved" },
            State::Provisioning => Outcome::Skipped { why: "it is being made" },
            State::Failed => Outcome::Skipped { why: "making it failed" },
            State::Active if version.is_some_and(|version| version > newest) => Outcome::Ahead,
            State::Active if version == Some(newest) => Outcome::Current,
            State::Active => {
                waiting.push(Waiting { site, tenant, version, failed });
                continue;
            }
        };
        reports.push(report(site, tenant, version, outcome));
    }
    (reports, waiting)
}

/// The canaries, and the others: shared tables first. A place that failed before is tried again, but says nothing about
/// the others: it is a canary only by name.
pub(super) fn order(waiting: Vec<Waiting>, canaries: &Canaries) -> (Vec<Waiting>, Vec<Waiting>) {
    let mut chosen = 0;
    let is_canary = |waiting: &Waiting| match (canaries, waiting.tenant) {
        (_, None) => false,
        (Canaries::First(_), Some(_)) if waiting.failed.is_some() => false,
        (Canaries::First(count), Some(_)) => {
            chosen += 1;
            chosen <= *count
        }
        (Canaries::Of(tenants), Some(tenant)) => tenants.contains(&tenant),
    };
    let (canaries, mut others): (Vec<Waiting>, Vec<Waiting>) = waiting.into_iter().partition(is_canary);
    others.sort_by_key(|waiting| waiting.tenant.is_some());
    (canaries, others)
}

#[cfg(test)]
mod tests {
    use saas_core::SystemClock;

    use super::*;
    use crate::placement::ClusterName;

    fn found(version: Option<i64>, state: State) -> Found {
        let tenant = TenantId::mint(&SystemClock);
        let site = Site::schema_of(tenant, ClusterName::control());
        Found { site, tenant: Some(tenant), version, state, failed: None }
    }

    #[test]
    fn only_places_that_are_behind_and_in_nobodys_hands_wait() {
        let shared = Found { site: Site::shared(ClusterName::control()), tenant: None, ..found(None, State::Active) };
        let all = vec![
            found(Some(2), State::Active),
            found(Some(3), State::Active),
            found(Some(4), State::Active),
            found(Some(1), State::Moving),
            found(None, State::Provisioning),
            found(Some(1), State::Failed),
            shared,
        ];
        let (reports, waiting) = divide(all, 3);
        let outcomes: Vec<&Outcome> = reports.iter().map(|report| &report.outcome).collect();
        assert!(matches!(
            outcomes[..],
            [
                Outcome::Current,
                Outcome::Ahead,
                Outcome::Skipped { .. },
                Outcome::Skipped { .. },
                Outcome::Skipped { .. }
            ]
        ));
        assert_eq!(waiting.iter().map(|w| w.version).collect::<Vec<_>>(), [Some(2), None]);
    }

    #[test]
    fn a_canary_that_cannot_be_one_is_refused() {
        let all = [found(Some(1), State::Active), found(Some(1), State::Moving), found(None, State::Failed)];
        let named = |of: &[TenantId]| require_canaries(&all, &Canaries::Of(of.to_vec()));
        let [active, moving, failed] = [0, 1, 2].map(|n: usize| all[n].tenant.unwrap());
        named(&[active]).unwrap();
        require_canaries(&all, &Canaries::First(9)).unwrap();
        for (wrong, says) in [(moving, "moving"), (failed, "failed"), (TenantId::mint(&SystemClock), "no place")] {
            let refused = named(&[active, wrong]).unwrap_err();
            assert_eq!(refused.code(), "placement_in_the_way");
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }

    #[test]
    fn canaries_go_first_then_the_shared_tables() {
        let all: Vec<Found> = (0..4).map(|_| found(Some(1), State::Active)).collect();
        let shared = Found { site: Site::shared(ClusterName::control()), tenant: None, ..all[0].clone() };
        let last = all[3].tenant;
        let (_, waiting) = divide(all.into_iter().chain([shared]).collect(), 2);
        let (canaries, others) = order(waiting.clone(), &Canaries::First(2));
        assert_eq!((canaries.len(), others.len()), (2, 3));
        assert!(others[0].site.is_shared());
        let (canaries, _) = order(waiting.clone(), &Canaries::Of(last.into_iter().collect()));
        assert_eq!(canaries.iter().map(|w| w.tenant).collect::<Vec<_>>(), [last]);
        assert_eq!(order(waiting.clone(), &Canaries::First(0)).0.len(), 0);
        let mut after_a_failure = waiting;
        after_a_failure[0].failed = Some((None, "it was locked".to_owned()));
        let (canaries, others) = order(after_a_failure, &Canaries::First(1));
        assert!(canaries[0].failed.is_none() && others.iter().any(|w| w.failed.is_some()));
    }
}
