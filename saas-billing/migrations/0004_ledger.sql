-- The ledger: what happened to money, double-entry, one chain per tenant and mode. Only ever added to. A tenant reads its
-- own; only the system role writes, in the transaction of the change that moved the money.

-- Where a chain ends. Whoever adds to it holds this row, so a chain cannot fork.
create table saas.ledger_head (
    tenant_id  uuid not null references saas.tenant (id) on delete restrict,
    livemode   boolean not null,
    sequence   bigint not null check (sequence >= 0),
    hash       bytea not null check (length(hash) = 32),
    primary key (tenant_id, livemode)
);
select saas.fence('saas.ledger_head', 'select');
grant insert, update on saas.ledger_head to saas_system;

create table saas.ledger_transaction (
    tenant_id    uuid not null references saas.tenant (id) on delete restrict,
    livemode     boolean not null,
    -- 1, 2, 3 … without a gap.
    sequence     bigint not null check (sequence > 0),
    cause        text not null check (cause <> ''),
    -- The Stripe object that it follows from, or the key of what is not Stripe's.
    subject      text not null check (subject <> ''),
    -- The payment that it is about: prepaid credits hang on it.
    payment      text,
    -- What makes a request happen once.
    key          text,
    -- The transaction that it takes back.
    reverses     bigint check (reverses < sequence),
    actor        text not null check (actor <> ''),
    -- By Stripe's clock, and by ours.
    occurred_at  timestamptz not null check (isfinite(occurred_at)),
    recorded_at  timestamptz not null check (isfinite(recorded_at)),
    -- Over all of the above, the entries, and the hash before it.
    hash         bytea not null check (length(hash) = 32),
    primary key (tenant_id, livemode, sequence),
    constraint ledger_transaction_once unique (tenant_id, livemode, key),
    constraint ledger_transaction_reversed_once unique (tenant_id, livemode, reverses),
    foreign key (tenant_id, livemode, reverses)
        references saas.ledger_transaction (tenant_id, livemode, sequence) on delete restrict
);
-- What was written about an object, before more is.
create index ledger_transaction_by_subject on saas.ledger_transaction (tenant_id, livemode, subject);
-- How much of a payment came in and went back.
create index ledger_transaction_by_payment on saas.ledger_transaction (tenant_id, livemode, payment)
    where payment is not null;
-- Statements.
create index ledger_transaction_by_time on saas.ledger_transaction (tenant_id, livemode, occurred_at, sequence);
select saas.fence('saas.ledger_transaction', 'select');
grant insert on saas.ledger_transaction to saas_system;

create table saas.ledger_entry (
    tenant_id    uuid not null,
    livemode     boolean not null,
    sequence     bigint not null,
    account      text not null check (account in (
        'receivable', 'cash', 'out_of_band', 'payments', 'revenue', 'tax', 'credit_notes', 'refunds', 'bad_debt', 'disputes',
        'disputes_lost', 'customer_credit', 'credit_clearing', 'credits', 'credits_granted', 'credits_burnt')),
    -- Part of the key: no sum is ever over two currencies.
    currency     text not null check (currency ~ '^[a-z]{3}$'),
    -- Minor units: a debit above zero, a credit below.
    amount       bigint not null check (amount <> 0),
    -- Its transaction's, for balances of a period.
    occurred_at  timestamptz not null check (isfinite(occurred_at)),
    primary key (tenant_id, livemode, sequence, currency, account),
    foreign key (tenant_id, livemode, sequence)
        references saas.ledger_transaction (tenant_id, livemode, sequence) on delete restrict
);
-- Balances, without a look at the rows.
create index ledger_entry_by_account on saas.ledger_entry (tenant_id, livemode, currency, account, occurred_at)
    include (amount);
select saas.fence('saas.ledger_entry', 'select');
grant insert on saas.ledger_entry to saas_system;

-- Looked at when the transaction commits: what is written entry by entry balances at the end, or nothing of it stays.
-- Fails closed: a role that does not see the entries finds none, and none do not balance.
create function saas.ledger_check_balance()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    entries  bigint;
    off      text;
begin
    select count(*), min(e.currency) filter (where e.sum <> 0)
    into entries, off
    from (select currency, sum(amount) as sum
          from saas.ledger_entry
          where tenant_id = new.tenant_id and livemode = new.livemode and sequence = new.sequence
          group by currency) e;
    if entries = 0 then
        raise exception 'saas.ledger: transaction % has no entries', new.sequence
            using errcode = 'check_violation', constraint = 'ledger_balanced',
                  hint = 'Write a transaction and its entries in one transaction of the database.';
    end if;
    if off is not null then
        raise exception 'saas.ledger: the entries of transaction % do not balance in %', new.sequence, off
            using errcode = 'check_violation', constraint = 'ledger_balanced',
                  hint = 'Debits and credits of each currency must add up to zero.';
    end if;
    return null;
end
$$;
revoke all on function saas.ledger_check_balance() from public;
create constraint trigger ledger_balanced after insert on saas.ledger_transaction
    deferrable initially deferred for each row execute function saas.ledger_check_balance();
create constraint trigger ledger_balanced after insert on saas.ledger_entry
    deferrable initially deferred for each row execute function saas.ledger_check_balance();

-- Grants alone would let a later grant in. The owner can take this away, as he can take away anything: what he then does
-- is for the verification to find.
create function saas.ledger_refuse()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'saas.ledger: % of % is refused', lower(tg_op), tg_relid::regclass
        using errcode = 'insufficient_privilege',
              hint = 'What was written stays. A mistake is taken back by an entry of its own.';
end
$$;
revoke all on function saas.ledger_refuse() from public;
create trigger ledger_append_only before update or delete or truncate on saas.ledger_transaction
    for each statement execute function saas.ledger_refuse();
create trigger ledger_append_only before update or delete or truncate on saas.ledger_entry
    for each statement execute function saas.ledger_refuse();
create trigger ledger_append_only before delete or truncate on saas.ledger_head
    for each statement execute function saas.ledger_refuse();

-- Ids and amounts, nothing about people: an erased tenant's ledger still verifies.
select saas.retain('saas.ledger_head', 'commercial and tax law: where the ledger ends'),
       saas.retain('saas.ledger_transaction', 'commercial and tax law: what happened to money'),
       saas.retain('saas.ledger_entry', 'commercial and tax law: what happened to money');
