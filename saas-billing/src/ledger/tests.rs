use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::*;
use crate::{
    derive::TenantObjects,
    event::{Envelope, read_snapshot},
    object::{ObjectId, ObjectKind},
};

const T: i64 = 1_700_000_000;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(T + second, 0).unwrap()
}

fn merged(kind: ObjectKind, id: &str, events: &[(&str, i64, Value)]) -> AnyMerged {
    let mut objects = TenantObjects::default();
    for (event_type, second, object) in events {
        let body = json!({"id": "evt_1", "object": "event", "type": event_type, "created": T + second, "livemode": false,
                          "data": {"object": object}});
        objects.merge(read_snapshot(&Envelope::read(body.to_string().as_bytes()).unwrap()).unwrap().unwrap());
    }
    objects.find(kind, &id.parse::<ObjectId>().unwrap()).unwrap()
}

/// Sums per account, in the order of the accounts.
fn sums(legs: &Legs) -> Vec<(Account, i64)> {
    let mut sums: BTreeMap<Account, i64> = BTreeMap::new();
    for posting in legs.legs.iter().flat_map(|leg| &leg.postings) {
        *sums.entry(posting.account).or_default() += posting.amount.minor();
    }
    assert_eq!(sums.values().sum::<i64>(), 0, "{legs:?}");
    sums.into_iter().filter(|(_, sum)| *sum != 0).collect()
}

fn invoice(status: &str, changes: Value) -> AnyMerged {
    let mut object = json!({
        "id": "in_1", "object": "invoice", "customer": "cus_1", "status": status, "currency": "eur", "created": T,
        "total": 11_900, "total_excluding_tax": 10_000, "amount_due": 11_900, "amount_paid": 0, "amount_remaining": 11_900,
        "starting_balance": 0, "ending_balance": 0,
        "status_transitions": {"finalized_at": T + 10, "paid_at": null, "voided_at": null, "marked_uncollectible_at": null}
    });
    for (key, value) in changes.as_object().unwrap() {
        object[key] = value.clone();
    }
    merged(ObjectKind::Invoice, "in_1", &[("invoice.updated", 50, object)])
}

fn booked(merged: &AnyMerged) -> Vec<(Account, i64)> {
    sums(&legs(merged).unwrap())
}

use Account::{
    BadDebt, Cash, CreditClearing, CreditNotes, CustomerCredit, Disputes, DisputesLost, OutOfBand, Payments,
    Receivable, Refunds, Revenue, Tax,
};

// L3, L5
#[test]
fn an_invoice_books_what_it_asks_for_what_was_paid_and_what_became_of_the_rest() {
    let final_at =
        json!({"finalized_at": T + 10, "paid_at": T + 20, "marked_uncollectible_at": T + 15, "voided_at": T + 30});
    assert_eq!(booked(&invoice("draft", json!({}))), []);
    assert_eq!(booked(&invoice("a-word-of-tomorrow", json!({"total": null}))), []);
    assert_eq!(booked(&invoice("open", json!({}))), [(Receivable, 11_900), (Revenue, -10_000), (Tax, -1_900)]);
    let paid = json!({"amount_paid": 11_900, "amount_remaining": 0});
    assert_eq!(booked(&invoice("paid", paid.clone())), [(Payments, 11_900), (Revenue, -10_000), (Tax, -1_900)]);
    // As events said it before 2025-03-31: what was paid elsewhere was no payment.
    let old = json!({"paid_out_of_band": true, "amount_due": 11_900, "amount_paid": 0, "amount_remaining": 0});
    assert_eq!(booked(&invoice("paid", old))[..], [(OutOfBand, 11_900), (Revenue, -10_000), (Tax, -1_900)]);
    // As reads say it since 2026-05-27, the whole or a part.
    let mut part = paid.clone();
    part["amount_paid_off_stripe"] = 4_000.into();
    let expected = [(OutOfBand, 4_000), (Payments, 7_900), (Revenue, -10_000), (Tax, -1_900)];
    assert_eq!(booked(&invoice("paid", part))[..], expected);
    let partly = json!({"amount_paid": 5_000, "amount_remaining": 6_900});
    assert_eq!(booked(&invoice("open", partly))[..2], [(Receivable, 6_900), (Payments, 5_000)]);
    let written_off = invoice("uncollectible", json!({"status_transitions": final_at}));
    assert_eq!(booked(&written_off), [(Revenue, -10_000), (Tax, -1_900), (BadDebt, 11_900)]);
    let mut after_all = paid;
    after_all["status_transitions"] = final_at.clone();
    let recovered = legs(&invoice("paid", after_all)).unwrap();
    assert_eq!(sums(&recovered), [(Payments, 11_900), (Revenue, -10_000), (Tax, -1_900)]);
    assert_eq!(recovered.legs.len(), 4, "the write-off and its end stand in the months in which they were");
    let void = legs(&invoice("void", json!({"status_transitions": final_at}))).unwrap();
    assert_eq!((sums(&void), void.legs.len()), (vec![], 2));
    assert_eq!((void.legs[0].at, void.legs[1].at), (at(10), at(30)));
}

#[test]
fn credit_of_the_customer_goes_in_and_comes_out_and_closes_with_what_the_customer_says() {
    // 100.00 asked for, 30.00 of it from the credit of before; the customer's credit is now nothing.
    let used = invoice(
        "paid",
        json!({"amount_due": 8_900, "amount_paid": 8_900, "amount_remaining": 0,
        "starting_balance": -3_000, "ending_balance": 0}),
    );
    assert_eq!(booked(&used), [(Payments, 8_900), (Revenue, -10_000), (Tax, -1_900), (CreditClearing, 3_000)]);
    let customer = |balance: i64, deleted: bool| {
        let object = json!({"id": "cus_1", "object": "customer", "balance": balance, "currency": "eur"});
        let event = if deleted { "customer.deleted" } else { "customer.updated" };
        merged(ObjectKind::Customer, "cus_1", &[(event, 1, object)])
    };
    assert_eq!(booked(&customer(-3_000, false)), [(CustomerCredit, -3_000), (CreditClearing, 3_000)]);
    assert_eq!(booked(&customer(-3_000, true)), []);
    // A negative invoice becomes credit.
    let negative = json!({"total": -500, "total_excluding_tax": -500, "amount_due": 0, "amount_remaining": 0,
        "starting_balance": 0, "ending_balance": -500});
    assert_eq!(booked(&invoice("paid", negative)), [(Revenue, 500), (CreditClearing, -500)]);
    // Voided, Stripe gives the credit back.
    let void = json!({"starting_balance": -3_000, "ending_balance": 0});
    assert_eq!(booked(&invoice("void", void)), []);
}

#[test]
fn a_void_after_a_credit_note_takes_back_the_rest_and_its_part_of_the_tax() {
    let void = booked(&invoice("void", json!({"pre_payment_credit_notes_amount": 1_190})));
    assert_eq!(void, [(Receivable, 1_190), (Revenue, -1_000), (Tax, -190)]);
    let note = json!({"id": "cn_1", "object": "credit_note", "customer": "cus_1", "invoice": "in_1", "status": "issued",
        "total": 1_190, "total_excluding_tax": 1_000, "pre_payment_amount": 1_190, "post_payment_amount": 0,
        "currency": "eur", "created": T});
    let note = booked(&merged(ObjectKind::CreditNote, "cn_1", &[("credit_note.created", 1, note)]));
    assert_eq!(note, [(Receivable, -1_190), (Tax, 190), (CreditNotes, 1_000)]);
}

#[test]
fn a_credit_note_after_payment_says_where_the_money_went() {
    let note = |changes: Value| {
        let mut object = json!({"id": "cn_1", "object": "credit_note", "customer": "cus_1", "invoice": "in_1",
            "status": "issued", "type": "post_payment", "total": 2_380, "total_excluding_tax": 2_000, "currency": "eur",
            "created": T, "out_of_band_amount": null});
        for (key, value) in changes.as_object().unwrap() {
            object[key] = value.clone();
        }
        merged(ObjectKind::CreditNote, "cn_1", &[("credit_note.created", 1, object)])
    };
    let several = json!({"refunds": [{"amount_refunded": 1_000, "refund": "re_1"}, {"amount_refunded": 300, "refund": "re_2"}],
        "out_of_band_amount": 80, "customer_balance_transaction": "cbtxn_1"});
    let expected = [(OutOfBand, -80), (Tax, 380), (CreditNotes, 2_000), (Refunds, -1_300), (CreditClearing, -1_000)];
    assert_eq!(booked(&note(several)), expected);
    // As API versions before 2024-10-28 say it.
    assert_eq!(booked(&note(json!({"refund": "re_1"})))[2], (Refunds, -2_380));
    assert_eq!(booked(&note(json!({"customer_balance_transaction": "cbtxn_1"})))[2], (CreditClearing, -2_380));
    let void = legs(&note(json!({"refund": "re_1", "status": "void", "voided_at": T + 5}))).unwrap();
    assert_eq!((sums(&void), void.legs.len()), (vec![], 2));
}

#[test]
fn payments_come_in_go_back_and_come_back_again() {
    let charge = |status: &str, changes: Value| {
        let mut object = json!({"id": "ch_1", "object": "charge", "customer": "cus_1", "payment_intent": "pi_1",
            "status": status, "amount": 500, "amount_captured": 500, "captured": true, "currency": "jpy", "created": T});
        for (key, value) in changes.as_object().unwrap() {
            object[key] = value.clone();
        }
        merged(ObjectKind::Charge, "ch_1", &[("charge.updated", 1, object)])
    };
    assert_eq!(booked(&charge("succeeded", json!({}))), [(Cash, 500), (Payments, -500)]);
    for nothing in
        [charge("pending", json!({})), charge("failed", json!({})), charge("succeeded", json!({"amount_captured": 0}))]
    {
        assert_eq!(booked(&nothing), []);
    }
    let old = json!({"amount_captured": null});
    assert_eq!(booked(&charge("succeeded", old)), [(Cash, 500), (Payments, -500)]);

    let refund = |statuses: &[&str]| {
        let events: Vec<_> = statuses
            .iter()
            .enumerate()
            .map(|(n, status)| {
                let object = json!({"id": "re_1", "object": "refund", "charge": "ch_1", "payment_intent": "pi_1",
                "status": status, "amount": 200, "currency": "jpy", "created": T});
                ("refund.updated", i64::try_from(n).unwrap() * 10, object)
            })
            .collect();
        merged(ObjectKind::Refund, "re_1", &events)
    };
    for gone in ["pending", "succeeded"] {
        assert_eq!(booked(&refund(&[gone])), [(Cash, -200), (Refunds, 200)]);
    }
    for kept in ["requires_action", "canceled", "a-word-of-tomorrow"] {
        assert_eq!(booked(&refund(&[kept])), []);
    }
    let failed = legs(&refund(&["succeeded", "failed", "failed"])).unwrap();
    assert_eq!((sums(&failed), failed.legs.len()), (vec![], 2));
    assert_eq!(failed.legs[1].at, at(10), "the first that said so");
    assert_eq!(failed.payment.unwrap().as_str(), "pi_1");

    let dispute = |statuses: &[&str]| {
        let events: Vec<_> = statuses
            .iter()
            .enumerate()
            .map(|(n, status)| {
                let object = json!({"id": "dp_1", "object": "dispute", "charge": "ch_1", "payment_intent": "pi_1",
                "status": status, "amount": 500, "currency": "jpy", "created": T});
                ("charge.dispute.updated", i64::try_from(n).unwrap() * 10, object)
            })
            .collect();
        merged(ObjectKind::Dispute, "dp_1", &events)
    };
    for inquiry in ["warning_needs_response", "warning_under_review", "warning_closed", "prevented"] {
        assert_eq!(booked(&dispute(&[inquiry])), []);
    }
    assert_eq!(booked(&dispute(&["needs_response"])), [(Cash, -500), (Disputes, 500)]);
    assert_eq!(booked(&dispute(&["needs_response", "under_review", "won"])), []);
    assert_eq!(booked(&dispute(&["lost"])), [(Cash, -500), (DisputesLost, 500)]);
    assert_eq!(booked(&dispute(&["lost", "won"])), [], "a bank can be overruled");
}

// L4, L8
#[test]
fn what_makes_no_sum_is_named_and_books_nothing() {
    assert_eq!(legs(&invoice("open", json!({"currency": null}))), Err(Unbookable::NoCurrency));
    assert_eq!(legs(&invoice("open", json!({"total": null, "total_excluding_tax": null}))), Err(Unbookable::NoTotal));
    let too_much = invoice("open", json!({"total": i64::MAX, "total_excluding_tax": null, "tax": -2}));
    assert!(matches!(legs(&too_much), Err(Unbookable::Money(_))), "{:?}", legs(&too_much));
}

/// Writes a difference down as the database would keep it.
fn write(written: &mut Vec<Written>, drafts: &[Draft]) {
    for draft in drafts {
        for posting in &draft.postings {
            let (currency, minor) = (posting.amount.currency(), i128::from(posting.amount.minor()));
            let same = |known: &&mut Written| {
                (known.cause, known.at, known.account, known.currency)
                    == (draft.cause, draft.at, posting.account, currency)
            };
            match written.iter_mut().find(same) {
                Some(known) => known.minor += minor,
                None => written.push(Written {
                    cause: draft.cause,
                    at: draft.at,
                    account: posting.account,
                    currency,
                    minor,
                }),
            }
        }
    }
}

// W9, L10
#[test]
fn whatever_was_written_on_the_way_the_end_is_the_same_and_asking_again_writes_nothing() {
    let states = [
        invoice("draft", json!({})),
        invoice("open", json!({})),
        invoice("open", json!({"amount_paid": 5_000, "amount_remaining": 6_900})),
        invoice("uncollectible", json!({"amount_paid": 5_000, "amount_remaining": 6_900})),
        invoice("paid", json!({"amount_paid": 11_900, "amount_remaining": 0})),
    ];
    let mut ends = Vec::new();
    // Every selection of states on the way to the last, which always comes.
    for selection in 0..16_u32 {
        let mut written = Vec::new();
        for (n, state) in states.iter().enumerate() {
            if n < 4 && selection & (1 << n) == 0 {
                continue;
            }
            let target = legs(state).unwrap();
            let drafts = difference(&target, &written, state.as_of()).unwrap();
            for draft in &drafts {
                assert_eq!(draft.postings.iter().map(|posting| posting.amount.minor()).sum::<i64>(), 0, "{draft:?}");
            }
            write(&mut written, &drafts);
            assert_eq!(difference(&target, &written, state.as_of()).unwrap(), []);
        }
        let mut balances: BTreeMap<Account, i128> = BTreeMap::new();
        for known in written {
            *balances.entry(known.account).or_default() += known.minor;
        }
        balances.retain(|_, minor| *minor != 0);
        ends.push(balances);
    }
    ends.dedup();
    assert_eq!(ends, [BTreeMap::from([(Payments, 11_900), (Revenue, -10_000), (Tax, -1_900)])]);
}

// A10
#[test]
fn the_hash_covers_every_field_and_no_boundary_can_be_shifted() {
    let tenant = saas_core::TenantId::from_uuid(uuid::Uuid::from_u128(1));
    let eur = "eur".parse().unwrap();
    let posting = |account, minor| Posting { account, amount: crate::money::Money::new(minor, eur) };
    let record = Record {
        sequence: 1,
        cause: Cause::CreditsGranted,
        subject: "ab".to_owned(),
        payment: Some("c".to_owned()),
        key: None,
        reverses: None,
        actor: "system:test".to_owned(),
        occurred_at: at(0),
        recorded_at: at(1),
        postings: vec![posting(Account::Credits, -5), posting(Account::CreditsGranted, 5)],
    };
    let hash = |record: &Record| record.hash((tenant, true), &GENESIS);
    let others = [
        Record { sequence: 2, ..record.clone() },
        Record { cause: Cause::CreditsBurnt, ..record.clone() },
        Record { subject: "a".to_owned(), payment: Some("bc".to_owned()), ..record.clone() },
        Record { payment: None, ..record.clone() },
        Record { payment: None, key: Some("c".to_owned()), ..record.clone() },
        Record { key: Some(String::new()), ..record.clone() },
        Record { reverses: Some(1), ..record.clone() },
        Record { actor: "system:other".to_owned(), ..record.clone() },
        Record { occurred_at: at(1), ..record.clone() },
        Record { recorded_at: at(1) + chrono::TimeDelta::microseconds(1), ..record.clone() },
        Record { postings: vec![posting(Account::Credits, -6), posting(Account::CreditsGranted, 6)], ..record.clone() },
        Record { postings: Vec::new(), ..record.clone() },
    ];
    for other in others {
        assert_ne!(hash(&other), hash(&record), "{other:?}");
    }
    assert_ne!(record.hash((tenant, false), &GENESIS), hash(&record));
    assert_ne!(record.hash((tenant, true), &[1; 32]), hash(&record));
    // Nanoseconds that the database does not keep are cut off before they are hashed.
    let finer = at(1) + chrono::TimeDelta::nanoseconds(999);
    assert_eq!(storable_instant(finer), at(1));
}
