//! Portal, invoices and billing details: the tenant's own, and nobody else's.

use chrono::TimeDelta;
use saas_billing::{
    BillingError, ProviderError,
    object::{InvoiceStatus, ObjectKind},
    provider::{PageLimit, PostalAddress},
    subscription::{BillingDetails, Change},
    testing::{CheckoutRequest, Fault},
};
use saas_core::{ErrorKind, TenantContext as _};

use crate::till::{Till, key};

// f-B1
#[tokio::test]
async fn a_tenant_sees_its_own_invoices_page_by_page_and_no_other_ones() {
    let till = Till::open("price_pro", 1).await;
    for _ in 0..3 {
        till.shop.stripe.advance(TimeDelta::days(31));
    }
    till.settle().await;
    let list = |after, limit| {
        let (billing, stripe, ctx) = (till.shop.billing.clone(), till.stripe.clone(), till.ctx.clone());
        async move { billing.list_invoices(&stripe, &ctx, after, PageLimit::new(limit)).await.unwrap() }
    };
    let first = list(None, 2).await;
    assert_eq!(first.invoices.len(), 2);
    let rest = till.shop.billing.list_invoices(&till.stripe, &till.ctx, first.next.as_ref(), PageLimit::new(2)).await;
    let rest = rest.unwrap();
    let all: Vec<_> = first.invoices.iter().chain(&rest.invoices).collect();
    assert_eq!((all.len(), &rest.next), (4, &None));
    assert!(all.is_sorted_by_key(|invoice| std::cmp::Reverse(invoice.created)), "newest first");
    let oldest = all.last().unwrap();
    assert_eq!((oldest.status.clone(), oldest.total.to_string()), (InvoiceStatus::Paid, "20.00 EUR".to_owned()));
    assert!(oldest.document.is_some() && oldest.page.is_some());

    // Another tenant, with and without a customer of its own.
    let (other, _) = till.shop.buyer_of("other", CheckoutRequest::new("price_pro")).await;
    let why = till.shop.billing.invoice(&till.stripe, &other, &oldest.id).await.unwrap_err();
    assert!(matches!(why, BillingError::NoCustomer), "no event has told of it: {why:?}");
    till.settle().await;
    let why = till.shop.billing.invoice(&till.stripe, &other, &oldest.id).await.unwrap_err();
    assert_eq!(why.kind(), ErrorKind::NotFound, "{why:?}");
    let absent = "in_absent".parse().unwrap();
    let nobodys = till.shop.billing.invoice(&till.stripe, &other, &absent).await.unwrap_err();
    assert_eq!(nobodys.code(), why.code(), "the answer does not say whose it is");
    assert_eq!(till.shop.billing.invoice(&till.stripe, &till.ctx, &oldest.id).await.unwrap(), **oldest);
    let own = till.shop.billing.list_invoices(&till.stripe, &other, None, PageLimit::MAX).await.unwrap();
    assert_eq!(own.invoices.len(), 1);
}

#[tokio::test]
async fn the_portal_is_the_tenants_own_and_on_record() {
    let till = Till::open("price_pro", 1).await;
    let back: saas_billing::provider::WebAddress = "https://app.example.com/billing".parse().unwrap();
    let portal = till.shop.billing.portal(&till.stripe, &till.ctx, back.clone(), None).await.unwrap();
    assert!(portal.address.as_str().contains(portal.session.as_str()));
    assert_eq!(till.audited("billing.portal_opened").await, 1);
    let other = till.shop.database.create_tenant("other").await;
    let why = till.shop.billing.portal(&till.stripe, &other, back.clone(), None).await.unwrap_err();
    assert!(matches!(why, BillingError::NoCustomer), "{why:?}");
    till.shop.stripe.inject([Fault::Unauthorized]);
    let why = till.shop.billing.portal(&till.stripe, &till.ctx, back, None).await.unwrap_err();
    assert!(matches!(why, BillingError::Provider(ProviderError::Authentication)), "{why:?}");
    assert_eq!(till.audited("billing.portal_opened").await, 1, "no page, no record");
}

// L12, W38
#[tokio::test]
async fn billing_details_are_written_once_read_back_and_kept_nowhere_else() {
    let till = Till::open("price_pro", 1).await;
    let address = PostalAddress {
        line1: Some("Lange Straße 1".to_owned()),
        city: Some("Oldenburg".to_owned()),
        country: Some("DE".to_owned()),
        ..PostalAddress::default()
    };
    let details = BillingDetails {
        email: Some("ada@lovelace.example".parse().unwrap()),
        name: Some("Ada Lovelace".to_owned()),
        address: Some(address),
    };
    let write = |details: BillingDetails, text: &'static str| {
        let (billing, stripe, ctx) = (till.shop.billing.clone(), till.stripe.clone(), till.ctx.clone());
        async move { billing.update_billing_details(&stripe, &ctx, details, &key(text)).await }
    };
    assert_eq!(write(details.clone(), "details").await.unwrap(), Change::Made);
    assert_eq!(write(details.clone(), "details").await.unwrap(), Change::Made);
    let read = till.shop.billing.billing_details(&till.stripe, &till.ctx).await.unwrap();
    assert_eq!(read, details);
    assert!(!format!("{read:?}").contains("Ada") && !format!("{read:?}").contains("ada"));
    // One part alone: the others stay.
    let name = BillingDetails { name: Some("Analytical Engines".to_owned()), ..BillingDetails::default() };
    assert_eq!(write(name, "name").await.unwrap(), Change::Made);
    let read = till.shop.billing.billing_details(&till.stripe, &till.ctx).await.unwrap();
    assert_eq!((read.email, read.address), (details.email, details.address));

    let kept = "select count(*) from (
        select encode(goal, 'escape') as text from saas.billing_request
        union all select encode(command, 'escape') from saas.billing_command
        union all select detail::text from saas.audit
        union all select encode(payload, 'escape') from saas.outbox) as place
        where text ~* 'lovelace|Oldenburg'";
    assert_eq!(till.shop.scalar(kept).await, 0);
    let living = till.shop.stripe.living(ObjectKind::Customer);
    assert_eq!(living, std::slice::from_ref(&till.purchase.customer), "{:?}", till.ctx.tenant());
}
