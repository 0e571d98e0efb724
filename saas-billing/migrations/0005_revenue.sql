-- The numbers: what each tenant pays per month, every change of it, and what trials and failed invoices came to. Written in
-- the transaction that makes the change. Per currency: no number is ever over two.

create table saas.revenue_state (
    tenant_id  uuid not null references saas.tenant (id) on delete restrict,
    livemode   boolean not null,
    currency   text not null check (currency ~ '^[a-z]{3}$'),
    mrr_minor  bigint not null check (mrr_minor >= 0),
    ever_paid  boolean not null,
    -- How many changes are recorded.
    changes    bigint not null check (changes >= 0),
    -- Up to when.
    at         timestamptz not null check (isfinite(at)),
    -- When time alone changes it: a discount that ends, a grace that runs out.
    next_at    timestamptz,
    primary key (tenant_id, livemode, currency)
);
-- The sum over all tenants, without a look at the rows.
create index revenue_state_sum on saas.revenue_state (livemode, currency) include (mrr_minor) where mrr_minor > 0;
-- What is to be recorded because time has passed.
create index revenue_state_due on saas.revenue_state (livemode, next_at) where next_at is not null;
select saas.fence('saas.revenue_state', 'select');
grant insert, update on saas.revenue_state to saas_system;

create table saas.revenue_change (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    livemode      boolean not null,
    currency      text not null check (currency ~ '^[a-z]{3}$'),
    number        bigint not null check (number > 0),
    -- By Stripe's clock, never before the change that was recorded before; and when it was recorded, by ours.
    at            timestamptz not null check (isfinite(at)),
    recorded_at   timestamptz not null check (isfinite(recorded_at)),
    movement      text not null check (movement in ('new', 'expansion', 'contraction', 'churn', 'reactivation')),
    before_minor  bigint not null check (before_minor >= 0),
    after_minor   bigint not null check (after_minor >= 0),
    delta         bigint not null generated always as (after_minor - before_minor) stored check (delta <> 0),
    primary key (tenant_id, livemode, currency, number)
);
-- Movements of a period, and the sum before an instant, without a look at the rows.
create index revenue_change_by_time on saas.revenue_change (livemode, at) include (currency, movement, delta);
select saas.fence('saas.revenue_change', 'select');
grant insert on saas.revenue_change to saas_system;

-- What a subscription's trial came to.
create table saas.revenue_subscription (
    tenant_id      uuid not null references saas.tenant (id) on delete restrict,
    livemode       boolean not null,
    subscription   text not null,
    -- When it ends or ended; null without a trial.
    trial_end      timestamptz,
    -- The first payment of more than nothing.
    first_paid_at  timestamptz,
    primary key (tenant_id, livemode, subscription)
);
create index revenue_subscription_trials on saas.revenue_subscription (livemode, trial_end) include (first_paid_at)
    where trial_end is not null;
select saas.fence('saas.revenue_subscription', 'select');
grant insert, update on saas.revenue_subscription to saas_system;

-- Invoices whose charge has failed, and what became of them.
create table saas.revenue_arrears (
    tenant_id     uuid not null references saas.tenant (id) on delete restrict,
    livemode      boolean not null,
    invoice       text not null,
    currency      text not null check (currency ~ '^[a-z]{3}$'),
    amount_minor  bigint not null,
    -- The first failure; null where it turned out that the bank only wants to hear from the buyer.
    failed_at     timestamptz,
    recovered_at  timestamptz,
    lost_at       timestamptz,
    primary key (tenant_id, livemode, invoice)
);
create index revenue_arrears_by_time on saas.revenue_arrears (livemode, failed_at);
select saas.fence('saas.revenue_arrears', 'select');
grant insert, update on saas.revenue_arrears to saas_system;

-- The past months of the business: amounts and ids, nothing about people.
select saas.retain('saas.revenue_state', 'past months stay what they were'),
       saas.retain('saas.revenue_change', 'past months stay what they were'),
       saas.retain('saas.revenue_subscription', 'past months stay what they were'),
       saas.retain('saas.revenue_arrears', 'past months stay what they were');
