-- The prices at Stripe that were ever sold under a name of the catalogue: what a price that an event brings is called there,
-- also after another price has taken its lookup key over.
create table saas.billing_price (
    account      text not null,
    livemode     boolean not null,
    price_id     text not null,
    -- The entry of the file's `prices`, which plans and add-ons name.
    name         text not null,
    currency     text not null,
    -- What is sold under the name in this currency now.
    is_current   boolean not null,
    recorded_at  timestamptz not null,
    primary key (account, livemode, price_id)
);
-- What a checkout asks for; one per name and currency.
create unique index billing_price_current on saas.billing_price (account, livemode, name, currency) where is_current;
revoke all on saas.billing_price from public;
grant select, insert, update on saas.billing_price to saas_system;
select saas.declare_global('saas.billing_price', 'what is sold, the same for all tenants; only the system role reads it', 'system');
