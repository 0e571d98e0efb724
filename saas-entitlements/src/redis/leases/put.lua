-- Puts what PostgreSQL has lent into the pool, once, and lends of it to whoever asked for it. What was needed is counted.
-- ARGV: life of the place, rule, lease, number, spent, want, cost, life, question, pool, number of the refill, units, used, and
-- spent of the pool as PostgreSQL knows them.
local place, why = load_all()
if not place then return { why, '0', '0', '0' } end
local number, spent, want, cost = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local refill, units = tonumber(ARGV[11]), tonumber(ARGV[12])
local lease = find(place, ARGV[3])
if lease and lease.q == ARGV[9] and lease.n == number then
    return answer(place, 'lent', text(lease.a), text(used(place)))
end
local pool, at = pool_of(place, ARGV[10])
local claim
if pool then
    for one, under_way in ipairs(pool.c) do
        if under_way[1] == refill then claim = one end
    end
end
if not claim then return { 'late', '0', '0', '0' } end
table.remove(pool.c, claim)
if pool.n == 0 then
    -- It was not made where nothing was lent.
    if units == 0 then
        table.remove(place.p, at)
        place.b = tonumber(ARGV[13])
        return answer(place, 'lent', '0', ARGV[13])
    end
    pool.n = 1
end
pool.l = pool.l + units
pool.r = ARGV[2]
learn(place, pool, tonumber(ARGV[13]), tonumber(ARGV[14]))
local lent = place.w > now and 0 or math.min(want, pool.l)
lent = lent - lent % cost
if lease and number <= lease.n then return answer(place, 'lent', '0', text(used(place))) end
if not lease then
    lease = lent > 0 and new_lease(pool)
    if not lease then return answer(place, 'lent', '0', text(used(place))) end
end
lend(pool, ARGV[3], lease, lent, 0, spent, number, tonumber(ARGV[8]), ARGV[9])
return answer(place, 'lent', text(lent), text(used(place)))
