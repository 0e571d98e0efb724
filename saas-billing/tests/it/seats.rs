//! Seats: promised before they are taken, never more than were bought, and the same number here and at Stripe.

use std::{num::NonZeroU64, sync::Arc};

use async_trait::async_trait;
use chrono::TimeDelta;
use saas_billing::{
    BillingError, Occupancy, Seat, SeatPolicy, SeatRepair, Seats, provider::Proration, subscription::Change,
    testing::CheckoutRequest,
};
use saas_core::{CoreError, ErrorKind, PlanKey, RequestContext, SystemTx, TenantContext as _, TenantId, TenantTx};
use sqlx::PgConnection;

use crate::{
    shop::OPERATOR,
    till::{Till, key},
};

const WEEK: TimeDelta = TimeDelta::days(7);

impl Till {
    async fn reserve(&self, holder: &str) -> Seat {
        self.shop.billing.reserve_seat(&self.ctx, holder, WEEK).await.unwrap()
    }

    /// An invitation is accepted, as an application does it: the seat and the member in one transaction.
    async fn accept(&self, holder: &str) -> bool {
        let mut tx = SystemTx::begin(self.shop.database.system(), OPERATOR, "accept").await.unwrap();
        let seat = self.shop.billing.take_seat_in(&mut tx, &self.ctx, holder).await.unwrap();
        if seat != Seat::Granted {
            tx.rollback().await.unwrap();
            return false;
        }
        join(&mut tx, self.ctx.tenant(), 1).await;
        tx.commit().await.unwrap();
        true
    }

    async fn members(&self, change: i32) {
        join(&mut *self.shop.owner.lock().await, self.ctx.tenant(), change).await;
    }

    async fn seats(&self) -> Seats {
        self.shop.billing.seats(&self.ctx).await.unwrap()
    }

    async fn set(&self, quantity: u64, text: &str) -> Result<Change, BillingError> {
        self.shop.billing.set_seats(&self.stripe, &self.ctx, quantity, &key(text)).await
    }
}

/// What `saas-tenancy` does when a member comes or goes.
async fn join(connection: &mut PgConnection, tenant: TenantId, change: i32) {
    sqlx::query("update saas.tenant_overview set seats = seats + $2 where tenant_id = $1")
        .bind(tenant.as_uuid())
        .bind(change)
        .execute(connection)
        .await
        .unwrap();
}

// D10, lesson 31
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_invitations_for_the_last_seat_one_gets_it() {
    let till = Arc::new(Till::open("price_pro", 3).await);
    till.members(2).await;
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..16 {
        let till = Arc::clone(&till);
        asking.spawn(async move { till.reserve(&format!("invitation-{n}")).await });
    }
    let seats = asking.join_all().await;
    assert_eq!(seats.iter().filter(|seat| matches!(seat, Seat::Reserved { .. })).count(), 1);
    assert_eq!(till.seats().await, Seats { bought: Some(3), taken: 2, reserved: 1 });
    // All sixteen are accepted at once, promised or not.
    let mut accepting = tokio::task::JoinSet::new();
    for n in 0..16 {
        let till = Arc::clone(&till);
        accepting.spawn(async move { till.accept(&format!("invitation-{n}")).await });
    }
    assert_eq!(accepting.join_all().await.iter().filter(|accepted| **accepted).count(), 1);
    assert_eq!(till.seats().await, Seats { bought: Some(3), taken: 3, reserved: 0 });
    assert_eq!(till.audited("billing.seat_taken").await, 1);
}

#[tokio::test]
async fn a_promise_ends_by_time_by_being_taken_back_and_by_seats_that_become_fewer() {
    let till = Till::open("price_pro", 2).await;
    till.members(1).await;
    assert!(matches!(till.reserve("ada").await, Seat::Reserved { .. }));
    assert!(matches!(till.reserve("ada").await, Seat::Reserved { .. }), "the same one again, for longer");
    assert_eq!(till.reserve("bob").await, Seat::Full(Seats { bought: Some(2), taken: 1, reserved: 1 }));
    assert!(till.shop.billing.release_seat(&till.ctx, "ada").await.unwrap());
    assert!(!till.shop.billing.release_seat(&till.ctx, "ada").await.unwrap());
    assert!(matches!(till.reserve("bob").await, Seat::Reserved { .. }));
    till.shop.database.clock().advance(WEEK);
    assert!(matches!(till.reserve("cleo").await, Seat::Reserved { .. }), "the promise to Bob is over");
    assert!(!till.accept("bob").await, "there is one seat, and it is promised to Cleo");
    // A seat is given back in the portal: the promise cannot be kept.
    till.shop.stripe.update_quantity(&till.purchase.subscription, 1);
    till.settle().await;
    assert!(!till.accept("cleo").await);
    assert_eq!(till.seats().await.taken, 1, "nobody was removed");
    for (holder, lasting) in [("", WEEK), ("a\0b", WEEK), ("ada", TimeDelta::zero()), ("ada", TimeDelta::MAX)] {
        let why = till.shop.billing.reserve_seat(&till.ctx, holder, lasting).await.unwrap_err();
        assert_eq!(why.kind(), ErrorKind::Invalid, "{why}");
    }
}

// T9, T10: as the application role, in the tenant's own transaction; another tenant's promises are out of reach
#[tokio::test]
async fn promises_are_the_tenants_own_also_in_its_own_transaction() {
    let till = Till::open("price_pro", 1).await;
    let other = till.shop.database.create_tenant("other").await;
    assert!(matches!(till.reserve("ada").await, Seat::Reserved { .. }));
    let mut tx = TenantTx::begin(till.shop.database.tenants(), &other).await.unwrap();
    let seat = till.shop.billing.take_seat_in(&mut tx, &other, "ada").await.unwrap();
    assert_eq!(seat, Seat::Granted, "nothing bounds a tenant that bought nothing, and the promise is not touched");
    tx.commit().await.unwrap();
    let mut tx = TenantTx::begin(till.shop.database.tenants(), &other).await.unwrap();
    let refused = till.shop.billing.take_seat_in(&mut tx, &till.ctx, "ada").await.unwrap_err();
    assert!(matches!(refused, BillingError::Core(CoreError::NotFound { .. })), "{refused:?}");
    drop(tx);
    assert!(!till.shop.billing.release_seat(&other, "ada").await.unwrap());
    assert_eq!(till.seats().await.reserved, 1);
    let mut tx = TenantTx::begin(till.shop.database.tenants(), &till.ctx).await.unwrap();
    assert_eq!(till.shop.billing.take_seat_in(&mut tx, &till.ctx, "ada").await.unwrap(), Seat::Granted);
    tx.commit().await.unwrap();
}

// Lesson 31: parallel adds lose none
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invitations_that_find_no_seat_buy_one_each() {
    let till = Arc::new(Till::open("price_pro", 1).await);
    till.members(1).await;
    let mut inviting = tokio::task::JoinSet::new();
    for n in 0..4 {
        let till = Arc::clone(&till);
        inviting.spawn(async move {
            let (holder, asked) = (format!("invitation-{n}"), key(&format!("key-{n}")));
            till.shop.billing.reserve_or_buy_seat(&till.stripe, &till.ctx, (&holder, WEEK), &asked).await.unwrap()
        });
    }
    let seats = inviting.join_all().await;
    assert!(seats.iter().all(|seat| matches!(seat, Seat::Reserved { .. })), "{seats:?}");
    assert_eq!(till.seats().await, Seats { bought: Some(5), taken: 1, reserved: 4 });
    assert_eq!(till.items(), [("price_pro".to_owned(), 5)]);
}

#[tokio::test]
async fn seats_are_charged_as_the_plan_says_and_never_fewer_than_are_used() {
    let policy = SeatPolicy { more: Proration::InvoiceNow, fewer: Proration::NextInvoice };
    let request = CheckoutRequest::new("price_pro").with_quantity(2);
    let till = Till::open_with(request, |config| config.with_seat_policy(PlanKey::from_static("pro"), policy)).await;
    till.members(2).await;
    till.shop.stripe.advance(TimeDelta::days(10));
    assert_eq!(till.set(4, "four").await.unwrap(), Change::Made);
    let invoice = till.latest_invoice();
    assert_eq!(invoice["billing_reason"], "subscription_update");
    assert!(invoice["total"].as_i64().unwrap() > 0, "charged at once");
    assert_eq!(till.set(4, "four").await.unwrap(), Change::Made, "the same request");
    assert_eq!(till.set(4, "again").await.unwrap(), Change::Already);
    let why = till.set(1, "one").await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { .. }), "{why:?}");
    assert_eq!(till.set(2, "two").await.unwrap(), Change::Made);
    assert_eq!(till.latest_invoice()["id"], invoice["id"], "the credit waits for the next invoice");
    assert_eq!(till.set(2, "two").await.unwrap(), Change::Made);
    let why = till.set(3, "two").await.unwrap_err();
    assert!(matches!(why, BillingError::Core(CoreError::KeyReused { .. })), "{why:?}");
}

// f-B11, W42, lessons 26 and 32
#[tokio::test]
async fn members_and_quantity_are_compared_and_made_equal_both_ways_within_a_bound() {
    let till = Till::open("price_pro", 3).await;
    let most = |most| NonZeroU64::new(most).unwrap();
    let reconcile = |repair, text: &'static str| {
        let (billing, stripe, ctx) = (till.shop.billing.clone(), till.stripe.clone(), till.ctx.clone());
        async move { billing.reconcile_seats(&stripe, &ctx, repair, &key(text)).await.unwrap() }
    };
    till.members(5).await;
    let report = reconcile(SeatRepair::Report, "look").await;
    assert_eq!((report.missing, report.unused, report.change), (2, 0, None));
    assert_eq!(reconcile(SeatRepair::Buy { most: most(1) }, "little").await.change, None, "beyond the bound");
    assert_eq!(reconcile(SeatRepair::Buy { most: most(5) }, "buy").await.change, Some(Change::Made));
    assert_eq!(till.items()[0].1, 5);
    // In the portal, and no event has come.
    till.shop.stripe.update_quantity(&till.purchase.subscription, 9);
    let report = reconcile(SeatRepair::Buy { most: most(5) }, "nothing-missing").await;
    assert_eq!((report.missing, report.unused, report.change), (0, 4, None));
    assert_eq!(till.seats().await.bought, Some(9), "the quantity there is the quantity here");
    assert_eq!(reconcile(SeatRepair::Follow { most: most(5) }, "follow").await.change, Some(Change::Made));
    assert_eq!((till.items()[0].1, till.seats().await.bought), (5, Some(5)));

    // Nobody is thrown out of seats for a payment that failed.
    till.shop.stripe.fail_next_payment(&till.purchase.customer);
    till.shop.stripe.advance(TimeDelta::days(31) + TimeDelta::hours(2));
    till.settle().await;
    till.members(-4).await;
    let (stripe, repair) = (&till.stripe, SeatRepair::Follow { most: most(5) });
    let why = till.shop.billing.reconcile_seats(stripe, &till.ctx, repair, &key("owing")).await.unwrap_err();
    assert!(matches!(why, BillingError::StateForbids { .. }), "{why:?}");
    assert_eq!(till.items()[0].1, 5);
}

#[derive(Debug)]
struct Always(u64);

#[async_trait]
impl Occupancy for Always {
    async fn taken(&self, _: &mut PgConnection, _: TenantId) -> Result<u64, CoreError> {
        Ok(self.0)
    }
}

#[tokio::test]
async fn an_application_can_count_its_members_itself() {
    let request = CheckoutRequest::new("price_pro").with_quantity(7);
    let till = Till::open_with(request, |config| config.with_occupancy(Arc::new(Always(7)))).await;
    assert_eq!(till.seats().await, Seats { bought: Some(7), taken: 7, reserved: 0 });
    assert!(matches!(till.reserve("ada").await, Seat::Full(_)));
    let free: RequestContext = till.shop.database.create_tenant("free").await;
    assert_eq!(till.shop.billing.seats(&free).await.unwrap().bought, None);
}
