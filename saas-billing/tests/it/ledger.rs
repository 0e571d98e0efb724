//! Money on a real database: what is booked, who may touch it, what a verification finds.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use saas_billing::{
    BillingError, Fetched, ObjectId, ObjectSource,
    ledger::{
        Account, Burn, Cause, CreditGrant, Granted, LedgerAnchor, LedgerFault, LedgerReport, Reversal, StatementFilter,
    },
    money::Money,
    object::ObjectKind,
    testing::Purchase,
};
use saas_core::{
    Clock, CoreError, ErrorKind, IdempotencyKey, PageSize, RequestContext, SystemTx, TenantContext, TenantTx,
};
use serde_json::{Value, json};

use crate::shop::{OPERATOR, Shop, id};

fn eur(minor: i64) -> Money {
    Money::new(minor, "eur".parse().unwrap())
}

fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

/// An event of a test's own, in the second that `created` names.
fn event(name: &str, event_type: &str, created: i64, object: &Value) -> Vec<u8> {
    json!({"id": format!("evt_{name}"), "object": "event", "api_version": "2026-09-30.endive", "type": event_type,
        "created": 1_900_000_000 + created, "livemode": false, "data": {"object": object}})
    .to_string()
    .into_bytes()
}

fn charge(name: &str, customer: &str, amount: i64) -> Vec<u8> {
    let object = json!({"id": format!("ch_{name}"), "object": "charge", "customer": customer,
        "payment_intent": format!("pi_{name}"), "status": "succeeded", "amount": amount, "amount_captured": amount,
        "captured": true, "currency": "eur", "created": 1_900_000_000});
    event(&format!("charge_{name}"), "charge.succeeded", 0, &object)
}

fn refund(name: &str, of: &str, amount: i64, (status, created): (&str, i64)) -> Vec<u8> {
    let object = json!({"id": format!("re_{name}"), "object": "refund", "charge": format!("ch_{of}"),
        "payment_intent": format!("pi_{of}"), "status": status, "amount": amount, "currency": "eur",
        "created": 1_900_000_010});
    event(&format!("refund_{name}_{status}"), "refund.updated", created, &object)
}

fn dispute(of: &str, amount: i64, (status, created): (&str, i64)) -> Vec<u8> {
    let object = json!({"id": format!("dp_{of}"), "object": "dispute", "charge": format!("ch_{of}"),
        "payment_intent": format!("pi_{of}"), "status": status, "amount": amount, "currency": "eur",
        "created": 1_900_000_020});
    event(&format!("dispute_{of}_{status}"), "charge.dispute.updated", created, &object)
}

fn invoice(name: &str, customer: &str, (status, created): (&str, i64), paid: i64) -> Vec<u8> {
    let object = json!({"id": format!("in_{name}"), "object": "invoice", "customer": customer, "status": status,
        "currency": "eur", "created": 1_900_000_000, "total": 11_900, "total_excluding_tax": 10_000, "amount_due": 8_900,
        "amount_paid": paid, "amount_remaining": 8_900 - paid, "starting_balance": -3_000, "ending_balance": 0,
        "status_transitions": {"finalized_at": 1_900_000_001,
            "paid_at": (status == "paid").then_some(1_900_000_000 + created)}});
    event(&format!("invoice_{name}_{status}"), "invoice.updated", created, &object)
}

/// A shop with one tenant whose customer is linked, and nothing to be delivered. Charges are each test's own.
async fn shop() -> (Shop, RequestContext, Purchase) {
    let shop = Shop::open().await;
    let (ctx, purchase) = shop.buyer("acme").await;
    let mut events = shop.stripe.deliveries();
    events.retain(|event| !event.event_type.starts_with("charge."));
    shop.deliver(&events).await;
    (shop, ctx, purchase)
}

async fn receive(shop: &Shop, bodies: &[Vec<u8>]) {
    for body in bodies {
        let _ = shop.receive_body(body).await;
        shop.apply().await;
    }
}

async fn balances(shop: &Shop, ctx: &RequestContext) -> Vec<(Account, i64)> {
    let all = shop.billing.balances(ctx, None).await.unwrap();
    let mut open: Vec<_> =
        all.iter().map(|balance| (balance.account, balance.amount.minor())).filter(|(_, minor)| *minor != 0).collect();
    open.sort_unstable();
    open
}

async fn verify(shop: &Shop, ctx: &RequestContext, anchor: Option<&LedgerAnchor>) -> LedgerReport {
    shop.billing.verify_ledger(&OPERATOR, ctx.tenant(), anchor).await.unwrap()
}

/// What the database's superuser does with the guards off.
async fn by_force(shop: &Shop, sql: &str) {
    let script = format!("begin; set local session_replication_role = replica; {sql}; commit");
    let script = sqlx::AssertSqlSafe(script);
    sqlx::raw_sql(script).execute(&mut *shop.owner.lock().await).await.unwrap();
}

#[tokio::test]
async fn a_purchase_books_its_invoice_and_its_charge_closes_it() {
    let (shop, ctx, purchase) = shop().await;
    assert_eq!(balances(&shop, &ctx).await, [(Account::Payments, 2_000), (Account::Revenue, -2_000)]);
    receive(&shop, &[charge("1", purchase.customer.as_str(), 2_000)]).await;
    assert_eq!(balances(&shop, &ctx).await, [(Account::Cash, 2_000), (Account::Revenue, -2_000)]);
    let report = verify(&shop, &ctx, None).await;
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.transactions, report.objects), (3, 3));
    let totals = shop.billing.ledger_totals(&OPERATOR).await.unwrap();
    assert_eq!(totals.iter().map(|total| total.amount.minor()).sum::<i64>(), 0);
    let other = shop.database.create_tenant("other").await;
    assert_eq!(balances(&shop, &other).await, []);
    assert!(verify(&shop, &other, None).await.is_sound());
}

// W8, W9, L3: refunds and disputes may come before the charge that says whose they are.
#[tokio::test]
async fn in_whatever_order_and_however_often_money_is_told_of_balances_end_the_same() {
    let (shop, ctx, purchase) = shop().await;
    let customer = purchase.customer.as_str();
    let balance = json!({"id": customer, "object": "customer", "balance": -500, "currency": "eur"});
    let note = json!({"id": "cn_1", "object": "credit_note", "customer": customer, "invoice": "in_a", "status": "issued",
        "type": "post_payment", "total": 1_190, "total_excluding_tax": 1_000, "pre_payment_amount": 0,
        "refunds": [{"refund": "re_b", "amount_refunded": 690}], "customer_balance_transaction": "cbtxn_1",
        "currency": "eur", "created": 1_900_000_030});
    let events = [
        charge("a", customer, 8_900),
        invoice("a", customer, ("open", 1), 0),
        invoice("a", customer, ("paid", 2), 8_900),
        refund("a", "a", 700, ("succeeded", 10)),
        refund("a", "a", 700, ("failed", 12)),
        refund("b", "a", 690, ("succeeded", 30)),
        dispute("a", 8_210, ("needs_response", 20)),
        dispute("a", 8_210, ("lost", 40)),
        event("note", "credit_note.created", 30, &note),
        event("balance", "customer.updated", 31, &balance),
    ];
    let bought = events[0].clone();
    let grant = CreditGrant { key: key("pi_a"), amount: eur(1_000), payment: Some(id("pi_a")) };
    let mut ends = BTreeSet::new();
    let mut state = 7_u64;
    for round in 0..24 {
        let mut order: Vec<usize> = (0..events.len()).collect();
        for last in (1..order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(last, usize::try_from(state >> 33).unwrap() % (last + 1));
        }
        if round == 0 {
            order.sort_unstable();
        }
        shop.forget().await;
        shop.billing.link_customer(&ctx, &purchase.customer).await.unwrap();
        for (n, index) in order.iter().enumerate() {
            receive(&shop, std::slice::from_ref(&events[*index])).await;
            if n == 4 {
                assert!(matches!(shop.billing.grant_credits(&ctx, &grant).await.unwrap(), Granted::Now { .. }));
            }
        }
        receive(&shop, &[bought.clone(), events[4].clone()]).await;
        let report = verify(&shop, &ctx, None).await;
        assert!(report.is_sound(), "order {order:?}: {report:?}");
        assert_eq!(shop.scalar("select count(*) from saas.billing_receipt where state <> 'applied'").await, 0);
        ends.insert(balances(&shop, &ctx).await);
    }
    use Account::*;
    let end = vec![
        (Revenue, -10_000),
        (Tax, -1_710),
        (CreditNotes, 1_000),
        (DisputesLost, 8_210),
        (CustomerCredit, -500),
        (CreditClearing, 3_000),
    ];
    assert_eq!(ends, BTreeSet::from([end]), "all credits that the payment bought are gone with it");
}

/// A Stripe that knows one charge.
#[derive(Debug)]
struct OneCharge(String);

#[async_trait::async_trait]
impl ObjectSource for OneCharge {
    async fn fetch(&self, kind: ObjectKind, id: &ObjectId) -> Result<Fetched, saas_billing::ProviderError> {
        if kind != ObjectKind::Charge || id.as_str() != "ch_1" {
            return Ok(Fetched::Missing);
        }
        let object = json!({"id": "ch_1", "object": "charge", "customer": self.0, "payment_intent": "pi_1",
            "status": "succeeded", "amount": 500, "amount_captured": 500, "currency": "eur", "created": 1_900_000_000});
        let object = serde_json::value::to_raw_value(&object).unwrap();
        Ok(Fetched::Found { object, as_of: None })
    }
}

// W8, W20
#[tokio::test]
async fn a_refund_whose_charge_no_event_tells_of_has_it_fetched() {
    let (shop, ctx, purchase) = shop().await;
    receive(&shop, &[refund("1", "1", 200, ("succeeded", 10))]).await;
    assert_eq!(shop.scalar("select count(*) from saas.billing_receipt where state = 'parked'").await, 1);
    let stripe = OneCharge(purchase.customer.to_string());
    assert_eq!(shop.billing.fetch_pending(&stripe, 10).await.unwrap().done, 1);
    shop.apply().await;
    let expected =
        [(Account::Cash, 300), (Account::Payments, 1_500), (Account::Revenue, -2_000), (Account::Refunds, 200)];
    assert_eq!(balances(&shop, &ctx).await, expected);
}

// L3
#[tokio::test]
async fn what_does_not_balance_is_refused_when_it_commits() {
    let (shop, ctx, _) = shop().await;
    let transaction = "insert into saas.ledger_transaction
            (tenant_id, livemode, sequence, cause, subject, actor, occurred_at, recorded_at, hash)
         select tenant_id, livemode, 99, cause, subject, actor, occurred_at, recorded_at, hash
         from saas.ledger_transaction where tenant_id = $1 and sequence = 1";
    let entry = "insert into saas.ledger_entry (tenant_id, livemode, sequence, account, currency, amount, occurred_at)
         select tenant_id, livemode, 99, account, case when amount > 0 then 'eur' else 'usd' end, amount, occurred_at
         from saas.ledger_entry where tenant_id = $1 and sequence = 1";
    for statements in [&[transaction][..], &[transaction, entry]] {
        let mut tx = SystemTx::begin(shop.database.system(), OPERATOR, "try what must not be").await.unwrap();
        for statement in statements {
            sqlx::query(*statement).bind(ctx.tenant().as_uuid()).execute(&mut *tx).await.unwrap();
        }
        let refused = tx.commit().await.unwrap_err();
        assert_eq!(refused.constraint(), Some("ledger_balanced"), "{refused:?}");
    }
    // One more entry for a transaction that balances.
    let late = "insert into saas.ledger_entry (tenant_id, livemode, sequence, account, currency, amount, occurred_at)
         select tenant_id, livemode, sequence, 'cash', currency, 1, occurred_at
         from saas.ledger_transaction join saas.ledger_entry using (tenant_id, livemode, sequence, occurred_at)
         where tenant_id = $1 and sequence = 1 limit 1";
    let mut tx = SystemTx::begin(shop.database.system(), OPERATOR, "try what must not be").await.unwrap();
    sqlx::query(late).bind(ctx.tenant().as_uuid()).execute(&mut *tx).await.unwrap();
    assert_eq!(tx.commit().await.unwrap_err().constraint(), Some("ledger_balanced"));
    assert!(verify(&shop, &ctx, None).await.is_sound());
}

const TABLES: [&str; 2] = ["saas.ledger_transaction", "saas.ledger_entry"];

// L7: issue's show 6.
#[tokio::test]
async fn no_role_changes_or_removes_what_was_written() {
    let (shop, ctx, _) = shop().await;
    let attempts = TABLES.iter().flat_map(|table| {
        ["update {} set occurred_at = now()", "delete from {}", "truncate {} cascade"]
            .map(|attempt| attempt.replace("{}", table))
    });
    let more = ["delete from saas.ledger_head", "truncate saas.ledger_head"].map(str::to_owned);
    for attempt in attempts.chain(more) {
        let sql = || sqlx::query(sqlx::AssertSqlSafe(attempt.clone()));
        let mut tx = TenantTx::begin(shop.database.tenants(), &ctx).await.unwrap();
        let refused = sql().execute(&mut *tx).await.map_err(CoreError::from_database);
        assert!(matches!(refused, Err(CoreError::Forbidden { .. })), "{attempt}: {refused:?}");
        let mut tx = SystemTx::begin(shop.database.system(), OPERATOR, "try what must not be").await.unwrap();
        let refused = sql().execute(&mut *tx).await.map_err(CoreError::from_database);
        assert!(matches!(refused, Err(CoreError::Forbidden { .. })), "{attempt}: {refused:?}");
        // Neither does a superuser, until he takes the guard away.
        let refused = sql().execute(&mut *shop.owner.lock().await).await.map_err(CoreError::from_database);
        assert!(matches!(refused, Err(CoreError::Forbidden { .. })), "{attempt}: {refused:?}");
    }
    // What a tenant may not write at all, and what a grant by mistake does not open.
    for table in TABLES {
        by_force(&shop, &format!("grant update, delete, truncate on {table} to saas_system")).await;
        let mut tx = SystemTx::begin(shop.database.system(), OPERATOR, "try what must not be").await.unwrap();
        let delete = sqlx::query(sqlx::AssertSqlSafe(format!("delete from {table}")));
        let refused = delete.execute(&mut *tx).await.map_err(CoreError::from_database);
        assert!(matches!(refused, Err(CoreError::Forbidden { .. })), "{table}: {refused:?}");
        let mut tx = TenantTx::begin(shop.database.tenants(), &ctx).await.unwrap();
        let insert = sqlx::query(sqlx::AssertSqlSafe(format!("insert into {table} select * from {table}")));
        let refused = insert.execute(&mut *tx).await.map_err(CoreError::from_database);
        assert!(matches!(refused, Err(CoreError::Forbidden { .. })), "{table}: {refused:?}");
    }
    assert!(verify(&shop, &ctx, None).await.is_sound());
}

// L7, A9, A11: issue's show 6.
#[tokio::test]
async fn what_the_owner_does_by_force_is_found() {
    let (shop, ctx, purchase) = shop().await;
    receive(&shop, &[charge("1", purchase.customer.as_str(), 2_000), charge("2", purchase.customer.as_str(), 50)])
        .await;
    let anchor = verify(&shop, &ctx, None).await.anchor;
    assert_eq!(anchor.to_string().parse::<LedgerAnchor>().unwrap(), anchor);
    assert!(verify(&shop, &ctx, Some(&anchor)).await.is_sound());
    let last = anchor.sequence;
    assert_eq!(last, 4);
    let keep = "create table if not exists public.kept_transaction as table saas.ledger_transaction;
        create table if not exists public.kept_entry as table saas.ledger_entry;
        create table if not exists public.kept_head as table saas.ledger_head";
    let restore = "delete from saas.ledger_entry; delete from saas.ledger_transaction; delete from saas.ledger_head;
        insert into saas.ledger_transaction select * from public.kept_transaction;
        insert into saas.ledger_entry select * from public.kept_entry;
        insert into saas.ledger_head select * from public.kept_head";
    by_force(&shop, keep).await;
    let changed = |sequence| vec![LedgerFault::Changed { sequence }];
    let tail = format!(
        "delete from saas.ledger_entry where sequence = {last}; delete from saas.ledger_transaction where sequence = {last}"
    );
    let shorter = format!(
        "{tail}; update saas.ledger_head set sequence = {last} - 1,
         hash = (select hash from saas.ledger_transaction where sequence = {last} - 1)"
    );
    let by_hand = "insert into saas.ledger_transaction
            (tenant_id, livemode, sequence, cause, subject, actor, occurred_at, recorded_at, hash)
         select tenant_id, livemode, 5, cause, 'ch_9', actor, occurred_at, recorded_at, sha256('x')
         from saas.ledger_transaction where sequence = 4;
         insert into saas.ledger_entry select tenant_id, livemode, 5, account, currency, amount, occurred_at
         from saas.ledger_entry where sequence = 4";
    let cases: Vec<(String, Vec<LedgerFault>)> = vec![
        ("update saas.ledger_entry set amount = amount * 2 where sequence = 3".to_owned(), changed(3)),
        ("update saas.ledger_entry set currency = 'usd' where sequence = 3".to_owned(), changed(3)),
        ("update saas.ledger_entry set account = 'refunds' where sequence = 3 and account = 'cash'".to_owned(), changed(3)),
        ("update saas.ledger_entry set account = 'a_word_of_mine' where sequence = 3 and account = 'cash'".to_owned(), changed(3)),
        ("update saas.ledger_entry set occurred_at = occurred_at + interval '1 day' where sequence = 3".to_owned(), changed(3)),
        ("update saas.ledger_transaction set occurred_at = occurred_at + interval '1 microsecond' where sequence = 2".to_owned(), changed(2)),
        ("update saas.ledger_transaction set actor = 'somebody' where sequence = 1".to_owned(), changed(1)),
        ("update saas.ledger_transaction set subject = 'ch_3' where sequence = 3".to_owned(), changed(3)),
        ("update saas.ledger_transaction set hash = sha256('x') where sequence = 4".to_owned(), changed(4)),
        ("delete from saas.ledger_entry where sequence = 2 and amount > 0".to_owned(), changed(2)),
        ("delete from saas.ledger_entry where sequence = 2; delete from saas.ledger_transaction where sequence = 2".to_owned(),
         vec![LedgerFault::Missing { sequence: 2 }]),
        ("delete from saas.ledger_transaction where sequence = 2".to_owned(), vec![LedgerFault::Orphans { sequence: 2 }]),
        ("delete from saas.ledger_entry; delete from saas.ledger_transaction".to_owned(), vec![LedgerFault::Missing { sequence: 1 }]),
        (tail, vec![LedgerFault::Missing { sequence: 4 }]),
        // The end moved along: what is written no longer is what follows from the objects, and the anchor knows better.
        (shorter, vec![
            LedgerFault::Differs { subject: "ch_2".to_owned(), account: Account::Cash },
            LedgerFault::AnchorLost { sequence: 4 },
        ]),
        (by_hand.to_owned(), vec![
            LedgerFault::BeyondEnd { sequence: 5 },
            LedgerFault::Unexplained { subject: "ch_9".to_owned() },
        ]),
        ("update saas.ledger_head set hash = sha256('x')".to_owned(), vec![LedgerFault::EndChanged]),
        ("delete from saas.ledger_head".to_owned(), vec![LedgerFault::BeyondEnd { sequence: 4 }]),
        ("update saas.ledger_transaction set hash = '' where sequence = 4".to_owned(), changed(4)),
        ("delete from saas.ledger_head; delete from saas.ledger_entry; delete from saas.ledger_transaction".to_owned(),
         vec![LedgerFault::AnchorLost { sequence: 4 }]),
    ];
    let constraint = "alter table saas.ledger_entry drop constraint ledger_entry_account_check;
        alter table saas.ledger_transaction drop constraint ledger_transaction_hash_check";
    by_force(&shop, constraint).await;
    for (tampering, expected) in cases {
        by_force(&shop, &tampering).await;
        let report = verify(&shop, &ctx, Some(&anchor)).await;
        for fault in expected {
            assert!(report.faults.contains(&fault), "{tampering}: {fault:?} is not in {report:?}");
        }
        by_force(&shop, restore).await;
        let report = verify(&shop, &ctx, Some(&anchor)).await;
        assert!(report.is_sound(), "{report:?}");
    }
    // All of it, through the operator's command for all tenants.
    by_force(&shop, "update saas.ledger_entry set amount = -amount").await;
    let page = shop.billing.verify_ledgers(&OPERATOR, None, PageSize::default()).await.unwrap();
    assert_eq!((page.tenants, page.unsound.len(), page.unsound[0].0), (1, 1, ctx.tenant()));
    assert!(page.next.is_none());
    by_force(&shop, restore).await;
    by_force(&shop, "update saas.billing_object set merged = '{}' where kind = 'charge'").await;
    let report = verify(&shop, &ctx, None).await;
    assert_eq!(report.faults, [LedgerFault::Unreadable { subject: "the first objects".to_owned() }]);
}

// L1
#[tokio::test]
async fn sixty_four_burns_of_one_credit_each_share_ten() {
    let (shop, ctx, _) = shop().await;
    let grant = CreditGrant { key: key("gift"), amount: eur(10), payment: None };
    assert!(matches!(shop.billing.grant_credits(&ctx, &grant).await.unwrap(), Granted::Now { .. }));
    let burns = (0..64).map(|n| {
        let (billing, ctx) = (shop.billing.clone(), ctx.clone());
        async move { billing.burn_credits(&ctx, &key(&format!("burn-{n}")), eur(1)).await.unwrap() }
    });
    let burns = join_all(burns).await;
    let burnt = burns.iter().filter(|burn| matches!(burn, Burn::Burnt { .. })).count();
    assert_eq!(burnt, 10);
    assert!(burns.iter().all(|burn| !matches!(burn, Burn::Short { left } if !left.is_zero())));
    let report = verify(&shop, &ctx, None).await;
    assert!(report.is_sound(), "{report:?}");
}

// L2
#[tokio::test]
async fn one_key_happens_once_and_stands_for_one_thing() {
    let (shop, ctx, _) = shop().await;
    let grant = |name: &str, minor| CreditGrant { key: key(name), amount: eur(minor), payment: None };
    let grants = (0..10).map(|_| {
        let (billing, ctx, grant) = (shop.billing.clone(), ctx.clone(), grant("k", 100));
        async move { billing.grant_credits(&ctx, &grant).await.unwrap() }
    });
    let now = join_all(grants).await.iter().filter(|granted| matches!(granted, Granted::Now { .. })).count();
    assert_eq!(now, 1);
    let other = shop.billing.grant_credits(&ctx, &grant("k", 101)).await;
    assert!(matches!(other, Err(BillingError::Core(CoreError::KeyReused { .. }))), "{other:?}");
    let paid = CreditGrant { payment: Some(id("pi_x")), ..grant("k", 100) };
    assert!(matches!(
        shop.billing.grant_credits(&ctx, &paid).await,
        Err(BillingError::Core(CoreError::KeyReused { .. }))
    ));
    assert!(matches!(
        shop.billing.burn_credits(&ctx, &key("k"), eur(100)).await,
        Err(BillingError::Core(CoreError::KeyReused { .. }))
    ));
    for _ in 0..3 {
        let burn = shop.billing.burn_credits(&ctx, &key("b"), eur(40)).await.unwrap();
        assert!(matches!(burn, Burn::Burnt { .. } | Burn::Before { .. }), "{burn:?}");
    }
    assert!(matches!(
        shop.billing.burn_credits(&ctx, &key("b"), eur(41)).await,
        Err(BillingError::Core(CoreError::KeyReused { .. }))
    ));
    let usd = Money::new(1, "usd".parse().unwrap());
    assert_eq!(
        shop.billing.burn_credits(&ctx, &key("usd"), usd).await.unwrap(),
        Burn::Short { left: Money::zero(usd.currency()) }
    );
    for nothing in [0, -1, i64::MIN] {
        let refused = shop.billing.burn_credits(&ctx, &key("c"), eur(nothing)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }
    let credits = balances(&shop, &ctx).await.into_iter().find(|(account, _)| *account == Account::Credits);
    assert_eq!(credits, Some((Account::Credits, -60)));
}

// L10
#[tokio::test]
async fn an_entry_is_taken_back_once_and_only_a_request_can_be() {
    let (shop, ctx, _) = shop().await;
    let grant = CreditGrant { key: key("g"), amount: eur(10), payment: None };
    let _ = shop.billing.grant_credits(&ctx, &grant).await.unwrap();
    let Burn::Burnt { sequence, .. } = shop.billing.burn_credits(&ctx, &key("b"), eur(4)).await.unwrap() else {
        panic!()
    };
    let reversals = (0..8).map(|_| {
        let (billing, ctx) = (shop.billing.clone(), ctx.clone());
        async move { billing.reverse_credits(&ctx, sequence).await.unwrap() }
    });
    let reversals = join_all(reversals).await;
    assert_eq!(reversals.iter().filter(|reversal| matches!(reversal, Reversal::Now { .. })).count(), 1);
    let left = shop.billing.burn_credits(&ctx, &key("b2"), eur(10)).await.unwrap();
    assert!(matches!(left, Burn::Burnt { left, .. } if left.is_zero()), "{left:?}");
    let other = shop.database.create_tenant("other").await;
    for (ctx, sequence) in [(&ctx, 1), (&ctx, 99), (&other, sequence)] {
        let refused = shop.billing.reverse_credits(ctx, sequence).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    }
    assert!(verify(&shop, &ctx, None).await.is_sound());
}

// Lesson 33.
#[tokio::test]
async fn credits_go_back_with_their_payment_and_what_was_burnt_already_is_seen_to_be_missing() {
    let (shop, ctx, purchase) = shop().await;
    let left = async |name: &str, minor| shop.billing.burn_credits(&ctx, &key(name), eur(minor)).await.unwrap();
    receive(&shop, &[charge("1", purchase.customer.as_str(), 3_000)]).await;
    let grant = CreditGrant { key: key("pi_1"), amount: eur(1_000), payment: Some(id("pi_1")) };
    let _ = shop.billing.grant_credits(&ctx, &grant).await.unwrap();
    receive(&shop, &[refund("1", "1", 1_000, ("succeeded", 10))]).await;
    assert!(matches!(left("a", 600).await, Burn::Burnt { left, .. } if left == eur(66)), "334 of 1000 are gone");
    receive(&shop, &[dispute("1", 2_000, ("needs_response", 20))]).await;
    assert_eq!(left("b", 1).await, Burn::Short { left: eur(-600) });
    receive(&shop, &[dispute("1", 2_000, ("won", 30))]).await;
    assert!(matches!(left("c", 66).await, Burn::Burnt { left, .. } if left.is_zero()));
    receive(&shop, &[refund("1", "1", 1_000, ("failed", 40))]).await;
    assert!(matches!(left("d", 334).await, Burn::Burnt { left, .. } if left.is_zero()));
    assert!(verify(&shop, &ctx, None).await.is_sound());
}

// L4
#[tokio::test]
async fn a_dispute_in_another_currency_takes_back_all_that_its_payment_bought() {
    let (shop, ctx, purchase) = shop().await;
    receive(&shop, &[charge("1", purchase.customer.as_str(), 3_000)]).await;
    let grant = CreditGrant { key: key("pi_1"), amount: eur(1_000), payment: Some(id("pi_1")) };
    let _ = shop.billing.grant_credits(&ctx, &grant).await.unwrap();
    let in_dollars = |status, created| {
        let body = String::from_utf8(dispute("1", 100, (status, created))).unwrap();
        body.replace("\"currency\":\"eur\"", "\"currency\":\"usd\"").into_bytes()
    };
    receive(&shop, &[in_dollars("needs_response", 20)]).await;
    let burn = async |name: &str| shop.billing.burn_credits(&ctx, &key(name), eur(1_000)).await.unwrap();
    assert_eq!(burn("a").await, Burn::Short { left: eur(0) });
    receive(&shop, &[in_dollars("won", 30)]).await;
    assert!(matches!(burn("b").await, Burn::Burnt { left, .. } if left.is_zero()));
    assert!(verify(&shop, &ctx, None).await.is_sound());
}

// L8
#[tokio::test]
async fn a_sum_that_no_amount_can_hold_is_an_error_and_the_entries_stay() {
    let (shop, ctx, purchase) = shop().await;
    let huge = |name: &str| charge(name, purchase.customer.as_str(), i64::MAX);
    receive(&shop, &[huge("1"), huge("2")]).await;
    let refused = shop.billing.balances(&ctx, None).await.unwrap_err();
    assert!(matches!(refused, BillingError::Core(CoreError::Corrupt { .. })), "{refused:?}");
    let report = verify(&shop, &ctx, None).await;
    assert!(report.is_sound(), "{report:?}");
    // What makes no sum at all is on record as an object, books nothing, and is named.
    let object = json!({"id": "in_x", "object": "invoice", "customer": purchase.customer, "status": "open", "total": 5,
        "currency": null});
    receive(&shop, &[event("x", "invoice.finalized", 1, &object)]).await;
    let report = verify(&shop, &ctx, None).await;
    let fault =
        LedgerFault::Unbookable { subject: "in_x".to_owned(), reason: "an amount without a currency".to_owned() };
    assert_eq!(report.faults, [fault]);
}

#[tokio::test]
async fn a_statement_comes_in_pages_by_date_and_a_balance_of_any_day() {
    let (shop, ctx, purchase) = shop().await;
    let customer = purchase.customer.as_str();
    receive(&shop, &[refund("1", "1", 100, ("succeeded", 10)), charge("1", customer, 500), charge("2", customer, 70)])
        .await;
    let cash = StatementFilter { account: Some(Account::Cash), ..StatementFilter::default() };
    let mut after = None;
    let mut lines = Vec::new();
    loop {
        let page = shop.billing.statement(&ctx, &cash, after.as_ref(), PageSize::new(1).unwrap()).await.unwrap();
        lines.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let read: Vec<(Cause, i64)> = lines.iter().map(|line| (line.cause, line.amount.minor())).collect();
    use Cause::{PaymentReceived, PaymentRefunded};
    assert_eq!(read, [(PaymentReceived, 500), (PaymentReceived, 70), (PaymentRefunded, -100)]);
    let before_refund = lines[2].occurred_at;
    let balances = shop.billing.balances(&ctx, Some(before_refund)).await.unwrap();
    assert_eq!(balances.iter().find(|balance| balance.account == Account::Cash).unwrap().amount, eur(570));
    assert!(shop.database.clock().now() < before_refund, "Stripe's clock dates what happened");
    let early = StatementFilter { until: Some(before_refund), currency: Some("usd".parse().unwrap()), ..cash };
    assert_eq!(shop.billing.statement(&ctx, &early, None, PageSize::default()).await.unwrap().items, []);
}

// L9
#[tokio::test]
async fn what_is_missing_is_written_by_posting_again_and_nothing_twice() {
    let (shop, ctx, purchase) = shop().await;
    receive(&shop, &[charge("1", purchase.customer.as_str(), 500)]).await;
    let before = balances(&shop, &ctx).await;
    by_force(&shop, "delete from saas.ledger_entry; delete from saas.ledger_transaction; delete from saas.ledger_head")
        .await;
    assert!(!verify(&shop, &ctx, None).await.is_sound());
    for _ in 0..2 {
        let _ = shop.billing.repost(&ctx).await.unwrap();
        assert_eq!(balances(&shop, &ctx).await, before);
        assert!(verify(&shop, &ctx, None).await.is_sound());
    }
}

// L12
#[tokio::test]
async fn the_ledger_knows_ids_and_amounts_and_nobody() {
    let (shop, _, _) = shop().await;
    let people = "select count(*) from saas.ledger_transaction t, saas.ledger_entry e where concat(t, e) ilike '%@%'";
    assert_eq!(shop.scalar(people).await, 0);
    assert_eq!(shop.scalar("select count(*) from saas.retained_table where name like 'saas.ledger\\_%'").await, 3);
}
