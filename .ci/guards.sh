# `./dev check-guards`: removes one safety guard at a time from a copy of the tree and requires that the named test notices.
# Sourced by ./dev.
#
# guard: what is removed · file and edit: where and how (sed) · test: arguments of `cargo test` · fails: the test that must
# fail. The mutated tree must still build, and another test of the same run must still pass: a tree that is merely broken
# proves nothing.
guards() {
    cat <<'LIST'
guard FORCE row level security
file  saas-core/migrations/0001_fence.sql
edit  s/force row level security/no force row level security/
test  --package saas-core --test database isolation
fails the_owner_of_a_table_is_bound_as_well

guard nullif around the setting
file  saas-core/migrations/0001_fence.sql
edit  s/nullif(\(current_setting(''saas.tenant_id'', true)\), '''')/\1/
test  --package saas-core --test database isolation
fails without_a_tenant_nothing_is_seen_or_written_also_on_a_used_connection

guard WITH CHECK
file  saas-core/migrations/0001_fence.sql
edit  s/with check (%2$s)/with check (true)/
test  --package saas-core --test database isolation
fails a_row_cannot_be_inserted_for_or_moved_to_another_tenant

guard tenant_id in a foreign key
file  saas-core/migrations/0001_fence.sql
edit  s/and c.contype = 'f'/and false/
test  --package saas-core --test database isolation
fails a_table_that_cannot_be_fenced_is_refused_with_a_reason

guard the restrictive policy
file  saas-core/migrations/0001_fence.sql
edit  s/as restrictive for all/as permissive for all/
test  --package saas-core --test database isolation
fails a_permissive_policy_added_later_opens_nothing

guard closing a suspect connection
file  saas-core/src/db/guard.rs
edit  s/(true, _) | (_, Err(_)) => connection.close_on_drop(),/(true, _) | (_, Err(_)) => drop(connection),/
test  --package saas-core --test database -- cancel::dropping transactions::a_co transactions::dropped_copies
fails dropping_a_transaction_at_any_poll_leaves_a_clean_pool_of_one

guard proof of cleanness at the release
file  saas-core/src/db/guard.rs
edit  s/self.clean = tokio::time::timeout.*/self.clean = true;/
test  --package saas-core --test database -- cancel::dropping transactions::a_co transactions::dropped_copies
fails a_connection_that_was_left_bound_or_with_an_open_cursor_is_not_handed_out_again

guard asking before COMMIT
file  saas-core/src/db/guard.rs
edit  s/with_nonce(nonce, "; commit and chain")/["commit and chain; ", \&with_nonce(nonce, "; select 1")].concat()/
test  --package saas-core --test database -- cancel::dropping transactions::a_co transactions::dropped_copies
fails a_commit_after_a_swallowed_error_is_an_error

guard nonce of the commit's answer
file  saas-core/src/db/guard.rs
edit  s/let Some(echo) = .*/let Some(echo) = Some(0_usize) else {/;s/if done.len() < echo + 2/if false/
test  --package saas-core --test database -- cancel::dropping transactions::a_co transactions::dropped_copies
fails a_commit_does_not_take_the_answer_of_a_dropped_copy_for_its_own

guard the deletion that Stripe does not list
file  saas-billing/src/reconcile.rs
edit  s/theirs.is_none() && ours.is_some_and(is_deleted)/false/
test  --package saas-billing --all-features --test it reconcile::
fails a_deletion_that_no_event_told_of_is_found_once_and_is_no_difference_any_more

guard whose a refund is
file  saas-billing/src/reconcile.rs
edit  s/theirs.customer().or(theirs.charge())/theirs.customer()/
test  --package saas-billing --all-features --test it reconcile::
fails a_charge_a_refund_a_dispute_and_a_credit_note_that_no_event_told_of_are_booked

guard what Stripe has counted otherwise
file  saas-billing/src/usage/compare.rs
edit  s/(ours != theirs).then(||/false.then(||/
test  --package saas-billing --all-features --test it usage::
fails a_run_compares_what_customers_used_day_by_day

guard who flies in place is alone
file  saas-core/src/group.rs
edit  s/std::mem::replace(&mut queue.in_place, true)/std::mem::replace(\&mut queue.in_place, false)/
test  --package saas-core --all-features --lib group::
fails one_who_flies_in_place_is_answered_dropped_or_left_asleep_and_holds_up_nobody

guard unique on event id
file  saas-billing/migrations/0001_inbox.sql
edit  s/primary key (account, livemode, event_id)$/check (true)/;s/foreign key (account, livemode, event_id)/check (true)/;/references saas.billing_receipt (/d
test  --package saas-billing --test it intake
fails fifty_deliveries_of_one_event_at_once_have_one_receipt_and_one_effect

guard news of a notice
file  saas-billing/src/postgres/notice.rs
edit  s/where (known.created_at, known.event_id) < (excluded.created_at, excluded.event_id)/where true/
test  --package saas-billing --test it tiers
fails a_notice_says_the_latest_and_comes_back_with_news_only

guard reading from Stripe what an event does not say
file  saas-billing/src/event/told.rs
edit  s/.and_then(id_in).ok_or(why)?;/.and_then(id_in).filter(|_| false).ok_or(why)?;/
test  --package saas-billing --test it tiers
fails what_cannot_be_read_in_an_event_is_read_from_stripe

guard end of a signing secret that was rolled
file  saas-billing/src/signature.rs
edit  s/map_or(until, |end| end.min(until))/map_or(DateTime::<Utc>::MAX_UTC, |end| end.min(until))/
test  --package saas-billing --lib -- signature
fails a_rolled_secret_ends_and_is_held_once

guard slots of settled commands
file  saas-billing/src/postgres/purge.rs
edit  s/or state = 'done' and slot is null) and finished_at/or state = 'done') and finished_at/
test  --package saas-billing --test it purging
fails settled_commands_and_requests_go_after_their_time_and_what_holds_a_slot_stays

guard revision check of the gate
file  saas-entitlements/src/gate/shelf.rs
edit  s/=> snapshot.facts.revision >= floor.revision,/=> true,/
test  --package saas-entitlements --test suite -- a_read_that_was_overtaken an_old_announcement
fails a_read_that_was_overtaken_is_thrown_away_for_everyone_who_waits

guard revision check, in every interleaving
file  saas-entitlements/src/gate/shelf.rs
edit  s/=> snapshot.facts.revision >= floor.revision,/=> true,/
test  --package saas-entitlements --lib gate::
fails gate::model::a_load_beside_a_change_never_brings_the_old_answer_back

guard flush count of a load
file  saas-entitlements/src/gate/shelf.rs
edit  s/loaded.life.epoch == self.epoch && reaches/reaches/
test  --package saas-entitlements --lib gate::
fails gate::model::a_flush_ends_what_was_read_before_it_whenever_that_lands

guard the end of a flight with its landing, in one lock
file  saas-entitlements/src/gate/flight.rs
edit  s/^        end_flight(&mut shelf, snapshot.tenant, id);//
test  --package saas-entitlements --lib gate::
fails gate::model::a_load_beside_a_change_never_brings_the_old_answer_back

guard whose place the end of a flight frees
file  saas-entitlements/src/gate/flight.rs
edit  s/is_some_and(|flight| flight.id == id)/is_some()/
test  --package saas-entitlements --lib gate::
fails gate::model::the_end_of_a_flight_leaves_the_next_one_its_place

guard looking and joining in one lock
file  saas-entitlements/src/gate/core.rs
edit  s/^        let mut joined = None;/        drop(shelf); let mut shelf = self.lock(); let mut joined = None;/
test  --package saas-entitlements --lib gate::
fails gate::model::misses_that_meet_are_one_read

guard the deadline of a held snapshot
file  saas-entitlements/src/gate/table.rs
edit  s/if self.now.load(Ordering::Relaxed) >= stamp .*/if stamp == u64::MAX {/
test  --package saas-entitlements --lib gate::
fails gate::model::a_reader_that_knows_of_a_change_never_gets_the_snapshot_before_it

guard whose snapshot a slot holds
file  saas-entitlements/src/gate/table.rs
edit  s/self.held(slot).filter(|held| held.tenant == tenant)/self.held(slot)/
test  --package saas-entitlements --lib gate::
fails gate::model::a_tenant_that_gives_way_to_another_never_answers_with_its_snapshot

guard whose last known state it is
file  saas-entitlements/src/gate/core.rs
edit  s/let own = held.filter(.*/let own = held;/
test  --package saas-entitlements --lib gate::
fails gate::model::the_last_known_state_is_the_tenants_own

guard what a load that failed cannot have seen
file  saas-entitlements/src/gate/flight.rs
edit  s/retry_at, failed, \.\.held\.life/retry_at, failed: (failed.0, shelf.news), ..held.life/
test  --package saas-entitlements --lib gate::
fails gate::model::a_load_that_fails_says_nothing_of_what_was_heard_since_it_began

guard a try of its own for who joined a load late
file  saas-entitlements/src/gate/core.rs
edit  s/if is_late \&\& looks_again/if false \&\& is_late \&\& looks_again/
test  --package saas-entitlements --lib gate::
fails gate::model::a_load_that_fails_says_nothing_of_what_was_heard_since_it_began

guard one load for all who wait
file  saas-entitlements/src/gate/core.rs
edit  s/joined = shelf.flights.get(&tenant).*/joined = None;/
test  --package saas-entitlements --test suite -- coherence::
fails coherence::a_thousand_misses_at_once_are_one_read

guard the next boundary ends an answer
file  saas-entitlements/src/gate/shelf.rs
edit  s/end.min(life)/end.max(life)/
test  --package saas-entitlements --test suite -- outage::
fails outage::a_boundary_that_passes_while_cached_changes_the_answer_without_any_read

guard the tenant's row taken whole before an erasure ends
file  saas-core/src/tenant.rs
edit  s/where id = $1 for update"/where id = $1"/
test  --package quickstart --test erase
fails a_use_under_way_when_an_erasure_ends_is_erased_with_it

guard usage read anew where time brought another limit to look at
file  saas-entitlements/src/gate/core.rs
edit  s/is_none_or(|moved| !moved.watches_others())/is_none_or(|_| true)/
test  --package saas-entitlements --test suite -- excess::
fails excess::a_trial_that_ends_by_time_alone_leaves_the_gate_knowing_what_is_used

guard telling the past of a use that turned the answer
file  saas-entitlements/migrations/0012_usage_watch.sql
edit  s/    where h.tenant_id = of_tenant and h.meter = of_counter .*/    where false/
test  --package saas-entitlements --test suite -- excess::
fails excess::nobody_has_to_ask_for_the_past_to_be_known

guard the catalogue of a handle
file  saas-entitlements/src/entitlements.rs
edit  s/if feature.catalog == self.core.fingerprint$/if true/
test  --package saas-entitlements --test suite -- coherence::
fails coherence::a_snapshot_of_one_catalogue_answers_nothing_for_another

guard second look of a reader at the sequence
file  saas-entitlements/src/gate/table.rs
edit  s/let torn = .*/let torn = stamp \& 1;/
test  --package saas-entitlements --lib gate::
fails gate::model::a_tenant_that_gives_way_to_another_never_answers_with_its_bits

guard the source's clock over one that is off
file  saas-entitlements/src/clock.rs
edit  s/if (skew - offset).saturating_abs() <= self.bound {/if true {/
test  --package saas-entitlements --test suite -- skew::
fails skew::a_clock_that_is_minutes_off_is_shown_warned_of_once_and_grants_nothing_beyond_an_end

guard how long a tenant's lock is waited for beside other tenants
file  saas-entitlements/src/postgres/lanes.rs
edit  s/from_millis(50)/from_secs(50)/
test  --package saas-entitlements --test suite -- flights::
fails flights::a_tenant_whose_counter_is_locked_holds_up_no_other

guard the key, also in the shortest way to count
file  saas-entitlements/migrations/0004_usage_consume.sql
edit  s/^        if is_new then/        if found then/
test  --package saas-entitlements --test suite -- flights::
fails flights::uses_of_different_tenants_that_meet_share_transactions_and_nothing_else

guard what is watched, also in the shortest way to count
file  saas-entitlements/migrations/0004_usage_consume.sql
edit  /is not distinct from (c.used > c.over_above - of_units)/d
test  --package saas-entitlements --test suite -- over::
fails over::whatever_passes_what_is_watched_raises_the_revision_also_leases_that_are_lost_or_made

guard what is watched, by leases
file  saas-entitlements/migrations/0005_usage_lease.sql
edit  s/and used > known.over_above then/and false then/
test  --package saas-entitlements --test suite -- over::
fails over::leased_uses_that_turn_out_to_be_too_many_are_heard_of_when_they_are_reported

guard the database's clock in changes and sweeps
file  saas-entitlements/src/clock.rs
edit  s/if let Some(asked) = self.own_time() {/if let Some(asked) = self.own_time().filter(|_| false) {/
test  --package saas-entitlements --test suite -- skew::
fails skew::a_sweeper_whose_clock_jumps_closes_no_window_that_is_open_and_forgets_nothing_that_is_kept

guard the latest report of a price, whatever came last
file  saas-billing/src/merge/tenure.rs
edit  s/at.max(\*known)/at/
test  --package saas-billing --lib -- tenure derive
fails merge::tenure::tests::joining_is_commutative_associative_and_idempotent

guard a payment to be confirmed is no decline
file  saas-billing/src/merge/history.rs
edit  s/Fact::PaymentFailed(attempt) if !asked(attempt)/Fact::PaymentFailed(attempt) if !asked(attempt) || true/
test  --package saas-billing --test it dunning
fails dunning::a_payment_that_the_bank_wants_confirmed_sends_the_link_at_once_and_is_no_decline

guard the last look at Stripe before a message
file  saas-billing/src/dunning/handler.rs
edit  s/invoice.status == wanted/invoice.status == wanted || true/
test  --package saas-billing --test it dunning
fails dunning::nobody_is_dunned_for_an_invoice_that_stripe_says_is_paid_though_no_event_told

guard usage that waits for a customer
file  saas-billing/src/place.rs
edit  s/if kind == ObjectKind::Customer {/if false {/
test  --package saas-billing --all-features --test it usage::
fails usage::usage_of_a_tenant_without_a_customer_waits_for_one_and_what_is_not_charged_is_left_out

guard what came in last, taken beside the longest due
file  saas-billing/src/postgres/receipt.rs
edit  s/((limit \/ 4).min(NEWEST), limit \/ 2)/(0 * NEWEST, limit \/ 2)/
test  --package saas-billing --all-features --test it together
fails together::what_has_just_come_in_does_not_wait_behind_a_flood_and_the_flood_goes_on

guard company only for what nobody has tried
file  saas-billing/src/postgres/receipt.rs
edit  s/due.was_taken or receipt.attempts > 0"/false"/
test  --package saas-billing --all-features --test it together
fails together::what_a_worker_never_came_back_from_is_tried_alone

guard the job of a debt goes with it
file  saas-billing/src/dunning/record.rs
edit  s/outbox::withdraw_in(connection, tenant, job).await?;/let _ = job;/
test  --package saas-billing --test it dunning
fails dunning::who_has_paid_before_the_worker_came_hears_nothing

guard no temporary tables
file  saas-core/src/db/roles.sql
edit  /revoke temporary/d
test  --package saas-core --test test_database
fails a_clone_refuses_what_a_migrated_database_refuses

guard the history that a slice in Redis belongs to
file  saas-entitlements/src/redis/tier/take.lua
edit  s/^if slice\[3\] ~= history.*$//
test  --package saas-entitlements --test suite -- redis::values
fails a_slice_of_a_history_that_is_over_is_not_used_again

guard the checksum of a value in Redis
file  saas-entitlements/src/redis/prelude.lua
edit  s/ or sealed(key, body) ~= value//
test  --package saas-entitlements --test suite -- redis::values
fails another_tenants_value_is_a_miss

guard the process that remembers what Redis may forget
file  saas-entitlements/src/redis/tier/mod.rs
edit  s/cell.admitted().push_back((token, used));/drop((token, used));/
test  --package saas-entitlements --test suite -- redis::attacks::redis_emptied redis::attacks::without_redis
fails redis_emptied_under_load_loses_no_use_and_grants_none_too_many

guard the nonce of a place for a slice
file  saas-entitlements/src/redis/tier/put.lua
edit  s/^if place\[2\] ~= 'open'.*$//
test  --package saas-entitlements --lib redis::
fails a_slice_comes_into_its_place_once_however_often_and_late_it_is_put
guard a price's key of what it makes and replaces
file  saas-billing/src/catalog/sync.rs
edit  s/Step::CreatePrice { replaces, .. } => price_key.*/Step::CreatePrice { .. } if round > 9 => price_key(\&command, None, round)?,/
test  --package saas-billing --test it -- catalog::
fails applied_by_several_processes_at_once_everything_is_there_once

guard the terms of a price that is kept
file  saas-billing/src/catalog/diff.rs
edit  s/holder.filter(|holder| terms_of(holder) == terms)/holder.filter(|_| true)/
test  --package saas-billing --test it -- catalog::
fails a_changed_price_is_another_one_that_takes_the_key_and_who_pays_the_old_one_goes_on

guard the look-up of usage without an answer
file  saas-billing/src/usage/send.rs
edit  s/was_sent.is_some_and(|first| first < now - REMEMBERED)/false \&\& was_sent.is_some()/
test  --package saas-billing --test it -- usage::
fails a_row_without_an_answer_for_a_day_is_looked_up_before_it_is_sent_again

guard the lease of usage under way
file  saas-billing/src/postgres/usage.rs
edit  s/set lease = $2, due_at = $4$/set lease = $2, due_at = least($4, u.due_at)/
test  --package saas-billing --test it -- usage::
fails a_worker_killed_between_send_and_mark_leaves_rows_that_count_once


guard the history that a place of leases in Redis belongs to
file  saas-entitlements/src/redis/leases/place.lua
edit  s/if place.h ~= history() then/if false then/
test  --package saas-entitlements --test suite -- redis::lending::a_place_of redis::lending::a_threshold
fails a_place_of_a_history_that_is_over_lends_nothing

guard the number of a refill of a pool in Redis
file  saas-entitlements/src/redis/leases/trim.lua
edit  s/pool.c = {}/pool.c = pool.c/
test  --package saas-entitlements --lib redis::leases
fails units_come_into_a_pool_once_and_not_after_something_took_units_back

guard what keeps a borrow that was undone from happening
file  saas-entitlements/src/redis/leases/borrow.lua
edit  s/elseif ended(place, ARGV.3.) then/elseif false then/
test  --package saas-entitlements --lib redis::leases
fails a_borrow_is_undone_once_and_does_not_happen_after_that

guard what was left of a lease that was ended
file  saas-entitlements/src/lease/asking.rs
edit  s/\*paid += rest;/*paid += 0;/
test  --package saas-entitlements --test suite -- leases::a_holder leases::the_end
fails a_holder_whose_lease_was_ended_borrows_anew_and_what_it_had_counts_as_used

guard the event of refills of a lost lease
file  saas-entitlements/migrations/0005_usage_lease.sql
edit  s/where l.unrecorded > 0$/where false/
test  --package saas-entitlements --test suite -- leasing::whoever_takes leasing::what_a_lost
fails whoever_takes_several_counters_waits_for_nobody_who_waits_for_it

guard usage that the classic mode would never charge
file  saas-billing/src/subscription/goal.rs
edit  s/subscription.billing_mode != Some(BillingMode::Flexible)/false/
test  --package saas-billing --all-features --test it hybrid
fails nothing_that_was_used_is_lost_by_a_change_that_stripe_would_not_charge_for_it

guard what was asked beside what is sold by the time of a repeat
file  saas-billing/src/subscription/goal.rs
edit  s/edit.usage = None;/let _ = edit;/
test  --package saas-billing --all-features --test it hybrid
fails a_repeat_is_the_same_change_whatever_is_sold_by_then

guard a preview that outlives a schedule that is over
file  saas-billing/src/subscription/goal.rs
edit  s/\.filter(|schedule| schedule\.following()\.is_some())//
test  --package saas-billing --test it -- changes::a_downgrade changes::a_scheduled
fails changes::a_downgrade_comes_with_the_next_period_and_says_what_will_be_too_much

guard a request while its object is being read
file  saas-billing/src/postgres/fetch.rs
edit  s/in ('done', 'dead') and asked_in <> pg_current_xact_id()/in ('done', 'dead') and false/
test  --package saas-billing --all-features --test it fetch
fails what_is_told_while_an_object_is_read_is_read_after_it

guard what an operator rereads
file  saas-billing/src/settle.rs
edit  s/objects.forget(kind, &id);//
test  --package saas-billing --all-features --test it reread
fails a_forged_end_of_a_subscription_is_undone

guard one account in one mode per database
file  saas-billing/src/postgres/home.rs
edit  s/if (account, livemode) == (&scope.account, &scope.livemode)/if scope.account.is_ascii()/
test  --package saas-billing --all-features --test it -- home:: fetch::
fails one_account_in_one_mode_is_written_to_and_shown_and_the_others_are_read

guard whose a checkout is that a visitor names
file  saas-billing/src/command/returned.rs
edit  s/if !owners.iter().any(|(_, tenant)| \*tenant == ctx.tenant())/if owners.is_empty()/
test  --package saas-billing --all-features --test it command
fails who_comes_back_from_the_page_has_what_was_bought_before_any_event
LIST
}

# Seconds that one run of tests may take.
LIMIT=120

tree=$(target_directory)/guards/tree
export CARGO_TARGET_DIR="${tree%/tree}/target"
need_scratch

# A fixed place, so that a second run keeps the dependencies; fresh modification times, which cargo goes by: an old one
# would let it take the last run's mutants for these files.
rm -rf "$tree"
mkdir -p "$tree"
git ls-files --cached --others --exclude-standard | while read -r file; do
    if [ -e "$file" ]; then printf '%s\n' "$file"; fi
done | tar -cf - -T - | tar -xmf - -C "$tree"
cd "$tree"
cargo build --quiet --all-features --package saas-core --example dev_postgres
start_server

# A mutant may wait for ever. Without `timeout` (macOS) that has to be ended by hand.
limited=
if have timeout; then limited="timeout --kill-after=10 $LIMIT"; fi

# run_guarded TEST-ARGUMENTS: builds, then tests into $scratch/log. 2: does not build, 1: a test fails or does not end.
run_guarded() {
    # shellcheck disable=SC2086 # a word list
    cargo test --quiet --all-features --no-run $1 >"$scratch/log" 2>&1 9>&- || return 2
    # shellcheck disable=SC2086
    $limited cargo test --all-features --no-fail-fast $1 >"$scratch/log" 2>&1 9>&- || return 1
}

say "the tests pass with every guard in place:"
guards | sed -n 's/^test  *//p' | sort -u >"$scratch/tests"
while read -r arguments; do
    run_guarded "$arguments" || { cat "$scratch/log" >&2; fail "cargo test $arguments fails before any guard is removed"; }
    say "  cargo test $arguments"
done <"$scratch/tests"

survivors=0
verdict() { printf '%-46s %s\n' "$guard" "$1"; }
survives() { verdict "SURVIVES: $1"; survivors=$((survivors + 1)); }

judge() {
    cp "$file" "$scratch/original"
    # A fresh modification time each way: cargo goes by it.
    sed -e "$edit" "$scratch/original" >"$file"
    code=0
    if cmp -s "$file" "$scratch/original"; then
        survives "the edit changes nothing in $file"
        return
    fi
    run_guarded "$arguments" || code=$?
    cat "$scratch/original" >"$file"
    if [ $code = 2 ]; then
        survives "the tree no longer builds"
    elif ! grep -q "^test .*$1 \.\.\. FAILED" "$scratch/log"; then
        survives "$1 does not fail"
    elif ! grep -q '^test .* \.\.\. ok' "$scratch/log"; then
        survives "every test fails, so the tree is merely broken"
    else
        verdict "noticed by $1"
    fi
}

printf '\n%-46s %s\n' "guard removed" "verdict"
guards >"$scratch/guards"
while read -r key value; do
    case $key in
        guard) guard=$value ;;
        file) file=$value ;;
        edit) edit=$value ;;
        test) arguments=$value ;;
        fails) judge "$value" </dev/null ;;
        '') ;;
        *) fail "unknown line in the list of guards: $key $value" ;;
    esac
done <"$scratch/guards"
[ $survivors = 0 ] || fail "$survivors guards can be removed without a test noticing."
