//! A repeated request gets the first answer, and its effect happens once.

use saas_core::{
    Actor, Clock, IdempotencyKey, SystemTx, TenantTx,
    idempotency::{self, Claim},
};

use crate::adopter::Fixture;

fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

/// Adds a project once per key and answers with its name.
async fn add_once(
    fixture: &Fixture,
    ctx: &saas_core::RequestContext,
    key: &IdempotencyKey,
    request: &[u8],
) -> Result<Vec<u8>, saas_core::CoreError> {
    let now = fixture.db.clock().now();
    let mut tx = TenantTx::begin(fixture.db.tenants(), ctx).await?;
    match idempotency::claim(&mut tx, key, request, now).await? {
        Claim::Replay(answer) => Ok(answer.unwrap()),
        Claim::New => {
            let answer = fixture.add_project(&mut tx, &format!("made by {key}")).await.to_string().into_bytes();
            idempotency::complete(&mut tx, key, &answer).await?;
            tx.commit().await?;
            Ok(answer)
        }
    }
}

#[tokio::test]
async fn repeats_at_once_and_later_get_the_first_answer() {
    let fixture = Fixture::start().await;
    let key = key("k1");
    let answers = futures_util::future::join_all((0..8).map(|_| add_once(&fixture, &fixture.a, &key, b"body"))).await;
    let first = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    let mut tx = fixture.begin(&fixture.a).await;
    let made: i64 = sqlx::query_scalar("select count(*) from public.project").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(made, 2, "the seeded one and one more");
}

#[tokio::test]
async fn a_key_that_comes_with_another_request_is_refused() {
    let fixture = Fixture::start().await;
    add_once(&fixture, &fixture.a, &key("k"), b"one").await.unwrap();
    let error = add_once(&fixture, &fixture.a, &key("k"), b"two").await.unwrap_err();
    assert_eq!(error.code(), "idempotency_key_reused");
}

#[tokio::test]
async fn a_key_belongs_to_one_tenant() {
    let fixture = Fixture::start().await;
    let ours = add_once(&fixture, &fixture.a, &key("k"), b"one").await.unwrap();
    let theirs = add_once(&fixture, &fixture.b, &key("k"), b"two").await.unwrap();
    assert_ne!(ours, theirs);
}

#[tokio::test]
async fn a_request_that_was_rolled_back_can_be_made_again() {
    let fixture = Fixture::start().await;
    let mut tx = fixture.begin(&fixture.a).await;
    let now = fixture.db.clock().now();
    assert_eq!(idempotency::claim(&mut tx, &key("k"), b"one", now).await.unwrap(), Claim::New);
    drop(tx);
    add_once(&fixture, &fixture.a, &key("k"), b"one").await.unwrap();
    let mut tx = fixture.begin(&fixture.a).await;
    for (what, key) in [("never claimed", key("other")), ("claimed by an earlier transaction", key("k"))] {
        let unclaimed = idempotency::complete(&mut tx, &key, b"").await.unwrap_err();
        assert_eq!(unclaimed.code(), "not_found", "{what}");
    }
    drop(tx);
    let mut tx = SystemTx::begin(fixture.db.system(), Actor::system("test"), "purge").await.unwrap();
    assert_eq!(idempotency::purge_in(&mut tx, now).await.unwrap(), 0);
    assert_eq!(idempotency::purge_in(&mut tx, now + chrono::TimeDelta::days(1)).await.unwrap(), 1);
}
