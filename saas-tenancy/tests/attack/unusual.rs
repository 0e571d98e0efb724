//! Leaks that hide: behind flags, triggers, missing privileges, odd types, rules of views.

use saas_tenancy::testing::Attack;

use crate::case::{Case, both, check_all, structural};

#[rustfmt::skip]
const CASES: &[Case] = &[
    both("rows that a flag opens to everybody", // T10
        "create table public.post (tenant_id uuid not null, id uuid not null default gen_random_uuid(), is_public boolean not null, primary key (tenant_id, id));
         select saas.fence('public.post');
         alter policy saas_tenant on public.post using (tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid) or is_public);
         alter policy saas_tenant_only on public.post using (tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid) or is_public)",
        (Attack::Select, "public.post"), ("no-isolation-policy", "public.post")),
    both("rows that the other value of the flag opens", // T10
        "create table public.post (tenant_id uuid not null, id uuid not null default gen_random_uuid(), is_draft boolean not null, primary key (tenant_id, id));
         select saas.fence('public.post');
         alter policy saas_tenant on public.post using (tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid) or not is_draft);
         alter policy saas_tenant_only on public.post using (tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid) or not is_draft)",
        (Attack::Select, "public.post"), ("no-isolation-policy", "public.post")),
    both("rows that one state of many opens", // T10
        "create type public.state as enum ('new', 'draft', 'review', 'published', 'gone');
         create table public.post (tenant_id uuid not null, id uuid not null default gen_random_uuid(), state public.state not null, primary key (tenant_id, id));
         select saas.fence('public.post');
         drop policy saas_tenant_only on public.post;
         create policy published on public.post for select to saas_app using (state = 'published')",
        (Attack::Select, "public.post"), ("no-isolation-policy", "public.post")),
    both("rows that a state of a check opens", // T10
        "create table public.post (tenant_id uuid not null, id uuid not null default gen_random_uuid(),
            state text not null default 'draft' check (state in ('draft', 'review', 'published')), primary key (tenant_id, id));
         select saas.fence('public.post');
         drop policy saas_tenant_only on public.post;
         create policy published on public.post for select to saas_app using (state = 'published')",
        (Attack::Select, "public.post"), ("no-isolation-policy", "public.post")),
    both("rows without an owner are everybody's", // T10
        "create table public.post (tenant_id uuid not null, id uuid not null default gen_random_uuid(), author uuid, deleted_at timestamptz, primary key (tenant_id, id));
         select saas.fence('public.post');
         drop policy saas_tenant_only on public.post;
         create policy orphans on public.post for select to saas_app using (author is null and deleted_at is not null)",
        (Attack::Select, "public.post"), ("no-isolation-policy", "public.post")),
    both("rows of no tenant, which one tenant writes and every one reads", // T9
        "create table public.template (tenant_id uuid, id uuid not null default gen_random_uuid(), body text, primary key (id));
         alter table public.template enable row level security; alter table public.template force row level security;
         create policy shared on public.template to saas_app using (tenant_id is null or tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid));
         grant select, insert, update on public.template to saas_app",
        (Attack::WriteGlobal, "public.template"), ("tenant-nullable", "public.template")),
    both("another tenant's row can be taken", // T9
        "drop policy saas_tenant_only on public.project;
         create policy take on public.project for update to saas_app using (true)
            with check (tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid))",
        (Attack::Move, "public.project"), ("no-isolation-policy", "public.project")),
    both("a change without a condition", // T10
        "drop policy saas_tenant_only on public.event;
         create policy overwrite on public.event for update to saas_app using (true) with check (true);
         revoke update on public.event from saas_app; grant update (what) on public.event to saas_app",
        (Attack::Update, "public.event"), ("no-isolation-policy", "public.event")),
    both("one column that may be written and not read", // T8
        "alter table public.task disable row level security; revoke all on public.task from saas_app; grant update (title) on public.task to saas_app",
        (Attack::Update, "public.task"), ("rls-off", "public.task")),
    both("an update that only a trigger refuses", // T10
        "alter policy saas_tenant on public.event using (true); alter policy saas_tenant_only on public.event using (true);
         revoke select on public.event from saas_app; grant select (tenant_id) on public.event to saas_app;
         create function public.never() returns trigger language plpgsql as $$ begin raise exception 'append only'; end $$;
         create trigger never before update or delete on public.event for each row execute function public.never()",
        (Attack::Update, "public.event"), ("no-isolation-policy", "public.event")),
    both("a rule on a view, which runs as the view's owner",
        "create view public.bin with (security_invoker = true) as select * from public.task;
         create rule empty as on delete to public.bin do instead delete from public.task where title = old.title or true;
         grant select, delete on public.bin to saas_app",
        (Attack::SideEffect, "public.bin"), ("rule", "public.bin.empty")),
    both("a view whose trigger runs as its owner", // T6
        "create view public.inbox with (security_invoker = true) as select * from public.event;
         create function public.deliver() returns trigger language plpgsql security definer set search_path = '' as $$
         begin update public.project set name = name; return new; end $$;
         create trigger deliver instead of insert on public.inbox for each row execute function public.deliver();
         grant select, insert on public.inbox to saas_app",
        (Attack::SideEffect, "public.inbox"), ("definer-function", "public.deliver()")),
    both("a trigger that counts what others store", // T6
        "create table public.ticket (tenant_id uuid not null, id uuid not null default gen_random_uuid(), number int not null, primary key (tenant_id, id));
         select saas.fence('public.ticket');
         create function public.number_it() returns trigger language plpgsql security definer set search_path = '' as $$
         begin new.number := (select 1000 + count(*) from public.project); return new; end $$;
         create trigger number_it before insert on public.ticket for each row execute function public.number_it()",
        (Attack::Inference, "public.ticket"), ("definer-function", "public.number_it()")),
    both("a unique key by hand, over all tenants", // T21
        "create table public.handle (tenant_id uuid not null, id uuid not null default gen_random_uuid(), label text not null, primary key (tenant_id, id));
         select saas.fence('public.handle');
         create function public.only_one() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
            if exists (select from public.handle h where h.label = new.label) then raise exception 'taken'; end if;
            return new;
         end $$;
         create trigger only_one before insert on public.handle for each row execute function public.only_one()",
        (Attack::Inference, "public.handle"), ("definer-function", "public.only_one()")),
    both("a view that is the fence itself, and tells its errors", // T4
        "create table public.secret (tenant_id uuid not null, id int not null, word text not null, primary key (tenant_id, id));
         create view public.my_secret as select * from public.secret where tenant_id = nullif(current_setting('saas.tenant_id', true), '')::uuid;
         grant select on public.my_secret to saas_app",
        (Attack::Inference, "public.my_secret"), ("view-as-owner", "public.my_secret")),
    both("a tenant in a column of another name, and a reference to it", // T22
        "create table public.link (tenant_id uuid not null, id uuid not null default gen_random_uuid(), their_tenant uuid not null, project uuid not null,
            primary key (tenant_id, id), constraint crossing foreign key (their_tenant, project) references public.project (tenant_id, id));
         alter table public.link enable row level security; select saas.fence_policies('public.link'); alter table public.link force row level security;
         grant select, insert, update, delete on public.link to saas_app",
        (Attack::ForeignKey, "public.link.crossing"), ("foreign-key-without-tenant", "public.link.crossing")),
    both("a unique index that only carries the tenant", // T21
        "create unique index carried on public.project (name) include (tenant_id)",
        (Attack::UniqueKey, "public.project.carried"), ("unique-without-tenant", "carried")),
    both("a unique index of living rows only", // T21
        "alter table public.project add deleted_at timestamptz;
         create unique index living on public.project (lower(name)) where deleted_at is null",
        (Attack::UniqueKey, "public.project.living"), ("unique-without-tenant", "living")),
    both("a unique key that treats nulls alike", // T21
        "alter table public.task add code text; create unique index coded on public.task (code) nulls not distinct",
        (Attack::UniqueKey, "public.task.coded"), ("unique-without-tenant", "coded")),
    both("a document that names its tenant inside", // T8
        "create table public.document (id uuid primary key default gen_random_uuid(), payload jsonb not null check (payload ? 'seed'));
         grant select, insert on public.document to saas_app",
        (Attack::Select, "public.document"), ("unclassified-table", "public.document")),
    both("a tenant by text, compared without case", // T8
        "create table public.memo (tenant_id text not null, id uuid not null default gen_random_uuid(), body text, primary key (tenant_id, id));
         alter table public.memo enable row level security; alter table public.memo force row level security;
         create policy loosely on public.memo to saas_app using (left(lower(tenant_id), 4) = left(lower(current_setting('saas.tenant_id', true)), 4));
         grant select, insert, update, delete on public.memo to saas_app",
        (Attack::Select, "public.memo"), ("tenant-type", "public.memo")),
    both("a partition attached later that is a parent itself", // T7
        "create table public.event_next (like public.event including indexes) partition by range (at);
         create table public.event_next_may partition of public.event_next for values from ('2027-05-01') to ('2027-06-01');
         alter table public.event attach partition public.event_next for values from ('2027-01-01') to ('2028-01-01');
         grant select on public.event_next to saas_app",
        (Attack::Select, "public.event_next"), ("open-partition", "public.event_next")),
    both("a materialized view behind a view that asks as its caller", // T5
        "create materialized view public.totals as select tenant_id, count(*) as n from public.task group by 1;
         create view public.my_totals with (security_invoker = true) as select * from public.totals where tenant_id = current_setting('saas.tenant_id', true)::uuid;
         grant select on public.totals, public.my_totals to saas_app",
        (Attack::Select, "public.totals"), ("materialized-view", "public.totals")),
    both("a grant to everybody", // T8
        "create table public.diary (tenant_id uuid not null, id uuid not null default gen_random_uuid(), line text, primary key (tenant_id, id)); grant all on public.diary to public",
        (Attack::Truncate, "public.diary"), ("rls-off", "public.diary")),
    both("an answer that a default gives", // T6
        "create function public.everything() returns bigint language sql stable security definer set search_path = '' as 'select count(*) from public.project';
         create table public.sheet (tenant_id uuid not null, id uuid not null default gen_random_uuid(), total bigint not null default public.everything(), primary key (tenant_id, id));
         select saas.fence('public.sheet'); revoke execute on function public.everything() from public; grant execute on function public.everything() to saas_app",
        (Attack::Inference, "public.everything()"), ("definer-function", "public.everything()")),
    both("a domain whose check asks as its owner", // T6
        "create function public.is_free(text) returns boolean language sql stable security definer set search_path = ''
            as 'select not exists (select from public.project where name = $1)';
         create domain public.free_name as text check (public.is_free(value));
         create table public.claim (tenant_id uuid not null, id uuid not null default gen_random_uuid(), name public.free_name, primary key (tenant_id, id));
         select saas.fence('public.claim')",
        (Attack::Inference, "public.is_free(text)"), ("definer-function", "public.is_free(text)")),
    structural("a view of the owner's over one that asks as its caller", // T4
        "create view public.inner_view with (security_invoker = true) as select * from public.project;
         create view public.outer_view as select * from public.inner_view; grant select on public.outer_view to saas_app",
        ("view-as-owner", "public.outer_view")),
    structural("a policy with a tenant for those who have none",
        "alter policy saas_tenant on public.project using (tenant_id = (select coalesce(nullif(current_setting('saas.tenant_id', true), ''), '00000000-0000-0000-0000-000000000000')::uuid));
         alter policy saas_tenant_only on public.project using (tenant_id = (select coalesce(nullif(current_setting('saas.tenant_id', true), ''), '00000000-0000-0000-0000-000000000000')::uuid))",
        ("no-isolation-policy", "public.project")),
    structural("a restrictive policy for reading only",
        "drop policy saas_tenant_only on public.project;
         create policy reading on public.project as restrictive for select to saas_app using (tenant_id = (select nullif(current_setting('saas.tenant_id', true), '')::uuid))",
        ("no-isolation-policy", "public.project")),
    structural("a restrictive policy alone, which hides everything",
        "drop policy saas_tenant on public.project",
        ("no-policy", "public.project")),
    structural("a definer's function that reads the caller's temporary tables first", // T6
        "create function public.one() returns bigint language sql security definer set search_path = public as 'select 1::bigint';
         select saas.accept_finding('definer-function', 'public.one()', 'a constant')",
        ("definer-search-path", "public.one()")),
    structural("a tenant's table that was declared to be nobody's",
        "create table public.note (tenant_id uuid not null, id uuid not null default gen_random_uuid(), primary key (tenant_id, id));
         select saas.declare_global('public.note', 'a mistake'); grant select on public.note to saas_app",
        ("global-table-with-tenant", "public.note")),
    structural("a fenced table that was renamed",
        "alter table public.task rename to assignment",
        ("renamed-fence", "public.assignment")),
    structural("a fence that somebody disabled on a table that nobody reaches yet", // T8
        "revoke all on public.task from saas_app; alter table public.task disable row level security",
        ("rls-off", "public.task")),
];

// T1 T4 T5 T6 T7 T8 T9 T10 T21 T22
#[tokio::test(flavor = "multi_thread")]
async fn each_unusual_leak_is_seen_and_its_mend_mends_it() {
    check_all(CASES).await;
}
