//! What is wrong with single tenants reaches somebody: the log when it begins, a list and an alarm while it stands.

use std::{
    fmt::{Debug, Write as _},
    sync::{Arc, Mutex},
};

use chrono::TimeDelta;
use saas_billing::{TenantAlerts, WebhookAlarm, derive::Alert, testing::CheckoutRequest};
use saas_core::{PageSize, TenantContext as _};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::shop::{OPERATOR, Shop};

/// The warnings about tenants.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "saas.billing.alert" && *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = String::new();
        event.record(&mut Fields(&mut text));
        self.0.lock().unwrap().push(text);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl Shop {
    async fn alerts(&self) -> Vec<TenantAlerts> {
        let (size, mut all, mut after) = (PageSize::new(1).unwrap(), Vec::new(), None);
        loop {
            let page = self.billing.list_alerts(&OPERATOR, after, size).await.unwrap();
            all.extend(page.items);
            after = page.next;
            if after.is_none() {
                return all;
            }
        }
    }

    async fn alarms(&self) -> Vec<WebhookAlarm> {
        let health = self.billing.webhook_health(self.stripe.as_ref(), &OPERATOR).await.unwrap();
        health.alarms.into_iter().filter(|alarm| *alarm != WebhookAlarm::NoEndpoint).collect()
    }
}

// f-B3
#[tokio::test]
async fn a_tenant_that_pays_twice_is_logged_once_listed_and_an_alarm_until_it_ends() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let shop = Shop::open().await;
    let (acme, first) = shop.buyer("acme").await;
    let (globex, paused) = shop.buyer("globex").await;
    shop.deliver_all().await;
    assert_eq!((shop.alerts().await, shop.alarms().await, warnings.take()), (vec![], vec![], vec![]));

    // Somebody subscribes the customer by hand, and pauses another one.
    let request = CheckoutRequest::new("price_team").with_customer(first.customer.as_str());
    let second = shop.stripe.complete_checkout(&shop.stripe.checkout(request)).unwrap();
    shop.stripe.pause_collection(&paused.subscription, Some("void"));
    shop.deliver_all().await;
    let doubled =
        Alert::SeveralSubscriptions { subscriptions: [first.subscription.clone(), second.subscription.clone()].into() };
    let listed = shop.alerts().await;
    assert_eq!(listed.len(), 2, "page by page: {listed:?}");
    let of = |tenant| listed.iter().find(|one| one.tenant == tenant).unwrap();
    assert!(of(acme.tenant()).alerts.contains(&doubled));
    assert!(matches!(of(globex.tenant()).alerts.first(), Some(Alert::CollectionPaused { .. })));
    assert_eq!(shop.alarms().await, [WebhookAlarm::Alerts { tenants: 1 }], "a pause is somebody's decision");
    let said = warnings.take();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains(&acme.tenant().to_string()), "{said:?}");

    // Deriving anew says nothing again.
    shop.stripe.update_quantity(&second.subscription, 4);
    shop.deliver_all().await;
    let _ = shop.billing.rederive(&acme).await.unwrap();
    assert_eq!(warnings.take(), Vec::<String>::new());
    shop.stripe.cancel(&second.subscription);
    shop.deliver_all().await;
    assert_eq!((shop.alerts().await.len(), shop.alarms().await), (1, vec![]));
}

// W5: parked is right for a while
#[tokio::test]
async fn what_waits_for_its_customer_for_more_than_a_day_is_an_alarm() {
    let shop = Shop::open().await;
    shop.stripe.create_customer("stranger@example.com");
    let since = shop.stripe.now();
    shop.deliver_all().await;
    shop.database.clock().advance(TimeDelta::days(1));
    assert_eq!(shop.alarms().await, []);
    shop.database.clock().advance(TimeDelta::seconds(1));
    assert_eq!(shop.alarms().await, [WebhookAlarm::Parked { receipts: 1, since }]);
}
