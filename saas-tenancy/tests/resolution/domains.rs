//! Who may claim a domain, who gets it, and who loses it.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_core::{Actor, ErrorKind, PageSize, RequestContext, SystemTx, TenantTx, doctor, timeline};
use saas_tenancy::{
    Created, Role, TenancyError,
    domain::{ClaimState, DomainName, DomainProof, Domains, MAX_DOMAINS, ProofError, Recheck, Rechecked, Verification},
    lifecycle::Lifecycle,
};

use crate::Setup;

fn domain(text: &str) -> DomainName {
    text.parse().unwrap()
}

impl Setup {
    /// The domain's lines in a tenant's audit log, the first one first.
    async fn history(&self, of: Created) -> Vec<String> {
        let mut tx = TenantTx::begin(self.db.tenants(), &self.owner(of).await).await.unwrap();
        let page = timeline::list(&mut tx, None, PageSize::default()).await.unwrap();
        let actions = page.items.into_iter().map(|event| event.action).filter(|action| action.starts_with("domain."));
        let mut actions: Vec<String> = actions.collect();
        actions.reverse();
        actions
    }

    /// Whom the domain leads to.
    async fn holder(&self, domain: &DomainName) -> Option<uuid::Uuid> {
        let mut tx = SystemTx::begin(self.db.system(), Actor::system("test"), "look").await.unwrap();
        sqlx::query_scalar("select tenant_id from saas.active_domain where domain = $1")
            .bind(domain.as_str())
            .fetch_optional(&mut *tx)
            .await
            .unwrap()
    }

    async fn state(&self, of: Created, domain: &DomainName) -> Option<ClaimState> {
        let claims = self.domains.list(&self.owner(of).await).await.unwrap();
        claims.into_iter().find(|claim| claim.domain == *domain).map(|claim| claim.state)
    }

    fn advance(&self, by: TimeDelta) {
        self.db.clock().advance(by);
    }
}

#[tokio::test]
async fn a_domain_is_claimed_proven_and_released_with_a_record_of_each() {
    let setup = Setup::start().await;
    let (ctx, name) = (setup.owner(setup.acme).await, domain("App.Acme.net."));
    let claim = setup.domains.claim(&ctx, &name).await.unwrap();
    assert_eq!(claim.state, ClaimState::Pending);
    assert_eq!(claim.record(), "_saas-challenge.app.acme.net");
    assert_eq!(claim.value().len(), "saas-domain-verification=".len() + 32);
    setup.advance(TimeDelta::seconds(1));
    assert_eq!(setup.domains.claim(&ctx, &name).await.unwrap(), claim, "claiming twice is claiming once");

    assert_eq!(setup.domains.verify(&ctx, &name).await.unwrap(), Verification::Missing);
    assert_eq!(setup.holder(&name).await, None);
    setup.zone.publish(&name, &["v=spf1 -all", &claim.value()]);
    assert_eq!(setup.domains.verify(&ctx, &name).await.unwrap(), Verification::Active);
    assert_eq!(setup.holder(&name).await, Some(setup.acme.tenant.as_uuid()));
    // Again: a confirmation, not an event.
    assert_eq!(setup.domains.verify(&ctx, &name).await.unwrap(), Verification::Active);
    assert!(matches!(setup.state(setup.acme, &name).await, Some(ClaimState::Active { failing_since: None, .. })));

    setup.domains.release(&ctx, &name).await.unwrap();
    assert_eq!((setup.holder(&name).await, setup.state(setup.acme, &name).await), (None, None));
    assert_eq!(setup.history(setup.acme).await, ["domain.claimed", "domain.verified", "domain.released"]);

    // What is still published proves no later claim.
    let again = setup.domains.claim(&ctx, &name).await.unwrap();
    assert_ne!(again.token, claim.token);
    assert_eq!(setup.domains.verify(&ctx, &name).await.unwrap(), Verification::Contested);
}

#[tokio::test]
async fn what_is_not_claimed_can_be_neither_verified_nor_released() {
    let setup = Setup::start().await;
    let (ctx, name) = (setup.owner(setup.acme).await, domain("app.acme.net"));
    setup.domains.claim(&setup.owner(setup.globex).await, &name).await.unwrap();
    for error in
        [setup.domains.verify(&ctx, &name).await.unwrap_err(), setup.domains.release(&ctx, &name).await.unwrap_err()]
    {
        assert_eq!((error.code(), error.kind()), ("domain_not_claimed", ErrorKind::NotFound));
    }
    assert_eq!(setup.zone.looks(), 0, "nobody is asked about it");
}

#[tokio::test]
async fn domains_of_the_service_itself_are_refused() {
    let setup = Setup::start().await;
    let ctx = setup.owner(setup.acme).await;
    for name in ["example.com", "globex.example.com", "a.b.example.com"] {
        let error = setup.domains.claim(&ctx, &domain(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}");
        assert!(error.to_string().contains("belongs to the service itself"), "{error}");
    }
    setup.domains.claim(&ctx, &domain("badexample.com")).await.unwrap();
}

#[tokio::test]
async fn the_role_decides_who_may_do_what_with_domains() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    let name = domain("app.acme.net");
    for role in Role::ALL {
        let user = setup.add(setup.acme, role.as_str(), *role).await;
        let ctx = setup.tenancy.enter(setup.acme.tenant, user).await.unwrap();
        let allowed = role.allows(saas_tenancy::Permission::ManageTenant);
        let results = [
            setup.domains.claim(&ctx, &name).await.map(drop),
            setup.domains.list(&ctx).await.map(drop),
            setup.domains.verify(&ctx, &name).await.map(drop),
        ];
        for result in results {
            assert_eq!(result.is_ok(), allowed, "{role}: {result:?}");
        }
        if !allowed {
            let error = setup.domains.release(&ctx, &name).await.unwrap_err();
            assert_eq!(error.code(), "not_allowed", "{role}");
        }
    }
    let machine = RequestContext::new(setup.acme.tenant, Actor::system("import"), setup.db.clock());
    assert_eq!(setup.domains.claim(&machine, &name).await.unwrap_err().code(), "not_a_person");
    assert_eq!(setup.domains.release(&machine, &name).await.unwrap_err().code(), "not_a_person");
    let stranger = RequestContext::new(setup.acme.tenant, Actor::user(setup.globex.owner), setup.db.clock());
    assert_eq!(setup.domains.verify(&stranger, &name).await.unwrap_err().code(), "not_a_member");
}

#[tokio::test]
async fn two_tenants_may_claim_a_domain_and_learn_nothing_of_each_other() {
    let setup = Setup::start().await;
    let (acme, globex) = (setup.owner(setup.acme).await, setup.owner(setup.globex).await);
    let name = domain("app.acme.net");
    setup.activate(setup.acme, "app.acme.net").await;
    setup.advance(TimeDelta::seconds(1));
    // What globex sees of a domain that acme has, and of one that nobody has.
    let (taken, free) = (name, domain("app.free.net"));
    for name in [&taken, &free] {
        let claim = setup.domains.claim(&globex, name).await.unwrap();
        assert_eq!(claim.state, ClaimState::Pending);
        let listed = setup.domains.list(&globex).await.unwrap();
        assert!(listed.contains(&claim));
    }
    setup.zone.publish(&free, &["saas-domain-verification=of-somebody"]);
    for name in [&taken, &free] {
        assert_eq!(setup.domains.verify(&globex, name).await.unwrap(), Verification::Contested, "what DNS says");
    }
    assert_eq!(setup.holder(&taken).await, Some(setup.acme.tenant.as_uuid()));
    assert_eq!(setup.history(setup.acme).await, ["domain.claimed", "domain.verified"]);

    // The application role reads its own claims and nothing of who has what.
    let mut tx = TenantTx::begin(setup.db.tenants(), &acme).await.unwrap();
    let seen: Vec<String> =
        sqlx::query_scalar("select domain from saas.custom_domain").fetch_all(&mut *tx).await.unwrap();
    assert_eq!(seen, ["app.acme.net"]);
    for sql in ["select domain from saas.active_domain", "update saas.custom_domain set state = 'active'"] {
        let mut tx = TenantTx::begin(setup.db.tenants(), &acme).await.unwrap();
        let error = sqlx::query(sql).execute(&mut *tx).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}");
    }
    assert_eq!(doctor::examine(setup.db.tenants().pool()).await.unwrap(), []);
}

#[tokio::test]
async fn a_domain_that_moved_goes_to_whoever_publishes_now() {
    let setup = Setup::start().await;
    let (acme, globex) = (setup.owner(setup.acme).await, setup.owner(setup.globex).await);
    let name = domain("app.acme.net");
    setup.activate(setup.acme, "app.acme.net").await;
    let old = setup.domains.claim(&acme, &name).await.unwrap();
    setup.advance(TimeDelta::seconds(1));
    let claim = setup.domains.claim(&globex, &name).await.unwrap();
    setup.zone.publish(&name, &[&old.value(), &claim.value()]);
    assert_eq!(setup.domains.verify(&globex, &name).await.unwrap(), Verification::Contested);
    assert_eq!(setup.holder(&name).await, Some(setup.acme.tenant.as_uuid()));

    setup.zone.publish(&name, &[&claim.value()]);
    assert_eq!(setup.domains.verify(&globex, &name).await.unwrap(), Verification::Active);
    assert_eq!(setup.holder(&name).await, Some(setup.globex.tenant.as_uuid()));
    assert_eq!(setup.state(setup.acme, &name).await, Some(ClaimState::Lost));
    assert_eq!(setup.history(setup.acme).await, ["domain.claimed", "domain.verified", "domain.lost"]);
    assert_eq!(setup.history(setup.globex).await, ["domain.claimed", "domain.verified"]);

    // The old claim is over, even if its record comes back; a new one starts from nothing.
    setup.zone.publish(&name, &[&old.value()]);
    assert_eq!(setup.domains.verify(&acme, &name).await.unwrap_err().code(), "domain_not_claimed");
    let anew = setup.domains.claim(&acme, &name).await.unwrap();
    assert!(anew.token != old.token && anew.state == ClaimState::Pending);
    assert_eq!(setup.domains.verify(&acme, &name).await.unwrap(), Verification::Contested);
    assert_eq!(setup.holder(&name).await, Some(setup.globex.tenant.as_uuid()));
}

/// Answers with what was published when it was asked, and lets another tenant verify before the answer arrives.
#[derive(Debug)]
struct Slow {
    answer: String,
    meanwhile: (Domains, RequestContext),
}

#[async_trait]
impl DomainProof for Slow {
    async fn published(&self, domain: &DomainName) -> Result<Vec<String>, ProofError> {
        let (domains, ctx) = &self.meanwhile;
        assert_eq!(domains.verify(ctx, domain).await.unwrap(), Verification::Active);
        Ok(vec![self.answer.clone()])
    }
}

#[tokio::test]
async fn a_proof_that_was_read_before_another_tenants_takes_nothing_from_it() {
    let setup = Setup::start().await;
    let (acme, globex) = (setup.owner(setup.acme).await, setup.owner(setup.globex).await);
    let name = domain("app.acme.net");
    let answer = setup.domains.claim(&acme, &name).await.unwrap().value();
    let newer = setup.domains.claim(&globex, &name).await.unwrap();
    setup.zone.publish(&name, &[&newer.value()]);
    let slow = Slow { answer, meanwhile: (setup.domains.clone(), globex) };
    let slow = Domains::new(setup.tenancy.clone(), Arc::new(slow), &[]).unwrap();
    assert_eq!(slow.verify(&acme, &name).await.unwrap(), Verification::Contested);
    assert_eq!(setup.holder(&name).await, Some(setup.globex.tenant.as_uuid()));
    assert_eq!(setup.state(setup.acme, &name).await, Some(ClaimState::Pending));
}

#[tokio::test]
async fn two_tenants_who_take_domains_from_each_other_at_once_do_not_wait_for_each_other() {
    let setup = Setup::start().await;
    let (acme, globex) = (setup.owner(setup.acme).await, setup.owner(setup.globex).await);
    let (one, other) = (domain("one.example.net"), domain("other.example.net"));
    setup.activate(setup.acme, one.as_str()).await;
    setup.activate(setup.globex, other.as_str()).await;
    for _ in 0..10 {
        for (ctx, holder, name) in [(&globex, setup.acme, &one), (&acme, setup.globex, &other)] {
            // Each gives the other one's domain back first, so that every round begins alike.
            setup.advance(TimeDelta::seconds(1));
            setup.activate(holder, name.as_str()).await;
            let claim = setup.domains.claim(ctx, name).await.unwrap();
            setup.zone.publish(name, &[&claim.value()]);
        }
        setup.advance(TimeDelta::seconds(1));
        let (first, second) = tokio::join!(setup.domains.verify(&globex, &one), setup.domains.verify(&acme, &other));
        assert_eq!((first.unwrap(), second.unwrap()), (Verification::Active, Verification::Active));
    }
}

#[tokio::test]
async fn what_is_deleted_with_its_tenant_leads_nowhere() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    setup.activate(setup.globex, "app.globex.net").await;
    let mut tx = SystemTx::begin(setup.db.system(), Actor::system("test"), "erase a tenant").await.unwrap();
    let delete = sqlx::query("delete from saas.custom_domain where tenant_id = $1").bind(setup.acme.tenant.as_uuid());
    assert_eq!(delete.execute(&mut *tx).await.unwrap().rows_affected(), 1);
    tx.commit().await.unwrap();
    assert_eq!(setup.holder(&domain("app.acme.net")).await, None);
    assert_eq!(setup.holder(&domain("app.globex.net")).await, Some(setup.globex.tenant.as_uuid()));
}

#[tokio::test]
async fn an_unanswered_look_changes_nothing() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    let (ctx, name) = (setup.owner(setup.acme).await, domain("app.acme.net"));
    setup.zone.set_down(true);
    let error = setup.domains.verify(&ctx, &name).await.unwrap_err();
    assert!(matches!(error, TenancyError::ProofUnread { .. }), "{error}");
    assert_eq!((error.code(), error.is_retryable()), ("proof_unread", true));
    setup.advance(TimeDelta::days(100));
    let report = setup.domains.recheck(Recheck::default()).await.unwrap();
    assert_eq!(report, Rechecked { unanswered: 1, ..Rechecked::default() });
    assert_eq!(setup.holder(&name).await, Some(setup.acme.tenant.as_uuid()));
    // It has had its turn.
    assert_eq!(setup.domains.recheck(Recheck::default()).await.unwrap(), Rechecked::default());
}

#[tokio::test]
async fn a_domain_without_its_proof_is_lost_after_the_grace_and_not_before() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    setup.activate(setup.globex, "app.globex.net").await;
    let (ctx, name) = (setup.owner(setup.acme).await, domain("app.acme.net"));
    let value = setup.domains.claim(&ctx, &name).await.unwrap().value();
    let recheck = async || setup.domains.recheck(Recheck::default()).await.unwrap();
    assert_eq!(recheck().await, Rechecked::default(), "looked at just now");
    let day = TimeDelta::days(1) + TimeDelta::seconds(1);
    setup.advance(day);
    assert_eq!(recheck().await, Rechecked { proven: 2, ..Rechecked::default() });

    setup.zone.publish(&name, &[]);
    setup.advance(day);
    assert_eq!(recheck().await, Rechecked { proven: 1, failing: 1, ..Rechecked::default() });
    assert!(matches!(setup.state(setup.acme, &name).await, Some(ClaimState::Active { failing_since: Some(_), .. })));
    // Published again in time: the grace starts from nothing the next time.
    setup.zone.publish(&name, &[&value]);
    setup.advance(day);
    assert_eq!(recheck().await, Rechecked { proven: 2, ..Rechecked::default() });
    assert!(matches!(setup.state(setup.acme, &name).await, Some(ClaimState::Active { failing_since: None, .. })));

    setup.zone.publish(&name, &["saas-domain-verification=of-somebody"]);
    for _ in 0..14 {
        setup.advance(day);
        assert_eq!(recheck().await, Rechecked { proven: 1, failing: 1, ..Rechecked::default() });
    }
    setup.advance(day);
    assert_eq!(recheck().await, Rechecked { proven: 1, lost: 1, ..Rechecked::default() });
    assert_eq!((setup.holder(&name).await, setup.state(setup.acme, &name).await), (None, Some(ClaimState::Lost)));
    let actions = ["domain.claimed", "domain.verified", "domain.failing", "domain.failing", "domain.lost"];
    assert_eq!(setup.history(setup.acme).await, actions);
    assert!(setup.holder(&domain("app.globex.net")).await.is_some());
}

#[tokio::test]
async fn the_number_of_claims_is_bounded_also_when_they_come_at_once() {
    let setup = Setup::start().await;
    let ctx = setup.owner(setup.acme).await;
    for n in 1..MAX_DOMAINS {
        setup.domains.claim(&ctx, &domain(&format!("d{n}.acme.net"))).await.unwrap();
    }
    let (x, y) = (domain("x.acme.net"), domain("y.acme.net"));
    let (one, other) = tokio::join!(setup.domains.claim(&ctx, &x), setup.domains.claim(&ctx, &y));
    assert!(one.is_ok() != other.is_ok());
    let error = one.err().or(other.err()).unwrap();
    assert_eq!((error.code(), error.kind()), ("too_many_domains", ErrorKind::Conflict));
    assert_eq!(setup.domains.list(&ctx).await.unwrap().len(), MAX_DOMAINS as usize);
    setup.domains.release(&ctx, &domain("d1.acme.net")).await.unwrap();
    let last = if setup.state(setup.acme, &x).await.is_some() { y } else { x };
    setup.domains.claim(&ctx, &last).await.unwrap();
}

#[tokio::test]
async fn a_tenant_that_may_change_nothing_wins_and_gives_up_no_domain() {
    let setup = Setup::start().await;
    setup.activate(setup.acme, "app.acme.net").await;
    let (ctx, pending) = (setup.owner(setup.acme).await, "new.acme.net".parse().unwrap());
    let claim = setup.domains.claim(&ctx, &pending).await.unwrap();
    setup.zone.publish(&pending, &[&claim.value()]);
    let status = Lifecycle::new(setup.db.system().clone(), Arc::new(setup.db.clock().clone()));
    let vendor = Actor::system("dunning");
    status.make_read_only(setup.acme.tenant, &vendor, "unpaid").await.unwrap();
    // A request that began before still holds its context.
    assert_eq!(setup.domains.verify(&ctx, &pending).await.unwrap_err().code(), "tenant_read_only");
    let active = "app.acme.net".parse().unwrap();
    assert_eq!(setup.domains.release(&ctx, &active).await.unwrap_err().code(), "tenant_read_only");
    status.end_read_only(setup.acme.tenant, &vendor).await.unwrap();
    assert_eq!(setup.domains.verify(&ctx, &pending).await.unwrap(), Verification::Active);
}
