-- Puts what PostgreSQL has lent into the pool, once, and lends of it to whoever asked for it. What was needed is counted.
-- ARGV: life of the place, rule, lease, number, spent, want, cost, life, question, pool, number of the refill, units, used, and
-- spent of the pool as PostgreSQL knows them.
local place, why = load_all()
if not place then return { why, '0', '0', '0' } end
local number, spent, want, cost = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local refill, units = tonumber(ARGV[11]), tonumber(ARGV[12])
local lease, lender = find(place, ARGV[3])
local is_lent = lease and lease.q == ARGV[9] and lease.n == number
local pool, at = pool_of(place, ARGV[10])
local claim
if pool then
    for one, under_way in ipairs(pool.c) do
        if under_way[1] == refill then claim = one end
    end
end
if not claim then
    if is_lent then return answer(place, 'lent', text(lease.a), text(used(place))) end
    return { 'late', '0', '0', '0' }
end
table.remove(pool.c, claim)
if is_lent then
    -- By a copy of the borrow that came late. What was needed has been counted with the refill.
    lender.l = lender.l + lease.u
    lender.u = lender.u - lease.u
    lease.u = 0
    close(lender, ARGV[3], lease)
end
local had = text(is_lent and lease.a or 0)
if pool.n == 0 then
    -- It was not made where nothing was lent.
    if units == 0 then
        table.remove(place.p, at)
        place.b = tonumber(ARGV[13])
        return answer(place, 'lent', had, ARGV[13])
    end
    pool.n = 1
end
pool.l = pool.l + units
pool.r = ARGV[2]
learn(place, pool, tonumber(ARGV[13]), tonumber(ARGV[14]))
local lent = place.w > now and 0 or math.min(want, pool.l)
lent = lent - lent % cost
if lease and number <= lease.n then return answer(place, 'lent', had, text(used(place))) end
if not lease then
    -- One that had borrowed before, or that is undone, is over: it does not begin anew.
    lease = number == 0 and lent > 0 and not ended(ARGV[3]) and new_lease(pool)
    if not lease then return answer(place, 'lent', '0', text(used(place))) end
end
lend(pool, ARGV[3], lease, lent, 0, spent, number, tonumber(ARGV[8]), ARGV[9])
return answer(place, 'lent', text(lent), text(used(place)))
