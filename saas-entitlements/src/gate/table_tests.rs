//! What one thread and two see of the table. `model` has what any interleaving shows.

use std::sync::{Arc, atomic::AtomicBool};

use chrono::DateTime;
use saas_core::{PlanCatalog, TenantId};
use uuid::Uuid;

use super::{
    sync::{Ordering, WINDOW},
    table::{PAIR, Table},
};
use crate::snapshot::{Origin, Snapshot};

fn catalog(features: usize) -> PlanCatalog {
    let mut text = "default_plan = \"p\"\n[plans.p]\nrank = 0\n[[plans.p.versions]]\nversion = 1\n".to_owned();
    for feature in 0..features {
        text += &format!("[features.f{feature:04}]\nkind = \"boolean\"\nfail = \"closed\"\n");
    }
    PlanCatalog::from_toml(&text).unwrap()
}

fn snapshot(catalog: &PlanCatalog, tenant: TenantId, enabled: &[u64]) -> Arc<Snapshot> {
    let blank = Snapshot::by_fail_policy(catalog, tenant, DateTime::UNIX_EPOCH);
    Arc::new(Snapshot { enabled: enabled.into(), ..blank })
}

fn tenant(number: u128) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(number))
}

#[test]
fn every_bit_of_a_large_catalogue_has_its_place() {
    let catalog = catalog(300);
    let (table, mut pen) = Table::new(4, 300);
    table.now.store(1, Ordering::Relaxed);
    let patterns = [[0x1, 0x3, 0x7, 0xf, 0x1f], [!0, 0, !0, 0, !0], [0; 5]];
    for (number, bits) in patterns.iter().enumerate() {
        table.publish(&mut pen, snapshot(&catalog, tenant(number as u128 + 1), bits), 2);
    }
    for (number, bits) in patterns.iter().enumerate() {
        for feature in 0..300 {
            let expected = bits[feature / 64] >> (feature % 64) & 1 == 1;
            assert_eq!(table.read(tenant(number as u128 + 1), feature), Some(expected), "{number} {feature}");
        }
    }
    assert_eq!(table.read(tenant(9), 0), None, "nobody's bits are anybody else's");
}

#[test]
fn an_answer_ends_at_its_deadline_and_when_it_is_expired() {
    let catalog = catalog(1);
    let (table, mut pen) = Table::new(1, 1);
    table.publish(&mut pen, snapshot(&catalog, tenant(1), &[1]), 10);
    assert_eq!(table.read(tenant(1), 0), None, "no time yet");
    let at = |now| {
        table.now.store(now, Ordering::Relaxed);
        (table.read(tenant(1), 0), table.read_held(tenant(1)).is_some())
    };
    assert_eq!([at(9), at(10)], [(Some(true), true), (None, false)]);
    table.now.store(9, Ordering::Relaxed);
    table.expire(&mut pen, table.find(tenant(1)).unwrap());
    assert_eq!(table.read(tenant(1), 0), None);
    assert!(table.find(tenant(1)).is_some(), "it stays, as last known state");
}

#[test]
fn a_reader_beside_a_writer_never_sees_a_mixture() {
    // One slot alternates between "on" with a deadline to come and "off" with one that has passed: "off" is in no
    // state that may be read, so a reader who gets it has mixed two.
    let catalog = catalog(1);
    let (table, mut pen) = Table::new(1, 1);
    table.now.store(1, Ordering::Relaxed);
    let (on, off) = (snapshot(&catalog, tenant(1), &[1]), snapshot(&catalog, tenant(1), &[0]));
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let enough = &enough;
        let table = &table;
        let reader = scope.spawn(move || {
            let mut seen = 0;
            while seen < 200_000 {
                if let Some(enabled) = table.read(tenant(1), 0) {
                    assert!(enabled);
                    seen += 1;
                }
            }
            enough.store(true, Ordering::Relaxed);
        });
        while !enough.load(Ordering::Relaxed) && !reader.is_finished() {
            table.publish(&mut pen, Arc::clone(&on), 2);
            table.publish(&mut pen, Arc::clone(&off), 1);
        }
    });
}

#[test]
fn a_full_window_gives_up_the_oldest_and_unknown_tenants_first() {
    let catalog = catalog(1);
    let (table, mut pen) = Table::new(1, 1);
    let aged = |number: u128, age: i64, unknown: bool| {
        let blank = Snapshot::by_fail_policy(&catalog, tenant(number), DateTime::UNIX_EPOCH);
        let origin = if unknown { Origin::UnknownTenant } else { Origin::Loaded };
        let fresh_until = DateTime::from_timestamp(age, 0).unwrap();
        let life = crate::snapshot::ShelfLife { fresh_until, ..blank.life };
        Arc::new(Snapshot { origin, life, ..blank })
    };
    let window = WINDOW * PAIR;
    for number in 1..=window as u128 {
        assert!(!table.publish(&mut pen, aged(number, 1_000 + number as i64, number == 7), 2));
    }
    assert!(table.publish(&mut pen, aged(100, 5_000, false), 2));
    assert!(table.find(tenant(7)).is_none(), "the one that does not exist");
    assert!(table.publish(&mut pen, aged(101, 5_000, false), 2));
    assert!(table.find(tenant(1)).is_none(), "the oldest");
    assert!(table.find(tenant(2)).is_some());
}
