-- What Stripe has told that changes nothing by itself and that an operator should know: the catalogue was changed there, a bank
-- warns of fraud. One row for each object, which says the latest.

create table saas.billing_notice (
    account     text not null,
    livemode    boolean not null,
    kind        text not null check (kind in ('catalogue_changed', 'early_fraud_warning', 'mandate_inactive', 'usage_alert')),
    -- What has changed: a price, a warning.
    object_id   text not null,
    -- The customer or the charge that it concerns; the directory knows whose that is, or will.
    about       text,
    event_id    text not null,
    event_type  text not null,
    -- By Stripe's clock: of two events the later one counts, whichever came first.
    created_at  timestamptz not null,
    noted_at    timestamptz not null,
    seen_at     timestamptz,
    seen_by     text,
    primary key (account, livemode, kind, object_id)
);
-- The operators' list, newest first, and its length.
create index billing_notice_open on saas.billing_notice (account, livemode, noted_at, kind, object_id) where seen_at is null;
-- What has been seen goes after the retention.
create index billing_notice_seen on saas.billing_notice (account, livemode, seen_at) where seen_at is not null;
revoke all on saas.billing_notice from public;
grant select, insert, update, delete on saas.billing_notice to saas_system;
select saas.declare_global('saas.billing_notice', 'products and prices belong to no tenant; only the system role reads it', 'system');
