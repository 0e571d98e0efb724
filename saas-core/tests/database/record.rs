//! Tenants, revisions, the audit log and the timeline.

use saas_core::{
    Actor, Clock, EmailAddress, PageSize, Revision, SystemTx, TenantContext, TenantId, TenantTx,
    audit::{self, Entry},
    mail::{self, Mail},
    overview::{self, Filter},
    revision, subscription,
    tenant::{self, NewTenant},
    timeline,
};
use serde_json::json;
use sqlx::postgres::PgListener;

use crate::adopter::Fixture;

#[tokio::test]
async fn a_revision_rises_and_is_told_at_commit_and_not_before() {
    let fixture = Fixture::start().await;
    let mut listener = PgListener::connect(&fixture.db.url("saas_app")).await.unwrap();
    listener.listen(revision::CHANNEL).await.unwrap();
    let mut rolled_back = fixture.begin(&fixture.a).await;
    assert_eq!(revision::bump_in(&mut rolled_back, fixture.a.tenant()).await.unwrap(), Revision::new(2));
    rolled_back.rollback().await.unwrap();
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(revision::bump_in(&mut tx, fixture.a.tenant()).await.unwrap(), Revision::new(2));
    assert_eq!(revision::bump_in(&mut tx, fixture.a.tenant()).await.unwrap(), Revision::new(3));
    tx.commit().await.unwrap();
    let heard = [listener.recv().await.unwrap(), listener.recv().await.unwrap()];
    let heard = heard.map(|notice| revision::parse_notification(notice.payload()).unwrap());
    assert_eq!(heard, [(fixture.a.tenant(), Revision::new(2)), (fixture.a.tenant(), Revision::new(3))]);
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(revision::current_in(&mut tx, fixture.a.tenant()).await.unwrap(), Revision::new(3));
}

#[tokio::test]
async fn another_tenants_revision_can_be_neither_read_nor_raised() {
    let fixture = Fixture::start().await;
    let mut tx = fixture.begin(&fixture.a).await;
    assert_eq!(revision::bump_in(&mut tx, fixture.b.tenant()).await.unwrap_err().code(), "not_found");
    assert_eq!(revision::current_in(&mut tx, fixture.b.tenant()).await.unwrap_err().code(), "not_found");
    assert_eq!(tenant::lock_in(&mut tx, fixture.b.tenant()).await.unwrap_err().code(), "not_found");
}

#[tokio::test]
async fn what_a_source_of_plans_answers_is_recorded_from_the_revision_that_it_makes() {
    let fixture = Fixture::start().await;
    let (now, tenant) = (fixture.db.clock().now(), fixture.a.tenant());
    let mut tx = SystemTx::begin(fixture.db.system(), Actor::system("test"), "record").await.unwrap();
    tenant::lock_in(&mut tx, tenant).await.unwrap();
    let made = subscription::record_next_in(&mut tx, tenant, "own", None, now).await.unwrap();
    assert_eq!((made, revision::current_in(&mut tx, tenant).await.unwrap()), (Revision::new(2), Revision::new(2)));
    let recorded = subscription::recorded_in(&mut tx, tenant, "own", now).await.unwrap().unwrap();
    assert_eq!((recorded.revision, recorded.at, recorded.assignment), (made, now, None));
    let nobody = TenantId::from_uuid(uuid::Uuid::nil());
    let refused = subscription::record_next_in(&mut tx, nobody, "own", None, now).await.unwrap_err();
    assert_eq!(refused.code(), "not_found");
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn settings_that_a_transaction_begins_with_end_with_it() {
    let fixture = Fixture::start().await;
    let (pool, actor) = (fixture.db.system(), Actor::system("test"));
    let bounded: &[(&str, &str)] = &[("lock_timeout", "500ms"), ("application_name", "it's bounded")];
    let ask = "select current_setting('lock_timeout') || ', ' || current_setting('application_name')";
    let mut tx = SystemTx::begin_with(pool, actor.clone(), "ask", bounded).await.unwrap();
    let within: String = sqlx::query_scalar(ask).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(within, "500ms, it's bounded");
    tx.commit().await.unwrap();
    let mut tx = SystemTx::begin(pool, actor.clone(), "ask").await.unwrap();
    let after: String = sqlx::query_scalar(ask).fetch_one(&mut *tx).await.unwrap();
    assert!(!after.contains("500ms") && !after.contains("bounded"), "{after}");
    tx.rollback().await.unwrap();
    let unknown = SystemTx::begin_with(pool, actor, "ask", &[("no_such_setting", "1")]).await.unwrap_err();
    assert_eq!(unknown.code(), "statement");
}

#[tokio::test]
async fn a_tenant_is_found_by_its_address_and_the_address_is_unique() {
    let fixture = Fixture::start().await;
    let now = fixture.db.clock().now();
    let mut tx = SystemTx::begin(fixture.db.system(), Actor::system("test"), "register").await.unwrap();
    let found = tenant::find_by_slug_in(&mut tx, &"tenant-a".parse().unwrap()).await.unwrap();
    assert_eq!(found, Some(fixture.a.tenant()));
    assert_eq!(tenant::find_by_slug_in(&mut tx, &"nobody".parse().unwrap()).await.unwrap(), None);
    let twin = NewTenant::new("tenant-a".parse().unwrap(), "Twin").unwrap();
    let error = tenant::create_in(&mut tx, &twin, now).await.unwrap_err();
    assert_eq!(error.constraint(), Some("tenant_slug_pkey"));
}

#[test]
fn a_tenant_needs_a_name_people_can_read() {
    for bad in ["", "   ", "a\nb", &"x".repeat(201)] {
        assert!(NewTenant::new("acme".parse().unwrap(), bad).is_err(), "{bad:?}");
    }
}

// A8
#[tokio::test]
async fn no_audit_row_no_change() {
    let fixture = Fixture::start().await;
    let now = fixture.db.clock().now();
    let mut tx = fixture.begin(&fixture.a).await;
    fixture.add_project(&mut tx, "unaudited").await;
    // The audit row names another tenant: the database refuses it, and with it everything before.
    let entry = Entry::new("project.created", "unaudited");
    audit::record_in(&mut tx, fixture.b.tenant(), &Actor::system("test"), entry, now).await.unwrap_err();
    assert_eq!(tx.commit().await.unwrap_err().code(), "transaction_aborted");
    let mut tx = fixture.begin(&fixture.a).await;
    let projects: i64 = sqlx::query_scalar("select count(*) from public.project").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(projects, 1);
}

#[tokio::test]
async fn the_timeline_shows_changes_and_messages_of_one_tenant_in_pages() {
    let fixture = Fixture::start().await;
    let to: EmailAddress = "ada@example.com".parse().unwrap();
    for ctx in [&fixture.a, &fixture.b] {
        for n in 0..5 {
            fixture.db.clock().advance(chrono::TimeDelta::seconds(1));
            let now = fixture.db.clock().now();
            let mut tx = TenantTx::begin(fixture.db.tenants(), ctx).await.unwrap();
            let entry = Entry::new("project.renamed", n).with_detail(json!({ "to": "with \0 inside", "n": n }));
            audit::record(&mut tx, entry, now).await.unwrap();
            let mail = Mail::new(to.clone(), "Renamed", "text").unwrap();
            mail::enqueue_in(&mut tx, ctx.tenant(), &mail, now).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
    let mut tx = fixture.begin(&fixture.a).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = timeline::list(&mut tx, after, PageSize::new(3).unwrap()).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 10);
    assert!(seen.is_sorted_by(|one, two| one.at >= two.at));
    assert_eq!(seen.iter().filter(|event| event.action == "mail.pending").count(), 5);
    let newest = seen.iter().find(|event| event.action == "project.renamed").unwrap();
    assert_eq!(newest.detail, json!({ "to": "with \u{fffd} inside", "n": 4 }));
    assert_eq!(newest.actor, fixture.a.actor().to_string());
}

#[tokio::test]
async fn operators_list_tenants_in_pages_and_by_what_they_look_for() {
    let fixture = Fixture::start().await;
    for n in 0..3 {
        fixture.db.create_tenant(&format!("more-{n}")).await;
    }
    let mut tx = SystemTx::begin(fixture.db.system(), Actor::system("test"), "list").await.unwrap();
    let now = fixture.db.clock().now();
    sqlx::query("update saas.tenant_overview set plan = 'pro', near_limit_until = $2 where tenant_id = $1")
        .bind(fixture.b.tenant().as_uuid())
        .bind(now + chrono::TimeDelta::days(1))
        .execute(&mut *tx)
        .await
        .unwrap();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = overview::list(&mut tx, &Filter::default(), after, PageSize::new(2).unwrap(), now).await.unwrap();
        seen.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 5);
    for filter in
        [Filter { plan: Some("pro".into()), ..Filter::default() }, Filter { near_limit: true, ..Filter::default() }]
    {
        let page = overview::list(&mut tx, &filter, None, PageSize::default(), now).await.unwrap();
        assert_eq!(page.items.iter().map(|row| row.tenant).collect::<Vec<_>>(), [fixture.b.tenant()]);
        assert!(page.items[0].near_limit);
    }
    let near = Filter { near_limit: true, ..Filter::default() };
    let later = now + chrono::TimeDelta::days(1);
    let page = overview::list(&mut tx, &near, None, PageSize::default(), later).await.unwrap();
    assert!(page.items.is_empty(), "the warning went with its window, though nothing was written");
}
